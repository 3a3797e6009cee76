// One process of the raw cluster, and the load on it.

package rawraft

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/testbed"
)

// Role is the name of the helper that runs a process of the cluster.
const Role = "raft"

const (
	maxAppendEntries = 512
	logCacheEntries  = 512
	transportPool    = 3
	applyTimeout     = 10 * time.Second
)

// StartArgs say which process of which cluster to be.
type StartArgs struct {
	ID        int
	Dir       string
	Addresses []string
	// Heartbeat, Election and Lease are raft's time-outs; 0 for the library's own.
	Heartbeat, Election, Lease time.Duration
}

// LoadArgs say what to apply.
type LoadArgs struct {
	Callers      int
	Bytes        int
	Warm, Length time.Duration
}

type node struct{ raft *raft.Raft }

// Serve returns what the helper answers.
func Serve() testbed.Handlers {
	n := &node{}
	return testbed.Handlers{
		"start":  testbed.Handle(n.start),
		"leads":  testbed.Handle(n.leads),
		"load":   testbed.Handle(n.load),
		"commit": testbed.Handle(n.commit),
	}
}

// counter is the state machine.
type counter struct{ n atomic.Uint64 }

func (c *counter) Apply(*raft.Log) any                 { c.n.Add(1); return nil }
func (c *counter) Snapshot() (raft.FSMSnapshot, error) { return c, nil }
func (c *counter) Restore(r io.ReadCloser) error       { return r.Close() }
func (c *counter) Persist(s raft.SnapshotSink) error   { return s.Close() }
func (c *counter) Release()                            {}

// ApplyBatch implements raft.BatchingFSM.
func (c *counter) ApplyBatch(logs []*raft.Log) []any {
	c.n.Add(uint64(len(logs)))
	return make([]any, len(logs))
}

// stream is raft's TCP transport.
type stream struct{ net.Listener }

// Dial implements raft.StreamLayer.
func (stream) Dial(a raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", string(a), timeout)
}

func (n *node) start(_ context.Context, a StartArgs) (struct{}, error) {
	dir := filepath.Join(a.Dir, "raft-"+strconv.Itoa(a.ID))
	if err := os.MkdirAll(filepath.Join(dir, "wal"), 0o700); err != nil {
		return struct{}{}, err
	}
	log, err := wal.Open(filepath.Join(dir, "wal"), wal.WithLogger(hclog.NewNullLogger()))
	if err != nil {
		return struct{}{}, fmt.Errorf("open the log: %w", err)
	}
	cached, err := raft.NewLogCache(logCacheEntries, log)
	if err != nil {
		return struct{}{}, err
	}
	snapshots, err := raft.NewFileSnapshotStore(dir, 2, io.Discard)
	if err != nil {
		return struct{}{}, err
	}
	listener, err := net.Listen("tcp", a.Addresses[a.ID])
	if err != nil {
		return struct{}{}, err
	}
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: stream{listener}, MaxPool: transportPool, Timeout: applyTimeout, Logger: hclog.NewNullLogger(),
	})
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(strconv.Itoa(a.ID))
	c.Logger = hclog.NewNullLogger()
	c.MaxAppendEntries, c.BatchApplyCh, c.NoLegacyTelemetry = maxAppendEntries, true, true
	if a.Heartbeat > 0 {
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = a.Heartbeat, a.Election, a.Lease
	}
	has, err := raft.HasExistingState(cached, log, snapshots)
	if err != nil {
		return struct{}{}, err
	}
	if n.raft, err = raft.NewRaft(c, &counter{}, cached, log, snapshots, transport); err != nil || has {
		return struct{}{}, err
	}
	var all raft.Configuration
	for i, address := range a.Addresses {
		all.Servers = append(all.Servers, raft.Server{ID: raft.ServerID(strconv.Itoa(i)), Address: raft.ServerAddress(address)})
	}
	return struct{}{}, n.raft.BootstrapCluster(all).Error()
}

// leads reports whether this process leads, confirmed by the others.
func (n *node) leads(context.Context, struct{}) (bool, error) {
	return n.raft.State() == raft.Leader && n.raft.VerifyLeader().Error() == nil, nil
}

// commit commits one entry, for a caller that waits for it; false when this process cannot.
func (n *node) commit(context.Context, struct{}) (bool, error) {
	if n.raft.State() != raft.Leader {
		return false, nil
	}
	return n.raft.Apply([]byte("x"), applyTimeout).Error() == nil, nil
}

// load applies entries, each caller one at a time.
func (n *node) load(_ context.Context, a LoadArgs) (measure.Summary, error) {
	command := make([]byte, a.Bytes)
	for i := range command {
		command[i] = byte(i * 7)
	}
	return measure.ClosedLoop(a.Callers, a.Warm, a.Length, func(int) error {
		return n.raft.Apply(command, applyTimeout).Error()
	}), nil
}
