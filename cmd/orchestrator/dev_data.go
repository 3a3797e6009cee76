// What dev makes sure of before it starts anything: that its data is its own, that the cluster in it is the one that was
// asked for, and that the ports are free.

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"

	"github.com/neolith/orchestrator/internal/fault"
)

const (
	devLockFile  = "lock"
	devShapeFile = "dev.json"
)

// devShape is what a data directory was started with last.
type devShape struct {
	Servers  int `json:"servers"`
	Agents   int `json:"agents"`
	BasePort int `json:"basePort"`
}

// hold makes the data directory and keeps every other dev out of it until the lock is closed.
func (d *dev) hold() error {
	if err := os.MkdirAll(d.data, 0o700); err != nil {
		return fault.New(fault.Invalid, "--data: %w; choose a directory that you may write", err)
	}
	f, err := os.OpenFile(d.path(devLockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fault.New(fault.Invalid, "--data: %w; choose a directory that you may write", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid := make([]byte, 16)
		n, _ := f.Read(pid)
		_ = f.Close()
		return fault.New(fault.FailedPrecondition, "--data: %s is in use by `orchestrator dev` with pid %s; stop that one, or give this one a --data and a --base-port of its own", d.data, strings.TrimSpace(string(pid[:n])))
	}
	d.lock = f
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	return nil
}

// asBefore takes what was not given from what the data directory was started with last, refuses what its cluster cannot
// become, and writes down what it is started with now. Whatever is refused changes nothing.
func (d *dev) asBefore(given func(flag string) bool) error {
	before, err := d.readShape()
	if err != nil {
		return err
	}
	if before != nil {
		for _, s := range []struct {
			flag   string
			before int
			now    *int
		}{{"servers", before.Servers, &d.servers}, {"agents", before.Agents, &d.agents}, {"base-port", before.BasePort, &d.basePort}} {
			if !given(s.flag) {
				*s.now = s.before
			}
		}
		switch {
		case d.servers != before.Servers:
			return fault.New(fault.Invalid, "--servers: %s holds a cluster of %d servers, not %d; leave --servers out, or give another --data", d.data, before.Servers, d.servers)
		case d.servers > 1 && d.basePort != before.BasePort:
			return fault.New(fault.Invalid, "--base-port: the servers in %s know each other at ports from %d on; leave --base-port out, or give another --data", d.data, before.BasePort)
		}
	}
	if err := d.portsFree(); err != nil {
		return err
	}
	b, err := json.Marshal(devShape{Servers: d.servers, Agents: d.agents, BasePort: d.basePort})
	if err != nil {
		return fmt.Errorf("encode %s: %w", devShapeFile, err)
	}
	if err := renameio.WriteFile(d.path(devShapeFile), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", devShapeFile, err)
	}
	return nil
}

// readShape is what the data directory was started with last; nil when it never was.
func (d *dev) readShape() (*devShape, error) {
	b, err := os.ReadFile(d.path(devShapeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "--data: %w; choose a directory that you may read", err)
	}
	s := &devShape{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fault.New(fault.Invalid, "--data: %s is damaged: %w; remove that file and give --servers, --agents and --base-port as they were", d.path(devShapeFile), err)
	}
	return s, nil
}

// portsFree refuses ports that somebody uses, before a server fails on them: what listens there may be another cluster, which
// would answer in the place of this one.
func (d *dev) portsFree() error {
	taken := func(err error) error {
		return fault.New(fault.Invalid, "--base-port: %w; end what uses it, or choose another --base-port", err)
	}
	for i := range d.servers {
		a := d.addresses(i)
		for _, address := range []string{a.Gossip, a.Raft, a.GRPC, a.Link, a.Client} {
			l, err := net.Listen("tcp", address)
			if err != nil {
				return taken(err)
			}
			_ = l.Close() // it was only tried
		}
		u, err := net.ListenPacket("udp", a.Gossip)
		if err != nil {
			return taken(err)
		}
		_ = u.Close()
	}
	return nil
}
