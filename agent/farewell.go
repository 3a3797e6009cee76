// The end of an agent that was told to stop: where it is told so, its sessions go elsewhere first, and what stays ends with it.
//
//	told to stop ──► drained ──► sessions end ──► the end
//	                 (DrainOnStop) (EndOnStop)      what lives is left to the next agent, or to failover
//
// The agent asks to be drained as it reports facts: until it is answered, and again over each link. It does not rely on the
// answer: when its time is over it goes on.

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

// farewellStep is how far the end of an agent has come.
type farewellStep int

const (
	stepNone  farewellStep = iota // nobody has told it to stop
	stepDrain                     // its sessions go elsewhere
	stepEnd                       // its sessions end
)

const (
	// drainAskAgain is how soon an agent asks again to be drained that was not answered.
	drainAskAgain = 2 * time.Second
	// drainTell is how often an agent says how far its drain is, at most; the end is always said.
	drainTell = 2 * time.Second
)

// farewell is the end of an agent. The supervisor's goroutine owns it.
type farewell struct {
	step     farewellStep
	until    time.Time          // when the step is over, however far it got
	patience *time.Timer        // fires then
	again    *time.Timer        // fires when the cluster is to be asked again
	answered bool               // over this link
	state    *nodev1.DrainState // what was told last, over any link
	said     time.Time          // when that was last logged
}

func newFarewell() farewell {
	return farewell{patience: stoppedTimer(), again: stoppedTimer()}
}

// stop ends what it waits for.
func (f *farewell) stop() {
	f.patience.Stop()
	f.again.Stop()
}

func (f *farewell) enter(step farewellStep, patience time.Duration) {
	f.step, f.until = step, time.Now().Add(patience)
	f.patience.Reset(patience)
	f.again.Stop()
}

// toldToStop begins the end, and reports whether nothing is left to wait for. An agent that fails is not drained: it may be back soon,
// and who waits for it is to see that it failed.
func (s *supervisor) toldToStop(why error) (over bool) {
	if s.opts.DrainOnStop <= 0 || !errors.Is(why, context.Canceled) {
		return s.endSessions()
	}
	s.farewell.enter(stepDrain, s.opts.DrainOnStop)
	s.leaves.Store(true)
	s.log.Info("told to stop; asking for the sessions to be moved elsewhere first", "sessions", s.activeSessions(), "patience", s.opts.DrainOnStop)
	s.askToBeDrained()
	return false
}

// endSessions is the step after the drain.
func (s *supervisor) endSessions() (over bool) {
	if !s.opts.EndOnStop {
		return true
	}
	s.farewell.enter(stepEnd, endOnStopPatience)
	s.endAll()
	return false
}

// askToBeDrained asks, unless it was answered over this link, and sees to it that it asks again.
func (s *supervisor) askToBeDrained() {
	f := &s.farewell
	if f.step != stepDrain || f.answered || !s.linked.Load() {
		return
	}
	left := max(time.Until(f.until), 0)
	s.send(&nodev1.Frame{Payload: &nodev1.Frame_DrainNode{DrainNode: &nodev1.DrainNode{Deadline: durationpb.New(left)}}})
	f.again.Reset(drainAskAgain)
}

// drainState takes in how far the drain is.
func (s *supervisor) drainState(d *nodev1.DrainState) {
	f := &s.farewell
	if f.step != stepDrain {
		return
	}
	f.answered = true
	f.again.Stop()
	news := !proto.Equal(f.state, d)
	f.state = d
	if news && d.GetState() == apiv1.Drain_DRAINING && time.Since(f.said) >= drainTell {
		f.said = time.Now()
		s.log.Info(drainedSoFar(d), drainWhy(d)...)
	}
}

// drainOver reports whether there is nothing more to wait for, before the time is over: nothing lives here, or the cluster says that
// nothing more will go.
func (s *supervisor) drainOver() bool {
	d := s.farewell.state
	switch {
	case !s.linked.Load():
		return s.activeSessions() == 0
	case !s.farewell.answered:
		return false // the answer also says that nothing is placed here any more
	case d.GetState() == apiv1.Drain_DRAINED:
		return s.allToldAndGone()
	default:
		return d.GetState() == apiv1.Drain_INCOMPLETE || d.GetState() == apiv1.Drain_CANCELLED
	}
}

// farewellOver goes on to the next step when this one is over, and reports whether the agent may end.
func (s *supervisor) farewellOver(late bool) bool {
	switch {
	case s.farewell.step == stepDrain && (late || s.drainOver()):
		s.sayDrained(late)
		return s.endSessions()
	case s.farewell.step == stepEnd:
		return late || s.allToldAndGone()
	}
	return false
}

// sayDrained says how a drain ended.
func (s *supervisor) sayDrained(late bool) {
	f := &s.farewell
	level, why := slog.LevelInfo, []any{"took", (s.opts.DrainOnStop - time.Until(f.until)).Round(time.Millisecond)}
	text := "the cluster did not answer"
	if f.state != nil {
		text, why = drainedSoFar(f.state), append(why, drainWhy(f.state)...)
	}
	if live := s.activeSessions(); live > 0 {
		level, why = slog.LevelWarn, append(why, "left", live)
	}
	if late {
		text += "; the time is over"
	}
	s.log.Log(s.runCtx, level, text, why...)
}

// drainedSoFar is how far a drain is, in words.
func drainedSoFar(d *nodev1.DrainState) string {
	total, left := d.GetTotal(), d.GetRemaining()
	return fmt.Sprintf("drained %d of %d sessions, %d to go", total-min(left, total), total, left)
}

// drainWhy is why it is no further.
func drainWhy(d *nodev1.DrainState) (attrs []any) {
	if d.GetState() != apiv1.Drain_DRAINING {
		attrs = append(attrs, "state", d.GetState())
	}
	if d.GetReason() != "" {
		attrs = append(attrs, "reason", d.GetReason())
	}
	return attrs
}

// endAll ends every session because the agent was told to end them with it.
func (s *supervisor) endAll() {
	s.stopping = true
	s.dropNext("the agent is stopping")
	for _, e := range s.entries {
		if e.live() {
			e.run.order(order{strength: orderStop, grace: min(e.run.spec.Grace, endOnStopGrace), exit: session.Exit{
				Cause: session.CauseEvicted, Message: "the node agent was stopped, and ends its sessions then",
			}})
		}
	}
}

// allToldAndGone: no session lives, and the cluster knows of every end, as far as there is a link to tell it.
func (s *supervisor) allToldAndGone() bool {
	return s.activeSessions() == 0 && (!s.linked.Load() || len(s.facts.unacked) == 0)
}
