// Package driverload starts processes with nothing of the cluster around: the agent's own driver and shim, called in a
// loop, and below it plain fork and exec. It is what spawning sessions is compared to.
package driverload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/driver/process"
	"github.com/neolith/orchestrator/agent/lease"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/agent/shim/embed"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/testbed"
	"github.com/neolith/orchestrator/session"
)

// Role is the name of the helper.
const Role = "driver"

// leaseTime is longer than any measurement.
const leaseTime = 24 * time.Hour

// StartArgs say how many processes to start, by how many callers.
type StartArgs struct {
	Callers, Count int
	Command        []string
}

type starter struct {
	dir     string
	lease   *lease.Writer
	driver  driver.Driver
	started int

	mu      sync.Mutex
	running []driver.Process
	plain   []*exec.Cmd
}

// Serve returns what the helper answers.
func Serve() testbed.Handlers {
	s := &starter{}
	return testbed.Handlers{
		"open":  testbed.Handle(s.open),
		"start": testbed.Handle(s.start),
		"fork":  testbed.Handle(s.fork),
		"end":   testbed.Handle(s.end),
	}
}

// open makes the driver as node-agent does.
func (s *starter) open(_ context.Context, dir string) (struct{}, error) {
	s.dir = dir
	program := shim.Self()
	path, err := embed.Extract(dir)
	if err != nil {
		return struct{}{}, err
	}
	if path != "" {
		program = shim.Program{Path: path}
	}
	if s.lease, err = lease.OpenWriter(filepath.Join(dir, "lease")); err != nil {
		return struct{}{}, err
	}
	s.driver = process.New(process.Options{Shim: program})
	return struct{}{}, s.lease.Renew(s.lease.Now() + int64(leaseTime))
}

// start starts sessions; they run until end.
func (s *starter) start(ctx context.Context, a StartArgs) (measure.Summary, error) {
	base := s.started
	s.started += a.Count
	return measure.Each(a.Callers, a.Count, func(i int) error {
		id := "s" + strconv.Itoa(base+i)
		dir := filepath.Join(s.dir, id)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		spec := &session.Spec{Type: session.TypeProcess, Command: a.Command}
		spec.Normalize()
		p, err := s.driver.Start(ctx, driver.Start{
			SessionID: id, Epoch: 1, Spec: spec, Dir: dir, Env: []string{"PATH=" + os.Getenv("PATH")}, LeaseFile: filepath.Join(s.dir, "lease"),
		})
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.running = append(s.running, p)
		s.mu.Unlock()
		return nil
	}), nil
}

// fork starts processes with pipes and nothing else.
func (s *starter) fork(_ context.Context, a StartArgs) (measure.Summary, error) {
	return measure.Each(a.Callers, a.Count, func(int) error {
		cmd := exec.Command(a.Command[0], a.Command[1:]...)
		if _, err := cmd.StdinPipe(); err != nil {
			return err
		}
		if _, err := cmd.StdoutPipe(); err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		s.mu.Lock()
		s.plain = append(s.plain, cmd)
		s.mu.Unlock()
		return nil
	}), nil
}

// end ends everything and waits for it.
func (s *starter) end(ctx context.Context, _ struct{}) (int, error) {
	for _, p := range s.running {
		p.Kill(session.Exit{Cause: session.CauseTerminated})
	}
	for _, p := range s.running {
		select {
		case <-p.Done():
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	var errs []error
	for _, c := range s.plain {
		if err := c.Process.Kill(); err != nil {
			errs = append(errs, fmt.Errorf("end a process: %w", err))
		}
		_ = c.Wait() // killed, as was wanted
	}
	n := len(s.running) + len(s.plain)
	s.running, s.plain = nil, nil
	return n, errors.Join(errs...)
}
