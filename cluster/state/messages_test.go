// Messages, results, dead letters and idempotency keys, command by command.

package state

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

func TestSendOrdersByPriorityThenSequence(t *testing.T) {
	m := running(t)
	for i, p := range []apiv1.Priority_Level{0, 4, 1, 3, 2, 1} {
		c := send("s", fmt.Sprint(i))
		c.Priority = p
		if r := m.ok(c); r.Sequence != uint64(i+1) || r.Session.ID != "s" {
			t.Errorf("send %d gave %+v", i, r)
		}
	}
	var got []string
	for x := range m.View().Messages("s") {
		got = append(got, string(x.Text))
	}
	if !slices.Equal(got, []string{"2", "5", "4", "0", "3", "1"}) {
		t.Errorf("delivery order %v", got)
	}
	if mb := m.View().Mailbox("s"); mb.Queued != 6 || mb.Bytes != 6 || mb.NextSequence != 7 {
		t.Errorf("mailbox %+v", mb)
	}
}

func TestSendRefusals(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.MailboxMessages, l.MailboxBytes, l.MessageBytes = 3, 100, 150 })
	m.node("a")
	m.ok(spawn("s", "id-a"))
	m.ok(spawn("none", "", func(s *apiv1.SessionSpec) { s.Protocol = session.ProtocolNone }))
	m.ok(spawn("full", ""))
	m.ok(spawn("ended", ""))
	m.ok(&clusterv1.TerminateSession{SessionId: "ended"})
	m.refused(fault.NotFound, send("absent", "x"))
	m.refused(fault.FailedPrecondition, send("ended", "x"))
	m.refused(fault.FailedPrecondition, send("none", "x"))
	m.refused(fault.Invalid, send("s", "two\nlines"))
	m.refused(fault.Invalid, send("s", strings.Repeat("x", session.MaxMessageBytes+1)))
	m.refused(fault.Invalid, &clusterv1.SendMessage{SessionId: "s", Priority: 9})
	m.refused(fault.Timeout, &clusterv1.SendMessage{SessionId: "s", Deadline: m.now})
	m.refused(fault.Exhausted, send("s", strings.Repeat("x", 101)))
	m.ok(send("full", strings.Repeat("x", 90)))
	m.refused(fault.Exhausted, send("s", strings.Repeat("x", 61))) // the cluster's bound
	for range 3 {
		m.ok(send("s", "x"))
	}
	err := m.refusal(fault.Exhausted, send("s", "x"))
	if fault.As(err).RetryAfter == 0 || !strings.Contains(err.Error(), "3 messages") {
		t.Errorf("full mailbox: %v", err)
	}
	m.ok(m.facts("a", started("s", 1), turn("s", 1, 1, "")))
	m.ok(send("s", "x"))
	checkInvariants(t, m.View())
}

func TestSendIsIdempotentByKey(t *testing.T) {
	m := running(t)
	c := send("s", "x")
	c.IdempotencyKey, c.RequestHash = "k", 1
	m.ok(c)
	if r := m.ok(c); !r.Duplicate || r.Sequence != 1 {
		t.Errorf("the retry gave %+v", r)
	}
	if r := m.do(c, c); !r[0].Duplicate || !r[1].Duplicate || m.View().Mailbox("s").Queued != 1 {
		t.Errorf("retries in one entry gave %+v", r)
	}
	other := send("s", "y")
	other.IdempotencyKey, other.RequestHash = "k", 2
	m.refused(fault.AlreadyExists, other)
	m.ok(m.facts("a", exited("s", 1, 0, 0)))
	if r := m.ok(c); !r.Duplicate || r.Sequence != 1 { // also after the session's end
		t.Errorf("the retry after the end gave %+v", r)
	}
}

