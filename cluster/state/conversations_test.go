// Conversations: a turn is kept whole or not at all, one of two that were asked at once, within bounds, and for a time.

package state

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

// talkCommand is the command of what is about conversations; nil for anything else.
func talkCommand(m any) *clusterv1.Command {
	switch k := m.(type) {
	case *clusterv1.KeepTurn:
		return &clusterv1.Command{Kind: &clusterv1.Command_KeepTurn{KeepTurn: k}}
	case *clusterv1.DropConversation:
		return &clusterv1.Command{Kind: &clusterv1.Command_DropConversation{DropConversation: k}}
	}
	return nil
}

var plan = ConversationKey{Namespace: "films", Owner: "token 1", ID: "plan"}

// turn is what a user said of a conversation and was answered.
func turnOf(k ConversationKey, version uint64, said ...string) *clusterv1.KeepTurn {
	t := &clusterv1.KeepTurn{Key: k.Proto(), Caller: "client:ann", Version: version, TurnId: fmt.Sprint("turn ", version, said), Provider: "local", Model: "fast", Request: fmt.Sprint("request ", version)}
	for i, text := range said {
		role := roleUser
		if i == len(said)-1 {
			role = roleAssistant
		}
		t.Messages = append(t.Messages, &clusterv1.ConversationMessage{Role: role, Text: inline(text)})
	}
	return t
}

func texts(c *Conversation) (out []string) {
	for _, m := range c.Messages {
		out = append(out, m.Role+": "+string(m.Text.Inline))
	}
	return out
}

// checkConversations recounts everything about conversations that is counted as it changes.
func checkConversations(t fataler, v *View, want *Stats) {
	t.Helper()
	owners := map[string]uint32{}
	var ages []string
	var last []byte
	for c := range v.Conversations("", "", ConversationKey{}) {
		if v.Conversation(c.ConversationKey) != c || bytes.Compare(last, c.bytes()) >= 0 || len(c.Messages) < 2 || c.Messages[len(c.Messages)-1].Role != roleAssistant {
			t.Fatalf("conversation %+v: is not found, out of order, or does not end with an answer", c)
		}
		last = c.bytes()
		want.Conversations++
		want.ConversationBytes += stateBytes(c.Messages)
		owners[c.talker()]++
		ages = append(ages, conversationAge(c))
	}
	prefixed(v.txn, tableTalkers, nil, func(r *talkerRow) bool {
		if r.count == 0 || owners[r.key()] != r.count {
			t.Fatalf("%q counts %d conversations, recounted %d", r.key(), r.count, owners[r.key()])
		}
		delete(owners, r.key())
		return true
	})
	if len(owners) > 0 {
		t.Fatalf("owners without a row: %v", owners)
	}
	slices.Sort(ages)
	for key := range (setID{kind: setConversations}).all(v.txn) {
		if len(ages) == 0 || ages[0] != key {
			t.Fatalf("conversations by age: %q, recounted %q", key, ages)
		}
		ages = ages[1:]
	}
	if len(ages) > 0 {
		t.Fatalf("conversations by age lack %q", ages)
	}
}

// checkTalkBounds looks at the limits; an answer may be over those of bytes.
func checkTalkBounds(t fataler, v *View, l *Limits) {
	t.Helper()
	owned := map[string]int{}
	for c := range v.Conversations("", "", ConversationKey{}) {
		if owned[c.talker()]++; owned[c.talker()] > l.ConversationsPerOwner || len(c.Messages) > l.ConversationMessages || c.SizeBytes() > l.ConversationBytes+l.ConversationAnswerBytes {
			t.Fatalf("%d of %q, %d messages, %d bytes", owned[c.talker()], c.talker(), len(c.Messages), c.SizeBytes())
		}
	}
	if st := v.Stats(); st.Conversations > uint64(l.Conversations) || st.ConversationBytes > l.ConversationStateBytes+l.ConversationAnswerBytes {
		t.Fatalf("beyond its limits: %+v", st)
	}
}

