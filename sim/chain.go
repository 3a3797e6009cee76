// Checkpoints and messages: exactly once relative to the chain, whatever moves, fails over, forks or goes back.

package sim

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/neolith/orchestrator/agent/driver/fake"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/session"
)

// chain is what is known of a session's checkpoints.
type chain struct {
	looked uint64                        // the state's index at the last look
	first  map[session.ManifestID]uint64 // the sequence under which a checkpoint was first seen
	began  bool                          // acked messages are kept for it
	back   uint64                        // the last checkpoint that somebody went back to
	undone map[uint64]bool               // messages that are acked, and that no process of this history needs to have seen
}

// sequences is a set of one session's messages.
type sequences map[uint64]bool

func (s sequences) String() string {
	all := make([]uint64, 0, len(s))
	for q := range s {
		all = append(all, q)
	}
	slices.Sort(all)
	return strings.Trim(fmt.Sprint(all), "[]")
}

// without returns those of s that are in none of the others.
func (s sequences) without(others ...sequences) sequences {
	out := sequences{}
next:
	for q := range s {
		for _, o := range others {
			if o[q] {
				continue next
			}
		}
		out[q] = true
	}
	return out
}

func own(id string, seen []fake.Seen) sequences {
	s := sequences{}
	for _, m := range seen {
		if m.SessionID == id {
			s[m.Sequence] = true
		}
	}
	return s
}

// checkChain: what is acked is what a session's process, or the checkpoint that its next one begins with, has seen, each
// message once; and the lag says how much of that is not in a checkpoint.
func (w *World) checkChain(v *state.View, s *session.Session) {
	c := w.chains[s.ID]
	if c == nil {
		c = &chain{first: map[session.ManifestID]uint64{}}
		w.chains[s.ID] = c
	}
	if c.looked == v.Index() || s.Phase.Ended() || !s.Saves() {
		return
	}
	c.looked = v.Index()
	acked := sequences{}
	for _, r := range v.Results(s.ID) {
		acked[r.Sequence] = true
	}
	saved := sequences{} // by the head
	if h := s.Head(); h != nil {
		seen, ok := w.vault.Given(h.Manifest)
		if !ok {
			w.fail("a checkpoint of nothing: checkpoint %d of session %s is committed and not stored", h.Sequence, s.ID)
			return
		}
		saved = own(s.ID, seen)
	}
	p := w.watch.process(s.ID)
	runs := s.Phase.HoldsNode() && p.epoch == s.Epoch
	has, given := saved, sequences{}
	if runs {
		has = own(s.ID, p.base)
		for _, q := range p.order {
			given[q] = true
		}
	}
	c.goneBack(s, acked.without(saved, given))
	if runs {
		w.checkBegan(s, p, c)
	}
	due := acked.without(c.undone)
	if lost := due.without(has, given); len(lost) > 0 {
		w.fail("messages lost: %s of session %s are acked, and its history has not seen them; %s", lost, s.ID, describe(s))
	}
	if again := has.without(acked); len(again) > 0 {
		w.fail("messages doubled: what session %s goes on from has seen %s, and they are not acked; %s", s.ID, again, describe(s))
	}
	if ahead := saved.without(has, given); len(ahead) > 0 && runs {
		w.fail("a foreign head: checkpoint %d of session %s has seen %s, and its process has not; %s", s.Head().Sequence, s.ID, ahead, describe(s))
	}
	if lag := uint64(len(due.without(saved))); lag != s.LagTurns() {
		w.fail("a lag of %d turns: session %s has %d turns that checkpoint %v has not seen", s.LagTurns(), s.ID, lag, s.Head())
	}
	if (s.LagTurns() > 0) != (s.UnsavedSince != 0) {
		w.fail("a lag of %d turns since %d: session %s", s.LagTurns(), s.UnsavedSince, s.ID)
	}
	if runs {
		w.checkAnswers(v, s, p)
	}
}

// goneBack takes note of where a session's history was changed: rest is what is acked and neither in the head nor given since.
func (c *chain) goneBack(s *session.Session, rest sequences) {
	back := false
	for _, p := range s.Checkpoints {
		if _, known := c.first[p.Manifest]; !known {
			c.first[p.Manifest] = p.Sequence
		}
		if p.Sequence != c.first[p.Manifest] && p.Sequence > c.back {
			c.back, back = p.Sequence, true
		}
	}
	// Before its first checkpoint, one without a policy keeps nothing.
	if back || !c.began && s.Spec.CheckpointEvery == "" {
		c.undone = rest
	}
	c.began = true
}

