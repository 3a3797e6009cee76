// Checkpoints, leaving and restoring, as the cluster orders them, in fake time.

package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neolith/orchestrator/agent/checkpoint"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

const leave = nodev1.DesiredSession_LEAVE

// withVault runs a test on a node that keeps checkpoints, and holds what it reported to what it stored.
func withVault(t *testing.T, f func(n *node, v *vault)) {
	inBubble(t, func(n *node) {
		v := newVault()
		n.opts = func(o *Options) { o.Checkpoints = v.open }
		f(n, v)
		if n.cancel != nil {
			n.stop()
		}
		checkFacts(t, n.lead, v)
		if v.spooled != 0 {
			t.Errorf("%d captures were neither stored nor given up", v.spooled)
		}
	})
}

// checkFacts: each checkpoint holds exactly the turns that had been reported when it was captured.
func checkFacts(t *testing.T, l *leader, v *vault) {
	t.Helper()
	turns, at := map[string][]string{}, map[string]string{}
	for _, f := range l.facts {
		id := fmt.Sprint(f.GetSessionId(), "/", f.GetEpoch())
		switch k := f.GetKind().(type) {
		case *nodev1.Fact_TurnEnded:
			if seq := fmt.Sprint(k.TurnEnded.GetSequence()); !slices.Contains(turns[id], seq) {
				turns[id] = append(turns[id], seq)
			}
		case *nodev1.Fact_Captured:
			at[fmt.Sprint(id, k.Captured.GetSequence())] = strings.Join(turns[id], " ")
		case *nodev1.Fact_Checkpointed:
			im, ok := v.kept[[32]byte(k.Checkpointed.GetManifest())]
			want, captured := at[fmt.Sprint(id, k.Checkpointed.GetSequence())]
			if !ok || !captured || !strings.HasSuffix(im.Ledger, want) {
				t.Errorf("checkpoint %d of %s holds %q, and %q had been reported (captured: %t)", k.Checkpointed.GetSequence(), id, im.Ledger, want, captured)
			}
		}
	}
}

func saved(id string, epoch uint32, every string) *nodev1.DesiredSession {
	d := toRun(id, epoch)
	d.Spec.CheckpointEvery = every
	return d
}

func msgs(from, to uint64) (ms []*apiv1.Message) {
	for s := from; s <= to; s++ {
		ms = append(ms, msg(s, normal))
	}
	return ms
}

func toLeave(id string, epoch uint32, move uint64) *nodev1.DesiredSession {
	return &nodev1.DesiredSession{SessionId: id, Epoch: epoch, Action: leave, Move: move}
}

func round(sent int64) checkpoint.Round {
	return checkpoint.Round{Sent: checkpoint.Sent{Sent: sent, Content: 2 * sent}}
}

func (l *leader) lastCheckpoint(id string) *nodev1.Checkpointed {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range slices.Backward(l.facts) {
		if f.GetSessionId() == id && f.GetCheckpointed() != nil {
			return f.GetCheckpointed()
		}
	}
	return nil
}

func TestCheckpointAfterEachTurn(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.world.think, v.readTime, v.storeTime = time.Second, 10*time.Millisecond, 2500*time.Millisecond
		n.start()
		d := saved("s", 1, "turn")
		d.CheckpointSequence = 7
		n.lead.desired(1, true, d)
		n.lead.deliver("s", 1, msgs(1, 4)...)
		wait(time.Minute)
		same(t, "facts; turns that end while one is stored are in the next", slices.DeleteFunc(n.lead.told("s"), isDelivered),
			[]string{"1:started", "1:turn 1", "1:captured 8", "1:turn 2", "1:turn 3", "1:checkpointed 8", "1:turn 4", "1:captured 9", "1:checkpointed 9"})
		same(t, "given", n.world.given("s"), []uint64{1, 2, 3, 4})
		wait(time.Hour)
		same(t, "without further turns", len(v.kept), 2)
	})
}

func isDelivered(s string) bool {
	return strings.Contains(s, "delivered") || strings.Contains(s, "copied")
}

