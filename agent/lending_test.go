// A session that leaves is lent to its target for as long as that may want it, and both tell how far they are.

package agent

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/neolith/orchestrator/agent/checkpoint"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

func TestLending(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.world.think = 100 * time.Millisecond
		v.rounds = []checkpoint.Round{round(100 << 20)}
		v.copyTime = 10 * time.Second
		n.opts = withChunkAddress(n.opts, "10.0.0.7:9")
		n.start()
		same(t, "the hello says where chunks are", n.lead.hellos[0].GetChunkAddress(), "10.0.0.7:9")
		lent := func() (got []string) {
			v.locked(func() { got, v.lent = v.lent, nil })
			return got
		}
		n.lead.desired(1, true, toRun("s", 1), toRun("stays", 1), toRun("plain", 1))
		leaveTo := func(id string, move uint64, token string) *nodev1.DesiredSession {
			d := toLeave(id, 1, move)
			d.Peer = &nodev1.Peer{Address: "10.0.0.7:9", Token: token}
			return d
		}
		n.lead.desired(2, false, leaveTo("s", 3, "one"), leaveTo("stays", 4, "two"), toLeave("plain", 1, 5))
		wait(time.Second)
		same(t, "lent", slices.Sorted(slices.Values(lent())), []string{"s one", "stays two"})
		n.lead.desired(3, false, leaveTo("s", 3, "of a new leader"), toRun("stays", 1))
		wait(time.Second)
		same(t, "lent anew, and one that stays", lent(), []string{"s of a new leader", "stays back after 0s"})
		wait(time.Minute)
		same(t, "the last is stored", n.lead.lastCheckpoint("s").GetMove(), uint64(3))
		same(t, "its process has ended, and its target fetches", lent(), []string{"s back after 1m0s"})
		n.lead.desired(4, false, leaveTo("s", 3, "of yet another leader"))
		wait(time.Second)
		same(t, "told again of one that has ended", lent(), []string{"s of yet another leader", "s back after 1m0s"})
		n.lead.desired(5, false, want("s", 1, forget))
		wait(time.Second)
		same(t, "its target runs", lent(), []string{"s back after 0s"})
	})
}

func withChunkAddress(before func(*Options), address string) func(*Options) {
	return func(o *Options) {
		if before != nil {
			before(o)
		}
		o.ChunkAddress = address
	}
}

func TestBorrowing(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.start()
		p := toPrepare("s", 2, 1)
		p.Peer = &nodev1.Peer{Address: "a:1", Token: "one"}
		n.lead.desired(1, true, p)
		wait(time.Second)
		r := toRun("s", 2)
		r.Restore = &nodev1.Restore{Manifest: make([]byte, 32), Sequence: 1}
		r.Peer = &nodev1.Peer{Address: "a:1", Token: "two"}
		n.lead.desired(2, false, r)
		wait(time.Second)
		half := toPrepare("t", 2, 1)
		half.Peer = &nodev1.Peer{Address: "a:1"}
		n.lead.desired(3, false, half)
		wait(time.Second)
		v.mu.Lock()
		defer v.mu.Unlock()
		same(t, "peers", v.peers, []checkpoint.Peer{{Address: "a:1", Token: "one"}, {Address: "a:1", Token: "two"}})
	})
}

// steps are what was told of a session's move, in order, with how often in a row, and the longest burst within a second.
func (l *leader) steps(id string) (steps []string, burst int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var times []time.Time
	for _, f := range l.got {
		p := f.GetMoveProgress()
		if p.GetSessionId() != id {
			continue
		}
		s := fmt.Sprintf("%d:%s %d of move %d, %d/%d", f.GetEpoch(), p.GetProgress().GetStep(), p.GetProgress().GetRound(), p.GetMove(),
			p.GetProgress().GetBytesDone(), p.GetProgress().GetBytesTotal())
		steps = append(steps, s)
		at := p.GetProgress().GetTime().AsTime()
		times = append(times, at)
		n := 0
		for _, before := range times {
			if at.Sub(before) < time.Second {
				n++
			}
		}
		burst = max(burst, n)
	}
	return steps, burst
}

func TestMovesTellHowFarTheyAre(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.world.think = 100 * time.Millisecond
		v.rounds = []checkpoint.Round{round(100 << 20), round(1 << 20)}
		v.copyTime, v.readTime, v.storeTime = 2*time.Second, time.Second, time.Second
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lead.desired(2, false, toLeave("s", 1, 3))
		wait(time.Minute)
		steps, burst := n.lead.steps("s")
		same(t, "source", steps, []string{
			"1:copying 1 of move 3, 0/0", "1:copying 1 of move 3, 1/1000", "1:copying 1 of move 3, 1000/1000",
			"1:copying 2 of move 3, 0/0", "1:copying 2 of move 3, 1/1000", "1:copying 2 of move 3, 1000/1000",
			"1:holding 2 of move 3, 0/0", "1:saving 2 of move 3, 0/0"})
		if burst > 2*progressPerSecond {
			t.Errorf("%d in a second", burst)
		}
		n.lead.desired(3, false, toPrepare("t", 2, 1))
		r := toRun("u", 4)
		r.Restore = &nodev1.Restore{Manifest: make([]byte, 32), Sequence: 1}
		n.lead.desired(4, false, r)
		wait(time.Minute)
		steps, _ = n.lead.steps("t")
		same(t, "target", steps, []string{"2:preparing 1 of move 0, 0/0"})
		steps, _ = n.lead.steps("u")
		same(t, "restored", steps, []string{"4:restoring 0 of move 0, 0/0"})
	})
}

// However often a step tells, only so much is passed on, and what finds no room delays nobody.
func TestTellerIsBounded(t *testing.T) {
	out := make(chan *nodev1.Frame, 2)
	tell := newTeller(out, "s", 1)
	tell.begin(stepCopying, 1, 1)
	for i := range 100_000 {
		tell.bytes(int64(i), 200_000)
	}
	tell.begin(stepHolding, 1, 1)
	tell.begin(stepSaving, 1, 1)
	tell.bytes(1, 1)
	same(t, "told", len(out), 2)
}

// A checkpoint of a session that stays is made without what cannot be captured, and says so; a session that is to leave does
// not go without it, and works on.
func TestWhatCannotBeCaptured(t *testing.T) {
	for name, cold := range map[string]bool{"live": false, "cold": true} {
		t.Run(name, func(t *testing.T) {
			withVault(t, func(n *node, v *vault) {
				n.world.think = 100 * time.Millisecond
				v.torn = true
				n.start()
				n.lead.desired(1, true, toRun("s", 1))
				leave := toLeave("s", 1, 3)
				leave.Cold = cold
				n.lead.desired(2, false, leave)
				n.lead.deliver("s", 1, msg(1, normal))
				wait(time.Minute)
				same(t, "facts", slices.DeleteFunc(n.lead.told("s"), isDelivered), []string{"1:started", "1:failed request 0 move 3", "1:turn 1"})
				run := toRun("s", 1)
				run.CheckpointRequest = 1
				n.lead.desired(3, false, run)
				wait(time.Second)
				same(t, "what it leaves out", n.lead.lastCheckpoint("s").GetLeftOut(), "x")
				v.locked(func() { v.torn = false })
				n.lead.desired(4, false, toLeave("s", 1, 4))
				wait(time.Minute)
				same(t, "the last one", n.lead.lastCheckpoint("s").GetMove(), uint64(4))
				same(t, "leaves out", n.lead.lastCheckpoint("s").GetLeftOut(), "")
			})
		})
	}
}
