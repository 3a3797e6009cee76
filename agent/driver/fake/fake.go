// Package fake is a driver without processes, for simulations and benchmarks.
//
// A Machine stands for what survives an agent: the process trees of one node, their output, their ends. Each Driver that
// it gives out is one agent's; a restarted agent asks the same Machine for a new one and adopts what runs. The Machine
// also holds the node's lease, as the shims do, and ends everything at once when it lapses.
//
// With a Vault, sessions are checkpointed and restored: how many messages a session was given, and its sum, are what it has in its workspace.
//
// There is no I/O, no goroutine that outlives a call, and no clock but package time's, so it runs in a synctest bubble.
//
// # What the sessions do
//
// Each message is answered with a line "ok N", N being how many messages the process was given; a whole number is added
// up and answered with "sum S". Some texts are commands:
//
//	exit N       ends with exit code N, and does not answer
//	die          is killed by SIGKILL, and does not answer
//	hang         never answers
//	ignore-term  answers, and ignores SIGTERM from now on
//	say N TEXT   writes TEXT to stderr N times, then answers
//	long N       answers with a line of N bytes
//
// A Spec's Command can begin with "fail-start": then Start fails.
package fake

import (
	"context"
	"slices"
	"sync"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

const (
	linesMax = 4096 // kept of a session's output
	turnsMax = 1024 // kept for an Adopt
	givenMax = 1024 // sequences remembered
	spareMax = 16   // ended turns that nobody took
)

// Event is the start or the end of a live process tree.
type Event struct {
	Node      string
	SessionID string
	Epoch     uint32
	End       bool
	Exit      session.Exit // with End
	Time      time.Time
	// Of a start that goes on from a checkpoint: which one, and what its process has seen, in order; nil of one from nothing.
	Restored *[32]byte
	Seen     []Seen
}

// Seen is a message that a process tree took, in this epoch or in one that it goes on from. Of a fork, the first ones are
// another session's.
type Seen struct {
	SessionID string
	Sequence  uint64
}

// Given is a message that a process tree took.
type Given struct {
	Node      string
	SessionID string
	Epoch     uint32
	Sequence  uint64
	Text      string
	Time      time.Time
}

// Options of a Machine.
type Options struct {
	// TurnTime is how long a session works on a message; with 0 it answers within Send.
	TurnTime time.Duration
	// StopTime is how long a session takes to obey SIGTERM.
	StopTime time.Duration
	// Observer is told of every start and end, in order, with the Machine's lock held: it must not call the Machine.
	Observer func(Event)
	// Given is told of every message that a process is given, once, under the same terms.
	Given func(Given)
}

// Machine is one node's processes.
type Machine struct {
	node string
	opt  Options
	boot time.Time

	mu       sync.Mutex
	trees    map[string]*tree    // by session: the latest, ended or not
	restored map[string]restored // by session: what its next epoch goes on from
	deadline int64               // of the lease
	lapse    *time.Timer
	pid      int
}

// NewMachine makes a machine that holds no lease yet.
func NewMachine(node string, opt Options) *Machine {
	return &Machine{node: node, opt: opt, boot: time.Now(), trees: make(map[string]*tree), restored: make(map[string]restored)}
}

// Driver returns a driver as a newly started agent would have it.
func (m *Machine) Driver() *Driver { return &Driver{m: m} }

// Now is the clock of the lease, in nanoseconds.
func (m *Machine) Now() int64 { return int64(time.Since(m.boot)) }

// Renew moves the lease's deadline, in nanoseconds of Now; never back.
func (m *Machine) Renew(deadline int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if deadline <= m.deadline {
		return nil
	}
	m.deadline = deadline
	wait := time.Duration(deadline - m.Now())
	if m.lapse == nil {
		m.lapse = time.AfterFunc(wait, m.expire)
	} else {
		m.lapse.Reset(wait)
	}
	return nil
}

// Deadline is the lease's, in nanoseconds of Now; 0 for none. It outlives agents, as the lease file does.
func (m *Machine) Deadline() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.deadline
}

// expire ends everything when the lease has lapsed.
func (m *Machine) expire() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if left := m.deadline - m.Now(); left > 0 { // renewed meanwhile
		m.lapse.Reset(time.Duration(left))
		return
	}
	for _, t := range m.sorted() {
		t.end(session.Exit{Code: 137, Signal: "SIGKILL", Cause: session.CauseLost, Message: "lease lapsed"})
	}
}

// sorted returns the live trees in the order of their sessions: a simulation must run alike twice.
func (m *Machine) sorted() []*tree {
	var out []*tree
	for _, t := range m.trees {
		if t.exit == nil {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b *tree) int {
		if a.s.SessionID < b.s.SessionID {
			return -1
		}
		return 1
	})
	return out
}