func TestCheckpointEverySoOften(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.world.think = time.Second
		n.start()
		none := saved("none", 1, "1m")
		none.Spec.Protocol = session.ProtocolNone
		n.lead.desired(1, true, saved("s", 1, "1m"), none)
		n.lead.deliver("s", 1, msg(1, normal))
		wait(50 * time.Second)
		same(t, "before its time", n.lead.lastCheckpoint("s"), nil)
		wait(11 * time.Second)
		same(t, "at its time", n.lead.lastCheckpoint("s").GetSequence(), uint64(1))
		wait(5 * time.Minute)
		same(t, "when nothing happened", n.lead.lastCheckpoint("s").GetSequence(), uint64(1))
		if got := n.lead.lastCheckpoint("none").GetSequence(); got < 5 {
			t.Errorf("a session that does not work in turns was checkpointed %d times in 6 minutes", got)
		}
		n.lead.deliver("s", 1, msg(2, normal))
		wait(2 * time.Second)
		same(t, "at the next turn's end, its time being over", n.lead.lastCheckpoint("s").GetSequence(), uint64(2))
	})
}

func TestCheckpointOnRequest(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.world.think, v.cold, v.copyTime = 10*time.Second, true, time.Second
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lead.deliver("s", 1, msgs(1, 3)...)
		d := toRun("s", 1)
		d.CheckpointRequest = 5
		n.lead.desired(2, false, d)
		wait(9 * time.Second)
		same(t, "while a turn is under way", n.lead.lastCheckpoint("s"), nil)
		same(t, "copies, while it works", v.copies, 1)
		wait(2 * time.Second)
		same(t, "after it", n.lead.lastCheckpoint("s").GetRequest(), uint64(5))
		n.lead.desired(3, false, d)
		wait(time.Minute)
		same(t, "asked again for what is answered", n.lead.lastCheckpoint("s").GetSequence(), uint64(1))
		d.CheckpointRequest = 6
		n.lead.desired(4, false, d)
		wait(time.Second)
		same(t, "though nothing changed", n.lead.lastCheckpoint("s").GetRequest(), uint64(6))
		same(t, "copies of what is known", v.copies, 1)
		a := n.lead.request(&nodev1.Frame{Epoch: 1, Payload: &nodev1.Frame_CheckpointSession{CheckpointSession: &nodev1.CheckpointSession{SessionId: "s"}}})
		same(t, "checkpoint_session", a.GetSessionCheckpointed().GetCheckpoint().GetSequence(), uint64(3))
		a = n.lead.request(&nodev1.Frame{Payload: &nodev1.Frame_CheckpointSession{CheckpointSession: &nodev1.CheckpointSession{SessionId: "nobody"}}})
		same(t, "of none", a.GetError().GetCode(), "NOT_FOUND")
		a = n.lead.request(&nodev1.Frame{Epoch: 2, Payload: &nodev1.Frame_CheckpointSession{CheckpointSession: &nodev1.CheckpointSession{SessionId: "s"}}})
		same(t, "of another epoch", a.GetError().GetCode(), "FAILED_PRECONDITION")
		v.locked(func() { v.down = true })
		f := &nodev1.Frame{RequestId: "q", Payload: &nodev1.Frame_CheckpointSession{CheckpointSession: &nodev1.CheckpointSession{SessionId: "s"}}}
		n.lead.send(f)
		wait(time.Minute)
		same(t, "when the store fails", n.lead.answer("q").GetError().GetCode(), "UNAVAILABLE")
	})
}

func TestTurnThatDoesNotEndFailsTheRequestAndNothingElse(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.world.think = -1
		n.start()
		d := toRun("s", 1)
		n.lead.desired(1, true, d)
		n.lead.deliver("s", 1, msgs(1, 2)...)
		d.CheckpointRequest = 1
		n.lead.desired(2, false, d)
		wait(turnPatience - time.Second)
		same(t, "before the deadline", slices.DeleteFunc(n.lead.told("s"), isDelivered), []string{"1:started"})
		wait(2 * time.Second)
		same(t, "after it", slices.DeleteFunc(n.lead.told("s"), isDelivered), []string{"1:started", "1:failed request 1 move 0"})
		n.world.tree("s").endTurn(1, "at last")
		synctest.Wait()
		same(t, "given, the request being answered", n.world.given("s"), []uint64{1, 2})
		n.lead.desired(3, false, toLeave("s", 1, 9))
		wait(turnPatience + time.Second)
		n.world.tree("s").endTurn(2, "at last")
		wait(time.Hour)
		same(t, "an order to leave", slices.DeleteFunc(n.lead.told("s"), isDelivered)[2:], []string{"1:turn 1", "1:failed request 0 move 9", "1:turn 2"})
		if !n.world.alive("s") {
			t.Error("a session that could not leave was ended")
		}
	})
}

