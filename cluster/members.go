// The members: who they are, and what operators do with them.

package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/hashicorp/raft"

	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
)

// Member is one server as this one sees it.
type Member struct {
	ID, RaftAddress, GRPCAddress, LinkAddress, Version, Gossip string
	PID                                                        int
	Voter, Leader, InRaft                                      bool
}

// ServerStats is the state of a server's log.
type ServerStats struct {
	Term, LastIndex, AppliedIndex uint64
	// LastContact is the time since the server heard of its leader; negative when there is none.
	LastContact time.Duration
	Version     string
	PID         int
}

// configurationTimeout bounds one change of the raft configuration.
const configurationTimeout = 10 * time.Second

// Members returns the servers of the raft configuration and those that only gossip, ordered by id. Who is in neither, a
// dead server that was removed, is no member, however long gossip remembers it.
func (n *Node) Members() ([]Member, error) {
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, fmt.Errorf("read the raft configuration: %w", err)
	}
	_, leader := n.raft.LeaderWithID()
	byID := map[string]*Member{}
	var ids []string
	get := func(id string) *Member {
		m, ok := byID[id]
		if !ok {
			m = &Member{ID: id, Gossip: "unknown"}
			byID[id] = m
			ids = append(ids, id)
		}
		return m
	}
	for _, s := range f.Configuration().Servers {
		m := get(string(s.ID))
		m.RaftAddress, m.Voter, m.InRaft = string(s.Address), s.Suffrage == raft.Voter, true
		m.Leader = s.ID == leader
	}
	if n.gossip != nil {
		for _, g := range n.gossip.members() {
			if byID[g.ID] == nil && g.Status != memberAlive {
				continue
			}
			m := get(g.ID)
			m.Gossip, m.RaftAddress, m.GRPCAddress, m.LinkAddress = g.Status, g.Meta.RaftAddress, g.Meta.GRPCAddress, g.Meta.LinkAddress
			m.Version, m.PID = g.Meta.Version, g.Meta.PID
		}
	}
	sortStrings(ids)
	out := make([]Member, len(ids))
	for i, id := range ids {
		out[i] = *byID[id]
	}
	return out, nil
}

// Stats is the state of this server's log.
func (n *Node) Stats() ServerStats {
	s := ServerStats{Term: n.raft.CurrentTerm(), LastIndex: n.raft.LastIndex(), AppliedIndex: n.raft.AppliedIndex(), Version: n.opts.Version, LastContact: -1}
	switch {
	case n.raft.State() == raft.Leader:
		s.LastContact = 0
	case !n.raft.LastContact().IsZero():
		s.LastContact = n.opts.Now().Sub(n.raft.LastContact())
	}
	return s
}

// LinkAddresses are where nodes may link to, as far as gossip knows.
func (n *Node) LinkAddresses() []string {
	if n.gossip == nil {
		return nil
	}
	var out []string
	for _, m := range n.gossip.members() {
		if m.Status == memberAlive && m.Meta.LinkAddress != "" {
			out = append(out, m.Meta.LinkAddress)
		}
	}
	sortStrings(out)
	return out
}

func (n *Node) grpcAddress(id string) string {
	if n.gossip == nil {
		return id
	}
	if m, ok := n.gossip.member(id); ok {
		return m.Meta.GRPCAddress
	}
	return ""
}

// Join gossips with another server, which makes this one known to its cluster. It returns how many were reached.
func (n *Node) Join(addresses ...string) (int, error) {
	if n.gossip == nil {
		return 0, fault.New(fault.FailedPrecondition, "join: this server has no discovery")
	}
	return n.gossip.join(context.Background(), addresses)
}

// Remove takes a server out of the raft configuration. This server must lead.
func (n *Node) Remove(id string) error {
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return fmt.Errorf("read the raft configuration: %w", err)
	}
	voters, found, isVoter := 0, false, false
	for _, s := range f.Configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters++
		}
		if string(s.ID) == id {
			found, isVoter = true, s.Suffrage == raft.Voter
		}
	}
	switch {
	case !found:
		return fault.New(fault.NotFound, "remove member %q: it is not in the raft configuration; see `orchctl cluster members`", id)
	case isVoter && voters == 1:
		return fault.New(fault.FailedPrecondition, "remove member %q: it is the only voter; the cluster would have none left", id)
	}
	if err := n.raft.RemoveServer(raft.ServerID(id), 0, configurationTimeout).Error(); err != nil {
		return proposeError(fmt.Errorf("remove member %q: %w", id, err))
	}
	return nil
}

// TransferLeadership makes another server the leader, the most up-to-date one when id is empty. This server must lead.
func (n *Node) TransferLeadership(ctx context.Context, id string) error {
	if id == n.opts.ID {
		return nil
	}
	if id != "" {
		members, err := n.Members()
		if err != nil {
			return err
		}
		known := false
		for _, m := range members {
			known = known || (m.ID == id && m.Voter)
		}
		if !known {
			return fault.New(fault.NotFound, "transfer leadership to %q: it is no voter; see `orchctl cluster members`", id)
		}
	}
	return n.transfer(ctx, id)
}

// transferTimeout bounds a transfer; raft's own can hang (hashicorp/raft#696).
const transferTimeout = 5 * time.Second

func (n *Node) transfer(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, transferTimeout)
	defer cancel()
	var f raft.Future
	if id == "" {
		f = n.raft.LeadershipTransfer()
	} else {
		address, err := addressProvider{n}.ServerAddr(raft.ServerID(id))
		if err != nil {
			return fault.New(fault.NotFound, "transfer leadership: %w", err)
		}
		f = n.raft.LeadershipTransferToServer(raft.ServerID(id), address)
	}
	done := make(chan error, 1)
	go func() { done <- f.Error() }() // ends with raft at the latest
	select {
	case err := <-done:
		if err != nil {
			return fault.New(fault.FailedPrecondition, "transfer leadership: %w", err)
		}
		return nil
	case <-ctx.Done():
		return fault.New(fault.Timeout, "transfer leadership: not done within %s", transferTimeout)
	}
}

// WriteSnapshot writes the state as a snapshot file. This server must lead for it to be the latest.
func (n *Node) WriteSnapshot(w io.Writer) (index uint64, err error) {
	v := n.opts.State.View()
	if err := v.Persist(w); err != nil {
		return 0, fmt.Errorf("write snapshot: %w", err)
	}
	return v.Index(), nil
}

// RestoreSnapshot replaces the whole cluster's state by a snapshot file. This server must lead. Messages are numbered on
// from what was given out before, so that no number means two messages; nothing is proposed meanwhile, so that none is
// given out behind its back.
func (n *Node) RestoreSnapshot(summary state.Summary, r io.Reader) error {
	n.restoring.Lock()
	defer n.restoring.Unlock()
	if err := n.raft.Barrier(restoreTimeout).Error(); err != nil {
		return proposeError(fmt.Errorf("restore snapshot: catch up with the log: %w", err))
	}
	file, err := os.CreateTemp("", "orchestrator-restore-*")
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	defer file.Close()
	_ = os.Remove(file.Name()) // it lives as long as it is open
	if err := n.opts.State.View().GoOn(r, file); err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	size, err := file.Seek(0, io.SeekCurrent)
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return fmt.Errorf("read the raft configuration: %w", err)
	}
	meta := &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, Index: summary.Index, Term: n.raft.CurrentTerm(),
		Configuration: f.Configuration(), Size: size,
	}
	if err := n.raft.Restore(meta, file, restoreTimeout); err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	return nil
}

// restoreTimeout bounds the restore of a snapshot by an operator.
const restoreTimeout = 5 * time.Minute
