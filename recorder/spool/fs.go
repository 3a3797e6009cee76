// The few things that a spool does with files, so that tests can take the power away between any two of them.

package spool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/neolith/orchestrator/internal/fault"
)

const (
	dirMode  = 0o700
	fileMode = 0o600
	lockName = "lock"
)

// file is an open file.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
	Truncate(size int64) error
}

// filesystem is one directory.
type filesystem interface {
	// Create makes a file that must not be there.
	Create(name string) (file, error)
	// Open opens a file that must be there, for reading and writing.
	Open(name string) (file, error)
	Remove(name string) error
	Rename(from, to string) error
	// List returns the sizes of all files by their names.
	List() (map[string]int64, error)
	// Sync makes durable which files there are.
	Sync() error
	Close() error
}

// disk is a directory of the machine. It implements filesystem.
type disk struct {
	root *os.Root
	dir  *os.File // to be synced
	lock *os.File
}

// openDisk makes the directory when it is not there, and locks it.
func openDisk(path string) (_ *disk, err error) {
	if err := os.MkdirAll(path, dirMode); err != nil {
		return nil, fmt.Errorf("spool: open: %w", err)
	}
	d := &disk{}
	defer func() {
		if err != nil {
			_ = d.Close()
		}
	}()
	if d.root, err = os.OpenRoot(path); err != nil {
		return nil, fmt.Errorf("spool: open: %w", err)
	}
	if d.dir, err = d.root.Open("."); err != nil {
		return nil, fmt.Errorf("spool: open: %w", err)
	}
	if d.lock, err = d.root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, fileMode); err != nil {
		return nil, fmt.Errorf("spool: open: %w", err)
	}
	if err = syscall.Flock(int(d.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fault.New(fault.FailedPrecondition, "spool: open %s: another process has it open: %w", path, err)
	}
	return d, nil
}

func (d *disk) Create(name string) (file, error) {
	return d.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (d *disk) Open(name string) (file, error) { return d.open(name, os.O_RDWR) }

// open returns no *os.File in an interface where there is none.
func (d *disk) open(name string, flag int) (file, error) {
	f, err := d.root.OpenFile(name, flag, fileMode)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d *disk) Remove(name string) error { return d.root.Remove(name) }

func (d *disk) Rename(from, to string) error { return d.root.Rename(from, to) }

func (d *disk) List() (map[string]int64, error) {
	dir, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	infos, err := dir.Readdir(-1)
	if err != nil {
		return nil, err
	}
	all := make(map[string]int64, len(infos))
	for _, i := range infos {
		if i.Mode().IsRegular() {
			all[i.Name()] = i.Size()
		}
	}
	return all, nil
}

func (d *disk) Sync() error { return d.dir.Sync() }

// Close lets go of the directory, and of what of it was opened.
func (d *disk) Close() error {
	var errs []error
	for _, f := range []*os.File{d.lock, d.dir} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if d.root != nil {
		errs = append(errs, d.root.Close())
	}
	return errors.Join(errs...)
}
