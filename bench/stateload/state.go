// Package stateload fills the replicated state with sessions, in one process and without raft, and weighs it.
package stateload

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/bench/testbed"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/session"
)

// Role is the name of the helper.
const Role = "state"

const (
	nodes          = 1000
	sessionsABatch = 500
	writeBuffer    = 1 << 20
)

// FillArgs say what to fill the state with.
type FillArgs struct{ Sessions int }

// Filled is what filling took. Bytes are of the heap, after a collection, above what it was before.
type Filled struct {
	Seconds float64
	Bytes   uint64
}

// Saved is what a snapshot, or its restore, took; Bytes are those of the file, or of the heap.
type Saved struct {
	Seconds float64
	Bytes   uint64
}

type filler struct {
	store *state.Store
	index uint64
	facts [nodes]uint64
}

// Serve returns what the helper answers.
func Serve() testbed.Handlers {
	f := &filler{}
	return testbed.Handlers{
		"fill":    testbed.Handle(f.fill),
		"save":    testbed.Handle(f.save),
		"restore": testbed.Handle(f.restore),
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers held is free now
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func sessionID(i int) string { return fmt.Sprintf("%08xabcdefghijkl", uint32(i)*2654435761) }
func nodeID(i int) string    { return fmt.Sprintf("node-id-%04d", i) }

// fill spawns sessions, each with a name of its own and labels that many share, places them on nodes, and has them run.
func (f *filler) fill(_ context.Context, a FillArgs) (Filled, error) {
	before, start := heap(), time.Now()
	f.store = state.New(state.DefaultLimits())
	var register []*clusterv1.Command
	for i := range nodes {
		register = append(register, &clusterv1.Command{Kind: &clusterv1.Command_RegisterNode{RegisterNode: &clusterv1.RegisterNode{
			NodeId: nodeID(i), Name: fmt.Sprintf("node-%04d", i), Incarnation: 1, Version: "v1",
			Capabilities: &apiv1.Capabilities{CanSpawnSessions: true, SupportedSessionTypes: []string{session.TypeProcess}},
		}}})
	}
	if err := f.apply(register); err != nil {
		return Filled{}, err
	}
	for at := 0; at < a.Sessions; at += sessionsABatch {
		if err := f.spawn(at, min(at+sessionsABatch, a.Sessions)); err != nil {
			return Filled{}, err
		}
	}
	took := time.Since(start)
	return Filled{Seconds: took.Seconds(), Bytes: heap() - before}, nil
}

func (f *filler) apply(commands []*clusterv1.Command) error {
	f.index++
	for _, r := range f.store.Apply(f.index, &clusterv1.Batch{Time: int64(f.index) * int64(time.Millisecond), Commands: commands}) {
		if r.Err != nil {
			return r.Err
		}
	}
	return nil
}

// spawn makes sessions run: one entry creates and places them, the next says that they were started.
func (f *filler) spawn(from, to int) error {
	var spawn, started []*clusterv1.Command
	for i := from; i < to; i++ {
		node := i % nodes
		spawn = append(spawn, &clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{
			SessionId: sessionID(i), NodeId: nodeID(node), Actor: "token bench", Placement: "least-connections: fewest sessions (812), 1000 of 1000 nodes fit",
			Spec: &apiv1.SessionSpec{
				Name: fmt.Sprintf("agent-%07d", i), Command: []string{"claude", "--session"}, Env: map[string]string{"TEAM": fmt.Sprintf("team-%03d", i%500)},
				Labels: map[string]string{"team": fmt.Sprintf("team-%03d", i%500), "tier": "standard"}, CpuMilli: 100, MemoryBytes: 64 << 20,
			},
		}}})
		f.facts[node]++
		started = append(started, &clusterv1.Command{Kind: &clusterv1.Command_ApplyFacts{ApplyFacts: &clusterv1.ApplyFacts{
			NodeId: nodeID(node), Incarnation: 1,
			Facts: []*nodev1.Fact{{Index: f.facts[node], SessionId: sessionID(i), Epoch: 1, Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: int32(i)}}}},
		}}})
	}
	if err := f.apply(spawn); err != nil {
		return err
	}
	return f.apply(started)
}

// save writes a snapshot to a file, and syncs it.
func (f *filler) save(_ context.Context, dir string) (Saved, error) {
	start := time.Now()
	file, err := os.Create(filepath.Join(dir, "snapshot"))
	if err != nil {
		return Saved{}, err
	}
	defer file.Close()
	w := bufio.NewWriterSize(file, writeBuffer)
	if err := f.store.View().Persist(w); err != nil {
		return Saved{}, err
	}
	if err := w.Flush(); err != nil {
		return Saved{}, err
	}
	if err := file.Sync(); err != nil {
		return Saved{}, err
	}
	took := time.Since(start)
	info, err := file.Stat()
	if err != nil {
		return Saved{}, err
	}
	return Saved{Seconds: took.Seconds(), Bytes: uint64(info.Size())}, nil
}

// restore reads the snapshot into an empty state; it should be asked of a process that has not filled one.
func (f *filler) restore(_ context.Context, dir string) (Saved, error) {
	f.store = nil
	before := heap()
	start := time.Now()
	file, err := os.Open(filepath.Join(dir, "snapshot"))
	if err != nil {
		return Saved{}, err
	}
	defer file.Close()
	f.store = state.New(state.DefaultLimits())
	if err := f.store.Restore(file); err != nil {
		return Saved{}, err
	}
	took := time.Since(start)
	return Saved{Seconds: took.Seconds(), Bytes: heap() - before}, nil
}
