// What moves sessions, in the cluster in memory: checkpoints that are made at once, and migrations that end at once unless a
// test wants to see each step.

package clienttest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// Change changes a session as its node or the leader would, and tells all who watch.
func (c *Cluster) Change(id string, change func(*apiv1.Session)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.sessions[id]
	change(n.Session)
	c.touch(n)
}

// touch marks a session as changed; mu is held.
func (c *Cluster) touch(n *sessionState) {
	n.ModifyIndex = c.index + 1
	c.change()
}

// verb is a request about one session, done once for each idempotency key.
func (c *Cluster) verb(namespace, ref, key string, do func(*sessionState) error) (*apiv1.Session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.find(namespace, ref)
	if err != nil {
		return nil, err
	}
	if key == "" {
		return nil, fault.New(fault.Invalid, "idempotency_key: is empty").WithField("idempotency_key")
	}
	if _, ok := c.keys[key].(*sessionState); !ok {
		if err := do(n); err != nil {
			return nil, err
		}
		c.keys[key] = n
	}
	return proto.CloneOf(n.Session), nil
}

// until waits for what a request wants to see of a session, when it wants to wait.
func (c *Cluster) until(ctx context.Context, s *apiv1.Session, err error, wait bool, ready func(*apiv1.Session) bool) (*apiv1.Session, error) {
	if err != nil || !wait {
		return s, err
	}
	id := s.GetId()
	err = c.await(ctx, func() bool {
		s = proto.CloneOf(c.sessions[id].Session)
		return ready(s)
	})
	return s, err
}

func (s *sessions) CheckpointSession(_ context.Context, req *apiv1.CheckpointSessionRequest) (*apiv1.CheckpointSessionResponse, error) {
	c := s.c
	out, err := c.verb(req.GetNamespace(), req.GetId(), req.GetIdempotencyKey(), func(n *sessionState) error {
		if ended(n.GetPhase()) {
			return fault.New(fault.FailedPrecondition, "session %s: is %s, and only what runs can be checkpointed", n.GetId(), n.GetPhase())
		}
		c.checkpoint(n)
		c.touch(n)
		return nil
	})
	return &apiv1.CheckpointSessionResponse{Session: out}, err
}

// checkpoint makes one; mu is held. Each holds 1 MiB more than the one before, which is all that is sent of it.
func (c *Cluster) checkpoint(n *sessionState) {
	number := uint64(1)
	if len(n.checkpoints) > 0 {
		number = n.checkpoints[len(n.checkpoints)-1].GetSequence() + 1
	}
	k := &apiv1.Session_Checkpoint{
		Sequence: number, CreateTime: c.stamp(), Bytes: int64(number) << 20, Chunks: uint32(number) * 3, Epoch: n.GetEpoch(),
		Turn: uint64(n.GetMailbox().GetAcked()), OutputLine: n.GetOutputLine(), Keeps: n.GetKeeps(),
		Manifest: strings.Repeat(ID("manifest", int(number)), 4), BytesSent: 1 << 20, BytesReused: int64(number-1) << 20,
	}
	n.checkpoints = append(n.checkpoints, k)
	n.Checkpoint, n.Lag = k, &apiv1.Session_Lag{}
}

func (s *sessions) ListCheckpoints(_ context.Context, req *apiv1.ListCheckpointsRequest) (*apiv1.ListCheckpointsResponse, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	n, err := s.c.find(req.GetNamespace(), req.GetId())
	if err != nil {
		return nil, err
	}
	resp := &apiv1.ListCheckpointsResponse{}
	for _, k := range n.checkpoints {
		resp.Checkpoints = append(resp.Checkpoints, proto.CloneOf(k))
	}
	return resp, nil
}

func moving(m *apiv1.Session_Migration) bool {
	return m.GetState() == apiv1.Session_Migration_COPYING || m.GetState() == apiv1.Session_Migration_MOVING
}

