// Conversations with models: what was said and answered, turn by turn. A model remembers nothing, and the server that asked it may be
// gone by the next turn; so the text is here, or named here where it is long.
//
// A turn is kept whole, with its answer, or not at all. It says which version of the conversation the model was told: of two that were
// asked at once, one is kept, and the other refused.

package state

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

// The roles of messages of a conversation.
const (
	roleSystem    = "system"
	roleUser      = "user"
	roleAssistant = "assistant"
)

// maxConversationIDBytes bounds the id that a caller gives a conversation.
const maxConversationIDBytes = 128

// ConversationKey names a conversation: ids are unique within their owner.
type ConversationKey struct{ Namespace, Owner, ID string }

// ConversationMessage is one message of a conversation.
type ConversationMessage struct {
	Role string // system, user or assistant
	Text queue.Blob
}

// Conversation is a conversation as the replicated state holds it. Treat it as immutable. Times are Unix nanoseconds.
type Conversation struct {
	ConversationKey
	Caller          string // who talks, for people
	Version         uint64 // the raft index of the last turn
	TurnID, Request string // of the last turn: its own id, and what the request was that it answers, empty where that had no key
	Provider, Model string // that answered last
	// Messages are oldest first. They are never changed in place; what is appended may share the array.
	Messages   []ConversationMessage
	CreateTime int64
	Time       int64 // of the last turn
}

// SizeBytes is how many bytes all texts have.
func (c *Conversation) SizeBytes() uint64 {
	if c == nil {
		return 0
	}
	return textBytes(c.Messages)
}

func textBytes(messages []ConversationMessage) (n uint64) {
	for i := range messages {
		n += messages[i].Text.Size
	}
	return n
}

// stateBytes is how many bytes the messages have in the state.
func stateBytes(messages []ConversationMessage) (n uint64) {
	for i := range messages {
		n += uint64(len(messages[i].Text.Inline) + len(messages[i].Text.Chunks)*len([32]byte{}))
	}
	return n
}

// talkerRow counts the conversations of one owner.
type talkerRow struct {
	namespace, owner string
	count            uint32
}

func (r *talkerRow) key() string { return r.namespace + "\x00" + r.owner }

func (k ConversationKey) talker() string { return k.Namespace + "\x00" + k.Owner }

// bytes writes a key for the table: conversations come by namespace, owner and id.
func (k ConversationKey) bytes() []byte {
	b := make([]byte, 0, len(k.Namespace)+len(k.Owner)+len(k.ID)+2)
	b = append(append(b, k.Namespace...), 0)
	b = append(append(b, k.Owner...), 0)
	return append(b, k.ID...)
}

// conversationAge is a conversation's key in the order of their last turns.
func conversationAge(c *Conversation) string { return timeKey(c.Time) + string(c.bytes()) }

