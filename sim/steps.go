// Steps of a move: where a story stops to look, or to do harm.
//
// A step is observed, not timed: by a frame that is about to be delivered, or by what an agent is about to do. What a story
// has armed is held up there for a moment, so that what it does next falls into the step.

package sim

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/nodelink"
)

// step is a place in a move, a pause, a rewind, or in what follows when a session is placed with a checkpoint.
type step string

// The steps, in their order.
const (
	stepCommitted step = "committed" // the decision is committed, and its node is about to be told
	stepCopying   step = "copying"   // files are copied while the session works
	stepCopied    step = "copied"    // the target was told to get ready, and is about to
	stepPrepared  step = "prepared"  // it is ready, and about to say so
	stepHolding   step = "holding"   // messages are held until the turn under way ends
	stepCapturing step = "capturing" // the session's files are being read
	stepStoring   step = "storing"   // the last checkpoint is being uploaded
	stepStored    step = "stored"    // it is stored, and the cluster is about to be told
	stepStopping  step = "stopping"  // the process is being ended
	stepOrdered   step = "ordered"   // the next epoch is placed, and its node about to be told
	stepRestoring step = "restoring" // the session's files are being restored
	stepStarted   step = "started"   // its process runs, and the cluster is about to be told
)

var allSteps = []step{stepCommitted, stepCopying, stepCopied, stepPrepared, stepHolding, stepCapturing, stepStoring, stepStored,
	stepStopping, stepOrdered, stepRestoring, stepStarted}

const (
	stepHeld   = 400 * time.Millisecond // how long what is armed is held up
	holdSettle = 2 * time.Millisecond   // from the last copy to the hold
)

// steps knows which step somebody waits for. Its methods may be called from any goroutine.
type steps struct {
	mu      sync.Mutex
	armed   step
	session string // empty for any
	reached chan struct{}
	holdOff map[string]bool // by session: its node was told to leave, and whether to hold off
	copies  map[string]int  // by session: copies under way
}

func newSteps() *steps {
	return &steps{holdOff: map[string]bool{}, copies: map[string]int{}}
}

// arm has the next occurrence of a step noticed and held up, of a session or, with an empty id, of any.
func (s *steps) arm(session, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(allSteps, step(name)) {
		return fmt.Errorf("%q is no step; steps are %s", name, strings.Trim(fmt.Sprint(allSteps), "[]"))
	}
	s.armed, s.session, s.reached = step(name), session, make(chan struct{})
	return nil
}

// waiting returns what is closed once the armed step was reached; nil when none was armed.
func (s *steps) waiting() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reached
}

// reach is told of a step, and returns for how long it is to be held up.
func (s *steps) reach(at step, session string) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.armed != at || s.session != "" && s.session != session {
		return 0
	}
	s.armed = ""
	close(s.reached)
	return stepHeld
}

// copying is told of the begin and the end of a copy. When the last one is over, and the session's node was not told to hold
// off, messages are held.
func (s *steps) copying(session string, begins bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if begins {
		s.copies[session]++
		return
	}
	s.copies[session]--
	time.AfterFunc(holdSettle, func() {
		s.mu.Lock()
		holdOff, told := s.holdOff[session]
		holds := told && !holdOff && s.copies[session] == 0
		s.mu.Unlock()
		if holds {
			s.reach(stepHolding, session)
		}
	})
}

// frame looks at a frame of a node link that is about to be delivered.
func (s *steps) frame(d nodelink.Direction, f *nodev1.Frame) (held time.Duration) {
	switch {
	case f == nil:
	case d == nodelink.Down && f.GetDesired() != nil:
		for _, ds := range f.GetDesired().GetSessions() {
			held = max(held, s.desired(ds))
		}
	case d == nodelink.Up && f.GetFacts() != nil:
		for _, fact := range f.GetFacts().GetFacts() {
			held = max(held, s.fact(fact))
		}
	}
	return held
}

func (s *steps) desired(d *nodev1.DesiredSession) time.Duration {
	switch d.GetAction() {
	case nodev1.DesiredSession_LEAVE:
		s.mu.Lock()
		s.holdOff[d.GetSessionId()] = d.GetHoldOff() && len(d.GetReadyManifest()) == 0
		s.mu.Unlock()
		return s.reach(stepCommitted, d.GetSessionId())
	case nodev1.DesiredSession_STOP:
		return s.reach(stepCommitted, d.GetSessionId())
	case nodev1.DesiredSession_RUN:
		s.mu.Lock()
		delete(s.holdOff, d.GetSessionId())
		s.mu.Unlock()
		if d.GetRestore() != nil {
			return s.reach(stepOrdered, d.GetSessionId())
		}
	}
	return 0
}

func (s *steps) fact(f *nodev1.Fact) time.Duration {
	switch f.GetKind().(type) {
	case *nodev1.Fact_Prepared:
		return s.reach(stepPrepared, f.GetSessionId())
	case *nodev1.Fact_Checkpointed:
		return s.reach(stepStored, f.GetSessionId())
	case *nodev1.Fact_Started:
		return s.reach(stepStarted, f.GetSessionId())
	}
	return 0
}