func TestFailingStoreIsToldOnceAMinuteAndHarmsNobody(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.world.think, v.down = time.Second, true
		n.start()
		n.lead.desired(1, true, saved("s", 1, "turn"))
		n.lead.deliver("s", 1, msgs(1, 300)...)
		wait(310 * time.Second)
		same(t, "given while the store was down", len(n.world.given("s")), 300)
		failures := 0
		for _, f := range n.lead.told("s") {
			if f == "1:failed request 0 move 0" {
				failures++
			}
		}
		if failures < 5 || failures > 7 {
			t.Errorf("%d failures were reported in 310 s, want about one a minute", failures)
		}
		v.locked(func() { v.down = false })
		wait(saveRetryMax + time.Second)
		n.stop()
		same(t, "checkpoints once it is back", len(v.kept), 1)
	})
}

func TestLeaveUnderMessages(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.world.think = 100 * time.Millisecond
		v.copyTime, v.readTime, v.storeTime = time.Second, 50*time.Millisecond, 50*time.Millisecond
		v.rounds = []checkpoint.Round{round(100 << 20), round(30 << 20), round(5 << 20)}
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lead.deliver("s", 1, msgs(1, 100)...)
		began := time.Now()
		n.lead.desired(2, false, toLeave("s", 1, 44))
		n.lead.desired(3, false, toLeave("s", 1, 44))
		wait(2900 * time.Millisecond)
		if got := len(n.world.given("s")); got < 28 {
			t.Errorf("%d messages were given while it was copied, want one each 100 ms", got)
		}
		wait(10 * time.Second)
		told := slices.DeleteFunc(n.lead.told("s"), isDelivered)
		same(t, "its end", told[len(told)-3:], []string{"1:captured 1", "1:checkpointed 1 move 44", "1:exited evicted"})
		c := n.lead.lastCheckpoint("s")
		same(t, "rounds", c.GetRounds(), uint32(3))
		same(t, "bytes sent", c.GetBytesSent(), int64(135<<20+10))
		if held := c.GetHeldTime().AsTime().Sub(began); held < 2900*time.Millisecond || held > 3100*time.Millisecond {
			t.Errorf("messages were held %s after the order, want about 3 s", held)
		}
		turns := len(told) - 4
		same(t, "given, and each turn reported", len(n.world.given("s")), turns)
		var exit *apiv1.Session_Exit
		for _, f := range n.lead.facts {
			if e := f.GetExited(); e != nil {
				exit = e.GetExit()
				same(t, "outstanding", e.GetOutstanding(), uint64(0))
			}
		}
		same(t, "the end's message", exit.GetMessage(), "moved")
		n.lead.desired(4, false, toRun("s", 1))
		wait(time.Second)
		same(t, "starts, after a way back that is none", n.world.started(), []string{"s/1"})
	})
}

func TestLeaveTakenBack(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.world.think = 100 * time.Millisecond
		v.storeTime = 10 * time.Second
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lead.desired(2, false, toLeave("s", 1, 3))
		wait(5 * time.Second)
		n.lead.deliver("s", 1, msg(1, normal))
		wait(time.Second)
		same(t, "given while it is held", len(n.world.given("s")), 0)
		n.lead.desired(3, false, toRun("s", 1))
		wait(time.Second)
		same(t, "given once it stays", n.world.given("s"), []uint64{1})
		cold := toLeave("s", 1, 4)
		cold.Cold = true
		n.lead.desired(4, false, cold)
		wait(time.Minute)
		told := slices.DeleteFunc(n.lead.told("s"), isDelivered)
		same(t, "facts", told, []string{"1:started", "1:captured 1", "1:turn 1", "1:captured 2", "1:checkpointed 2 move 4", "1:exited evicted"})
		same(t, "rounds of a cold move", n.lead.lastCheckpoint("s").GetRounds(), uint32(0))
	})
}

