// The shell between raft and the replicated state: decode, apply, hand back. What commands mean is in cluster/state.

package cluster

import (
	"bufio"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster/state"
)

// snapshotBufferBytes is how much of a snapshot is gathered before it is written.
const snapshotBufferBytes = 1 << 20

// fsm implements raft.BatchingFSM. Raft calls it from one goroutine.
type fsm struct {
	store *state.Store
	// fatal is called when an entry cannot be decoded. Going on would let this server's state drift from its peers', so
	// the server must stop; a newer release, which knows the command, can read the same log.
	fatal func(error)
}

var _ raft.BatchingFSM = (*fsm)(nil)

// Apply applies one entry; its response is []state.Result, one for each command.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies entries in order.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	for i, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		var b clusterv1.Batch
		if err := proto.Unmarshal(l.Data, &b); err != nil {
			f.fatal(fmt.Errorf("decode log entry %d: %w", l.Index, err))
			continue
		}
		responses[i] = f.store.Apply(l.Index, &b)
	}
	return responses
}

// Snapshot captures the state; it costs nothing until it is persisted.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return snapshot{f.store.View()}, nil }

// Restore replaces the state.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	if err := f.store.Restore(r); err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	return nil
}

type snapshot struct{ view *state.View }

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	w := bufio.NewWriterSize(sink, snapshotBufferBytes)
	if err := s.view.Persist(w); err != nil {
		_ = sink.Cancel()
		return fmt.Errorf("persist snapshot: %w", err)
	}
	if err := w.Flush(); err != nil {
		_ = sink.Cancel()
		return fmt.Errorf("flush snapshot: %w", err)
	}
	return sink.Close()
}

func (s snapshot) Release() {}
