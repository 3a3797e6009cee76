// What an agent does that is told to stop and to be drained first.

package agent

import (
	"testing"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

// drainsAsked are the requests to be drained that the leader got.
func (l *leader) drainsAsked() (deadlines []time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.got {
		if d := f.GetDrainNode(); d != nil {
			deadlines = append(deadlines, d.GetDeadline().AsDuration())
		}
	}
	return deadlines
}

func (l *leader) drainState(d *nodev1.DrainState) {
	l.send(&nodev1.Frame{Payload: &nodev1.Frame_DrainState{DrainState: d}})
}

// goodbye runs a test on an agent with two sessions that was told to stop, and drains itself for a minute.
func goodbye(t *testing.T, change func(*Options), f func(n *node, over func() bool)) {
	t.Helper()
	inBubble(t, func(n *node) {
		n.opts = func(o *Options) {
			o.DrainOnStop = time.Minute
			if change != nil {
				change(o)
			}
		}
		n.start()
		n.lead.desired(1, true, toRun("a", 1), toRun("b", 1))
		n.cancel()
		wait(0)
		done := false
		f(n, func() bool {
			select {
			case err := <-n.done:
				if err != nil {
					t.Errorf("Run: %v", err)
				}
				n.cancel, done = nil, true
			default:
			}
			return done
		})
		if !done && n.cancel != nil {
			wait(2 * time.Minute)
		}
	})
}

func TestAnAgentThatIsToldToStopIsDrainedFirst(t *testing.T) {
	goodbye(t, nil, func(n *node, over func() bool) {
		wait(5 * time.Second)
		same(t, "unanswered, it asks every 2 s for what is left", n.lead.drainsAsked(), []time.Duration{60 * time.Second, 58 * time.Second, 56 * time.Second})
		n.lead.drainState(&nodev1.DrainState{State: apiv1.Drain_DRAINING, Total: 2, Remaining: 2})
		wait(5 * time.Second)
		same(t, "asked once it was answered", len(n.lead.drainsAsked()), 3)
		if !n.agent.Status().Leaving {
			t.Error("it does not say that it leaves")
		}
		n.cut()
		wait(4 * time.Second)
		if asked := n.lead.drainsAsked(); len(asked) < 4 {
			t.Errorf("over another link it asked nobody: %v", asked)
		}
		beats := len(n.lead.beats)
		n.lead.drainState(&nodev1.DrainState{State: apiv1.Drain_DRAINING, Total: 2, Moved: 1, Remaining: 1})
		wait(10 * time.Second)
		if len(n.lead.beats) == beats {
			t.Error("meanwhile it asks for no lease")
		}
		n.lead.desired(2, false, want("a", 1, stop))
		n.lead.locked(func() { n.lead.holdFacts = true })
		n.lead.desired(3, false, want("b", 1, stop))
		n.lead.drainState(&nodev1.DrainState{State: apiv1.Drain_DRAINED, Total: 2, Moved: 2})
		if over() {
			t.Error("it ended before the cluster knew of all ends")
		}
		n.lead.locked(func() { n.lead.holdFacts = false })
		wait(10 * time.Second) // they are sent again
		if !over() {
			t.Error("it stays, and nothing is left")
		}
	})
}

func TestAnAgentDoesNotWaitForEver(t *testing.T) {
	for name, c := range map[string]struct {
		say   *nodev1.DrainState
		after time.Duration
	}{
		"nobody answers":         {nil, time.Minute},
		"it takes too long":      {&nodev1.DrainState{State: apiv1.Drain_DRAINING, Total: 2, Remaining: 2}, time.Minute},
		"a person keeps it":      {&nodev1.DrainState{State: apiv1.Drain_CANCELLED, Total: 2, Remaining: 2, Reason: "uncordoned by ann"}, 0},
		"a person's was shorter": {&nodev1.DrainState{State: apiv1.Drain_INCOMPLETE, Total: 2, Remaining: 2}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			goodbye(t, nil, func(n *node, over func() bool) {
				if c.say != nil {
					n.lead.drainState(c.say)
				}
				if c.after > 0 {
					wait(c.after - time.Second)
					if over() {
						t.Fatal("it ended early")
					}
					wait(time.Second)
				}
				if !over() {
					t.Fatal("it did not end")
				}
				if !n.world.alive("a") || !n.world.alive("b") {
					t.Error("what was left did not go on")
				}
				n.start() // and the next agent has them
				same(t, "a", n.lead.told("a"), []string{"1:started", "1:started"})
			})
		})
	}
}

// TestWhatIsLeftOfADrainEndsWhereItShould: with EndOnStop, and only once the drain is over.
func TestWhatIsLeftOfADrainEndsWhereItShould(t *testing.T) {
	goodbye(t, func(o *Options) { o.EndOnStop = true }, func(n *node, over func() bool) {
		n.lead.drainState(&nodev1.DrainState{State: apiv1.Drain_DRAINING, Total: 2, Remaining: 2})
		n.lead.desired(2, false, want("a", 1, stop))
		wait(59 * time.Second)
		if over() || !n.world.alive("b") {
			t.Fatal("it did not wait for the drain")
		}
		wait(2 * time.Second)
		if !over() {
			t.Error("it did not end")
		}
		same(t, "b", n.lead.told("b"), []string{"1:started", "1:exited " + string(session.CauseEvicted)})
	})
}

// TestAnAgentThatIsCutOffDoesNotWaitForADrain: once nothing lives, there is nobody to tell.
func TestAnAgentThatIsCutOffDoesNotWaitForADrain(t *testing.T) {
	goodbye(t, nil, func(n *node, over func() bool) {
		n.lead.locked(func() { n.lead.down = true })
		n.cut()
		wait(5 * time.Second)
		if over() {
			t.Fatal("it ended while its sessions lived and the link might come back")
		}
		wait(12 * time.Second) // the lease lapses
		if !over() {
			t.Error("it waits for nothing")
		}
	})
}
