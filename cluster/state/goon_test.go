// A restored state gives out no number of a message twice.

package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

// goneOn is a snapshot as it is restored over a view.
func goneOn(t *testing.T, v *View, snapshot []byte) *Store {
	t.Helper()
	var b bytes.Buffer
	if err := v.GoOn(bytes.NewReader(snapshot), &b); err != nil {
		t.Fatal(err)
	}
	s := New(smallLimits())
	if err := s.Restore(&b); err != nil {
		t.Fatal(err)
	}
	checkInvariants(t, s.View())
	return s
}

func TestNumbersGoOnBehindThoseGivenOut(t *testing.T) {
	m := newMachine(t)
	m.ok(register("n", 1))
	for _, id := range []string{"talked", "silent", "never", "quiet"} {
		m.ok(spawn(id, "n"))
	}
	m.ok(send("talked", "1"))
	m.ok(send("quiet", "1"))
	before := m.content()
	for range 4 {
		m.ok(send("talked", "more"))
		m.ok(send("silent", "first"))
	}
	m.ok(spawn("later", "n"))
	m.ok(send("later", "1"))

	s := goneOn(t, m.View(), before)
	for id, next := range map[string]uint64{"talked": 6, "silent": 5, "never": 1, "quiet": 2} {
		if got := s.View().Mailbox(id).NextSequence; got != next {
			t.Errorf("%s goes on with %d, want %d", id, got, next)
		}
	}
	if s.View().Session("later") != nil || s.View().mailbox("later") != nil {
		t.Error("what was made later is there")
	}
	if mb := s.View().Mailbox("talked"); mb.Queued != 1 || s.View().Message("talked", 1) == nil || s.View().Message("talked", 2) != nil {
		t.Errorf("the mailbox is %+v, and should be that of the snapshot but for the next number", mb)
	}
	// A snapshot that is newer than the state, and one for a cluster that is new, stay as they are.
	for name, v := range map[string]*View{"an older state": s.View(), "a new cluster": New(smallLimits()).View()} {
		if got := persisted(t, goneOn(t, v, m.content()).View()); !bytes.Equal(got, m.content()) {
			t.Errorf("%s: the snapshot was changed", name)
		}
	}
}

// With rows in every table: only the next numbers and epochs differ, and with nothing to change not a byte does.
func TestGoOnKeepsEverythingElse(t *testing.T) {
	h, s := newHistory(7), New(smallLimits())
	h.noCalls = true // some of which a restore ends: see below
	for range 400 {
		s.Apply(s.Index()+1, h.batch(s.View()))
	}
	before := persisted(t, s.View())
	var same bytes.Buffer
	if err := s.View().GoOn(bytes.NewReader(before), &same); err != nil || !bytes.Equal(same.Bytes(), before) {
		t.Errorf("a snapshot of this very state was changed: %v", err)
	}
	for range 400 {
		s.Apply(s.Index()+1, h.batch(s.View()))
	}
	was := New(smallLimits())
	if err := was.Restore(bytes.NewReader(before)); err != nil {
		t.Fatal(err)
	}
	now := goneOn(t, s.View(), before)
	if was.View().Stats() != now.View().Stats() {
		t.Errorf("counts: %+v, want %+v", now.View().Stats(), was.View().Stats())
	}
	raised, beyond := 0, 0
	for row := range was.View().Sessions("") {
		want := max(was.View().Mailbox(row.ID).NextSequence, s.View().Mailbox(row.ID).NextSequence)
		if got := now.View().Mailbox(row.ID).NextSequence; got != want {
			t.Errorf("session %s goes on with %d, want %d", row.ID, got, want)
		}
		if want > was.View().Mailbox(row.ID).NextSequence {
			raised++
		}
		epoch := row.Epoch
		if newer := s.View().Session(row.ID); newer != nil && !row.Phase.Ended() && newer.Epoch > epoch {
			epoch = newer.Epoch
			beyond++
		}
		if got := now.View().Session(row.ID).Epoch; got != epoch {
			t.Errorf("session %s goes on at epoch %d, want %d", row.ID, got, epoch)
		}
	}
	if raised == 0 || beyond == 0 {
		t.Error("nothing was raised: the history proves nothing")
	}
}

