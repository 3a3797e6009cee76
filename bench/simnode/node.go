// One simulated node.

package simnode

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
)

// resultBytes is what a turn answers.
const resultBytes = 16

// Counts are of all nodes of a process.
type Counts struct {
	Linked, Heartbeats, Acked, Started, Ended, Moved, Turns, LinksLost int64
}

type counters struct {
	linked, heartbeats, acked, started, ended, moved, turns, linksLost atomic.Int64
}

// node is one simulated node. Frames come from one goroutine, heartbeats from another.
type node struct {
	id, name string
	counts   *counters
	client   *nodelink.Client
	began    time.Time

	mu        sync.Mutex
	facts     []*nodev1.Fact // not acked yet
	next      uint64         // the next fact's number
	sessions  map[string]running
	copied    map[string]uint64 // the move for which a session was copied, until it left
	heartbeat time.Duration
	linked    bool
	wake      chan struct{} // the interval of heartbeats is known, or another link is up
}

type running struct {
	epoch uint32
	ended bool
}

const incarnation = 1

func newNode(name string, servers []string, dial func(context.Context, string) (nodelink.Conn, error), counts *counters) (*node, error) {
	n := &node{
		id: "id-" + name, name: name, counts: counts, began: time.Now(), next: 1, sessions: map[string]running{}, copied: map[string]uint64{},
		wake: make(chan struct{}, 1),
	}
	var err error
	n.client, err = nodelink.NewClient(nodelink.ClientOptions{
		Servers: servers, Dial: dial, Hello: n.hello, OnAck: n.onAck, OnFrame: n.onFrame, OnDown: n.onDown,
		BackoffMin: 200 * time.Millisecond, BackoffMax: 5 * time.Second,
	})
	return n, err
}

func (n *node) hello() *nodev1.Hello {
	return &nodev1.Hello{
		NodeId: n.id, Name: n.name, Incarnation: incarnation, Version: "simulated", Address: "127.0.0.1", Pid: 1,
		Capabilities: &apiv1.Capabilities{
			CanSpawnSessions: true, SupportedSessionTypes: []string{session.TypeProcess}, CpuMilli: 64_000, MemoryBytes: 256 << 30,
			CustomCapabilities: map[string]bool{"cgroup": true, "pty": true},
		},
		Labels: map[string]string{"zone": "a"},
	}
}

// run keeps the node linked and alive until ctx ends.
func (n *node) run(ctx context.Context, jitter time.Duration) {
	var wait sync.WaitGroup
	wait.Go(func() { _ = n.client.Run(ctx) }) // it returns nil
	n.beat(ctx, jitter)
	wait.Wait()
}

// beat sends heartbeats: the first with the link, the second after a jitter, so that nodes spread, then regularly.
func (n *node) beat(ctx context.Context, jitter time.Duration) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
			n.sendHeartbeat()
			timer.Reset(max(jitter, time.Millisecond))
		case <-timer.C:
			n.sendHeartbeat()
			n.mu.Lock()
			timer.Reset(max(n.heartbeat, time.Second))
			n.mu.Unlock()
		}
	}
}

func (n *node) sendHeartbeat() {
	n.mu.Lock()
	active := len(n.sessions)
	n.mu.Unlock()
	up := time.Since(n.began)
	err := n.client.Send(&nodev1.Frame{Payload: &nodev1.Frame_Heartbeat{Heartbeat: &nodev1.Heartbeat{
		SentAt: int64(up), Status: apiv1.Node_HEALTHY, Health: &apiv1.NodeHealth{
			CpuUsage: 12.5, MemoryUsage: 40, ActiveSessions: uint32(active), ResponseTimeMs: 1.5,
			LastHeartbeat: timestamppb.Now(), UptimeSeconds: up.Seconds(),
		},
	}}})
	if err == nil { // without a link there is nobody to tell
		n.counts.heartbeats.Add(1)
	}
}

