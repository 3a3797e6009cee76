// The observer: it stands outside the system, is told of every process tree and every message at the instant that it
// happens, and knows what must never be.

package sim

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/neolith/orchestrator/agent/driver/fake"
	"github.com/neolith/orchestrator/session"
)

// watch sees all machines.
type watch struct {
	fail func(format string, args ...any)
	// acked reports whether a message's turn has ended, as far as any server knows.
	acked func(session string, sequence uint64) bool

	mu       sync.Mutex
	ordered  bool // frames keep their order on each link, so that messages of one priority must too
	sessions map[string]*seen
	starts   int
	restored int // starts from a checkpoint
	moved    int // those of them that came elsewhere
	taken    int
}

// seen is all that was seen of one session.
type seen struct {
	live  map[string]owner // by node
	epoch uint32           // the highest that was started anywhere
	node  string           // where
	given map[uint64][]uint32
	texts map[uint64]string
	last  map[session.Priority]uint64 // given to the present epoch
	order []uint64                    // given to the present epoch
	from  *[32]byte                   // the checkpoint that the present epoch began with; nil for none
	base  []fake.Seen                 // what that has seen
	has   map[uint64]bool             // the same, of this session's own messages
	fresh map[uint32]bool             // epochs that began with none
}

type owner struct {
	epoch uint32
	since time.Time
}

func newWatch(fail func(string, ...any)) *watch {
	return &watch{fail: fail, ordered: true, sessions: map[string]*seen{}}
}

func (w *watch) of(id string) *seen {
	s := w.sessions[id]
	if s == nil {
		s = &seen{live: map[string]owner{}, given: map[uint64][]uint32{}, texts: map[uint64]string{}, last: map[session.Priority]uint64{}, fresh: map[uint32]bool{}}
		w.sessions[id] = s
	}
	return s
}

// tree is told of the start or the end of a process tree. It is where two owners would be seen (invariant 1).
func (w *watch) tree(e fake.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.of(e.SessionID)
	if e.End {
		delete(s.live, e.Node)
		return
	}
	w.starts++
	for node, o := range s.live {
		w.fail("two owners: session %s runs on %s at epoch %d since %s, and is started on %s at epoch %d",
			e.SessionID, node, o.epoch, stamp(o.since), e.Node, e.Epoch)
	}
	if e.Epoch <= s.epoch {
		w.fail("an epoch twice: session %s is started at epoch %d on %s, and epoch %d was started on %s before", e.SessionID, e.Epoch, e.Node, s.epoch, s.node)
	}
	before := s.node
	s.live[e.Node] = owner{e.Epoch, time.Now()}
	s.epoch, s.node = e.Epoch, e.Node
	s.last, s.order = map[session.Priority]uint64{}, nil
	s.fresh[e.Epoch] = e.Restored == nil
	if e.Restored != nil {
		w.restored++
		if before != "" && before != e.Node {
			w.moved++
		}
	}
	s.from, s.base, s.has = e.Restored, e.Seen, map[uint64]bool{}
	for _, m := range e.Seen {
		if m.SessionID != e.SessionID {
			continue
		}
		if s.has[m.Sequence] {
			w.fail("a checkpoint has seen a message twice: %d of session %s", m.Sequence, e.SessionID)
		}
		s.has[m.Sequence] = true
	}
}

// given is told of a message that a process takes. A process takes a message once (invariant 3).
func (w *watch) given(g fake.Given) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.of(g.SessionID)
	for _, e := range s.given[g.Sequence] {
		if e == g.Epoch {
			w.fail("a message twice: %d of session %s was given to epoch %d on %s before", g.Sequence, g.SessionID, g.Epoch, g.Node)
		}
	}
	if s.has[g.Sequence] {
		w.fail("a message twice: the checkpoint that epoch %d of session %s began with has seen message %d, and it is given to it", g.Epoch, g.SessionID, g.Sequence)
	}
	if w.acked(g.SessionID, g.Sequence) {
		w.fail("a message twice: %d of session %s is acked, and is given to epoch %d on %s", g.Sequence, g.SessionID, g.Epoch, g.Node)
	}
	s.given[g.Sequence] = append(s.given[g.Sequence], g.Epoch)
	s.texts[g.Sequence] = g.Text
	p, _ := priorityOf(g.Text)
	if w.ordered && g.Sequence < s.last[p] {
		w.fail("out of order: message %d of session %s was given to epoch %d after %d of the same priority", g.Sequence, g.SessionID, g.Epoch, s.last[p])
	}
	s.last[p] = max(s.last[p], g.Sequence)
	s.order = append(s.order, g.Sequence)
	w.taken++
}

// disordered: from now on links are worse than any network, and order is not promised.
func (w *watch) disordered() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ordered = false
}

// orderOf is what the present epoch was given, in order.
func (w *watch) orderOf(id string) []uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]uint64(nil), w.of(id).order...)
}

// process is what is known of a session's latest process.
type process struct {
	epoch uint32
	from  *[32]byte
	base  []fake.Seen
	order []uint64
}

func (w *watch) process(id string) process {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.of(id)
	return process{s.epoch, s.from, s.base, slices.Clone(s.order)}
}

// fresh returns the epochs of a session, and of those that it was forked from, that began from nothing.
func (w *watch) fresh(id string, base []fake.Seen) map[uint32]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := maps.Clone(w.of(id).fresh)
	for _, m := range base {
		maps.Copy(out, w.of(m.SessionID).fresh)
	}
	return out
}

// wasGiven reports whether any process was given the message, and its text.
func (w *watch) wasGiven(id string, sequence uint64) (string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text, ok := w.of(id).texts[sequence]
	return text, ok
}

// liveTrees returns what lives, by session.
func (w *watch) liveTrees() map[string]map[string]owner {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]map[string]owner{}
	for id, s := range w.sessions {
		if len(s.live) == 0 {
			continue
		}
		m := map[string]owner{}
		for n, o := range s.live {
			m[n] = o
		}
		out[id] = m
	}
	return out
}

// begin is when simulated time begins, in every bubble.
var begin = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// stamp is an instant of simulated time.
func stamp(t time.Time) string { return fmt.Sprintf("%.3fs", t.Sub(begin).Seconds()) }