func TestLeaveFailsWithTheStore(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.world.think = 100 * time.Millisecond
		v.storeTime = time.Second
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lead.desired(2, false, toLeave("s", 1, 3))
		v.locked(func() { v.down = true })
		n.lead.deliver("s", 1, msg(1, normal))
		wait(time.Minute)
		same(t, "facts", slices.DeleteFunc(n.lead.told("s"), isDelivered), []string{"1:started", "1:captured 1", "1:failed request 0 move 3", "1:turn 1"})
		n.lead.desired(3, false, toLeave("s", 1, 3))
		wait(time.Minute)
		same(t, "the same order again", len(slices.DeleteFunc(n.lead.told("s"), isDelivered)), 4)
		v.locked(func() { v.down = false })
		n.lead.desired(4, false, toLeave("s", 1, 5))
		wait(time.Minute)
		told := n.lead.told("s")
		same(t, "another order", told[len(told)-2:], []string{"1:checkpointed 2 move 5", "1:exited evicted"})
	})
}

func TestAgentEndsInTheMiddleOfALeave(t *testing.T) {
	for name, after := range map[string]time.Duration{"copying": 500 * time.Millisecond, "reading": 1500 * time.Millisecond, "storing": 2500 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			withVault(t, func(n *node, v *vault) {
				v.copyTime, v.readTime, v.storeTime = time.Second, time.Second, time.Second
				n.start()
				n.lead.desired(1, true, toRun("s", 1))
				n.lead.deliver("s", 1, msgs(1, 3)...)
				n.lead.desired(2, false, toLeave("s", 1, 3))
				wait(after)
				n.stop()
				same(t, "checkpoints", len(v.kept), 0)
				n.lead.locked(func() { n.lead.facts = nil })
				n.start()
				n.lead.desired(3, true, toLeave("s", 1, 3))
				wait(time.Minute)
				told := n.lead.told("s")
				same(t, "facts", told[len(told)-3:], []string{"1:captured 1", "1:checkpointed 1 move 3", "1:exited evicted"})
				same(t, "what the checkpoint holds", v.kept[[32]byte(n.lead.lastCheckpoint("s").GetManifest())].Ledger, "1 2 3")
			})
		})
	}
}

// Turns that ended while nobody watched are reported before a checkpoint that holds them.
func TestAdoptedSessionReportsItsTurnsFirst(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.world.think = -1
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		for seq := range uint64(20) {
			n.lead.deliver("s", 1, msg(seq+1, normal))
			n.world.tree("s").endTurn(seq+1, "")
			synctest.Wait()
		}
		n.stop()
		n.lead.locked(func() { n.lead.facts = nil; n.lead.holdFacts = true })
		n.opts = func(o *Options) { o.Checkpoints, o.MaxFactsUnacked = v.open, 5 }
		d := toRun("s", 1)
		d.CheckpointRequest = 1
		n.lead.locked(func() {
			n.lead.greeting = &nodev1.Frame{Index: 2, Payload: &nodev1.Frame_Desired{Desired: &nodev1.Desired{Sessions: []*nodev1.DesiredSession{d}}}}
		})
		n.start()
		wait(time.Second)
		same(t, "while facts wait", n.lead.lastCheckpoint("s"), nil)
		n.lead.locked(func() { n.lead.holdFacts, n.lead.greeting = false, nil })
		n.cut()
		wait(10 * time.Second)
		if n.lead.lastCheckpoint("s") == nil {
			t.Errorf("no checkpoint was made: %v", n.lead.told("s"))
		}
	})
}