func (n *node) onAck(_ string, ack *nodev1.HelloAck) {
	n.mu.Lock()
	if !n.linked { // else another leader took over on the same link
		n.linked = true
		n.counts.linked.Add(1)
	}
	n.heartbeat = min(ack.GetHeartbeatInterval().AsDuration(), ack.GetRenewInterval().AsDuration())
	n.drop(ack.GetFactIndex())
	n.sendFacts(n.facts)
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *node) onDown(error) {
	n.mu.Lock()
	n.linked = false
	n.mu.Unlock()
	n.counts.linked.Add(-1)
	n.counts.linksLost.Add(1)
}

func (n *node) onFrame(f *nodev1.Frame) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch p := f.GetPayload().(type) {
	case *nodev1.Frame_HeartbeatAck:
		n.counts.acked.Add(1)
	case *nodev1.Frame_GetSessions:
		n.inventory(f.GetRequestId())
	case *nodev1.Frame_Desired:
		n.desired(p.Desired)
	case *nodev1.Frame_Deliver:
		n.deliver(p.Deliver)
	case *nodev1.Frame_FactsAck:
		n.drop(p.FactsAck.GetIndex())
	}
}

// drop forgets facts that are committed.
func (n *node) drop(index uint64) {
	i := 0
	for i < len(n.facts) && n.facts[i].GetIndex() <= index {
		i++
	}
	if n.facts = n.facts[i:]; len(n.facts) == 0 {
		n.facts = nil
	}
}

func (n *node) inventory(request string) {
	r := &nodev1.SessionsResponse{Incarnation: incarnation}
	for id, s := range n.sessions {
		phase := apiv1.Session_RUNNING
		if s.ended {
			phase = apiv1.Session_TERMINATED
		}
		r.Sessions = append(r.Sessions, &nodev1.SessionState{SessionId: id, Epoch: s.epoch, Phase: phase, Pid: 1})
	}
	n.send(&nodev1.Frame{RequestId: request, Payload: &nodev1.Frame_SessionsResponse{SessionsResponse: r}})
}

func (n *node) desired(d *nodev1.Desired) {
	var facts []*nodev1.Fact
	for _, s := range d.GetSessions() {
		has, known := n.sessions[s.GetSessionId()]
		switch s.GetAction() {
		case nodev1.DesiredSession_RUN:
			if known && has.epoch == s.GetEpoch() {
				continue
			}
			n.sessions[s.GetSessionId()] = running{epoch: s.GetEpoch()}
			n.counts.started.Add(1)
			facts = append(facts, n.fact(s.GetSessionId(), s.GetEpoch(), &nodev1.Fact{Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: 1}}}))
		case nodev1.DesiredSession_STOP, nodev1.DesiredSession_KILL:
			if !known || has.ended {
				continue
			}
			n.sessions[s.GetSessionId()] = running{epoch: has.epoch, ended: true}
			n.counts.ended.Add(1)
			facts = append(facts, n.fact(s.GetSessionId(), has.epoch, &nodev1.Fact{Kind: &nodev1.Fact_Exited{Exited: &nodev1.Exited{
				Exit: &apiv1.Session_Exit{Signal: "SIGTERM", Cause: session.CauseTerminated},
			}}}))
		case nodev1.DesiredSession_LEAVE:
			if known && !has.ended && has.epoch == s.GetEpoch() {
				facts = append(facts, n.leave(s)...)
			}
		case nodev1.DesiredSession_PREPARE:
			facts = append(facts, n.fact(s.GetSessionId(), s.GetEpoch(), &nodev1.Fact{Kind: &nodev1.Fact_Prepared{Prepared: &nodev1.Prepared{
				Manifest: s.GetRestore().GetManifest(),
			}}}))
		case nodev1.DesiredSession_FORGET:
			delete(n.sessions, s.GetSessionId())
		}
	}
	n.sendFacts(facts)
}

