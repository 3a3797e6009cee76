// The raw cluster as seen from outside.

package rawraft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/testbed"
)

const (
	size         = 3
	readyTimeout = 30 * time.Second
)

// Timings are raft's time-outs; the zero value means the library's own.
type Timings struct{ Heartbeat, Election, Lease time.Duration }

// Cluster is three processes.
type Cluster struct {
	dir       string
	timings   Timings
	addresses []string
	nodes     [size]*testbed.Helper
}

// Start starts a cluster with its data in dir, and waits for a leader.
func Start(ctx context.Context, dir string, t Timings) (*Cluster, error) {
	c := &Cluster{dir: dir, timings: t}
	var open []net.Listener
	for range size {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		open, c.addresses = append(open, l), append(c.addresses, l.Addr().String())
	}
	for _, l := range open {
		_ = l.Close()
	}
	for i := range size {
		if err := c.StartNode(ctx, i); err != nil {
			c.Stop()
			return nil, err
		}
	}
	if _, err := c.Leader(ctx); err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

// StartNode starts one process, on the data that it has.
func (c *Cluster) StartNode(ctx context.Context, i int) (err error) {
	if c.nodes[i], err = testbed.StartHelper(Role); err != nil {
		return err
	}
	return c.nodes[i].Ask(ctx, "start", StartArgs{
		ID: i, Dir: c.dir, Addresses: c.addresses, Heartbeat: c.timings.Heartbeat, Election: c.timings.Election, Lease: c.timings.Lease,
	}, nil)
}

// Kill ends a process as a power cut would.
func (c *Cluster) Kill(i int) {
	c.nodes[i].Kill()
	c.nodes[i] = nil
}

// Leader waits for a leader, and returns its number.
func (c *Cluster) Leader(ctx context.Context) (int, error) { return c.first(ctx, "leads") }

// Commit waits until some process has committed an entry, and returns its number.
func (c *Cluster) Commit(ctx context.Context) (int, error) { return c.first(ctx, "commit") }

// first asks the processes in turn until one says yes.
func (c *Cluster) first(ctx context.Context, ask string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		for i, n := range c.nodes {
			if n == nil {
				continue
			}
			var yes bool
			if err := n.Ask(ctx, ask, nil, &yes); err != nil {
				return 0, err
			}
			if yes {
				return i, nil
			}
		}
		select {
		case <-ctx.Done():
			return 0, errors.New("the raw cluster has no leader")
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Load has callers in the leader's process apply entries.
func (c *Cluster) Load(ctx context.Context, a LoadArgs) (s measure.Summary, err error) {
	leader, err := c.Leader(ctx)
	if err != nil {
		return s, err
	}
	return s, c.nodes[leader].Ask(ctx, "load", a, &s)
}

// PIDs are the ids of the processes that run.
func (c *Cluster) PIDs() (pids []int) {
	for _, n := range c.nodes {
		if n != nil {
			pids = append(pids, n.PID())
		}
	}
	return pids
}

// Stop ends all processes.
func (c *Cluster) Stop() {
	for i, n := range c.nodes {
		if n != nil {
			c.Kill(i)
		}
	}
}