// Crash is a power failure: every tree ends, and an Adopt finds that the machine was started anew.
func (m *Machine) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.sorted() {
		t.detach() // nobody is told: the agent died too
		t.end(session.Exit{Cause: session.CauseLost, Message: "the machine was started anew"})
	}
}

// Live returns the sessions that run, with their epochs.
func (m *Machine) Live() map[string]uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]uint32)
	for id, t := range m.trees {
		if t.exit == nil {
			out[id] = t.s.Epoch
		}
	}
	return out
}

// Kill ends a session's process from outside, as the kernel or a person may.
func (m *Machine) Kill(sessionID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.trees[sessionID]; t != nil && t.exit == nil {
		t.end(session.Exit{Code: 137, Signal: "SIGKILL", Cause: session.CauseFailed, Message: "killed by SIGKILL"})
	}
}

// Log returns the numbered lines that are kept of a session, oldest first.
func (m *Machine) Log(sessionID string) []*apiv1.LogLine {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.trees[sessionID]; t != nil {
		return slices.Clone(t.lines)
	}
	return nil
}

// Forget drops what is kept of an ended session, as removing its directory does.
func (m *Machine) Forget(sessionID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.trees[sessionID]; t != nil && t.exit != nil {
		delete(m.trees, sessionID)
	}
}

// Close stops the machine's clock; what runs goes on without a lease.
func (m *Machine) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lapse != nil {
		m.lapse.Stop()
	}
}

func (m *Machine) observe(t *tree, end bool) {
	if m.opt.Observer == nil {
		return
	}
	e := Event{Node: m.node, SessionID: t.s.SessionID, Epoch: t.s.Epoch, End: end, Time: time.Now()}
	if end {
		e.Exit = *t.exit
	} else {
		e.Restored, e.Seen = t.restored, t.before
	}
	m.opt.Observer(e)
}

// Driver is one agent's side of a Machine.
type Driver struct{ m *Machine }

var (
	_ driver.Driver = (*Driver)(nil)
	_ driver.Execer = (*proc)(nil)
)

// Type is "process": simulations spawn what users would.
func (d *Driver) Type() string { return session.TypeProcess }

// Probe finds the type alone.
func (d *Driver) Probe(context.Context) (map[string]bool, error) { return map[string]bool{}, nil }

// Start starts a session; it is refused without a lease.
func (d *Driver) Start(ctx context.Context, s driver.Start) (driver.Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.Spec == nil || len(s.Spec.Command) == 0 || s.SessionID == "" {
		return nil, fault.New(fault.Invalid, "fake: session %q has no command", s.SessionID)
	}
	if s.Spec.Command[0] == "fail-start" {
		return nil, fault.New(fault.FailedPrecondition, "fake: start %s: it was told to fail", s.SessionID)
	}
	m := d.m
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.trees[s.SessionID]
	if before != nil && before.exit == nil {
		return nil, fault.New(fault.AlreadyExists, "fake: start %s: epoch %d of it still lives here; adopt it, or kill it first", s.SessionID, before.s.Epoch)
	}
	if m.deadline <= m.Now() {
		return nil, fault.New(fault.Aborted, "fake: start %s: no lease is held", s.SessionID)
	}
	if s.StartBy != 0 && m.Now() >= s.StartBy {
		return nil, fault.New(fault.Aborted, "fake: start %s: the lease under which it was ordered has ended", s.SessionID)
	}
	m.pid++
	t := &tree{m: m, s: s, pid: m.pid, last: s.OutputBase, given: make(map[uint64]bool)}
	if before != nil { // the same directory: its log goes on
		t.lines, t.last = before.lines, max(before.last, s.OutputBase)
		t.notice, t.noticeAt = before.notice, before.noticeAt
	}
	if r, ok := m.restored[s.SessionID]; ok {
		delete(m.restored, s.SessionID)
		if r.epoch == s.Epoch {
			t.goOn(r)
		}
	}
	m.trees[s.SessionID] = t
	m.observe(t, false)
	return t.attach(), nil
}

// Adopt takes up what runs, from whichever driver had it.
func (d *Driver) Adopt(ctx context.Context, s driver.Start) (driver.Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m := d.m
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.trees[s.SessionID]
	switch {
	case t == nil || (t.exit != nil && t.s.Epoch != s.Epoch):
		return nil, &driver.Gone{Exit: session.Exit{Cause: session.CauseStartFailed, Message: "it had not been started when the agent ended"}}
	case t.exit != nil:
		return nil, &driver.Gone{Exit: *t.exit, OutputLine: t.last, Outstanding: t.outstanding, Turns: slices.Clone(t.turns)}
	case t.s.Epoch != s.Epoch:
		return nil, fault.New(fault.FailedPrecondition, "fake: adopt %s epoch %d: epoch %d runs", s.SessionID, s.Epoch, t.s.Epoch)
	}
	t.detach()
	return t.attach(), nil
}
