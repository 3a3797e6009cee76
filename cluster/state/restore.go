// Restore: new tables from a snapshot, in place of the old ones only when all of it was read; and inspection.

package state

import (
	"fmt"
	"io"

	"github.com/hashicorp/go-memdb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

// restoreRows is how many rows one transaction of a restore writes: enough to share paths, few enough to stay in memdb's
// cache of the nodes it may write.
const restoreRows = 4096

// Restore replaces the state by a snapshot's, or changes nothing. Damaged snapshots and those of newer versions are
// refused. Subscribers are told by a Change with Restored.
func (s *Store) Restore(r io.Reader) error {
	l := &loader{db: newDB(), trees: newTrees(), intern: s.intern, keys: keyIndex{}, sessions: newSessionReader(s.intern)}
	if err := readSnapshot(r, l); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if err := l.finish(); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = l.keys
	s.trees = l.trees
	s.publish(l.db)
	s.feed.publish(&Change{Index: l.meta.index, Time: l.meta.time, Restored: true})
	return nil
}

// loader builds tables from rows.
type loader struct {
	db       *memdb.MemDB
	trees    trees
	intern   *interner
	sessions *sessionReader
	keys     keyIndex
	meta     meta
	txn      *memdb.Txn
	written  int // rows in txn
	ops      []setOp
	mailbox  *mailboxRow // waits for its results
	events   *eventsRow  // waits for the other events of its entry
	mailOf   *mailboxRow // of the last message: they come by session, after all mailboxes
	calls    callLoader
	talker   *talkerRow    // waits for its other conversations
	talked   *Conversation // the last
}

func (l *loader) head(h *clusterv1.SnapshotHeader) {
	l.meta = meta{clusterID: h.GetClusterId(), index: h.GetIndex(), time: h.GetTime(), event: h.GetEventIndex()}
	l.meta.stats.DeadLettersDropped = h.GetDeadLettersDropped()
	l.meta.call, l.meta.stats.DeadCallsDropped = h.GetCallNumber(), h.GetDeadCallsDropped()
}

// insert writes a row; now and then it commits, and the database that nobody sees yet grows piece by piece.
func (l *loader) insert(table string, row any) {
	if l.txn == nil {
		l.txn = l.db.Txn(true)
	}
	must(l.txn.Insert(table, row))
	if l.written++; l.written >= restoreRows {
		l.commit()
	}
}

func (l *loader) commit() {
	if l.txn == nil {
		l.txn = l.db.Txn(true)
	}
	applyOps(l.db.Txn(false), l.txn, l.ops)
	l.txn.Commit()
	l.txn, l.written, l.ops = nil, 0, l.ops[:0]
}

func (l *loader) set(kind setKind, owner, key, value string) {
	l.ops = append(l.ops, setOp{setID: setID{kind, owner}, setEntry: setEntry{key, value}})
}

// flushParts writes the rows that were waiting for more of them.
func (l *loader) flushParts() {
	if l.mailbox != nil {
		l.trees.mailboxes.put(l.mailbox.SessionID, l.mailbox)
		l.mailbox = nil
	}
	if l.events != nil {
		l.insert(tableEvents, l.events)
		l.events = nil
	}
}

func (l *loader) finish() error {
	l.flushParts()
	l.flushTalker()
	if err := l.finishCalls(); err != nil {
		return err
	}
	m := l.meta
	l.insert(tableMeta, &m)
	l.commit()
	return nil
}

// row takes one row of the snapshot.
func (l *loader) row(row *clusterv1.SnapshotRow, _ int) error {
	switch k := row.GetRow().(type) {
	case *clusterv1.SnapshotRow_Mailbox:
		l.flushParts()
		l.mailbox = mailboxFromRow(k.Mailbox)
	case *clusterv1.SnapshotRow_Result:
		return l.result(resultFromRow(k.Result))
	case *clusterv1.SnapshotRow_Message:
		return l.message(messageFromRow(k.Message))
	case *clusterv1.SnapshotRow_DeadLetter:
		l.flushParts()
		d := deadFromRow(k.DeadLetter, l.intern)
		l.meta.dead++
		l.meta.stats.DeadLetters++
		l.meta.stats.DeadLetterBytes += uint64(len(d.Text))
		l.insert(tableDead, &deadRow{d, l.meta.dead})
	case *clusterv1.SnapshotRow_Node:
		l.meta.stats.Nodes++
		n := nodeFromRow(k.Node, l.intern)
		l.set(setNodeNames, "", n.Name, n.ID)
		l.trees.nodes.put(n.ID, n)
	case *clusterv1.SnapshotRow_Token:
		l.meta.stats.Tokens++
		l.insert(tableTokens, tokenFromRow(k.Token, l.intern))
	case *clusterv1.SnapshotRow_Idempotency:
		r, err := idempotencyFromRow(k.Idempotency, l.intern)
		if err != nil {
			return err
		}
		l.meta.stats.IdempotencyKeys++
		l.keys[r.idempotencyKey] = l.meta.keys.push(r)
	case *clusterv1.SnapshotRow_Event:
		l.event(eventFromRow(k.Event, l.intern))
	case *clusterv1.SnapshotRow_Call:
		l.flushParts()
		return l.call(k.Call)
	case *clusterv1.SnapshotRow_Client:
		l.flushParts()
		return l.client(k.Client)
	case *clusterv1.SnapshotRow_Conversation:
		l.flushParts()
		return l.conversation(k.Conversation)
	default:
		return fmt.Errorf("a row of a kind that this release does not know")
	}
	return nil
}

func (l *loader) session(b []byte, _ int) error {
	s, err := l.sessions.read(b)
	if err != nil {
		return err
	}
	if s.ID == "" || s.Phase == 0 || int(s.Phase) >= len(phaseEvents) {
		return fmt.Errorf("a session without id, or in phase %d", s.Phase)
	}
	l.meta.stats.Phases[s.Phase]++
	st := standingOf(s)
	if st.name != "" {
		l.set(setNames, s.Spec.Namespace, st.name, s.ID)
	}
	if st.node != "" {
		l.set(setOnNode, st.node, s.ID, "")
	}
	if st.target != "" {
		l.set(setMovingTo, st.target, s.ID, "")
	}
	if st.pending != "" {
		l.set(setPending, "", st.pending, s.ID)
	}
	if st.ended != "" {
		l.set(setEnded, "", st.ended, s.ID)
	}
	if st.aging != "" {
		l.set(setAging, "", st.aging, s.ID)
	}
	if st.endedName != "" {
		l.set(setEndedNames, s.Spec.Namespace, st.endedName, s.ID)
	}
	l.trees.sessions.put(s.ID, s)
	if len(l.ops) >= restoreRows {
		l.commit()
	}
	return nil
}

func (l *loader) result(r *session.Result) error {
	if l.mailbox == nil || l.mailbox.SessionID != r.SessionID {
		return fmt.Errorf("a result of session %q apart from its mailbox", r.SessionID)
	}
	r.SessionID = l.mailbox.SessionID
	l.mailbox.results = append(l.mailbox.results, r)
	l.mailbox.resultBytes += len(r.Text)
	return nil
}

// message hangs a message off its mailbox, which nobody else has seen yet.
func (l *loader) message(m *session.Message) error {
	if l.mailOf == nil || l.mailOf.SessionID != m.SessionID {
		if l.mailOf == nil {
			l.flushParts()
		}
		l.mailOf = l.trees.mailboxes.get(m.SessionID)
	}
	if l.mailOf == nil || m.Priority < session.Critical || m.Priority > session.Low || l.mailOf.find(m.Sequence) != nil {
		return fmt.Errorf("message %d of session %q has priority %d, comes twice, or belongs to no mailbox", m.Sequence, m.SessionID, m.Priority)
	}
	m.SessionID = l.mailOf.SessionID
	if m.Turn != 0 {
		l.mailOf.keep(m)
	} else {
		l.mailOf.put(m)
		l.meta.stats.Messages++
	}
	l.meta.stats.MessageBytes += uint64(len(m.Text))
	return nil
}

func (l *loader) event(e *Event) {
	if l.events == nil || l.events.index != e.Index {
		l.flushParts()
		l.events = &eventsRow{index: e.Index}
	}
	l.events.events = append(l.events.events, e)
	l.meta.stats.Events++
}

// Table says how much of a snapshot is of one table.
type Table struct {
	Name  string
	Rows  uint64
	Bytes int64 // in the snapshot
}

// Summary says what a snapshot holds.
type Summary struct {
	Version   uint32 // of the rows
	ClusterID string
	Index     uint64
	Time      int64 // the state's, Unix nanoseconds
	Rows      uint64
	Bytes     int64 // of the rows
	Tables    []Table
}

// The places of tables in a summary.
const (
	atSessions = iota
	atMailboxes
	atResults
	atMessages
	atDeadLetters
	atNodes
	atTokens
	atIdempotency
	atEvents
	atCalls
	atClients
	atConversations
)

// InspectSnapshot reads a whole snapshot, checks it as a restore does, and says what it holds.
func InspectSnapshot(r io.Reader) (Summary, error) {
	i := &inspector{sessions: newSessionReader(newInterner())}
	i.sum.Tables = []Table{
		atSessions: {Name: tableSessions}, atMailboxes: {Name: tableMailboxes}, atResults: {Name: "results"},
		atMessages: {Name: "messages"}, atDeadLetters: {Name: tableDead}, atNodes: {Name: tableNodes},
		atTokens: {Name: tableTokens}, atIdempotency: {Name: "idempotency"}, atEvents: {Name: tableEvents},
		atCalls: {Name: tableCalls}, atClients: {Name: tableClients}, atConversations: {Name: tableConversations},
	}
	if err := readSnapshot(r, i); err != nil {
		return Summary{}, fmt.Errorf("inspect: %w", err)
	}
	return i.sum, nil
}

// inspector counts rows.
type inspector struct {
	sum      Summary
	sessions *sessionReader
}

func (i *inspector) head(h *clusterv1.SnapshotHeader) {
	i.sum.Version, i.sum.ClusterID, i.sum.Index, i.sum.Time = h.GetVersion(), h.GetClusterId(), h.GetIndex(), h.GetTime()
}

func (i *inspector) session(b []byte, frame int) error {
	if _, err := i.sessions.read(b); err != nil {
		return err
	}
	i.count(atSessions, frame)
	return nil
}

func (i *inspector) row(row *clusterv1.SnapshotRow, frame int) error {
	switch row.GetRow().(type) {
	case *clusterv1.SnapshotRow_Mailbox:
		i.count(atMailboxes, frame)
	case *clusterv1.SnapshotRow_Result:
		i.count(atResults, frame)
	case *clusterv1.SnapshotRow_Message:
		i.count(atMessages, frame)
	case *clusterv1.SnapshotRow_DeadLetter:
		i.count(atDeadLetters, frame)
	case *clusterv1.SnapshotRow_Node:
		i.count(atNodes, frame)
	case *clusterv1.SnapshotRow_Token:
		i.count(atTokens, frame)
	case *clusterv1.SnapshotRow_Idempotency:
		i.count(atIdempotency, frame)
	case *clusterv1.SnapshotRow_Event:
		i.count(atEvents, frame)
	case *clusterv1.SnapshotRow_Call:
		if _, err := pbconv.CallFromRow(row.GetCall()); err != nil {
			return err
		}
		i.count(atCalls, frame)
	case *clusterv1.SnapshotRow_Client:
		i.count(atClients, frame)
	case *clusterv1.SnapshotRow_Conversation:
		if _, err := conversationFromRow(row.GetConversation(), newInterner()); err != nil {
			return err
		}
		i.count(atConversations, frame)
	default:
		return fmt.Errorf("a row of a kind that this release does not know")
	}
	return nil
}

func (i *inspector) count(table, bytes int) {
	t := &i.sum.Tables[table]
	t.Rows++
	t.Bytes += int64(bytes)
	i.sum.Rows++
	i.sum.Bytes += int64(bytes)
}
