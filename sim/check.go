// What must hold, whatever happens: invariants 1 to 5 of the design. The observer checks the first one and the delivery
// of messages at the instant that they happen; the rest is checked after every step.

package sim

import (
	"bytes"
	"strconv"
	"time"

	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/session"
)

// ghost is a process tree that the state knows nothing of.
type ghost struct {
	node, session string
	epoch         uint32
}

// syncGrace is how long a node that is linked may run what is not desired there: a sync, and the time to kill.
const syncGrace = 15 * time.Second

// Check looks at everything that can be looked at from outside.
func (w *World) Check() {
	v := w.truth()
	if v == nil {
		return
	}
	w.checkTrees(v)
	w.checkAcknowledged(v)
	w.checkMailboxes(v)
	for s := range v.Sessions("") {
		w.checkChain(v, s)
	}
}

// truth is a state that holds everything that was acknowledged: that of the leader. nil when nobody leads, or only one who
// does not know that there was a later leader.
func (w *World) truth() *state.View {
	i := w.leading()
	if i == nil {
		return nil
	}
	l, _ := i.node.Leader()
	if !l.Self || l.Term < w.client.latestTerm() {
		return nil
	}
	return i.store.View()
}

// checkTrees: nothing lives on a node that is called lost (1); what is not desired goes soon (4), and at the latest with
// the lease (5).
func (w *World) checkTrees(v *state.View) {
	lost := map[string]bool{}
	ids := map[string]string{}
	for n := range v.Nodes() {
		lost[n.Name], ids[n.Name] = n.Lost, n.ID
	}
	now := time.Now()
	present := map[ghost]bool{}
	for id, owners := range w.watch.liveTrees() {
		s := v.Session(id)
		for node, o := range owners {
			if lost[node] {
				w.fail("a lost node runs: %s is called lost, and session %s runs there at epoch %d", node, id, o.epoch)
			}
			if s != nil && s.Phase.HoldsNode() && s.NodeID == ids[node] && s.Epoch == o.epoch {
				continue
			}
			g := ghost{node, id, o.epoch}
			present[g] = true
			since, ok := w.ghosts[g]
			if !ok {
				w.ghosts[g] = now
				continue
			}
			l := w.opts.Lease
			if limit := max(syncGrace, l.Duration+l.Margin); now.Sub(since) > limit {
				w.fail("an orphan: session %s runs on %s at epoch %d, and since %s that is not desired: %s", id, node, o.epoch, stamp(since), describe(s))
			}
		}
	}
	for g := range w.ghosts {
		if !present[g] {
			delete(w.ghosts, g)
		}
	}
}

func describe(s *session.Session) string {
	if s == nil {
		return "the state does not know it"
	}
	return s.Phase.String() + " at epoch " + strconv.FormatUint(uint64(s.Epoch), 10) + " on " + s.NodeID + ": " + s.Reason
}

// checkAcknowledged: what a client was told is in the state (2).
func (w *World) checkAcknowledged(v *state.View) {
	byKey := map[string]string{}
	for s := range v.Sessions("") {
		key := keyOf(s)
		if other, twice := byKey[key]; twice {
			w.fail("a request twice: sessions %s and %s were both made by %s", other, s.ID, key)
		}
		byKey[key] = s.ID
	}
	for _, s := range w.client.known() {
		if s.id == "" {
			continue
		}
		row := v.Session(s.id)
		switch {
		case row == nil:
			w.fail("a session vanished: %s (%s) was acknowledged", s.name, s.id)
			continue
		case byKey[s.key] != s.id:
			w.fail("a session changed: %s was acknowledged as %s and is %s", s.name, s.id, byKey[s.key])
		case s.ended && !s.revived && !row.Phase.Ended() && row.Phase != session.Terminating:
			w.fail("a termination vanished: %s is %s", s.name, row.Phase)
		}
		w.checkSent(v, &s)
	}
}

// checkSent: an acknowledged message is queued, with a process, acked or a dead letter, and is the one that was sent.
func (w *World) checkSent(v *state.View, s *spawned) {
	owner := map[uint64]string{}
	for _, m := range s.sent {
		if m.sequence == 0 {
			continue
		}
		if other, twice := owner[m.sequence]; twice {
			w.fail("a sequence twice: %s and %s are both message %d of %s", other, m.key, m.sequence, s.name)
		}
		owner[m.sequence] = m.key
		text, ok := whereabouts(v, s.id, m.sequence)
		if !ok {
			w.fail("a message vanished: %d of %s was acknowledged (%s)", m.sequence, s.name, m.key)
		} else if text != "" && text != m.text {
			w.fail("a message changed: %d of %s was sent as %q and is %q", m.sequence, s.name, m.text, text)
		}
		if given, ok := w.watch.wasGiven(s.id, m.sequence); ok && given != m.text {
			w.fail("a message changed: %d of %s was sent as %q and given as %q", m.sequence, s.name, m.text, given)
		}
	}
}

// whereabouts finds a message, with its text where that is kept.
func whereabouts(v *state.View, id string, sequence uint64) (string, bool) {
	if m := v.Message(id, sequence); m != nil {
		return string(m.Text), true
	}
	if v.Result(id, sequence) != nil {
		return "", true
	}
	if d := v.DeadLetter(state.LetterKey{SessionID: id, Sequence: sequence}); d != nil {
		return string(d.Text), true
	}
	return "", false
}