func TestIdempotencyKeysAreBounded(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.IdempotencyKeys, l.IdempotencyMinKeep = 3, 10*time.Minute })
	m.ok(spawn("s", ""))
	keyed := func(k string) *clusterv1.SendMessage {
		return &clusterv1.SendMessage{SessionId: "s", IdempotencyKey: k}
	}
	for _, k := range []string{"a", "b", "c"} {
		m.ok(keyed(k))
		m.now += second
	}
	err := m.refusal(fault.Exhausted, keyed("d"))
	if wait := fault.As(err).RetryAfter; wait.Seconds() != 597 {
		t.Errorf("come back in %s", wait)
	}
	if r := m.ok(keyed("a")); !r.Duplicate {
		t.Error("a full table forgot a key")
	}
	m.ok(send("s", "without a key"))
	m.now += 597 * second
	m.ok(keyed("d")) // takes the place of a
	if r := m.ok(keyed("b")); !r.Duplicate {
		t.Error("b went before a")
	}
	m.now += 10 * second
	// In one entry: e, f and g push b, c and d out as far as they are old enough.
	r := m.do(keyed("e"), keyed("f"), keyed("g"), keyed("b"))
	if r[0].Err != nil || r[1].Err != nil || !fault.Is(r[2].Err, fault.Exhausted) || !fault.Is(r[3].Err, fault.Exhausted) {
		t.Errorf("results %+v", r)
	}
	m.now += 3600 * second
	if r := m.ok(&clusterv1.CollectGarbage{Limit: 2}); r.Count != 2 || m.View().Stats().IdempotencyKeys != 1 {
		t.Errorf("collected %d", r.Count)
	}
	if r := m.ok(keyed("f")); !r.Duplicate {
		t.Error("the youngest was collected before older ones")
	}
	checkInvariants(t, m.View())
}

// TestKeysOfOneEntryGiveWay: with nothing to keep keys for, an entry pushes out its own.
func TestKeysOfOneEntryGiveWay(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.IdempotencyKeys, l.IdempotencyMinKeep = 2, 0 })
	m.ok(spawn("s", ""))
	keyed := func(k string) *clusterv1.SendMessage {
		return &clusterv1.SendMessage{SessionId: "s", IdempotencyKey: k}
	}
	for i, r := range m.do(keyed("a"), keyed("b"), keyed("c"), keyed("d"), keyed("a")) {
		if r.Err != nil || r.Duplicate {
			t.Errorf("send %d gave %+v", i, r)
		}
	}
	if r := m.do(keyed("d"), keyed("b"), keyed("a")); !r[0].Duplicate || r[1].Duplicate || !r[2].Duplicate {
		t.Errorf("kept the wrong ones: %+v", r)
	}
	checkInvariants(t, m.View())
}

func TestTurn(t *testing.T) {
	m := running(t)
	m.ok(send("s", "one"))
	m.ok(send("s", "two"))
	m.ok(m.facts("a", handed("s", 1, 1)))
	x := m.View().Message("s", 1)
	if !x.Delivered || x.DeliveredEpoch != 1 || x.Attempts != 1 {
		t.Errorf("delivered %+v", x)
	}
	if mb := m.View().Mailbox("s"); mb.Queued != 1 || mb.Delivered != 1 {
		t.Errorf("mailbox %+v", mb)
	}
	m.ok(m.facts("a", handed("s", 1, 1), turn("s", 1, 1, "r1"), turn("s", 1, 1, "again"), turn("s", 1, 2, "r2")))
	v := m.View()
	mb := v.Mailbox("s")
	if mb.Acked != 2 || mb.Queued+mb.Delivered != 0 || mb.Bytes != 0 || mb.LastAckTime != m.now || v.Session("s").OutputLine != 2 {
		t.Errorf("after the turns: %+v", mb)
	}
	if r := v.Result("s", 1); string(r.Text) != "r1" || r.Attempts != 1 || r.EndTime != m.now {
		t.Errorf("result %+v", r)
	}
	if r := v.Result("s", 2); string(r.Text) != "r2" || r.Attempts != 1 { // its delivery was not told
		t.Errorf("result %+v", r)
	}
	if v.Result("s", 3) != nil || v.Message("s", 1) != nil {
		t.Error("there is what cannot be")
	}
	m.ok(m.facts("a", exited("s", 1, 0, 0)))
	if m.View().Result("s", 1) == nil {
		t.Error("results went with the end")
	}
	checkInvariants(t, m.View())
}

func TestResultsAreBounded(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.ResultsPerSession, l.ResultBytesPerSession = 3, 100_000 })
	m.node("a")
	m.ok(spawn("s", "id-a"))
	ack := func(n uint64, result string) {
		m.ok(send("s", "x"))
		m.ok(m.facts("a", turn("s", 1, n, result)))
	}
	kept := func(want ...uint64) {
		t.Helper()
		var got []uint64
		for _, r := range m.View().Results("s") {
			got = append(got, r.Sequence)
		}
		if !slices.Equal(got, want) {
			t.Errorf("kept %v, want %v", got, want)
		}
	}
	for n := uint64(1); n <= 5; n++ {
		ack(n, "small")
	}
	kept(3, 4, 5)
	ack(6, strings.Repeat("r", 60_000))
	ack(7, strings.Repeat("r", 60_000))
	kept(7)
	ack(8, strings.Repeat("r", session.MaxResultBytes+1))
	if r := m.View().Result("s", 8); len(r.Text) != session.MaxResultBytes || !r.Truncated {
		t.Errorf("a result of %d bytes, truncated %v", len(r.Text), r.Truncated)
	}
}