// CheckConversationID says what is wrong with an id that a caller gives; nil for nothing.
func CheckConversationID(id string) error {
	ok := id != "" && len(id) <= maxConversationIDBytes
	for i := range len(id) {
		c := id[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_.:-", c) >= 0)
	}
	if !ok {
		return fault.New(fault.Invalid, "conversation_id: %.64q is not one; use 1 to %d of A-Z a-z 0-9 _ . : -", id, maxConversationIDBytes).WithField("conversation_id")
	}
	return nil
}

func (k ConversationKey) validate() error {
	for _, s := range []string{k.Namespace, k.Owner} {
		if s == "" || len(s) > queue.MaxKeyBytes || strings.IndexByte(s, 0) >= 0 {
			return fault.New(fault.Invalid, "conversation: its namespace or owner is empty, over %d bytes, or holds a NUL", queue.MaxKeyBytes)
		}
	}
	return CheckConversationID(k.ID)
}

// RoomForTurn says why a conversation could not take a turn with so many messages, the answer among them, and so many bytes without
// it. What it lets in may still be refused once it is answered, when others have taken the room meanwhile.
func (s *Store) RoomForTurn(v *View, k ConversationKey, messages int, bytes uint64) error {
	var owned uint32
	if r := first[talkerRow](v.txn, tableTalkers, byID, []byte(k.talker())); r != nil {
		owned = r.count
	}
	return s.limits.roomForTurn(&v.meta.stats, v.Conversation(k), k.ID, owned, messages, bytes)
}

// roomForTurn is RoomForTurn. What a conversation is full of stays: that is no matter of coming back later.
func (l *Limits) roomForTurn(st *Stats, old *Conversation, id string, owned uint32, messages int, bytes uint64) error {
	const remedy = "begin another one, with what matters of it as its first messages"
	kept := 0
	if old != nil {
		kept = len(old.Messages)
	}
	switch size := old.SizeBytes(); {
	case kept+messages > l.ConversationMessages:
		return fault.New(fault.FailedPrecondition, "conversation %q: it has %d messages, and %d at most; %s", id, kept, l.ConversationMessages, remedy).WithField("conversation_id")
	case size+bytes > l.ConversationBytes:
		return fault.New(fault.FailedPrecondition, "conversation %q: it has %d bytes of text, and %d more are above the limit of %d; %s", id, size, bytes, l.ConversationBytes, remedy).WithField("conversation_id")
	case old == nil && st.Conversations >= uint64(l.Conversations):
		return fault.New(fault.Exhausted, "conversation %q: %d conversations are kept, the limit, each for %s after its last turn; delete some", id, st.Conversations, l.ConversationKeep).WithRetry(l.RetryAfter)
	case old == nil && owned >= uint32(l.ConversationsPerOwner):
		return fault.New(fault.Exhausted, "conversation %q: %d conversations of this caller are kept, the limit, each for %s after its last turn; delete some with `orchctl conversations delete`", id, owned, l.ConversationKeep).WithRetry(l.RetryAfter)
	case st.ConversationBytes+bytes > l.ConversationStateBytes:
		return fault.New(fault.Exhausted, "conversation %q: all conversations have %d bytes of text in the state, their limit is %d; delete some", id, st.ConversationBytes, l.ConversationStateBytes).WithRetry(l.RetryAfter)
	}
	return nil
}

// keepTurn adds a turn to its conversation, or makes one of it.
func (a *applier) keepTurn(p *clusterv1.KeepTurn) Result {
	k := conversationKey(p.GetKey())
	if err := k.validate(); err != nil {
		return Result{Err: err}
	}
	old := a.conversations.get(a.base, k)
	switch {
	case p.GetTurnId() == "" || len(p.GetTurnId()) > maxIDBytes:
		return Result{Err: fault.New(fault.Invalid, "keep turn: its id is empty or over %d bytes", maxIDBytes)}
	case len(p.GetRequest()) > maxIDBytes:
		return Result{Err: fault.New(fault.Invalid, "keep turn: its request is named by over %d bytes", maxIDBytes)}
	case old != nil && old.TurnID == p.GetTurnId():
		return Result{Conversation: old, Duplicate: true}
	case old == nil && p.GetVersion() != 0:
		return Result{Err: fault.New(fault.Aborted, "conversation %q: it was deleted, or went by its age, while the model answered; the answer is not kept: ask again with all that was said", k.ID)}
	case old != nil && old.Version != p.GetVersion():
		return Result{Err: fault.New(fault.Aborted, "conversation %q: it went on while the model answered, so this answer is not kept; ask again, one call of a conversation after the other", k.ID)}
	}
	said, err := a.turnMessages(p.GetMessages(), old != nil)
	if err != nil {
		return Result{Err: err}
	}
	var owned uint32
	talker := a.talkers.get(a.base, k.talker())
	if talker != nil {
		owned = talker.count
	}
	if err := a.limits.roomForTurn(&a.meta.stats, old, k.ID, owned, len(said), textBytes(said[:len(said)-1])); err != nil {
		return Result{Err: err}
	}
	c := &Conversation{ConversationKey: ConversationKey{a.intern.str(k.Namespace), a.intern.str(k.Owner), k.ID}, CreateTime: a.meta.time}
	if old != nil {
		*c = *old
		a.unset(setConversations, "", conversationAge(old))
	} else {
		a.meta.stats.Conversations++
		a.talkers.put(k.talker(), &talkerRow{c.Namespace, c.Owner, owned + 1})
	}
	c.Caller, c.Version, c.TurnID, c.Request, c.Time = a.intern.str(clip(p.GetCaller(), queue.MaxNameBytes)), a.meta.index, p.GetTurnId(), p.GetRequest(), a.meta.time
	c.Provider, c.Model = a.intern.str(clip(p.GetProvider(), queue.MaxNameBytes)), a.intern.str(clip(p.GetModel(), queue.MaxNameBytes))
	c.Messages = append(c.Messages, said...)
	a.meta.stats.ConversationBytes += stateBytes(said)
	a.set(setConversations, "", conversationAge(c), "")
	a.conversations.put(c.ConversationKey, c)
	return Result{Conversation: c}
}

// turnMessages reads what a turn adds: to a conversation that exists only what its user said and what was answered.
func (a *applier) turnMessages(rows []*clusterv1.ConversationMessage, goesOn bool) ([]ConversationMessage, error) {
	out, err := conversationMessages(rows)
	if err != nil {
		return nil, fault.New(fault.Invalid, "keep turn: %w", err)
	}
	if len(out) < 2 || out[len(out)-1].Role != roleAssistant {
		return nil, fault.New(fault.Invalid, "keep turn: it is something said and an answer")
	}
	for i := range out {
		m, answer := &out[i], i == len(out)-1
		m.Role = a.intern.str(m.Role)
		if err := m.Text.Validate("messages.text"); err != nil {
			return nil, err
		}
		switch {
		case m.Text.Size == 0:
			return nil, fault.New(fault.Invalid, "keep turn: message %d is empty", i)
		case goesOn && !answer && m.Role != roleUser:
			return nil, fault.New(fault.Invalid, "keep turn: message %d of role %s is added to a conversation that exists", i, m.Role)
		case answer && m.Text.Size > a.limits.ConversationAnswerBytes:
			return nil, fault.New(fault.FailedPrecondition, "conversation: the answer has %d bytes, and at most %d are kept of one; ask for less with max_tokens", m.Text.Size, a.limits.ConversationAnswerBytes)
		}
	}
	return out, nil
}

// dropConversation forgets a conversation that somebody deletes.
func (a *applier) dropConversation(p *clusterv1.DropConversation) error {
	c := a.conversations.get(a.base, conversationKey(p.GetKey()))
	if c == nil {
		return fault.New(fault.NotFound, "conversation %.64q: there is none; it may have gone by its age", p.GetKey().GetId())
	}
	a.forgetConversation(c)
	return nil
}

func (a *applier) forgetConversation(c *Conversation) {
	a.conversations.put(c.ConversationKey, nil)
	a.unset(setConversations, "", conversationAge(c))
	a.meta.stats.Conversations--
	a.meta.stats.ConversationBytes -= stateBytes(c.Messages)
	if r := *a.talkers.get(a.base, c.talker()); r.count > 1 {
		r.count--
		a.talkers.put(c.talker(), &r)
	} else {
		a.talkers.put(c.talker(), nil)
	}
}

// collectConversations removes conversations whose last turn was long ago. It follows a flush.
func (a *applier) collectConversations(limit int) int {
	var old []*Conversation
	for c := range conversationsByAge(a.base) {
		if len(old) >= limit || time.Duration(a.meta.time-c.Time) < a.limits.ConversationKeep {
			break
		}
		old = append(old, c)
	}
	for _, c := range old {
		a.forgetConversation(c)
	}
	return len(old)
}

// conversationsByAge yields the conversations, that with the oldest last turn first.
func conversationsByAge(txn *memdb.Txn) iter.Seq[*Conversation] {
	return func(yield func(*Conversation) bool) {
		for key := range (setID{kind: setConversations}).all(txn) {
			if !yield(first[Conversation](txn, tableConversations, byID, []byte(key[len(timeKey(0)):]))) {
				return
			}
		}
	}
}

// Conversation returns the conversation with the key.
func (v *View) Conversation(k ConversationKey) *Conversation {
	return first[Conversation](v.txn, tableConversations, byID, k.bytes())
}

// Conversations yields conversations by namespace, owner and id: those of a namespace (empty: of all), and of an owner within it
// (empty: of all), behind the one with the key (the zero one: from the first). An owner needs a namespace.
func (v *View) Conversations(namespace, owner string, after ConversationKey) iter.Seq[*Conversation] {
	var prefix []byte
	if namespace != "" {
		prefix = append([]byte(namespace), 0)
		if owner != "" {
			prefix = append(append(prefix, owner...), 0)
		}
	}
	start := prefix
	if after != (ConversationKey{}) {
		if b := append(after.bytes(), 0); bytes.Compare(b, start) > 0 {
			start = b
		}
	}
	return func(yield func(*Conversation) bool) {
		from(v.txn, tableConversations, byID, start, func(c *Conversation) bool {
			return bytes.HasPrefix(c.bytes(), prefix) && yield(c)
		})
	}
}

// ConversationsNamed yields the conversations of a namespace that have the id, whoever owns them. It walks those of the namespace: it
// is for people.
func (v *View) ConversationsNamed(namespace, id string) iter.Seq[*Conversation] {
	return func(yield func(*Conversation) bool) {
		for c := range v.Conversations(namespace, "", ConversationKey{}) {
			if c.ID == id && !yield(c) {
				return
			}
		}
	}
}

// ConversationKeep is how long conversations are kept after their last turn.
func (s *Store) ConversationKeep() time.Duration { return s.limits.ConversationKeep }

func conversationKey(p *clusterv1.ConversationKey) ConversationKey {
	return ConversationKey{p.GetNamespace(), p.GetOwner(), p.GetId()}
}

// Proto is the key as commands hold it.
func (k ConversationKey) Proto() *clusterv1.ConversationKey {
	return &clusterv1.ConversationKey{Namespace: k.Namespace, Owner: k.Owner, Id: k.ID}
}

func conversationMessages(rows []*clusterv1.ConversationMessage) ([]ConversationMessage, error) {
	out := make([]ConversationMessage, len(rows))
	for i, r := range rows {
		text, err := pbconv.BlobFromProto(r.GetText())
		if err != nil {
			return nil, fmt.Errorf("message %d: %w", i, err)
		}
		if !slices.Contains([]string{roleSystem, roleUser, roleAssistant}, r.GetRole()) {
			return nil, fmt.Errorf("message %d: a role %.32q", i, r.GetRole())
		}
		out[i] = ConversationMessage{Role: r.GetRole(), Text: text}
	}
	return out, nil
}

func conversationToRow(c *Conversation) *clusterv1.ConversationRow {
	r := &clusterv1.ConversationRow{
		Key: c.Proto(), Caller: c.Caller, Version: c.Version, TurnId: c.TurnID, Provider: c.Provider, Model: c.Model,
		CreateTime: c.CreateTime, Time: c.Time, Request: c.Request,
	}
	for _, m := range c.Messages {
		r.Messages = append(r.Messages, &clusterv1.ConversationMessage{Role: m.Role, Text: pbconv.BlobToProto(m.Text)})
	}
	return r
}

func conversationFromRow(r *clusterv1.ConversationRow, in *interner) (*Conversation, error) {
	k := conversationKey(r.GetKey())
	if err := k.validate(); err != nil {
		return nil, err
	}
	messages, err := conversationMessages(r.GetMessages())
	if err != nil {
		return nil, err
	}
	for i := range messages {
		messages[i].Role = in.str(messages[i].Role)
	}
	return &Conversation{
		ConversationKey: ConversationKey{in.str(k.Namespace), in.str(k.Owner), k.ID}, Caller: in.str(r.GetCaller()), Version: r.GetVersion(),
		TurnID: r.GetTurnId(), Request: r.GetRequest(), Provider: in.str(r.GetProvider()), Model: in.str(r.GetModel()), Messages: messages, CreateTime: r.GetCreateTime(), Time: r.GetTime(),
	}, nil
}

// conversation takes a row of a snapshot.
func (l *loader) conversation(r *clusterv1.ConversationRow) error {
	c, err := conversationFromRow(r, l.intern)
	if err != nil {
		return err
	}
	if l.talked != nil && bytes.Compare(l.talked.bytes(), c.bytes()) >= 0 {
		return fmt.Errorf("conversation %q comes twice, or out of order", c.ID)
	}
	l.talked = c
	l.meta.stats.Conversations++
	l.meta.stats.ConversationBytes += stateBytes(c.Messages)
	l.set(setConversations, "", conversationAge(c), "")
	l.insert(tableConversations, c)
	// They come by owner: the row of the one before is complete when another one's begin.
	if l.talker == nil || l.talker.namespace != c.Namespace || l.talker.owner != c.Owner {
		l.flushTalker()
		l.talker = &talkerRow{namespace: c.Namespace, owner: c.Owner}
	}
	l.talker.count++
	return nil
}

func (l *loader) flushTalker() {
	if l.talker != nil {
		l.insert(tableTalkers, l.talker)
		l.talker = nil
	}
}

// persistConversations writes conversations.
func (v *View) persistConversations(f *frameWriter) {
	for c := range v.Conversations("", "", ConversationKey{}) {
		if !f.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Conversation{Conversation: conversationToRow(c)}}) {
			return
		}
	}
}