func TestStopEndsACheckpointUnderWay(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		v.storeTime, v.readTime = time.Minute, time.Minute
		n.start()
		a, b := toRun("a", 1), toRun("b", 1)
		a.CheckpointRequest, b.CheckpointRequest = 1, 1
		n.lead.desired(1, true, a, b)
		wait(time.Second)
		n.lead.desired(2, false, want("a", 1, stop))
		wait(time.Minute)
		n.lead.desired(3, false, want("b", 1, stop))
		same(t, "a", n.lead.told("a"), []string{"1:started", "1:exited terminated"})
		same(t, "b", n.lead.told("b"), []string{"1:started", "1:captured 1", "1:exited terminated"})
	})
}

func TestRestore(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		v.readTime = time.Second
		take := func() (got []string) {
			v.locked(func() { got, v.staged = v.staged, nil })
			return got
		}
		n.start()
		n.lead.desired(1, true, saved("s", 1, "turn"))
		n.lead.deliver("s", 1, msgs(1, 3)...)
		wait(time.Minute)
		c := n.lead.lastCheckpoint("s")
		n.lead.deliver("s", 1, msg(4, normal))
		synctest.Wait()
		n.world.tree("s").die(session.Exit{Cause: session.CauseFailed})
		wait(time.Second)

		d := saved("s", 2, "turn")
		d.Restore = &nodev1.Restore{Manifest: c.GetManifest(), Sequence: c.GetSequence(), OutputLine: 3, LostLine: 4, LostEpoch: 1}
		d.OutputBase = 99
		n.lead.desired(2, false, d)
		n.lead.deliver("s", 2, msg(4, normal)) // while it is being restored
		same(t, "while it is being restored", n.world.started(), []string{"s/1"})
		same(t, "the state meanwhile", n.lead.inventory()["s"].GetPhase(), apiv1.Session_STARTING)
		wait(2 * time.Second)
		same(t, "starts", n.world.started(), []string{"s/1", "s/2"})
		wait(10 * time.Second)
		same(t, "its ledger", ledgerOf(filepath.Join(n.dir, "sessions", "s")), "1 2 3 4")
		same(t, "its epoch", n.world.tree("s").env[1], "ORCH_NODE=node-1")
		same(t, "output goes on", n.world.tree("s").lines, uint64(4))
		same(t, "the node's count of turns", v.kept[[32]byte(n.lead.lastCheckpoint("s").GetManifest())].Session.Turn, uint64(4))

		// By request, from nothing at all, and what is told of a failure.
		x := toRun("x", 1)
		x.Restore = d.Restore
		f := &nodev1.Frame{RequestId: "x", Payload: &nodev1.Frame_RestoreSession{RestoreSession: &nodev1.RestoreSession{Session: x}}}
		n.lead.send(f)
		wait(2 * time.Second)
		same(t, "restore_session", n.lead.answer("x").GetSessionRestored().GetSession().GetPhase(), apiv1.Session_RUNNING)
		bad := toRun("bad", 1)
		bad.Restore = &nodev1.Restore{Manifest: make([]byte, 32), Sequence: 3, OutputLine: 7}
		n.lead.desired(4, false, bad)
		wait(2 * time.Second)
		same(t, "a checkpoint that is not there", n.lead.told("bad"), []string{"1:exited start-failed"})
		last := n.lead.facts[len(n.lead.facts)-1]
		same(t, "its message", last.GetExited().GetExit().GetMessage(), "restore checkpoint 3: there is no such checkpoint")
		same(t, "its output line", last.GetExited().GetOutputLine(), uint64(7))
		same(t, "its checkpoint was within reach", last.GetExited().GetUnreachable(), false)
		same(t, "what was ready for it", take(), []string{"bad gone"})
		v.locked(func() { v.down = true })
		away := toRun("away", 1)
		away.Restore = d.Restore
		n.lead.desired(5, false, away)
		wait(2 * time.Second)
		same(t, "the store is down", n.lead.told("away"), []string{"1:exited start-failed"})
		same(t, "its checkpoint was out of reach", n.lead.facts[len(n.lead.facts)-1].GetExited().GetUnreachable(), true)
		v.locked(func() { v.down = false })
		left, err := os.ReadDir(filepath.Join(n.dir, "restoring"))
		same(t, "left behind", fmt.Sprint(len(left), err), "0 <nil>")
		exists(t, n.dir, "sessions/bad", false)

		// An order to stop ends a restore; so does the agent's end, and the next one begins anew.
		v.locked(func() { v.readTime = time.Hour })
		y := toRun("y", 1)
		y.Restore = d.Restore
		n.lead.desired(5, false, y)
		n.lead.desired(6, false, want("y", 1, stop))
		same(t, "stopped while it was restored", n.lead.told("y"), []string{"1:exited terminated"})
		z := toRun("z", 1)
		z.Restore = d.Restore
		n.lead.desired(7, false, z)
		n.stop()
		v.locked(func() { v.readTime = 0 })
		n.start()
		n.lead.desired(8, false, z)
		same(t, "after the agent's end", n.lead.told("z"), []string{"1:started"})
	})
}