func TestUnfinishedTurnsAreDeliveredAgain(t *testing.T) {
	m := running(t, restart("always", 100))
	m.ok(send("s", "one"))
	m.ok(send("s", "two"))
	for epoch := uint32(1); epoch <= 4; epoch++ {
		fact := exited("s", epoch, 1, 1)
		if epoch%2 == 0 { // told in one way or the other
			m.ok(m.facts("a", handed("s", epoch, 1)))
		}
		m.ok(m.facts("a", fact))
		x := m.View().Message("s", 1)
		if epoch < 4 && (x == nil || x.Delivered || x.Attempts != epoch) {
			t.Fatalf("after epoch %d: %+v", epoch, x)
		}
		m.now += 100 * second
		m.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: epoch, NodeId: "id-a"})
	}
	d := m.View().DeadLetter(LetterKey{"s", 1})
	if d == nil || d.Attempts != 4 || !strings.Contains(d.Cause, "4 processes") || d.Namespace != "default" {
		t.Fatalf("dead letter %+v", d)
	}
	if x := m.View().Message("s", 2); x == nil || x.Attempts != 0 {
		t.Errorf("the other message: %+v", x)
	}
	checkInvariants(t, m.View())
	m.ok(&clusterv1.RetryDeadLetters{SessionId: "s", Sequence: 1})
	if x := m.View().Message("s", 1); x == nil || x.Attempts != 0 {
		t.Errorf("retried: %+v", x)
	}
	m.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1})
	checkInvariants(t, m.View())
}

func TestEndBuriesWhatWaits(t *testing.T) {
	m := running(t)
	for range 3 {
		m.ok(send("s", "x"))
	}
	m.ok(m.facts("a", handed("s", 1, 1), declined("s", 1, 2, "not for me"), exited("s", 1, 7, 1)))
	v := m.View()
	if mb := v.Mailbox("s"); mb.Dead != 3 || mb.Queued+mb.Delivered != 0 || mb.Bytes != 0 {
		t.Errorf("mailbox %+v", mb)
	}
	if d := v.DeadLetter(LetterKey{"s", 2}); d.Cause != "not for me" {
		t.Errorf("refused: %+v", d)
	}
	if d := v.DeadLetter(LetterKey{"s", 3}); !strings.HasPrefix(d.Cause, "session ended: FAILED") {
		t.Errorf("waiting at the end: %+v", d)
	}
	checkInvariants(t, v)
}

func TestDeadLetters(t *testing.T) {
	m := running(t)
	for range 4 {
		m.ok(send("s", "x"))
	}
	m.ok(m.facts("a", handed("s", 1, 4)))
	r := m.ok(&clusterv1.BuryMessages{SessionId: "s", Sequences: []uint64{1, 2, 2, 4, 99}, Cause: "deadline passed"})
	if r.Count != 2 { // 4 is with the process, 99 is none
		t.Errorf("buried %d", r.Count)
	}
	m.refused(fault.NotFound, &clusterv1.BuryMessages{SessionId: "none"})
	m.refused(fault.NotFound, &clusterv1.RetryDeadLetters{SessionId: "s", Sequence: 3})
	m.refused(fault.NotFound, &clusterv1.PurgeDeadLetters{SessionId: "s", Sequence: 3})
	m.refused(fault.Invalid, &clusterv1.PurgeDeadLetters{Sequence: 3})
	if r := m.ok(&clusterv1.RetryDeadLetters{SessionId: "s", Sequence: 2}); r.Count != 1 {
		t.Errorf("retried %d", r.Count)
	}
	if x := m.View().Message("s", 2); x == nil || x.Attempts != 0 || x.Delivered {
		t.Errorf("retried %+v", x)
	}
	if r := m.ok(&clusterv1.PurgeDeadLetters{Namespace: "other"}); r.Count != 0 {
		t.Errorf("purged %d of another namespace", r.Count)
	}
	if r := m.ok(&clusterv1.PurgeDeadLetters{SessionId: "s", Namespace: "default"}); r.Count != 1 {
		t.Errorf("purged %d", r.Count)
	}
	if mb := m.View().Mailbox("s"); mb.Dead != 0 || mb.Queued != 2 || mb.Delivered != 1 {
		t.Errorf("mailbox %+v", mb)
	}
	// Buried and retried in one entry: it is a waiting message again, and nothing else.
	rs := m.do(&clusterv1.BuryMessages{SessionId: "s", Sequences: []uint64{2}}, &clusterv1.RetryDeadLetters{SessionId: "s"})
	if rs[0].Count != 1 || rs[1].Count != 1 || m.View().Message("s", 2) == nil || m.View().Stats().DeadLetters != 0 {
		t.Errorf("in one entry: %+v", rs)
	}
	m.ok(m.facts("a", exited("s", 1, 0, 0)))
	m.refused(fault.FailedPrecondition, &clusterv1.RetryDeadLetters{SessionId: "s"})
	checkInvariants(t, m.View())
}

