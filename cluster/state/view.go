// Views: immutable snapshots of the state, and the questions they answer.

package state

import (
	"iter"

	"github.com/hashicorp/go-memdb"

	"github.com/neolith/orchestrator/session"
)

// View is the state at one index. It never changes, and may be used from many goroutines. Rows that it returns are
// shared: treat them as immutable. What is not there is nil.
type View struct {
	txn  *memdb.Txn
	meta *meta
	trees
}

func newView(txn *memdb.Txn, t trees) *View {
	return &View{txn: txn, meta: first[meta](txn, tableMeta, byID, []byte{1}), trees: t}
}

// Index returns the index of the last entry that this view holds.
func (v *View) Index() uint64 { return v.meta.index }

// Time returns the state's time in Unix nanoseconds: the largest clock of a proposer so far.
func (v *View) Time() int64 { return v.meta.time }

// ClusterID returns the cluster's id; empty before it was given one.
func (v *View) ClusterID() string { return v.meta.clusterID }

// EventNumber returns the number of the last event, 0 for none.
func (v *View) EventNumber() uint64 { return v.meta.event }

// PhaseCounts counts the sessions by phase.
func (v *View) PhaseCounts() PhaseCounts { return v.meta.stats.Phases }

// Stats counts everything.
func (v *View) Stats() Stats { return v.meta.stats }

// Session returns the session with the id.
func (v *View) Session(id string) *session.Session { return v.sessions.get(id) }

// SessionByName returns the session that has the name and has not ended.
func (v *View) SessionByName(namespace, name string) *session.Session {
	if name == "" {
		return nil
	}
	id, ok := setID{setNames, namespace}.get(v.txn, name)
	if !ok {
		return nil
	}
	return v.Session(id)
}

// LastSessionByName returns the session that had the name and ended last; nil when none is kept.
func (v *View) LastSessionByName(namespace, name string) *session.Session {
	if name == "" {
		return nil
	}
	id, ok := setID{setEndedNames, namespace}.lastWith(v.txn, name+"\x00")
	if !ok {
		return nil
	}
	return v.Session(id)
}

// SessionsByPrefix returns up to limit sessions whose ids begin so, by id.
func (v *View) SessionsByPrefix(prefix string, limit int) []*session.Session {
	var found []*session.Session
	if limit <= 0 {
		return nil
	}
	v.sessions.prefixed(prefix, func(s *session.Session) bool {
		found = append(found, s)
		return len(found) < limit
	})
	return found
}

// Sessions yields the sessions with larger ids than afterID, by id.
func (v *View) Sessions(afterID string) iter.Seq[*session.Session] {
	return func(yield func(*session.Session) bool) {
		v.sessions.from(afterID, func(s *session.Session) bool {
			return s.ID == afterID || yield(s)
		})
	}
}

// SessionsOnNode yields the sessions that hold the node, by id.
func (v *View) SessionsOnNode(nodeID string) iter.Seq[*session.Session] {
	return func(yield func(*session.Session) bool) {
		for id := range (setID{setOnNode, nodeID}).all(v.txn) {
			if !yield(v.Session(id)) {
				return
			}
		}
	}
}

// SessionsMovingTo yields the sessions that are to move to a node and still hold another one.
func (v *View) SessionsMovingTo(nodeID string) iter.Seq[*session.Session] {
	return func(yield func(*session.Session) bool) {
		for id := range (setID{setMovingTo, nodeID}).all(v.txn) {
			if !yield(v.Session(id)) {
				return
			}
		}
	}
}

// Pending yields the sessions that wait for a place: the more urgent first, then the older.
func (v *View) Pending() iter.Seq[*session.Session] { return v.sessionsOf(setID{kind: setPending}) }

// Ended yields the sessions that have ended and were not collected, in the order of their ends.
func (v *View) Ended() iter.Seq[*session.Session] { return v.sessionsOf(setID{kind: setEnded}) }

func (v *View) sessionsOf(set setID) iter.Seq[*session.Session] {
	return func(yield func(*session.Session) bool) {
		for _, id := range set.all(v.txn) {
			if !yield(v.Session(id)) {
				return
			}
		}
	}
}

// Mailbox returns the counts of a session's messages; never nil.
func (v *View) Mailbox(sessionID string) *session.Mailbox {
	if mb := v.mailbox(sessionID); mb != nil {
		return &mb.Mailbox
	}
	return &session.Mailbox{SessionID: sessionID, NextSequence: 1}
}

func (v *View) mailbox(sessionID string) *mailboxRow { return v.mailboxes.get(sessionID) }

// Messages yields a session's messages that have not ended, in the order of delivery: by priority, then by sequence.
func (v *View) Messages(sessionID string) iter.Seq[*session.Message] {
	return v.mailbox(sessionID).all()
}

// AllMessages yields the messages of all sessions that have not ended, by session, then in the order of delivery.
func (v *View) AllMessages() iter.Seq[*session.Message] {
	return func(yield func(*session.Message) bool) {
		v.mailboxes.prefixed("", func(mb *mailboxRow) bool {
			for m := range mb.all() {
				if !yield(m) {
					return false
				}
			}
			return true
		})
	}
}