// A session with a policy and no checkpoint begins anew, and is given all its messages again.
func TestWithoutACheckpointTheWorkspaceIsNew(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		v.down = true
		n.start()
		n.lead.desired(1, true, saved("s", 1, "turn"), toRun("plain", 1))
		n.lead.deliver("s", 1, msg(1, normal))
		n.lead.deliver("plain", 1, msg(1, normal))
		wait(time.Second)
		for _, id := range []string{"s", "plain"} {
			n.world.tree(id).die(session.Exit{Cause: session.CauseFailed})
		}
		wait(time.Second)
		n.lead.desired(2, false, saved("s", 2, "turn"), toRun("plain", 2))
		same(t, "its ledger", ledgerOf(filepath.Join(n.dir, "sessions", "s")), "")
		same(t, "the ledger of one without a policy", ledgerOf(filepath.Join(n.dir, "sessions", "plain")), "1")
	})
}

func TestLeaveOfWhatIsNotHere(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.start()
		n.lead.desired(1, true, toLeave("s", 3, 1))
		same(t, "facts", n.lead.told("s"), []string{"3:exited lost"})
		n.lead.desired(2, false, toRun("x", 1), toLeave("x", 1, 0))
		wait(time.Second)
		same(t, "an order without a number", n.lead.told("x"), []string{"1:started"})
	})
}

func TestNodeWithoutAStoreRefuses(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		d := toRun("s", 1)
		d.CheckpointRequest = 2
		n.lead.desired(1, true, d)
		n.lead.desired(2, false, toLeave("s", 1, 4))
		r := toRun("r", 1)
		r.Restore = &nodev1.Restore{Manifest: make([]byte, 32)}
		n.lead.desired(3, false, r)
		wait(time.Minute)
		same(t, "a checkpoint, and to leave", n.lead.told("s"), []string{"1:started", "1:failed request 2 move 0", "1:failed request 0 move 4"})
		same(t, "a restore", n.lead.told("r"), []string{"1:exited start-failed"})
	})
}

func TestLeaveWaitsForItsTarget(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		n.world.think = 100 * time.Millisecond
		n.start()
		n.lead.desired(1, true, toRun("s", 1), toRun("late", 1))
		s, late := toLeave("s", 1, 3), toLeave("late", 1, 4)
		s.HoldOff, late.HoldOff = true, true
		n.lead.desired(2, false, s, late)
		wait(10 * time.Second)
		n.lead.deliver("s", 1, msg(1, normal))
		wait(time.Second)
		same(t, "while it waits it works", slices.DeleteFunc(n.lead.told("s"), isDelivered), []string{"1:started", "1:turn 1"})
		same(t, "rounds", v.copies, 2)
		first := n.lead.lastRound("s")
		s = toLeave("s", 1, 3)
		s.HoldOff, s.ReadyManifest = true, first
		n.lead.desired(3, false, s)
		wait(time.Second)
		same(t, "rounds, with one for what was written meanwhile", v.copies, 3)
		same(t, "while the target makes that ready", n.lead.lastCheckpoint("s"), nil)
		s = toLeave("s", 1, 3)
		s.HoldOff, s.ReadyManifest = true, n.lead.lastRound("s")
		n.lead.desired(4, false, s)
		wait(time.Second)
		same(t, "its copy is old by then", v.copies, 4)
		n.lead.desired(5, false, toLeave("s", 1, 3)) // the target is gone
		wait(time.Second)
		same(t, "its end", slices.DeleteFunc(n.lead.told("s"), isDelivered)[2:], []string{"1:captured 1", "1:checkpointed 1 move 3", "1:exited evicted"})
		same(t, "all rounds", n.lead.lastCheckpoint("s").GetRounds(), uint32(3))
		wait(targetPatience - 15*time.Second)
		same(t, "one whose target is not ready", n.lead.lastCheckpoint("late"), nil)
		wait(5 * time.Second)
		same(t, "after its patience", n.lead.lastCheckpoint("late").GetMove(), uint64(4))
	})
}