func TestRetryIsAllOrNothing(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.MailboxMessages = 3 })
	m.ok(spawn("s", ""))
	for range 3 {
		m.ok(send("s", "x"))
	}
	m.ok(&clusterv1.BuryMessages{SessionId: "s", Sequences: []uint64{1, 2}})
	m.ok(send("s", "x"))
	m.refused(fault.Exhausted, &clusterv1.RetryDeadLetters{SessionId: "s"})
	m.ok(&clusterv1.RetryDeadLetters{SessionId: "s", Sequence: 1})
}

func TestDeadLettersAreBounded(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.DeadLetters = 3 })
	m.ok(spawn("s", ""))
	bury := func() {
		r := m.ok(send("s", "x"))
		m.now += second
		m.ok(&clusterv1.BuryMessages{SessionId: "s", Sequences: []uint64{r.Sequence}})
	}
	for range 5 {
		bury()
	}
	var kept []uint64
	for d := range m.View().DeadLetters("", "", LetterKey{}) {
		kept = append(kept, d.Sequence)
	}
	if st := m.View().Stats(); !slices.Equal(kept, []uint64{3, 4, 5}) || st.DeadLettersDropped != 2 || m.View().Mailbox("s").Dead != 3 {
		t.Errorf("kept %v, %+v", kept, st)
	}
	var told int
	for _, e := range m.View().Events(0, 1000) {
		if e.Type == "deadletter.dropped" {
			told++
		}
	}
	if told != 2 {
		t.Errorf("%d events tell of 2 drops", told)
	}
	m.ok(&clusterv1.PurgeDeadLetters{})
	for range 5 {
		m.ok(send("s", "x"))
	}
	m.ok(&clusterv1.TerminateSession{SessionId: "s"}) // five at once
	if st := m.View().Stats(); st.DeadLetters != 3 || st.DeadLettersDropped != 4 {
		t.Errorf("after five at once: %+v", st)
	}
	checkInvariants(t, m.View())
}

func TestDeadLetterPaging(t *testing.T) {
	m := newMachine(t)
	want := []LetterKey{}
	for _, id := range []string{"a", "ab", "b"} {
		m.ok(spawn(id, "", func(s *apiv1.SessionSpec) { s.Namespace = "ns-" + id }))
		for seq := uint64(1); seq <= 2; seq++ {
			m.ok(send(id, "x"))
			want = append(want, LetterKey{id, seq})
		}
		m.ok(&clusterv1.TerminateSession{SessionId: id})
	}
	list := func(namespace, id string, after LetterKey) (got []LetterKey) {
		for d := range m.View().DeadLetters(namespace, id, after) {
			got = append(got, letterKey(d))
		}
		return got
	}
	for i := range want {
		if got := list("", "", want[i]); !slices.Equal(got, want[i+1:]) {
			t.Errorf("after %v: %v", want[i], got)
		}
	}
	if got := list("", "", LetterKey{}); !slices.Equal(got, want) {
		t.Errorf("all: %v", got)
	}
	if got := list("", "a", LetterKey{}); !slices.Equal(got, want[:2]) {
		t.Errorf("of a: %v", got)
	}
	if got := list("ns-b", "", want[0]); !slices.Equal(got, want[4:]) {
		t.Errorf("of ns-b: %v", got)
	}
	if got := list("", "ab", want[2]); !slices.Equal(got, want[3:4]) {
		t.Errorf("of ab after its first: %v", got)
	}
}
