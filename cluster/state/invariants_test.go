// What holds after every entry, recounted from the rows.

package state

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/session"
)

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// checkInvariants recounts everything that is counted as it changes.
func checkInvariants(t fataler, v *View) {
	t.Helper()
	r := &recount{nodes: map[string]held{}, moving: map[string]uint32{}, names: map[[2]string]string{}, pending: map[string]bool{}, ended: map[string]bool{}, aging: map[string]bool{}}
	for s := range v.Sessions("") {
		r.session(t, v, s)
		checkSaved(t, s)
		checkMailbox(t, v, s, &r.want)
	}
	checkOrder(t, "pending", v.Pending(), r.pending, func(a, b *session.Session) bool {
		return a.Spec.Priority < b.Spec.Priority || a.Spec.Priority == b.Spec.Priority && a.CreateIndex <= b.CreateIndex
	})
	checkOrder(t, "aging", v.sessionsOf(setID{kind: setAging}), r.aging, func(a, b *session.Session) bool { return a.KeptUntil() <= b.KeptUntil() })
	checkOrder(t, "ended", v.Ended(), r.ended, func(a, b *session.Session) bool { return a.EndTime <= b.EndTime })
	r.checkNodes(t, v)
	checkDeadLetters(t, v, &r.want)
	r.want.Tokens = uint64(len(slices.Collect(v.Tokens())))
	checkEvents(t, v, &r.want)
	checkCalls(t, v, &r.want)
	checkConversations(t, v, &r.want)
	checkKeys(t, v, &r.want)
	r.want.DeadLettersDropped = v.Stats().DeadLettersDropped
	if got := v.Stats(); got != r.want {
		t.Fatalf("counts\n%+v, recounted\n%+v", got, r.want)
	}
}

// recount is what the sessions' rows add up to.
type recount struct {
	want                  Stats
	nodes                 map[string]held   // by node
	moving                map[string]uint32 // sessions on their way to a node
	names                 map[[2]string]string
	pending, ended, aging map[string]bool // sessions
}

// held is what sessions hold of a node.
type held struct {
	sessions    uint32
	cpu, memory int64
}

func (r *recount) hold(node string, s *session.Session) {
	h := r.nodes[node]
	r.nodes[node] = held{h.sessions + 1, h.cpu + s.Spec.CPUMilli, h.memory + s.Spec.MemoryBytes}
}

// session adds one up, and looks at what its own row says.
func (r *recount) session(t fataler, v *View, s *session.Session) {
	t.Helper()
	r.want.Phases[s.Phase]++
	r.name(t, v, s)
	if s.Phase.HoldsNode() {
		r.hold(s.NodeID, s)
	}
	if s.Phase == session.Migrating {
		if !s.Migration.Under() || s.Migration.Source != s.NodeID {
			t.Fatalf("session %s is moving with %+v", s.ID, s.Migration)
		}
		r.hold(s.Migration.Target, s)
		r.moving[s.Migration.Target]++
	} else if s.Phase != session.Restoring && s.Migration.Under() && s.Phase != session.Terminating && s.Phase != session.Pending {
		t.Fatalf("session %s is %s and its move is under way: %+v", s.ID, s.Phase, s.Migration)
	}
	if s.KeptUntil() != 0 {
		r.aging[s.ID] = true
	}
	if s.Phase == session.Pending {
		r.pending[s.ID] = true
	}
	if s.Phase.Ended() != (s.EndTime != 0) {
		t.Fatalf("session %s is %s with end time %d", s.ID, s.Phase, s.EndTime)
	}
	if s.Phase.Ended() {
		r.ended[s.ID] = true
		if s.Exit == nil || s.Exit.Cause == "" {
			t.Fatalf("session %s ended without a cause", s.ID)
		}
	}
	if n := len(s.History); n == 0 || n > session.HistoryMax || s.History[n-1].Phase != s.Phase {
		t.Fatalf("session %s is %s with history %v", s.ID, s.Phase, s.History)
	}
}