// checkMailboxes: every message is in one place, the counts say so, and what is acked was given to a process (3).
func (w *World) checkMailboxes(v *state.View) {
	for s := range v.Sessions("") {
		box := v.Mailbox(s.ID)
		var total uint64
		for range v.Messages(s.ID) {
			total++
		}
		if uint64(box.Queued)+uint64(box.Delivered) != total {
			w.fail("a mailbox miscounts: session %s has %d messages, and counts %d queued and %d delivered", s.ID, total, box.Queued, box.Delivered)
		}
		if sum := total + uint64(box.Acked) + uint64(box.Dead); sum != box.NextSequence-1 {
			w.fail("messages vanished: session %s accepted %d, and %d are queued, with a process, acked or dead", s.ID, box.NextSequence-1, sum)
		}
		for _, r := range v.Results(s.ID) {
			if _, given := w.watch.wasGiven(s.ID, r.Sequence); !given {
				w.fail("an ack of nothing: message %d of session %s is acked, and no process was given it", r.Sequence, s.ID)
			}
		}
	}
}

// CheckQuiet looks at what must hold once nothing fails any more and everything has had its time: the servers agree byte
// by byte, and exactly what is desired runs.
func (w *World) CheckQuiet() {
	w.Check()
	var first *instance
	var want []byte
	for _, s := range w.servers {
		i := s.running()
		if i == nil {
			continue
		}
		var b bytes.Buffer
		if err := i.store.View().Persist(&b); err != nil {
			w.fail("the state of %s cannot be written: %v", s.id, err)
			continue
		}
		if first == nil {
			first, want = i, b.Bytes()
		} else if !bytes.Equal(want, b.Bytes()) {
			w.fail("the servers disagree: the states of %s (at %d) and %s (at %d) differ", first.id, first.store.Index(), i.id, i.store.Index())
		}
	}
	if first == nil {
		w.fail("no server lives")
		return
	}
	v := first.store.View()
	trees := w.watch.liveTrees()
	for s := range v.Sessions("") {
		live := len(trees[s.ID])
		delete(trees, s.ID)
		switch {
		case s.Phase == session.Running && live != 1:
			w.fail("a session does not run: %s is %s at epoch %d on %s, and %d trees of it live", s.ID, s.Phase, s.Epoch, s.NodeID, live)
		case s.Phase != session.Running && live != 0:
			w.fail("a session runs that should not: %s is %s", s.ID, s.Phase)
		case s.Phase == session.Running:
			if row := v.Node(s.NodeID); row != nil {
				w.checkLog(s, w.node(row.Name))
			}
		}
		if s.Phase == session.Running && s.Saves() {
			w.checkComplete(v, s)
		}
	}
	for id := range trees {
		w.fail("a stray process: session %s, which nobody knows, runs", id)
	}
	w.checkLeftovers(v)
}

// quietFor is how long it must have been quiet for nothing to be on its way: a node that has just linked reports what
// became of its sessions.
const quietFor = 5 * time.Second

// settled returns a function that says what is on its way; empty once it has been quiet for long.
func (w *World) settled() func() string {
	var since time.Time
	var index uint64
	return func() string {
		why := w.quiet()
		l := w.leading()
		if why != "" || l == nil || l.store.Index() != index {
			since = time.Time{}
			if l != nil {
				index = l.store.Index()
			}
		}
		switch {
		case why != "":
			return why
		case since.IsZero():
			since = time.Now()
		}
		if time.Since(since) >= quietFor {
			return ""
		}
		return "it has only just become quiet"
	}
}

// quiet reports whether nothing is on its way: one leader, all servers at one index, every session at rest. When not, it
// says what is.
func (w *World) quiet() string {
	l := w.leading()
	if l == nil || len(w.leaders()) != 1 {
		return "no single leader"
	}
	v := l.store.View()
	for _, s := range w.servers {
		if i := s.running(); i == nil || i.store.Index() != v.Index() {
			return s.id + " is behind"
		}
	}
	for _, n := range w.nodes {
		row := v.NodeByName(n.id)
		if n.isGone() {
			if row != nil && !row.Lost {
				return n.id + " is gone, and nobody knows"
			}
			continue
		}
		if row == nil || row.Lost {
			return n.id + " is not there"
		}
		if live, ok := l.leader.Live(row.ID); !ok || !live.Linked {
			return n.id + " is not linked"
		}
	}
	for s := range v.Sessions("") {
		if s.Phase == session.Pending && s.RestoreFailures > 0 && w.storeIsDown() {
			continue // it waits for the chunk store
		}
		if s.Phase != session.Running && s.Phase != session.Paused && !s.Phase.Ended() {
			return "session " + s.ID + " is " + describe(s)
		}
		if s.Phase == session.Running && !w.idle(v, s.ID) {
			return "session " + s.ID + " has messages"
		}
	}
	return ""
}

// idle reports whether a session has no messages, or hangs on one.
func (w *World) idle(v *state.View, id string) bool {
	none := true
	for m := range v.Messages(id) {
		if text, given := w.watch.wasGiven(id, m.Sequence); given && text == "hang" && m.Delivered {
			return true
		}
		none = false
	}
	return none
}