func TestCallsGoOnBehindWhatClientsWereGiven(t *testing.T) {
	m := newMachine(t)
	m.run("given")
	m.ok(take(ann, 1))
	m.ok(m.submit("waits"))
	m.ok(m.submit("repeats", begun, ordered("k")))
	m.ok(m.submit("cannot", begun, once))
	m.ok(m.submit("cancelled", begun))
	m.ok(&clusterv1.CancelCall{Key: pbconv.CallKeyToProto(annsKey("cancelled"))})
	before := persisted(t, m.View())
	for i := range 3 {
		m.run(fmt.Sprint("later", i))
	}
	m.ok(take(ann, 3))
	bob := func(c *clusterv1.SubmitCall) { c.Key.Session = "bob" }
	bobs := m.run("bobs", bob).Order

	s := goneOn(t, m.View(), before).View()
	if s.Call(annsKey("later0")) != nil {
		t.Error("what was taken later is there")
	}
	type is struct {
		status  queue.Status
		attempt uint32
		order   uint64
	}
	// Results 2 to 4 were given out since; those of calls that the restore ends come behind.
	for request, want := range map[string]is{
		"given": {queue.Ended, 1, 1}, "waits": {queue.Queued, 0, 0}, "repeats": {queue.Queued, 2, 0},
		"cannot": {queue.Dead, 1, 5}, "cancelled": {queue.Ended, 1, 6},
	} {
		c := s.Call(annsKey(request))
		if got := (is{c.Status, c.Attempt, c.Order}); got != want {
			t.Errorf("%s: %+v, want %+v", request, got, want)
		}
	}
	if c := s.Client(ann); c.Order != 6 || c.Delivered != 3 {
		t.Errorf("ann goes on with %+v", c)
	}
	if c := s.Client(queue.ClientKey{Owner: ann.Owner, Session: "bob"}); c == nil || c.Order != bobs || c.Delivered != bobs {
		t.Errorf("bob, whom the snapshot does not know, goes on with %+v", c)
	}
	if s.meta.call <= m.View().meta.call {
		t.Errorf("calls go on behind number %d, and %d was given out", s.meta.call, m.View().meta.call)
	}
}

// A history's calls, restored over what came of them.
func TestGoOnWithAnyCalls(t *testing.T) {
	h, s := newHistory(8), New(smallLimits())
	for i := range 300 {
		before := persisted(t, s.View())
		s.Apply(s.Index()+1, h.batch(s.View()))
		if i%30 == 29 {
			now := goneOn(t, s.View(), before).View()
			if n := now.Stats().Calls.Of(queue.Running); n > 0 {
				t.Fatalf("%d calls run", n)
			}
			for c := range now.Clients() {
				if c.Order > now.meta.call {
					t.Fatalf("client %+v was given more than %d: when it was forgotten its orders begin again", c, now.meta.call)
				}
			}
			for c := range s.View().Clients() {
				if got := now.Client(c.ClientKey); got == nil || got.Order < c.Order {
					t.Fatalf("client %+v goes on as %+v", c, got)
				}
			}
		}
	}
}

func TestGoOnRefusesWhatARestoreWould(t *testing.T) {
	b := persisted(t, full(t).View())
	b[len(b)/2] ^= 1
	if err := New(smallLimits()).View().GoOn(bytes.NewReader(b), io.Discard); !fault.Is(err, fault.Invalid) {
		t.Errorf("a damaged snapshot: %v", err)
	}
	if err := New(smallLimits()).View().GoOn(bytes.NewReader(persisted(t, full(t).View())), &failingWriter{}); !errors.Is(err, errFull) || fault.Is(err, fault.Invalid) {
		t.Errorf("a full disk: %v", err)
	}
}