func toPrepare(id string, epoch uint32, manifest byte) *nodev1.DesiredSession {
	m := make([]byte, 32)
	m[0] = manifest
	return &nodev1.DesiredSession{SessionId: id, Epoch: epoch, Action: nodev1.DesiredSession_PREPARE, Restore: &nodev1.Restore{Manifest: m}}
}

func TestPrepare(t *testing.T) {
	withVault(t, func(n *node, v *vault) {
		v.copyTime = time.Second
		n.start()
		take := func() (got []string) {
			v.locked(func() { got, v.staged = v.staged, nil })
			return got
		}
		n.lead.desired(1, true, toPrepare("s", 2, 1), toPrepare("bad", 1, 1), toPrepare("x", 7, 9))
		n.lead.desired(2, false, toPrepare("s", 2, 2))
		n.lead.desired(3, false, toPrepare("s", 2, 3))
		n.lead.desired(4, false, want("bad", 1, forget))
		wait(time.Minute)
		same(t, "made ready; the newest after what was under way", slices.Sorted(slices.Values(take())), []string{"bad gone", "s 1", "s 3", "x 9"})
		same(t, "started", len(n.world.started()), 0)
		same(t, "told", n.lead.told("s"), []string{"2:prepared 3"})
		n.lead.desired(5, false, toPrepare("s", 2, 3))
		wait(time.Second)
		same(t, "what is ready", take(), nil)
		n.lead.desired(5, false, toPrepare("none", 3, 4))
		wait(2 * time.Second)
		n.lead.desired(5, false, &nodev1.DesiredSession{SessionId: "none", Epoch: 3, Action: nodev1.DesiredSession_PREPARE})
		wait(2 * time.Second)
		same(t, "one that does not come after all", take(), []string{"none 4", "none gone"})
		n.lead.desired(5, false, toRun("none", 3))
		wait(time.Second)
		same(t, "and that may come again", n.lead.inventory()["none"].GetPhase(), apiv1.Session_RUNNING)
		n.lead.desired(6, false, toRun("bad", 1))
		same(t, "an epoch that was expected, and is so no more, may begin all the same", n.world.started(), []string{"bad/1", "none/3"})
		n.lead.desired(7, false, toRun("s", 2))
		wait(time.Second)
		same(t, "one that begins from nothing", take(), []string{"s gone"})
		n.lead.desired(8, false, toPrepare("s", 2, 5))
		wait(time.Second)
		same(t, "one that is here", take(), nil)
		v.locked(func() { v.down = true })
		n.lead.desired(9, false, toPrepare("y", 2, 5))
		wait(2 * time.Second)
		v.locked(func() { v.down = false })
		n.lead.desired(10, false, toPrepare("y", 2, 5))
		wait(2 * time.Second)
		same(t, "again, the store having failed", take(), []string{"y 5"})
		wait(stagedKept)
		same(t, "after its time", slices.Sorted(slices.Values(take())), []string{"x gone", "y gone"})
		n.lead.desired(11, false, toPrepare("z", 2, 5))
		synctest.Wait()
		n.stop()
		n.start()
		n.lead.desired(12, true, toPrepare("z", 2, 5))
		wait(2 * time.Second)
		n.lead.desired(13, true)
		wait(time.Second)
		same(t, "over an agent's end, and not named any more", take(), []string{"z 5", "z gone"})
	})
}
