// Raft over the network: the library's in-memory transport, with every request and every answer going through network.

package sim

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// raftPatience is how long a request waits for a line to be mended, as that of the real transport.
const raftPatience = 10 * time.Second

// handlePatience is how long the other end may take to handle it; ten times that for a snapshot.
const handlePatience = time.Second

// raftTransport is one server's.
type raftTransport struct {
	*raft.InmemTransport
	net *network
	id  string
	ctx context.Context // of the server's life
}

// raftNetwork connects the transports of the servers that live.
type raftNetwork struct {
	net *network
	mu  sync.Mutex
	all map[string]*raft.InmemTransport
}

// join gives a server its transport; an earlier one's is forgotten.
func (n *raftNetwork) join(ctx context.Context, id string) *raftTransport {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, t := raft.NewInmemTransportWithTimeout(raft.ServerAddress(id), handlePatience)
	for other, o := range n.all {
		if other != id {
			o.Connect(raft.ServerAddress(id), t)
			t.Connect(raft.ServerAddress(other), o)
		}
	}
	n.all[id] = t
	return &raftTransport{InmemTransport: t, net: n.net, id: id, ctx: ctx}
}

// call carries a request there and its answer back.
func (t *raftTransport) call(target raft.ServerAddress, do func() error) error {
	if err := t.net.pass(t.ctx, t.id, string(target), raftPatience); err != nil {
		return err
	}
	err := do()
	if passed := t.net.pass(t.ctx, string(target), t.id, raftPatience); passed != nil {
		return passed
	}
	return err
}

// AppendEntries implements raft.Transport.
func (t *raftTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	own := *args // the caller may use it again while a request that timed out still waits at the other end
	return t.call(target, func() error { return t.InmemTransport.AppendEntries(id, target, &own, resp) })
}

// RequestVote implements raft.Transport.
func (t *raftTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.call(target, func() error { return t.InmemTransport.RequestVote(id, target, args, resp) })
}

// RequestPreVote implements raft.WithPreVote.
func (t *raftTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.call(target, func() error { return t.InmemTransport.RequestPreVote(id, target, args, resp) })
}

// InstallSnapshot implements raft.Transport.
func (t *raftTransport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return t.call(target, func() error { return t.InmemTransport.InstallSnapshot(id, target, args, resp, data) })
}

// TimeoutNow implements raft.Transport.
func (t *raftTransport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.call(target, func() error { return t.InmemTransport.TimeoutNow(id, target, args, resp) })
}

// AppendEntriesPipeline refuses, as the real transport does that has one request under way at a time.
func (t *raftTransport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}