// name looks for the session by its name.
func (r *recount) name(t fataler, v *View, s *session.Session) {
	t.Helper()
	if s.Spec.Name == "" {
		return
	}
	key := [2]string{s.Spec.Namespace, s.Spec.Name}
	if s.Phase.Ended() {
		last := v.LastSessionByName(key[0], key[1])
		if last == nil || last.Spec.Name != s.Spec.Name || last.EndTime < s.EndTime {
			t.Fatalf("last by name %s: %v, and %s ended at %d", s.Spec.Name, last, s.ID, s.EndTime)
		}
		return
	}
	if other, ok := r.names[key]; ok {
		t.Fatalf("sessions %s and %s both have the name %v", other, s.ID, key)
	}
	r.names[key] = s.ID
	if got := v.SessionByName(key[0], key[1]); got != s {
		t.Fatalf("by name %v: %v", key, got)
	}
}

// checkNodes compares what nodes count with what sessions hold of them.
func (r *recount) checkNodes(t fataler, v *View) {
	t.Helper()
	var byName []string
	for n := range v.Nodes() {
		r.want.Nodes++
		if got := (held{n.Sessions, n.ReservedCPUMilli, n.ReservedMemoryBytes}); got != r.nodes[n.ID] {
			t.Fatalf("node %s counts %+v, recounted %+v", n.Name, got, r.nodes[n.ID])
		}
		var on uint32
		for s := range v.SessionsOnNode(n.ID) {
			if on++; s.NodeID != n.ID || !s.Phase.HoldsNode() {
				t.Fatalf("session %s is listed on node %s", s.ID, n.ID)
			}
		}
		if on+r.moving[n.ID] != n.Sessions || n.Lost && on > 0 {
			t.Fatalf("node %s (lost %v) lists %d sessions and counts %d", n.Name, n.Lost, on, n.Sessions)
		}
		checkDrain(t, n)
		delete(r.nodes, n.ID)
		if byName = append(byName, n.Name); v.NodeByName(n.Name) != n {
			t.Fatalf("node %s is not found by its name", n.Name)
		}
	}
	if len(r.nodes) > 0 {
		t.Fatalf("sessions hold nodes that are not there: %v", r.nodes)
	}
	slices.Sort(byName)
	var listed []string
	for n := range v.NodesByName("") {
		listed = append(listed, n.Name)
	}
	if !slices.Equal(listed, byName) {
		t.Fatalf("by name, nodes are %v, want %v", listed, byName)
	}
}

func checkDeadLetters(t fataler, v *View, want *Stats) {
	t.Helper()
	for d := range v.DeadLetters("", "", LetterKey{}) {
		want.DeadLetters++
		want.DeadLetterBytes += uint64(len(d.Text))
		if got := v.DeadLetter(LetterKey{d.SessionID, d.Sequence}); got != d {
			t.Fatalf("dead letter %s/%d is not found by its key", d.SessionID, d.Sequence)
		}
	}
}

func checkKeys(t fataler, v *View, want *Stats) {
	t.Helper()
	named := map[idempotencyKey]bool{}
	var last int64
	for r := range v.meta.keys.all() {
		want.IdempotencyKeys++
		if named[r.idempotencyKey] || r.time < last {
			t.Fatalf("idempotency key %+v is there twice, or out of order", r)
		}
		named[r.idempotencyKey], last = true, r.time
	}
}

func checkDrain(t fataler, n *Node) {
	t.Helper()
	d := n.Drain
	switch {
	case d == nil:
	case d.Under() && (n.Schedulable || d.EndTime != 0), !d.Under() && d.EndTime == 0:
		t.Fatalf("node %s (schedulable %v) is in the drain %+v", n.Name, n.Schedulable, d)
	case d.State != DrainCancelled && d.Moved+d.Paused+n.Sessions > d.Total:
		t.Fatalf("node %s holds %d sessions in the drain %+v: some came meanwhile", n.Name, n.Sessions, d)
	case d.Agent > n.Incarnation, d.ByAgent() && (n.Schedulable || d.Agent < n.Incarnation), d.Cordoned && !d.ByAgent():
		t.Fatalf("node %s (schedulable %v, incarnation %d) is in a drain of its agent %+v", n.Name, n.Schedulable, n.Incarnation, d)
	}
}

