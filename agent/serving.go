// A run's process while it lives: messages in, turns out, and what it is told about its end.

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/neolith/orchestrator/agent/driver"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// serving is the state of one run's goroutine while its process lives.
//
// At most one message is with the process: current, from before it is written until its turn ends. Facts are made one
// at a time and only while there is room for them, except for those of the end.
type serving struct {
	*run
	saving
	proc driver.Process

	current   uint64         // the message with the process; 0 for none
	sending   *apiv1.Message // being written; nil when none is
	sent      chan error     // the outcome of writing
	obeyed    int            // the strongest order passed on
	told      *time.Timer    // fires when the cluster should hear that current was delivered
	retry     *time.Timer    // fires when a message that was not taken may be tried again
	deadline  *time.Timer    // fires when the next waiting message is out of time
	retryWait bool
}

// serve returns the end; nil when ctx ended first and the process was let go.
func (s *serving) serve(ctx context.Context) *ending {
	s.sent = make(chan error, 1)
	s.told, s.retry, s.deadline = stoppedTimer(), stoppedTimer(), stoppedTimer()
	defer s.told.Stop()
	defer s.retry.Stop()
	defer s.deadline.Stop()
	s.initSaving()
	defer s.stopTimers()
	sendCtx, cancelSend := context.WithCancel(ctx)
	defer cancelSend()
	if s.current = s.proc.Outstanding(); s.current != 0 {
		s.told.Reset(deliveredDelay)
	}
	for {
		s.obey()
		s.expire()
		s.reportForgotten()
		s.save(sendCtx)
		s.sendNext(sendCtx)
		select {
		case <-s.wake:
		case t, ok := <-s.turns():
			if !ok {
				return s.end(cancelSend)
			}
			s.turn(t)
		case err := <-s.sent:
			s.written(err)
		case <-s.told.C:
			if !s.room.open() {
				s.told.Reset(deliveredDelay) // its turn may have ended: that would say it too
			} else if s.current != 0 {
				s.report(&nodev1.Fact{Kind: &nodev1.Fact_MessageDelivered{MessageDelivered: &nodev1.MessageDelivered{Sequence: s.current}}})
			}
		case <-s.retry.C:
			s.retryWait = false
		case <-s.deadline.C:
		case o := <-s.ends:
			s.finished(sendCtx, o)
		case <-s.tick.C:
			s.overdue = true
		case <-s.again.C:
			s.resting = false
		case <-s.patience.C:
			s.tooLong()
		case <-s.soon.C:
		case <-ctx.Done():
			cancelSend()
			s.awaitSend()
			s.endSaving()
			s.proc.Release()
			return nil
		}
	}
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// turns is the channel to read ends of turns from: none while there is no room for facts, unless nobody wants them.
// It is closed once the process is gone.
func (s *serving) turns() <-chan driver.Turn {
	if s.room.open() || s.unwanted() {
		return s.proc.Turns()
	}
	return nil
}

func (s *serving) unwanted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.superseded
}

// obey passes the latest order on to the process.
func (s *serving) obey() {
	o := s.status().want
	if o.strength <= s.obeyed {
		return
	}
	s.obeyed = o.strength
	if o.strength == orderKill {
		s.proc.Kill(o.exit)
		return
	}
	s.proc.Stop(o.grace, o.exit)
}

// sendNext begins to write the most urgent message, when the process can take one. It writes beside this goroutine: a
// process that does not read must not keep it from being killed.
func (s *serving) sendNext(ctx context.Context) {
	if s.hold || s.current != 0 || s.sending != nil || s.retryWait || s.obeyed > orderNone || !s.room.open() || !s.lease.held() {
		return
	}
	m := s.inbox.take()
	if m == nil {
		return
	}
	s.sending, s.current = m, m.GetSequence()
	in := driver.Input{Sequence: m.GetSequence(), Priority: session.Priority(urgency(m)), Text: m.GetText()}
	go func() { s.sent <- s.proc.Send(ctx, in) }()
}

// written deals with the outcome of writing a message.
func (s *serving) written(err error) {
	m := s.sending
	s.sending = nil
	switch {
	case err == nil:
		if s.current != 0 { // else its turn has ended already
			s.metrics.messagesDelivered.Inc()
			s.told.Reset(deliveredDelay)
		}
	case errors.Is(err, driver.ErrBusy):
		s.inbox.putBack(m)
		if s.current = s.proc.Outstanding(); s.current == 0 {
			s.tryLater()
		}
	case fault.Is(err, fault.Invalid), fault.Is(err, fault.FailedPrecondition):
		s.current = 0
		s.turnEnded(driver.Turn{Sequence: m.GetSequence(), Refused: err.Error()})
	default:
		// The process is probably ending; if not, it is tried again.
		s.inbox.putBack(m)
		s.current = 0
		s.log.Debug("a message was not taken", "session", s.id, "sequence", m.GetSequence(), "error", err)
		s.tryLater()
	}
}

func (s *serving) tryLater() {
	s.retryWait = true
	s.retry.Reset(sendRetryDelay)
}

func (s *serving) turn(t driver.Turn) {
	if !s.unwanted() {
		if s.turnEnded(t) {
			s.turnCount++
			s.unsaved = true
		}
	}
	if t.Sequence == s.current {
		s.current = 0
		s.told.Stop()
	}
}

// expire refuses waiting messages that are out of time, and sees to it that the next one is refused in time.
func (s *serving) expire() {
	if !s.room.open() {
		return // woken when there is room
	}
	now := time.Now()
	expired, next := s.inbox.expire(now)
	for _, m := range expired {
		s.metrics.messagesRefused.Inc()
		s.report(refusedFact(m.GetSequence(), fmt.Sprintf("its deadline %s passed before the session could take it; send it again with a later one",
			m.GetDeadline().AsTime().Format(time.RFC3339Nano))))
	}
	if !next.IsZero() {
		s.deadline.Reset(next.Sub(now))
	}
}

// reportForgotten reports the ends of turns once more that the cluster was told and has forgotten: its state was restored
// from a snapshot that is older. This goroutine has reported each before, so what is still on its way to the cluster comes
// first, and this has no effect then. The result is not kept here.
func (s *serving) reportForgotten() {
	if !s.room.open() {
		return // woken when there is room
	}
	for _, seq := range s.inbox.forgotten() {
		s.report(&nodev1.Fact{Kind: &nodev1.Fact_TurnEnded{TurnEnded: &nodev1.TurnEnded{Sequence: seq, ResultTruncated: true}}})
	}
}

// awaitSend waits for a write under way, whose context was cancelled.
func (s *serving) awaitSend() {
	if s.sending != nil {
		_ = <-s.sent
		s.sending = nil
	}
}

// end collects how the process ended.
func (s *serving) end(cancelSend context.CancelFunc) *ending {
	<-s.proc.Done()
	cancelSend()
	s.awaitSend()
	s.endSaving()
	return &ending{Exit: s.proc.Exit(), OutputLine: s.proc.OutputLine(), Outstanding: s.proc.Outstanding(), Time: time.Now()}
}