// kept returns the acked messages of a session that no checkpoint has seen, by their turns.
func (v *View) kept(sessionID string) []*session.Message {
	if mb := v.mailbox(sessionID); mb != nil && mb.mail != nil {
		return mb.mail.kept
	}
	return nil
}

// keptAndAll yields the messages of all sessions with those that are kept, by session: acked ones by their turns, then the
// others in the order of delivery.
func (v *View) keptAndAll() iter.Seq[*session.Message] {
	return func(yield func(*session.Message) bool) {
		v.mailboxes.prefixed("", func(mb *mailboxRow) bool {
			if mb.mail == nil {
				return true
			}
			for _, m := range mb.mail.kept {
				if !yield(m) {
					return false
				}
			}
			for m := range mb.all() {
				if !yield(m) {
					return false
				}
			}
			return true
		})
	}
}

// Message returns a message that has not ended.
func (v *View) Message(sessionID string, sequence uint64) *session.Message {
	return v.mailbox(sessionID).find(sequence)
}

// Result returns what a message's turn gave, if it is among the session's last turns.
func (v *View) Result(sessionID string, sequence uint64) *session.Result {
	mb := v.mailbox(sessionID)
	if mb == nil {
		return nil
	}
	for _, r := range mb.results {
		if r.Sequence == sequence {
			return r
		}
	}
	return nil
}

// Results returns what is kept of a session's last turns, in the order of their ends.
func (v *View) Results(sessionID string) []*session.Result {
	if mb := v.mailbox(sessionID); mb != nil {
		return mb.results[:len(mb.results):len(mb.results)]
	}
	return nil
}

// DeadLetter returns the dead letter with the key.
func (v *View) DeadLetter(key LetterKey) *session.DeadLetter {
	if d := first[deadRow](v.txn, tableDead, byID, key.bytes()); d != nil {
		return d.letter
	}
	return nil
}

// DeadLetters yields dead letters by session, then by sequence: of a namespace (empty: of all), of a session (empty: of
// all), with larger keys than after (zero: from the first).
func (v *View) DeadLetters(namespace, sessionID string, after LetterKey) iter.Seq[*session.DeadLetter] {
	start := after.bytes()
	if after == (LetterKey{}) && sessionID != "" {
		start = mailboxPrefix(sessionID)
	}
	return func(yield func(*session.DeadLetter) bool) {
		from(v.txn, tableDead, byID, start, func(d *deadRow) bool {
			switch l := d.letter; {
			case sessionID != "" && l.SessionID > sessionID:
				return false
			case letterKey(l) == after, namespace != "" && l.Namespace != namespace, sessionID != "" && l.SessionID != sessionID:
				return true
			default:
				return yield(l)
			}
		})
	}
}

// Node returns the node with the id.
func (v *View) Node(id string) *Node { return v.nodes.get(id) }

// NodeByName returns the node with the name.
func (v *View) NodeByName(name string) *Node {
	id, ok := setID{kind: setNodeNames}.get(v.txn, name)
	if !ok {
		return nil
	}
	return v.Node(id)
}

// NodesByPrefix returns up to limit nodes whose ids begin so, by id.
func (v *View) NodesByPrefix(prefix string, limit int) []*Node {
	var found []*Node
	if limit <= 0 {
		return nil
	}
	v.nodes.prefixed(prefix, func(n *Node) bool {
		found = append(found, n)
		return len(found) < limit
	})
	return found
}

// NodesByName yields the nodes whose names come after one, by name.
func (v *View) NodesByName(after string) iter.Seq[*Node] {
	return func(yield func(*Node) bool) {
		for name, id := range (setID{kind: setNodeNames}).all(v.txn) {
			if name > after && !yield(v.Node(id)) {
				return
			}
		}
	}
}

// Nodes yields all nodes, by id.
func (v *View) Nodes() iter.Seq[*Node] {
	return func(yield func(*Node) bool) { v.nodes.prefixed("", yield) }
}

// Remembers reports whether a request with the key was applied and is still remembered. It looks at every key.
func (v *View) Remembers(scope, key string) bool {
	for r := range v.meta.keys.all() {
		if r.kind == keyOnce && r.owner == scope && r.key == key {
			return true
		}
	}
	return false
}

// Token returns the token with the id.
func (v *View) Token(id string) *Token { return first[Token](v.txn, tableTokens, byID, idBytes(id)) }

// Tokens yields all tokens, by id.
func (v *View) Tokens() iter.Seq[*Token] {
	return func(yield func(*Token) bool) { prefixed(v.txn, tableTokens, nil, yield) }
}

// Events returns up to limit of the kept events with larger numbers than after, oldest first.
func (v *View) Events(after uint64, limit int) []*Event {
	var found []*Event
	if limit <= 0 || after >= v.meta.event {
		return nil
	}
	prefixed(v.txn, tableEvents, nil, func(r *eventsRow) bool {
		// Numbers have no holes, so the place of the first one wanted is known.
		last := r.events[len(r.events)-1].Number
		if last <= after {
			return true
		}
		skip := 0
		if n := r.events[0].Number; n <= after {
			skip = int(after - n + 1)
		}
		wanted := r.events[skip:]
		found = append(found, wanted[:min(len(wanted), limit-len(found))]...)
		return len(found) < limit
	})
	return found
}
