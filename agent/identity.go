// Who this node is, for good: its id, its cluster, its incarnation; and that nobody else uses its data directory.

package agent

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/internal/fault"
)

const (
	identityFile    = "node.json"
	identityVersion = 1
	lockFile        = "lock"
)

// identity is the content of node.json.
//
// History of its version: 1, the first.
type identity struct {
	Version   int    `json:"version"`
	NodeID    string `json:"nodeId"`
	ClusterID string `json:"clusterId,omitempty"` // empty before the first hello_ack
	// Incarnation is raised at each start; facts are numbered anew in each.
	Incarnation uint64 `json:"incarnation"`
}

// dataDir is a node's data directory, held by this process alone.
type dataDir struct {
	path string // absolute
	root *os.Root
	lock *os.File
	id   identity
}

// openDataDir makes or opens the directory, takes its lock, and begins the next incarnation.
func openDataDir(path string) (_ *dataDir, err error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("agent: resolve the data directory %s: %w", path, err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, fault.New(fault.Invalid, "agent: make the data directory: %w; make it writable for this user, or choose another data_dir", err)
	}
	d := &dataDir{path: abs}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.root, err = os.OpenRoot(abs); err != nil {
		return nil, fault.New(fault.Invalid, "agent: open the data directory: %w; make it readable for this user, or choose another data_dir", err)
	}
	if err := d.takeLock(); err != nil {
		return nil, err
	}
	if err := d.loadIdentity(); err != nil {
		return nil, err
	}
	d.id.Incarnation++
	if err := d.saveIdentity(); err != nil {
		return nil, err
	}
	return d, nil
}

// takeLock refuses a directory that another agent uses. The lock goes with the process, however it ends; sessions do
// not inherit it.
func (d *dataDir) takeLock() error {
	f, err := d.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fault.New(fault.Invalid, "agent: open the lock of data directory %s: %w; make it writable for this user", d.path, err)
	}
	d.lock = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("agent: lock data directory %s: %w", d.path, err)
		}
		holder := make([]byte, 32)
		n, _ := f.ReadAt(holder, 0)
		pid := strings.TrimSpace(string(holder[:n]))
		return fault.New(fault.FailedPrecondition, "agent: data directory %s is in use by the node-agent with pid %s; stop that one, or give this one a data_dir of its own", d.path, pid)
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("agent: write the lock of %s: %w", d.path, err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("agent: write the lock of %s: %w", d.path, err)
	}
	return nil
}

func (d *dataDir) loadIdentity() error {
	file := filepath.Join(d.path, identityFile)
	b, err := d.root.ReadFile(identityFile)
	if errors.Is(err, fs.ErrNotExist) {
		var id [8]byte
		rand.Read(id[:]) // never fails
		d.id = identity{Version: identityVersion, NodeID: "node-" + hex.EncodeToString(id[:])}
		return nil
	}
	if err != nil {
		return fault.New(fault.Invalid, "agent: read the node's identity: %w; make %s readable for this user", err, file)
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil || id.NodeID == "" || id.Version < 1 {
		return fault.New(fault.Invalid, "agent: %s is damaged; restore it from a backup, or start with an empty data_dir as a new node", file)
	}
	if id.Version > identityVersion {
		return fault.New(fault.Invalid, "agent: %s has version %d and this node-agent knows %d; it was written by a newer release: run that one, or give this one a data_dir of its own", file, id.Version, identityVersion)
	}
	d.id = id
	return nil
}

// saveIdentity writes node.json so that it survives a loss of power: an incarnation must never be used twice.
func (d *dataDir) saveIdentity() error {
	b, err := json.MarshalIndent(d.id, "", "  ")
	if err != nil {
		return fmt.Errorf("agent: write the node's identity: %w", err)
	}
	if err := renameio.WriteFile(identityFile, append(b, '\n'), 0o600, renameio.WithRoot(d.root), renameio.WithStaticPermissions(0o600)); err != nil {
		return fmt.Errorf("agent: write the node's identity in %s: %w", d.path, err)
	}
	dir, err := d.root.Open(".")
	if err != nil {
		return fmt.Errorf("agent: sync %s: %w", d.path, err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("agent: sync %s: %w", d.path, err)
	}
	return nil
}

// joinCluster remembers the cluster at the first link, and refuses another one ever after.
func (d *dataDir) joinCluster(clusterID, server string) error {
	switch {
	case clusterID == "" || clusterID == d.id.ClusterID:
		return nil
	case d.id.ClusterID != "":
		return fault.New(fault.Invalid, "agent: data directory %s belongs to cluster %s, and server %s is of cluster %s; correct servers, or start with an empty data_dir as a new node", d.path, d.id.ClusterID, server, clusterID)
	}
	d.id.ClusterID = clusterID
	return d.saveIdentity()
}

func (d *dataDir) close() {
	if d.lock != nil {
		d.lock.Close()
	}
	if d.root != nil {
		d.root.Close()
	}
}
