// The lease: nothing runs without it, and nothing outlives it.

package agent

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/session"
)

func TestNothingStartsBeforeTheFirstLease(t *testing.T) {
	inBubble(t, func(n *node) {
		n.lead.holdLease = true
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		wait(4 * time.Second)
		same(t, "starts without a lease", len(n.world.started()), 0)
		same(t, "inventory", n.lead.inventory()["s"].GetEpoch(), uint32(1))
		n.lead.locked(func() { n.lead.holdLease = false })
		wait(3 * time.Second)
		same(t, "starts with a lease", n.world.started(), []string{"s/1"})
	})
}

func TestWhatWaitsTooLongForALeaseIsAskedForAnew(t *testing.T) {
	inBubble(t, func(n *node) {
		n.lead.holdLease = true
		n.start()
		n.lead.desired(7, true, toRun("s", 1))
		wait(20 * time.Second)
		n.lead.locked(func() { n.lead.holdLease = false })
		wait(5 * time.Second)
		same(t, "starts", len(n.world.started()), 0)
		last := n.lead.hellos[len(n.lead.hellos)-1]
		if len(n.lead.hellos) < 2 || last.GetResumeIndex() != 0 {
			t.Errorf("%d hellos, the last with resume index %d; want a second one that asks for everything", len(n.lead.hellos), last.GetResumeIndex())
		}
	})
}

func TestLapseKillsEverythingInTime(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(1, true, toRun("a", 1), toRun("b", 1))
		wait(10 * time.Second)
		n.lead.locked(func() { n.lead.down = true })
		last := time.Duration(n.lead.beats[len(n.lead.beats)-1].GetSentAt())
		n.cut()
		deadline := last + n.lead.lease
		wait(deadline - time.Duration(boottime()) - time.Millisecond)
		if !n.world.alive("a") || !n.world.alive("b") {
			t.Error("sessions died before the lease's end")
		}
		wait(time.Millisecond)
		if n.world.alive("a") || n.world.alive("b") {
			t.Error("sessions live beyond the lease's end")
		}
		same(t, "the lease file", time.Duration(n.lease.Deadline()), deadline)
		n.lead.locked(func() { n.lead.down = false })
		wait(2 * time.Minute)
		same(t, "a", n.lead.told("a"), []string{"1:started", "1:exited lost"})
		same(t, "inventory", n.lead.inventory()["b"].GetExit().GetMessage(), "lease lapsed")
		n.lead.desired(2, false, toRun("a", 1))
		n.lead.desired(3, false, toRun("b", 2))
		same(t, "starts under the new lease", n.world.started(), []string{"a/1", "b/1", "b/2"})
	})
}

func TestOnlyAnswersToOwnHeartbeatsRenew(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		before := n.lease.Deadline()
		ack := func(sentAt int64, lease time.Duration) {
			n.lead.send(&nodev1.Frame{Payload: &nodev1.Frame_HeartbeatAck{HeartbeatAck: &nodev1.HeartbeatAck{SentAt: sentAt, Lease: durationpb.New(lease)}}})
		}
		ack(boottime()+1, time.Minute)
		same(t, "an answer to nobody's heartbeat", n.lease.Deadline(), before)
		sent := n.lead.beats[0].GetSentAt()
		ack(sent, -time.Second)
		ack(sent, 24*time.Hour)
		same(t, "a lease that makes no sense", n.lease.Deadline(), before)
		wait(4 * time.Second)
		renewed := n.lease.Deadline()
		same(t, "after the next heartbeat", renewed, sent+int64(3*time.Second+n.lead.lease))
		ack(sent, n.lead.lease)
		same(t, "an answer that comes late", n.lease.Deadline(), renewed)
	})
}

func TestALeaseThatCannotBeWrittenDoesNotCount(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lease.broken.Store(true)
		wait(13 * time.Second)
		if n.world.alive("s") {
			t.Error("a session outlived the deadline that its shim reads")
		}
		n.lease.broken.Store(false)
		wait(4 * time.Second)
		n.lead.desired(2, false, toRun("s", 2))
		same(t, "starts", n.world.started(), []string{"s/1", "s/2"})
	})
}

func TestAgentThatComesBackTooLateFindsNothingAlive(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(1, true, toRun("dead", 1), toRun("wedged", 1))
		n.stop()
		wait(13 * time.Second)
		n.world.tree("dead").die(session.Exit{Cause: session.CauseLost, Message: "lease lapsed"}) // as its shim does
		n.lead.locked(func() { n.lead.down = true })
		n.start()
		if n.world.alive("wedged") {
			t.Error("a session was taken up again after the lease's end")
		}
		n.lead.locked(func() { n.lead.down = false })
		wait(time.Minute)
		same(t, "dead", n.lead.told("dead"), []string{"1:started", "1:exited lost"})
		same(t, "wedged", n.lead.told("wedged"), []string{"1:started", "1:started", "1:exited lost"})
	})
}

func TestHeartbeatsCarryHealthNowAndThen(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		wait(31 * time.Second)
		n.lead.mu.Lock()
		defer n.lead.mu.Unlock()
		with := 0
		for _, b := range n.lead.beats {
			if b.GetHealth() != nil {
				with++
			}
		}
		same(t, "heartbeats in 31 s", len(n.lead.beats), 11)
		same(t, "of them with health", with, 3)
	})
}