func (s *sessions) MigrateSession(ctx context.Context, req *apiv1.MigrateSessionRequest) (*apiv1.MigrateSessionResponse, error) {
	c := s.c
	out, err := c.verb(req.GetNamespace(), req.GetId(), req.GetIdempotencyKey(), func(n *sessionState) error {
		if n.GetPhase() != apiv1.Session_RUNNING {
			return fault.New(fault.FailedPrecondition, "session %s: is %s; move it once it runs", n.GetId(), n.GetPhase())
		}
		i := slices.IndexFunc(c.nodes, func(o *apiv1.Node) bool {
			return o.GetName() != n.GetNode() && o.GetSchedulable() && (req.GetTarget() == "" || req.GetTarget() == o.GetName())
		})
		if i < 0 {
			return fault.New(fault.FailedPrecondition, "session %s: no other node fits; add a node", n.GetId())
		}
		n.Phase = apiv1.Session_MIGRATING
		n.Migration = &apiv1.Session_Migration{
			Source: n.GetNode(), Target: c.nodes[i].GetName(), Mode: req.GetMode(), State: apiv1.Session_Migration_COPYING, StartTime: c.stamp(),
		}
		if n.Migration.Mode == "" {
			n.Migration.Mode = "live"
		}
		c.touch(n)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !c.StepMigrations {
		c.Change(out.GetId(), func(n *apiv1.Session) {
			if !moving(n.GetMigration()) {
				return
			}
			m := n.Migration
			n.Phase, n.Node, n.Epoch = apiv1.Session_RUNNING, m.GetTarget(), n.GetEpoch()+1
			m.State, m.Epoch, m.Rounds, m.BytesSent, m.BytesReused, m.BlackoutMs, m.TotalMs = apiv1.Session_Migration_DONE, n.GetEpoch(), 3, 5<<20, 95<<20, 42.5, 1234
		})
	}
	out, err = c.until(ctx, out, nil, req.GetWait(), func(s *apiv1.Session) bool { return !moving(s.GetMigration()) })
	return &apiv1.MigrateSessionResponse{Session: out}, err
}

func (s *sessions) CancelMigration(_ context.Context, req *apiv1.CancelMigrationRequest) (*apiv1.CancelMigrationResponse, error) {
	out, err := s.c.verb(req.GetNamespace(), req.GetId(), req.GetIdempotencyKey(), func(n *sessionState) error {
		switch n.GetMigration().GetState() {
		case apiv1.Session_Migration_COPYING:
			n.Phase, n.Migration.State, n.Migration.Error = apiv1.Session_RUNNING, apiv1.Session_Migration_CANCELLED, "cancelled by admin"
			s.c.touch(n)
			return nil
		case apiv1.Session_Migration_MOVING:
			return fault.New(fault.FailedPrecondition, "session %s: has stopped on its source already; move it back once it runs", n.GetId())
		default:
			return fault.New(fault.FailedPrecondition, "session %s: is not moving; there is nothing to cancel", n.GetId())
		}
	})
	return &apiv1.CancelMigrationResponse{Session: out}, err
}

func (s *sessions) PauseSession(_ context.Context, req *apiv1.PauseSessionRequest) (*apiv1.PauseSessionResponse, error) {
	c := s.c
	out, err := c.verb(req.GetNamespace(), req.GetId(), req.GetIdempotencyKey(), func(n *sessionState) error {
		if ended(n.GetPhase()) {
			return fault.New(fault.FailedPrecondition, "session %s: is %s; there is nothing to pause", n.GetId(), n.GetPhase())
		}
		if n.GetPhase() == apiv1.Session_RUNNING {
			c.checkpoint(n)
		}
		n.Phase, n.Node, n.Reason = apiv1.Session_PAUSED, "", req.GetReason()
		c.touch(n)
		return nil
	})
	return &apiv1.PauseSessionResponse{Session: out}, err
}

// again starts a session from a checkpoint, in its next epoch; mu is held.
func (c *Cluster) again(n *sessionState) {
	epoch := n.GetEpoch()
	n.Reason, n.Exit, n.EndTime = "", nil, nil
	c.place(n)
	if n.GetPhase() == apiv1.Session_RUNNING {
		n.Epoch = epoch + 1
	}
	c.touch(n)
}

func (s *sessions) ResumeSession(_ context.Context, req *apiv1.ResumeSessionRequest) (*apiv1.ResumeSessionResponse, error) {
	out, err := s.c.verb(req.GetNamespace(), req.GetId(), req.GetIdempotencyKey(), func(n *sessionState) error {
		if ended(n.GetPhase()) {
			return fault.New(fault.FailedPrecondition, "session %s: is %s, not paused; see `orchctl sessions restore`", n.GetId(), n.GetPhase())
		}
		if n.GetPhase() == apiv1.Session_PAUSED {
			s.c.again(n)
		}
		return nil
	})
	return &apiv1.ResumeSessionResponse{Session: out}, err
}

// kept returns the checkpoint with the sequence, the head for 0; mu is held.
func (n *sessionState) kept(sequence uint64) (*apiv1.Session_Checkpoint, error) {
	switch {
	case len(n.checkpoints) == 0:
		return nil, fault.New(fault.FailedPrecondition, "session %s: has no checkpoint yet; make one with `orchctl sessions checkpoint`", n.GetId())
	case sequence == 0:
		return n.checkpoints[len(n.checkpoints)-1], nil
	}
	for _, k := range n.checkpoints {
		if k.GetSequence() == sequence {
			return k, nil
		}
	}
	return nil, fault.New(fault.NotFound, "session %s: keeps no checkpoint %d; see `orchctl sessions checkpoints`", n.GetId(), sequence)
}

func (s *sessions) ForkSession(_ context.Context, req *apiv1.ForkSessionRequest) (*apiv1.ForkSessionResponse, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.find(req.GetNamespace(), req.GetId())
	if err != nil {
		return nil, err
	}
	k, err := n.kept(req.GetSequence())
	if err != nil {
		return nil, err
	}
	if made, ok := c.keys[req.GetIdempotencyKey()].(*sessionState); ok {
		return &apiv1.ForkSessionResponse{Session: proto.CloneOf(made.Session)}, nil
	}
	for _, other := range c.sessions {
		if req.GetName() != "" && other.GetName() == req.GetName() && other.GetNamespace() == n.GetNamespace() && !ended(other.GetPhase()) {
			return nil, fault.New(fault.AlreadyExists, "the name %q is taken by session %s; choose another", req.GetName(), other.GetId())
		}
	}
	spec := proto.CloneOf(n.GetSpec())
	spec.Name = req.GetName()
	if req.GetStrategy() != "" {
		spec.Strategy = req.GetStrategy()
	}
	made := &sessionState{checkpoints: []*apiv1.Session_Checkpoint{proto.CloneOf(k)}, Session: &apiv1.Session{
		Id: ID("session", len(c.sessions)+1), Namespace: n.GetNamespace(), Name: req.GetName(), Type: n.GetType(), Priority: n.GetPriority(),
		Labels: n.GetLabels(), CreateTime: c.stamp(), Spec: spec, Mailbox: &apiv1.Session_Mailbox{}, Reason: fmt.Sprintf("forked from %s", n.GetId()),
		Checkpoint: proto.CloneOf(k), Keeps: n.GetKeeps(),
	}}
	c.sessions[made.GetId()] = made
	c.keys[req.GetIdempotencyKey()] = made
	c.again(made)
	return &apiv1.ForkSessionResponse{Session: proto.CloneOf(made.Session)}, nil
}

func (s *sessions) RewindSession(_ context.Context, req *apiv1.RewindSessionRequest) (*apiv1.RewindSessionResponse, error) {
	out, err := s.c.verb(req.GetNamespace(), req.GetId(), req.GetIdempotencyKey(), func(n *sessionState) error {
		k, err := n.kept(req.GetSequence())
		if err != nil {
			return err
		}
		n.checkpoints = slices.DeleteFunc(n.checkpoints, func(o *apiv1.Session_Checkpoint) bool { return o.GetSequence() > k.GetSequence() })
		n.Checkpoint = k
		s.c.again(n)
		return nil
	})
	return &apiv1.RewindSessionResponse{Session: out}, err
}