// leave copies a session, or has it held, stored and ended, as fast as a node could that has nothing to do for it.
func (n *node) leave(s *nodev1.DesiredSession) []*nodev1.Fact {
	id, epoch := s.GetSessionId(), s.GetEpoch()
	manifest := make([]byte, len(session.ManifestID{}))
	copy(manifest, id)
	if s.GetHoldOff() && !bytes.Equal(s.GetReadyManifest(), manifest) {
		if n.copied[id] == s.GetMove() {
			return nil // its target is not ready yet
		}
		n.copied[id] = s.GetMove()
		return []*nodev1.Fact{n.fact(id, epoch, &nodev1.Fact{Kind: &nodev1.Fact_Copied{Copied: &nodev1.Copied{Move: s.GetMove(), Round: 1, Manifest: manifest}}})}
	}
	delete(n.copied, id)
	n.sessions[id] = running{epoch: epoch, ended: true}
	n.counts.moved.Add(1)
	sequence := s.GetCheckpointSequence() + 1
	return []*nodev1.Fact{
		n.fact(id, epoch, &nodev1.Fact{Kind: &nodev1.Fact_Captured{Captured: &nodev1.Captured{Sequence: sequence}}}),
		n.fact(id, epoch, &nodev1.Fact{Kind: &nodev1.Fact_Checkpointed{Checkpointed: &nodev1.Checkpointed{
			Sequence: sequence, Manifest: manifest, Move: s.GetMove(), Rounds: 1, HeldTime: timestamppb.Now(), Keeps: []string{"messages"},
		}}}),
		n.fact(id, epoch, &nodev1.Fact{Kind: &nodev1.Fact_Exited{Exited: &nodev1.Exited{Exit: &apiv1.Session_Exit{Cause: session.CauseEvicted, Message: "moved"}}}}),
	}
}

// deliver takes messages in, and ends their turns.
func (n *node) deliver(d *nodev1.Deliver) {
	var facts []*nodev1.Fact
	taken := &nodev1.Delivered{}
	for _, s := range d.GetSessions() {
		seqs := &nodev1.SessionSequences{SessionId: s.GetSessionId(), Epoch: s.GetEpoch()}
		for _, m := range s.GetMessages() {
			seqs.Sequences = append(seqs.Sequences, m.GetSequence())
			n.counts.turns.Add(1)
			facts = append(facts, n.fact(s.GetSessionId(), s.GetEpoch(), &nodev1.Fact{Kind: &nodev1.Fact_TurnEnded{TurnEnded: &nodev1.TurnEnded{
				Sequence: m.GetSequence(), Result: make([]byte, resultBytes), OutputLine: m.GetSequence(),
			}}}))
		}
		taken.Sessions = append(taken.Sessions, seqs)
	}
	n.send(&nodev1.Frame{Payload: &nodev1.Frame_Delivered{Delivered: taken}})
	n.sendFacts(facts)
}

// fact numbers a fact and keeps it until it is acked.
func (n *node) fact(id string, epoch uint32, f *nodev1.Fact) *nodev1.Fact {
	f.Index, f.SessionId, f.Epoch, f.Time = n.next, id, epoch, timestamppb.Now()
	n.next++
	n.facts = append(n.facts, f)
	return f
}

func (n *node) sendFacts(facts []*nodev1.Fact) {
	if len(facts) > 0 {
		n.send(&nodev1.Frame{Index: facts[len(facts)-1].GetIndex(), Payload: &nodev1.Frame_Facts{Facts: &nodev1.Facts{Incarnation: incarnation, Facts: facts}}})
	}
}

// send sends what the next link makes good when it is lost: facts are kept, the rest is asked for again.
func (n *node) send(f *nodev1.Frame) { _ = n.client.Send(f) }

func (c *counters) get() Counts {
	return Counts{
		Linked: c.linked.Load(), Heartbeats: c.heartbeats.Load(), Acked: c.acked.Load(), Started: c.started.Load(),
		Ended: c.ended.Load(), Moved: c.moved.Load(), Turns: c.turns.Load(), LinksLost: c.linksLost.Load(),
	}
}

func nodeName(prefix string, i int) string { return fmt.Sprintf("%s-%05d", prefix, i) }
