// Package embed carries the shim's binary inside the node agent and puts it on disk.
//
// `make build` builds agent/shim/cmd/shim into this folder first. A plain `go build` finds none, and the node agent then
// executes itself as its shim.
package embed

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

//go:embed shim*
var files embed.FS

// Extract writes the embedded shim to DATA/bin/shim-HASH, unless it is there already, and returns the path; empty when
// this build carries none. Shims of earlier agents may still run, so nothing is ever written over.
func Extract(dataDir string) (string, error) {
	b, err := files.ReadFile("shim")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("shim: read the embedded one: %w", err)
	}
	return extract(dataDir, b)
}

func extract(dataDir string, b []byte) (string, error) {
	sum := sha256.Sum256(b)
	dir := filepath.Join(dataDir, "bin")
	path := filepath.Join(dir, "shim-"+hex.EncodeToString(sum[:8]))
	if have, err := os.ReadFile(path); err == nil && sha256.Sum256(have) == sum {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("shim: extract: %w", err)
	}
	f, err := os.CreateTemp(dir, "shim-*.new")
	if err != nil {
		return "", fmt.Errorf("shim: extract: %w", err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(0o700)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return "", fmt.Errorf("shim: extract: %w", err)
	}
	return path, nil
}
