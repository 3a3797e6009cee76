// Layers: files in a tar archive that is the same whenever and wherever it is made.

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
)

// fileSpec is a file or a folder of a layer.
type fileSpec struct {
	path    string // without a slash before it
	dir     bool
	content []byte
	mode    int64
	owner   int // user and group
}

// layer is packed.
type layer struct {
	blob
	note         string
	diffID       string // the digest of what is unpacked
	unpackedSize int64
}

// packer keeps what it packed: images share layers, and packing them is what takes the time.
type packer map[string]*layer // by the digest of what is unpacked

// pack packs files in their order. Times are the beginning of time, so that content alone decides the digest.
func (p packer) pack(note string, files []fileSpec) (*layer, error) {
	var raw, packed bytes.Buffer
	w := tar.NewWriter(&raw)
	for _, f := range files {
		h := &tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: f.path, Mode: f.mode, Uid: f.owner, Gid: f.owner, Size: int64(len(f.content)), ModTime: time.Unix(0, 0)}
		if f.dir {
			h.Typeflag, h.Name = tar.TypeDir, f.path+"/"
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.path, err)
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, fmt.Errorf("pack %s: %w", f.path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	diffID := digestOf(raw.Bytes())
	if l := p[diffID]; l != nil {
		return l, nil
	}
	// The header has neither name nor time.
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(raw.Bytes()); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	p[diffID] = &layer{blob: newBlob(packed.Bytes()), note: note, diffID: diffID, unpackedSize: int64(raw.Len())}
	return p[diffID], nil
}

// withParents puts the folders before a file that lead to it.
func withParents(f fileSpec) []fileSpec {
	files := []fileSpec{f}
	for path := f.path; ; {
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			break
		}
		path = path[:i]
		files = append(files, fileSpec{path: path, dir: true, mode: 0o755})
	}
	slices.Reverse(files)
	return files
}

// digestOf names bytes as registries do.
func digestOf(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}