// What may not be repeated, waited when the snapshot was written, and has begun or ended since, is given up: it would run again.
func TestGoOnRepeatsNothingThatHasBegunSince(t *testing.T) {
	m := newMachine(t)
	calls := map[string]*queue.Call{}
	for _, request := range []string{"waits", "moved", "runs", "ended", "collected", "anew", "rekeyed"} {
		calls[request] = m.ok(m.submit(request, once, func(c *clusterv1.SubmitCall) {
			if c.Key.Session = request; request == "moved" {
				c.ServerId = "s9"
			}
		})).Call
	}
	repeats := m.ok(m.submit("repeats")).Call
	passed := m.ok(m.submit("passed", begun)).Call
	passing := endCall(passed, "")
	passing.Outcome = &clusterv1.Outcome{Code: "OVER_CAPACITY", Passing: true}
	m.ok(passing)
	before := persisted(t, m.View())

	m.ok(endCall(m.ok(beginCall(calls["collected"])).Call, "done"))
	m.ok(take(calls["collected"].Client(), 1e6))
	m.now += int64(m.limits.ResultKeep)
	m.ok(&clusterv1.CollectGarbage{})
	m.ok(&clusterv1.AssignCalls{FromServerId: "s9", ToServerIds: []string{"s2"}}) // while it waited
	m.ok(beginCall(calls["runs"]))
	m.ok(endCall(m.ok(beginCall(calls["ended"])).Call, "done"))
	end := endCall(m.ok(beginCall(calls["anew"])).Call, "")
	end.Outcome = passing.Outcome
	m.ok(end)
	m.ok(m.submit("anew", once, func(c *clusterv1.SubmitCall) { c.Key.Session = "anew" }))
	m.ok(beginCall(calls["rekeyed"]))
	m.ok(&clusterv1.RekeyClient{Owner: ann.Owner, Session: "rekeyed", NewOwner: "token 2", Caller: &clusterv1.Caller{TokenId: "2", Role: "client", Namespace: "default"}})
	m.ok(deferCall(m.ok(beginCall(repeats)).Call, m.now+second))
	again := m.ok(beginCall(m.View().Call(repeats.Key))).Call // at attempt 2
	m.ok(m.submit("passed", begun))

	s := goneOn(t, m.View(), before).View()
	type is struct {
		status  queue.Status
		attempt uint32
	}
	for request, want := range map[string]is{
		"waits": {queue.Queued, 0}, "moved": {queue.Queued, 1}, "runs": {queue.Dead, 1}, "ended": {queue.Dead, 1},
		"collected": {queue.Dead, 0}, "anew": {queue.Dead, 2}, "rekeyed": {queue.Dead, 0},
	} {
		c := s.Call(calls[request].Key)
		if got := (is{c.Status, c.Attempt}); got != want {
			t.Errorf("%s: %+v, want %+v", request, got, want)
		}
		if c.Status == queue.Dead && c.Outcome.Code != queue.CodeUnavailable {
			t.Errorf("%s was given up with %+v", request, c.Outcome)
		}
	}
	if c := s.Call(repeats.Key); c.Status != queue.Queued || c.Attempt <= again.Attempt {
		t.Errorf("what may be repeated goes on as %+v, and attempt %d was given out", c, again.Attempt)
	}
	if c, was := s.Call(passed.Key), m.View().Call(passed.Key); c.Status != queue.Ended || c.Attempt < was.Attempt {
		t.Errorf("what passed goes on as %+v, and attempt %d was given out", c, was.Attempt)
	}
	// A cluster that is new has begun nothing, nor has the state that was written.
	written := New(smallLimits())
	if err := written.Restore(bytes.NewReader(before)); err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]*View{"a new cluster": New(smallLimits()).View(), "the same state": written.View()} {
		now := goneOn(t, v, before).View()
		for request, c := range calls {
			if got := now.Call(c.Key); got.Status != queue.Queued || got.Attempt != 0 {
				t.Errorf("%s: %s goes on as %+v", name, request, got)
			}
		}
	}
}