// checkBegan: an epoch begins with the newest checkpoint of the epochs before it.
func (w *World) checkBegan(s *session.Session, p process, c *chain) {
	var should *session.Checkpoint
	for _, kept := range s.Checkpoints {
		if kept.Epoch < s.Epoch {
			should = kept
		}
	}
	known := p.from != nil && c.first[*p.from] != 0
	switch {
	case should != nil && (p.from == nil || *p.from != should.Manifest):
		w.fail("a wrong begin: epoch %d of session %s should have begun with checkpoint %d", s.Epoch, s.ID, should.Sequence)
	case should == nil && p.from != nil && !known: // else it is kept no more
		w.fail("a wrong begin: epoch %d of session %s began with a checkpoint that it never had", s.Epoch, s.ID)
	}
}

// history is all that a process has seen, in order.
func (p process) history(id string) []fake.Seen {
	all := slices.Clone(p.base)
	for _, q := range p.order {
		all = append(all, fake.Seen{SessionID: id, Sequence: q})
	}
	return all
}

// checkAnswers: the kept results are what a process answers that has seen this history, and no other one.
func (w *World) checkAnswers(v *state.View, s *session.Session, p process) {
	answers := w.answers(p.history(s.ID))
	for _, r := range v.Results(s.ID) {
		if want, ok := answers[fake.Seen{SessionID: s.ID, Sequence: r.Sequence}]; ok && want != string(r.Text) {
			w.fail("a result of another history: message %d of session %s was answered with %q, and its process says %q", r.Sequence, s.ID, r.Text, want)
		}
	}
}

// answers is what a session says to each message of its history; package fake has the words.
func (w *World) answers(history []fake.Seen) map[fake.Seen]string {
	out := map[fake.Seen]string{}
	sum := int64(0)
	for i, m := range history {
		text, _ := w.watch.wasGiven(m.SessionID, m.Sequence)
		word, _, _ := strings.Cut(text, " ")
		n, err := strconv.ParseInt(text, 10, 64)
		switch {
		case word == "hang" || word == "die" || word == "exit":
		case err == nil:
			sum += n
			out[m] = fmt.Sprintf("sum %d", sum)
		default:
			out[m] = fmt.Sprintf("ok %d", i+1)
		}
	}
	return out
}

// checkComplete: what runs and has nothing to do has seen every message that was accepted, but for those that are dead letters
// and those that were undone.
func (w *World) checkComplete(v *state.View, s *session.Session) {
	p := w.watch.process(s.ID)
	seen := own(s.ID, p.history(s.ID))
	for q := uint64(1); q < v.Mailbox(s.ID).NextSequence; q++ {
		if seen[q] || w.chains[s.ID].undone[q] || v.Message(s.ID, q) != nil || v.DeadLetter(state.LetterKey{SessionID: s.ID, Sequence: q}) != nil {
			continue
		}
		w.fail("a message lost: session %s was never given message %d in the history that it goes on from", s.ID, q)
	}
}

// checkLog: the output of a session that runs has each answer of its history once, in order, numbered without a gap.
func (w *World) checkLog(s *session.Session, n *node) {
	p := w.watch.process(s.ID)
	answers := w.answers(p.history(s.ID))
	var want, got []string
	for _, m := range p.history(s.ID) {
		if a, ok := answers[m]; ok {
			want = append(want, a)
		}
	}
	fresh := w.watch.fresh(s.ID, p.base)
	last, epoch := uint64(0), uint32(0)
	for _, l := range n.machine.Log(s.ID) {
		// One that began from nothing where it ran before, and elsewhere meanwhile, lacks what it said there.
		gap := last != 0 && l.GetNumber() != last+1 && (l.GetEpoch() == epoch || !fresh[l.GetEpoch()])
		if gap || l.GetNumber() <= last {
			w.fail("output with a gap: line %d of session %s comes after line %d", l.GetNumber(), s.ID, last)
		}
		last, epoch = l.GetNumber(), l.GetEpoch()
		if l.GetStream() == apiv1.LogLine_STDOUT {
			got = append(got, string(l.GetText()))
		}
	}
	// One that began from nothing where it ran before has the output of its earlier epochs before it.
	if len(got) < len(want) || !slices.Equal(got[len(got)-len(want):], want) {
		w.fail("wrong output: session %s said %q, and its history makes %q", s.ID, got, want)
	}
}