func checkMailbox(t fataler, v *View, s *session.Session, want *Stats) {
	t.Helper()
	got := *v.Mailbox(s.ID)
	re := session.Mailbox{SessionID: s.ID, NextSequence: got.NextSequence, Acked: got.Acked, LastAckTime: got.LastAckTime}
	var last *session.Message
	for m := range v.Messages(s.ID) {
		if last != nil && (last.Priority > m.Priority || last.Priority == m.Priority && last.Sequence >= m.Sequence) {
			t.Fatalf("session %s: message %d (%s) comes after %d (%s)", s.ID, m.Sequence, m.Priority, last.Sequence, last.Priority)
		}
		last = m
		if m.Delivered {
			re.Delivered++
			if m.DeliveredEpoch != s.Epoch || !s.Phase.HoldsNode() {
				t.Fatalf("session %s (%s, epoch %d): message %d is with a process of epoch %d", s.ID, s.Phase, s.Epoch, m.Sequence, m.DeliveredEpoch)
			}
		} else {
			re.Queued++
		}
		re.Bytes += uint64(len(m.Text))
		if m.Sequence >= got.NextSequence || v.Message(s.ID, m.Sequence) != m {
			t.Fatalf("session %s: message %d is not found, or beyond %d", s.ID, m.Sequence, got.NextSequence)
		}
	}
	var turn uint64
	for _, m := range v.kept(s.ID) {
		if m.Turn <= turn || m.Turn > s.Turns || m.Delivered || v.Message(s.ID, m.Sequence) != nil {
			t.Fatalf("session %s (%d turns) keeps message %d of turn %d after turn %d", s.ID, s.Turns, m.Sequence, m.Turn, turn)
		}
		if head := s.Head(); head != nil && m.Turn <= head.Turn {
			t.Fatalf("session %s keeps message %d of turn %d, which checkpoint %d has seen", s.ID, m.Sequence, m.Turn, head.Sequence)
		}
		turn = m.Turn
		re.Kept++
		re.Bytes += uint64(len(m.Text))
	}
	if s.Phase.Ended() && s.Head() == nil && re.Kept > 0 {
		t.Fatalf("session %s is %s without a checkpoint and still keeps messages", s.ID, s.Phase)
	}
	if s.Phase.Ended() && re.Queued+re.Delivered > 0 {
		t.Fatalf("session %s is %s and still has messages", s.ID, s.Phase)
	}
	for range v.DeadLetters("", s.ID, LetterKey{}) {
		re.Dead++
	}
	if got != re {
		t.Fatalf("session %s: mailbox %+v, recounted %+v", s.ID, got, re)
	}
	want.Messages += uint64(re.Queued + re.Delivered)
	want.MessageBytes += re.Bytes
}

// checkSaved looks at what a session goes on from.
func checkSaved(t fataler, s *session.Session) {
	t.Helper()
	var last uint64
	for _, c := range s.Checkpoints {
		if c.Sequence <= last || c.Turn > s.Turns {
			t.Fatalf("session %s (%d turns): checkpoint %d of turn %d after %d", s.ID, s.Turns, c.Sequence, c.Turn, last)
		}
		last = c.Sequence
	}
	switch {
	case s.RewindTo == 0 && len(s.Checkpoints) > s.Spec.KeepCount()+1: // one may be left of a rewind that was given up
		t.Fatalf("session %s keeps %d checkpoints of %d", s.ID, len(s.Checkpoints), s.Spec.KeepCount())
	case s.RewindTo != 0 && s.Checkpoint(s.RewindTo) == nil:
		t.Fatalf("session %s is to go back to checkpoint %d, which is gone", s.ID, s.RewindTo)
	case s.Phase == session.Restoring && s.Head() == nil, s.Phase == session.Starting && s.Head() != nil && s.Epoch > 1 && s.Head().Epoch < s.Epoch && s.PID != 0:
		t.Fatalf("session %s is %s with the head %+v", s.ID, s.Phase, s.Head())
	case s.Left && s.Phase != session.Migrating && s.Phase != session.Pausing && s.Phase != session.Terminating:
		t.Fatalf("session %s is %s and has left", s.ID, s.Phase)
	case s.CheckpointAnswered > s.CheckpointRequest:
		t.Fatalf("session %s: checkpoint %d answered of %d", s.ID, s.CheckpointAnswered, s.CheckpointRequest)
	}
}