// talk makes one command about conversations: few of them, so that they go on, and run full.
func (h *history) talk(v *View) any {
	k := ConversationKey{Namespace: pick(h, []string{"default", "other"}), Owner: h.owner(), ID: fmt.Sprint("c", h.rng.IntN(6))}
	if h.rng.IntN(12) == 0 {
		return &clusterv1.DropConversation{Key: k.Proto()}
	}
	version := uint64(h.rng.IntN(40) / 39)
	old := v.Conversation(k)
	if old != nil {
		version += old.Version
	}
	text := func() string { return strings.Repeat("t", h.rng.IntN(80)) }
	t := turnOf(k, version, text(), text())
	t.TurnId = fmt.Sprint(h.count, h.rng.IntN(3))
	if old != nil && h.rng.IntN(15) == 0 {
		t.TurnId = old.TurnID
	}
	switch h.rng.IntN(20) {
	case 0:
		t.Messages[0].Role = roleSystem
	case 1:
		t.Messages[0].Role = "king"
	case 2:
		t.Messages[1].Text = &clusterv1.Blob{Chunks: [][]byte{bytes.Repeat([]byte{3}, 32)}, SizeBytes: 65}
	case 3:
		t.Messages = t.Messages[:1]
	}
	return t
}

func TestAConversationGoesOn(t *testing.T) {
	m := newMachine(t)
	first := turnOf(plan, 0, "be brief", "hello", "hi")
	first.Messages[0].Role = roleSystem
	c := m.ok(first).Conversation
	if c.Version != m.Index() || c.CreateTime != m.now || c.Provider != "local" || c.Model != "fast" || c.Caller != "client:ann" {
		t.Errorf("%+v", c)
	}
	m.now += second
	was := m.View()
	again := turnOf(plan, c.Version, "and now?", "well")
	again.Model = "slow"
	next := m.ok(again).Conversation
	if got, want := texts(next), []string{"system: be brief", "user: hello", "assistant: hi", "user: and now?", "assistant: well"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if next.Version == c.Version || next.CreateTime != c.CreateTime || next.Time != m.now || next.Model != "slow" || next.SizeBytes() != 27 {
		t.Errorf("%+v", next)
	}
	if got := was.Conversation(plan); len(got.Messages) != 3 || got != c {
		t.Errorf("a view from before has %+v", got)
	}
	// Whoever does not know whether a turn was kept says it again.
	if r := m.ok(again); !r.Duplicate || r.Conversation != next {
		t.Errorf("the same turn again: %+v", r)
	}
	m.refused(fault.Aborted, turnOf(plan, c.Version, "at the same time", "no"))
	m.refused(fault.Aborted, turnOf(plan, 0, "anew", "no"))
	m.ok(&clusterv1.DropConversation{Key: plan.Proto()})
	m.refused(fault.NotFound, &clusterv1.DropConversation{Key: plan.Proto()})
	m.refused(fault.Aborted, turnOf(plan, next.Version, "after it was deleted", "no"))
	if st := m.View().Stats(); st.Conversations != 0 || st.ConversationBytes != 0 {
		t.Errorf("%+v", st)
	}
	m.ok(turnOf(plan, 0, "from the start", "yes"))
	checkInvariants(t, m.View())
}

// Two turns in one entry that were told the same: the first is kept.
func TestTwoTurnsAtOnce(t *testing.T) {
	m := newMachine(t)
	r := m.do(turnOf(plan, 0, "a", "1"), turnOf(plan, 0, "b", "2"))
	if r[0].Err != nil || !fault.Is(r[1].Err, fault.Aborted) {
		t.Fatal(r)
	}
	version := m.View().Conversation(plan).Version
	r = m.do(turnOf(plan, version, "c", "3"), turnOf(plan, version, "d", "4"))
	if r[0].Err != nil || !fault.Is(r[1].Err, fault.Aborted) {
		t.Fatal(r)
	}
	if got := texts(m.View().Conversation(plan)); !slices.Equal(got, []string{"user: a", "assistant: 1", "user: c", "assistant: 3"}) {
		t.Errorf("%q", got)
	}
}

func TestTurnsThatAreNone(t *testing.T) {
	m := newMachine(t)
	version := m.ok(turnOf(plan, 0, "a", "1")).Conversation.Version
	for name, change := range map[string]func(*clusterv1.KeepTurn){
		"no id":             func(k *clusterv1.KeepTurn) { k.Key.Id = "" },
		"an odd id":         func(k *clusterv1.KeepTurn) { k.Key.Id = "a b" },
		"a long id":         func(k *clusterv1.KeepTurn) { k.Key.Id = strings.Repeat("a", 129) },
		"no owner":          func(k *clusterv1.KeepTurn) { k.Key.Owner = "" },
		"a NUL":             func(k *clusterv1.KeepTurn) { k.Key.Owner = "a\x00b" },
		"no namespace":      func(k *clusterv1.KeepTurn) { k.Key.Namespace = "" },
		"a long request":    func(k *clusterv1.KeepTurn) { k.Request = strings.Repeat("a", 129) },
		"no turn":           func(k *clusterv1.KeepTurn) { k.TurnId = "" },
		"no answer":         func(k *clusterv1.KeepTurn) { k.Messages = k.Messages[:1] },
		"nothing said":      func(k *clusterv1.KeepTurn) { k.Messages = k.Messages[1:] },
		"an empty answer":   func(k *clusterv1.KeepTurn) { k.Messages[1].Text = nil },
		"a system prompt":   func(k *clusterv1.KeepTurn) { k.Messages[0].Role = roleSystem },
		"another's answer":  func(k *clusterv1.KeepTurn) { k.Messages[0].Role = roleAssistant },
		"a role of its own": func(k *clusterv1.KeepTurn) { k.Messages[0].Role = "tool" },
		"too much inline": func(k *clusterv1.KeepTurn) {
			k.Messages[0].Text = inline(strings.Repeat("x", queue.InlineBytes+1))
		},
		"a hash that is none": func(k *clusterv1.KeepTurn) { k.Messages[0].Text = &clusterv1.Blob{Chunks: [][]byte{{1}}, SizeBytes: 1} },
	} {
		k := turnOf(plan, version, "b", "2")
		change(k)
		t.Run(name, func(t *testing.T) { m.refused(fault.Invalid, k) })
	}
}

func TestConversationsAreBounded(t *testing.T) {
	m := newMachine(t, func(l *Limits) {
		l.Conversations, l.ConversationsPerOwner, l.ConversationMessages = 3, 2, 6
		l.ConversationBytes, l.ConversationAnswerBytes, l.ConversationStateBytes = 20, 10, 60
	})
	key := func(owner, id string) ConversationKey { return ConversationKey{"films", owner, id} }
	version := func(k ConversationKey) uint64 { return m.View().Conversation(k).Version }
	room := func(k ConversationKey, messages int, bytes uint64) error {
		return m.RoomForTurn(m.View(), k, messages, bytes)
	}
	one := key("ann", "one")
	m.ok(turnOf(one, 0, "12345", "1234567890"))
	m.refused(fault.FailedPrecondition, turnOf(one, version(one), "123456", "1"))           // bytes
	m.refused(fault.FailedPrecondition, turnOf(one, version(one), "1", "12345678901"))      // of the answer
	m.refused(fault.FailedPrecondition, turnOf(one, version(one), "1", "2", "3", "4", "5")) // messages
	if err := room(one, 2, 6); !fault.Is(err, fault.FailedPrecondition) {
		t.Errorf("%v", err)
	}
	if err := room(one, 2, 5); err != nil {
		t.Error(err)
	}
	m.ok(turnOf(one, version(one), "12345", "1234567890")) // the answer finds room
	m.ok(turnOf(key("ann", "two"), 0, "1", "1"))
	if err := room(key("ann", "three"), 2, 1); !fault.Is(err, fault.Exhausted) {
		t.Errorf("%v", err)
	}
	m.refused(fault.Exhausted, turnOf(key("ann", "three"), 0, "1", "1"))
	bob := key("bob", "one")
	m.ok(turnOf(bob, 0, "1", "1"))
	m.refused(fault.Exhausted, turnOf(key("eve", "one"), 0, "1", "1"))
	m.ok(turnOf(bob, version(bob), "1234567890", "1234567890"))
	m.refused(fault.Exhausted, turnOf(key("ann", "two"), version(key("ann", "two")), "1234567", "1")) // bytes of all
	checkInvariants(t, m.View())
}

func TestConversationsGoByAge(t *testing.T) {
	m := newMachine(t)
	other := ConversationKey{"films", "token 2", "other"}
	m.ok(turnOf(plan, 0, "a", "1"))
	m.ok(turnOf(other, 0, "a", "1"))
	m.now += 23 * 3600 * second
	m.ok(turnOf(plan, m.View().Conversation(plan).Version, "b", "2"))
	m.now += 3600 * second
	if r := m.ok(&clusterv1.CollectGarbage{}); r.Count != 1 || m.View().Conversation(other) != nil || m.View().Conversation(plan) == nil {
		t.Errorf("%d are gone; %+v is left", r.Count, m.View().Conversation(plan))
	}
	checkInvariants(t, m.View())
	m.now += 23 * 3600 * second
	if r := m.ok(&clusterv1.CollectGarbage{}); r.Count != 1 || m.View().Stats().Conversations != 0 {
		t.Errorf("%d are gone", r.Count)
	}
	checkInvariants(t, m.View())
}

func TestConversationsAreListed(t *testing.T) {
	m := newMachine(t)
	var keys []ConversationKey
	for _, ns := range []string{"a", "ab", "b"} {
		for _, owner := range []string{"token 1", "token 10"} {
			for _, id := range []string{"x", "y"} {
				k := ConversationKey{ns, owner, id}
				keys = append(keys, k)
				m.ok(turnOf(k, 0, "a", "1"))
			}
		}
	}
	list := func(ns, owner string, after ConversationKey) (out []ConversationKey) {
		for c := range m.View().Conversations(ns, owner, after) {
			out = append(out, c.ConversationKey)
		}
		return out
	}
	for name, c := range map[string]struct {
		got, want []ConversationKey
	}{
		"all":            {list("", "", ConversationKey{}), keys},
		"a namespace":    {list("a", "", ConversationKey{}), keys[:4]},
		"an owner":       {list("a", "token 1", ConversationKey{}), keys[:2]},
		"behind one":     {list("a", "", keys[1]), keys[2:4]},
		"behind another": {list("ab", "", keys[1]), keys[4:8]},
		"of all behind":  {list("", "", keys[6]), keys[7:]},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
	var named []ConversationKey
	for c := range m.View().ConversationsNamed("a", "y") {
		named = append(named, c.ConversationKey)
	}
	if !slices.Equal(named, []ConversationKey{keys[1], keys[3]}) {
		t.Errorf("%v", named)
	}
}

// What a snapshot holds of a conversation is all of it.
func TestAConversationIsRestored(t *testing.T) {
	m := newMachine(t)
	first := turnOf(plan, 0, "long", "short")
	first.Messages[0].Text = pbconv.BlobToProto(queue.Blob{Chunks: [][32]byte{{1}, {2}}, Size: 100_000})
	m.ok(first)
	m.ok(turnOf(plan, m.View().Conversation(plan).Version, "b", "2"))
	s := New(DefaultLimits())
	if err := s.Restore(bytes.NewReader(persisted(t, m.View()))); err != nil {
		t.Fatal(err)
	}
	checkInvariants(t, s.View())
	got, want := fmt.Sprintf("%+v", *s.View().Conversation(plan)), fmt.Sprintf("%+v", *m.View().Conversation(plan))
	if got != want {
		t.Errorf("%s, want %s", got, want)
	}
	// It goes on from there.
	r := s.Apply(s.Index()+1, &clusterv1.Batch{Time: m.now, Commands: []*clusterv1.Command{cmd(turnOf(plan, s.View().Conversation(plan).Version, "c", "3"))}})
	if r[0].Err != nil || len(r[0].Conversation.Messages) != 6 {
		t.Errorf("%+v", r)
	}
}
