// The data directory: whose it is, and whether this release may open it.

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"

	"github.com/neolith/orchestrator/internal/fault"
)

// DataVersion is the layout of a server's data directory; a directory of a newer one is refused.
//
//	1  raft/wal, raft/snapshots, server.json
const DataVersion = 1

// dataRecord is server.json.
type dataRecord struct {
	Version int    `json:"version"`
	Cluster string `json:"cluster"`
	Server  string `json:"server"`
}

// DataDir is a data directory in use by this process.
type DataDir struct {
	Path string
	lock *os.File
}

// OpenDataDir takes the directory for a server of a cluster, making it when it is new. It refuses a directory of another
// server or cluster, of a newer release, without permission, or in use.
func OpenDataDir(path, cluster, server string) (*DataDir, error) {
	if err := makeDir(path); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fault.New(fault.Invalid, "data directory %s: %w; give it to the user this server runs as", path, err)
	}
	d := &DataDir{Path: path, lock: lock}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fault.New(fault.FailedPrecondition, "data directory %s: another process uses it; end that one, or choose another data_dir", path)
	}
	if err := d.check(dataRecord{Version: DataVersion, Cluster: cluster, Server: server}); err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

func (d *DataDir) check(want dataRecord) error {
	file := filepath.Join(d.Path, "server.json")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = json.Marshal(want)
		if err != nil {
			return fmt.Errorf("encode %s: %w", file, err)
		}
		if err := renameio.WriteFile(file, append(b, '\n'), 0o600); err != nil {
			return fmt.Errorf("write %s: %w", file, err)
		}
		return nil
	}
	if err != nil {
		return fault.New(fault.Invalid, "read %s: %w", file, err)
	}
	var have dataRecord
	if err := json.Unmarshal(b, &have); err != nil {
		return fault.New(fault.Invalid, "read %s: %w; restore it, or start with an empty data_dir", file, err)
	}
	switch {
	case have.Version > want.Version:
		return fault.New(fault.Invalid, "data directory %s: has version %d, and this release knows %d; run the newer release", d.Path, have.Version, want.Version)
	case have.Cluster != want.Cluster:
		return fault.New(fault.Invalid, "data directory %s: belongs to cluster %q, not %q; choose another data_dir, or mend cluster", d.Path, have.Cluster, want.Cluster)
	case have.Server != want.Server:
		return fault.New(fault.Invalid, "data directory %s: belongs to server %q, not %q; choose another data_dir, or mend name", d.Path, have.Server, want.Server)
	}
	return nil
}

// Close gives the directory back.
func (d *DataDir) Close() error { return d.lock.Close() }

func makeDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fault.New(fault.Invalid, "make directory %s: %w; give its parent to the user this server runs as, or choose another data_dir", path, err)
	}
	return nil
}