func checkEvents(t fataler, v *View, want *Stats) {
	t.Helper()
	events := v.Events(0, 1<<30)
	want.Events = uint64(len(events))
	for i, e := range events {
		if e.Number != v.EventNumber()-uint64(len(events)-1-i) {
			t.Fatalf("event %d of %d has number %d; the last is %d", i, len(events), e.Number, v.EventNumber())
		}
	}
}

func checkOrder(t fataler, what string, seq func(func(*session.Session) bool), want map[string]bool, ordered func(a, b *session.Session) bool) {
	t.Helper()
	var last *session.Session
	n := 0
	for s := range seq {
		if n++; !want[s.ID] || last != nil && !ordered(last, s) {
			t.Fatalf("%s: %s is not one, or out of order", what, s.ID)
		}
		last = s
	}
	if n != len(want) {
		t.Fatalf("%s: lists %d, want %d", what, n, len(want))
	}
}

// TestInvariantsHold draws histories and recounts after every entry. On failure rapid prints the seed that repeats it.
func TestInvariantsHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := smallLimits()
		if rapid.Bool().Draw(t, "wide") {
			limits = DefaultLimits()
		}
		h, s := newHistory(rapid.Uint64().Draw(t, "seed")), New(limits)
		for range rapid.IntRange(1, 60).Draw(t, "entries") {
			s.Apply(s.Index()+1, h.batch(s.View()))
			checkInvariants(t, s.View())
		}
	})
}

// TestSets compares the sets with a map.
func TestSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		db := newDB()
		model := map[setID]map[string]string{}
		key := rapid.StringMatching(`[ab\x00\xff]{0,6}`)
		owner := rapid.SampledFrom([]string{"", "x", "xy"})
		for range rapid.IntRange(1, 12).Draw(t, "rounds") {
			var ops []setOp
			removing := rapid.IntRange(0, 3).Draw(t, "removing")
			for range rapid.IntRange(1, 150).Draw(t, "ops") {
				op := setOp{setID: setID{setNames, owner.Draw(t, "owner")}, setEntry: setEntry{key.Draw(t, "key"), key.Draw(t, "value")}}
				op.remove = rapid.IntRange(0, 3).Draw(t, "remove") < removing
				ops = append(ops, op)
				if model[op.setID] == nil {
					model[op.setID] = map[string]string{}
				}
				if op.remove {
					delete(model[op.setID], op.key)
				} else {
					model[op.setID][op.key] = op.value
				}
			}
			w := db.Txn(true)
			applyOps(db.Txn(false), w, ops)
			w.Commit()
			for set, want := range model {
				var keys []string
				for k, v := range set.all(db.Txn(false)) {
					if got, ok := want[k]; !ok || got != v {
						t.Fatalf("%v: %q is %q, want %q (%v)", set, k, v, got, ok)
					}
					keys = append(keys, k)
				}
				if len(keys) != len(want) || !slices.IsSorted(keys) {
					t.Fatalf("%v: keys %q, want %d sorted", set, keys, len(want))
				}
				for k, v := range want {
					if got, ok := set.get(db.Txn(false), k); !ok || got != v {
						t.Fatalf("%v: get %q: %q, %v", set, k, got, ok)
					}
				}
				if _, ok := set.get(db.Txn(false), "absent"); ok {
					t.Fatalf("%v: holds what was not put", set)
				}
			}
			prefixed(db.Txn(false), tableSets, nil, func(c *chunk) bool {
				if len(c.entries) > chunkMax || len(c.entries) == 0 {
					t.Fatalf("a chunk of %d", len(c.entries))
				}
				return true
			})
		}
	})
}
