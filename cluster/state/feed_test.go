// The feed: a view and the changes after it are the later view; who falls behind is told.

package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/session"
)

// mirror is a copy of the state that is kept up by changes alone.
type mirror struct {
	sessions map[string]*session.Session
	nodes    map[string]*Node
	messages map[LetterKey]*session.Message // delivery marks are not told
	results  map[LetterKey]*session.Result
	event    uint64
	index    uint64
	tokens   int // how often they changed
}

func mirrorOf(v *View) *mirror {
	m := &mirror{map[string]*session.Session{}, map[string]*Node{}, map[LetterKey]*session.Message{}, map[LetterKey]*session.Result{}, v.EventNumber(), v.Index(), 0}
	for s := range v.Sessions("") {
		m.sessions[s.ID] = s
	}
	for n := range v.Nodes() {
		m.nodes[n.ID] = n
	}
	for x := range v.AllMessages() {
		m.messages[LetterKey{x.SessionID, x.Sequence}] = x
	}
	return m
}

func (m *mirror) apply(t *testing.T, c *Change) {
	t.Helper()
	if c.Index != m.index+1 {
		t.Fatalf("change %d follows %d", c.Index, m.index)
	}
	m.index = c.Index
	for _, s := range c.Sessions {
		m.sessions[s.ID] = s
	}
	for _, s := range c.RemovedSessions {
		if m.sessions[s.ID] != s {
			t.Fatalf("entry %d removed session %s, but not as it was before", c.Index, s.ID)
		}
		delete(m.sessions, s.ID)
	}
	for _, n := range c.Nodes {
		m.nodes[n.ID] = n
	}
	for _, id := range c.RemovedNodes {
		delete(m.nodes, id)
	}
	once := map[LetterKey]bool{}
	for _, x := range c.Messages {
		k := LetterKey{x.SessionID, x.Sequence}
		if once[k] {
			t.Fatalf("entry %d tells of message %v twice", c.Index, k)
		}
		once[k] = true
		m.messages[k] = x
	}
	for _, r := range c.Results {
		k := LetterKey{r.SessionID, r.Sequence}
		if once[k] {
			t.Fatalf("entry %d tells of message %v twice", c.Index, k)
		}
		once[k] = true
		delete(m.messages, k)
		m.results[k] = r
	}
	for _, d := range c.Dead {
		if once[letterKey(d)] {
			t.Fatalf("entry %d tells of message %v twice", c.Index, letterKey(d))
		}
		delete(m.messages, letterKey(d))
	}
	for _, e := range c.Events {
		if e.Number != m.event+1 || e.Index != c.Index {
			t.Fatalf("event %d of entry %d follows %d in entry %d", e.Number, e.Index, m.event, c.Index)
		}
		m.event = e.Number
	}
	if c.TokensChanged {
		m.tokens++
	}
}

func (m *mirror) equals(t *testing.T, v *View) {
	t.Helper()
	want := mirrorOf(v)
	if !maps.Equal(m.sessions, want.sessions) || !maps.Equal(m.nodes, want.nodes) || m.event != want.event || m.index != want.index {
		t.Fatalf("at entry %d the mirror has %d sessions, %d nodes, event %d; the view %d, %d, %d",
			v.Index(), len(m.sessions), len(m.nodes), m.event, len(want.sessions), len(want.nodes), want.event)
	}
	for k, x := range want.messages {
		// A message with a process was told of when it became queued, or was there at the beginning.
		if got := m.messages[k]; got == nil || !x.Delivered && got.Attempts != x.Attempts {
			t.Fatalf("at entry %d message %v is %+v, mirrored as %+v", v.Index(), k, x, got)
		}
	}
	if len(m.messages) != len(want.messages) {
		t.Fatalf("at entry %d the mirror has %d messages, the view %d", v.Index(), len(m.messages), len(want.messages))
	}
	for k, r := range m.results {
		if got := v.Result(k.SessionID, k.Sequence); got != nil && got != r {
			t.Fatalf("result %v differs", k)
		}
	}
}

func TestViewAndChangesAreTheLaterView(t *testing.T) {
	for seed := range uint64(4) {
		h, s := newHistory(seed), New(smallLimits())
		for range 50 * seed {
			s.Apply(s.Index()+1, h.batch(s.View()))
		}
		sub, v := s.Subscribe()
		m := mirrorOf(v)
		for range 400 {
			s.Apply(s.Index()+1, h.batch(s.View()))
			c, err := sub.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			m.apply(t, c)
			m.equals(t, s.View())
		}
		if m.tokens == 0 || len(m.results) == 0 {
			t.Errorf("seed %d: %d changes of tokens, %d results: the history tries too little", seed, m.tokens, len(m.results))
		}
		sub.Close()
	}
}

// TestAChangeTellsTheEnd: what an entry did and undid is not told.
func TestAChangeTellsTheEnd(t *testing.T) {
	m := running(t)
	sub, _ := m.Subscribe()
	defer sub.Close()
	told := func(commands ...any) *Change {
		t.Helper()
		for i, r := range m.do(commands...) {
			if r.Err != nil {
				t.Fatalf("command %d: %v", i, r.Err)
			}
		}
		c, err := sub.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	bury, retry := &clusterv1.BuryMessages{SessionId: "s", Sequences: []uint64{1}}, &clusterv1.RetryDeadLetters{SessionId: "s"}
	if c := told(send("s", "x"), bury, retry); len(c.Messages) != 1 || len(c.Dead) != 0 {
		t.Errorf("sent, buried and retried: %+v", c)
	}
	if c := told(bury, retry, bury); len(c.Messages) != 0 || len(c.Dead) != 1 {
		t.Errorf("buried, retried and buried: %+v", c)
	}
	if c := told(send("s", "x"), m.facts("a", handed("s", 1, 2))); len(c.Messages) != 0 || len(c.Nodes) != 1 {
		t.Errorf("sent and delivered: %+v", c)
	}
	// The collection writes what was pending in the middle of the entry, which must make no difference.
	was := m.session("s")
	if c := told(m.facts("a", turn("s", 1, 2, "r"), exited("s", 1, 0, 0)), &clusterv1.RemoveSession{SessionId: "s"}, &clusterv1.CollectGarbage{}); len(c.Sessions) != 0 ||
		!slices.Equal(c.RemovedSessions, []*session.Session{was}) || len(c.Results) != 1 || len(c.Events) != 2 {
		t.Errorf("ended and removed: %+v", c)
	}
}

func TestSubscribersFallBehind(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.FeedChanges, l.FeedBytes = 4, 1000 })
	m.ok(spawn("s", ""))
	slow, _ := m.Subscribe()
	defer slow.Close()
	for range 4 {
		m.ok(send("s", "x"))
	}
	quick, _ := m.Subscribe()
	defer quick.Close()
	if c, err := slow.Next(t.Context()); err != nil || len(c.Messages) != 1 || c.Messages[0].Sequence != 1 {
		t.Fatalf("within the bound: %+v, %v", c, err)
	}
	m.ok(send("s", "x"))
	m.ok(send("s", "x"))
	if c, err := slow.Next(t.Context()); !errors.Is(err, ErrLagged) {
		t.Fatalf("beyond the bound: %+v, %v", c, err)
	}
	if c, err := quick.Next(t.Context()); err != nil || c.Messages[0].Sequence != 5 {
		t.Fatalf("the other one: %+v, %v", c, err)
	}
	// Texts count too: two of 600 bytes are more than 1,000.
	again, v := m.Subscribe()
	defer again.Close()
	for range 2 {
		m.ok(send("s", string(make([]byte, 600))))
	}
	if _, err := again.Next(t.Context()); !errors.Is(err, ErrLagged) {
		t.Fatalf("beyond the bound in bytes: %v", err)
	}
	if v.Index() != 7 {
		t.Errorf("the view is of entry %d", v.Index())
	}
}

// TestNothingIsHeldForNobody: without subscribers the feed keeps no rows alive.
func TestNothingIsHeldForNobody(t *testing.T) {
	m := newMachine(t)
	a, _ := m.Subscribe()
	b, _ := m.Subscribe()
	m.ok(spawn("s", ""))
	a.Close()
	a.Close()
	if c, err := b.Next(t.Context()); err != nil || c.Index != 1 {
		t.Fatalf("%+v, %v", c, err)
	}
	if _, err := a.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Fatalf("closed: %v", err)
	}
	b.Close()
	m.ok(spawn("t", ""))
	if m.feed.changes != nil || m.feed.subscribers != 0 {
		t.Errorf("the feed holds %d slots for %d subscribers", len(m.feed.changes), m.feed.subscribers)
	}
	c, v := m.Subscribe()
	defer c.Close()
	m.ok(spawn("u", ""))
	if got, err := c.Next(t.Context()); err != nil || got.Index != 3 || v.Index() != 2 {
		t.Errorf("%+v, %v after view %d", got, err, v.Index())
	}
}

func TestNextWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		const readers, entries = 8, 50
		done := make(chan error, readers)
		for range readers {
			sub, _ := m.Subscribe()
			go func() {
				defer sub.Close()
				for want := uint64(1); want <= entries; want++ {
					c, err := sub.Next(t.Context())
					if err != nil || c.Index != want || m.View().Index() < want {
						done <- fmt.Errorf("change %d: %+v, %w", want, c, err)
						return
					}
				}
				done <- nil
			}()
		}
		for i := range entries {
			synctest.Wait() // all wait
			m.ok(spawn(fmt.Sprint(i), ""))
		}
		for range readers {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		sub, _ := m.Subscribe()
		ctx, cancel := context.WithCancel(t.Context())
		waiting := make(chan error)
		go func() { _, err := sub.Next(ctx); waiting <- err }()
		synctest.Wait()
		cancel()
		if err := <-waiting; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		go func() { _, err := sub.Next(t.Context()); waiting <- err }()
		synctest.Wait()
		sub.Close()
		if err := <-waiting; !errors.Is(err, ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	})
}

// TestReadersWhileApplying lets the race detector see readers beside the writer.
func TestReadersWhileApplying(t *testing.T) {
	h, s := newHistory(11), New(smallLimits())
	stop, done := make(chan struct{}), make(chan struct{})
	const readers = 3
	for range readers {
		go func() {
			defer func() { done <- struct{}{} }()
			for {
				select {
				case <-stop:
					return
				default:
				}
				v := s.View()
				ids := slices.Collect(maps.Keys(mirrorOf(v).sessions))
				for _, id := range ids {
					if v.Session(id) == nil {
						t.Errorf("session %s left a view", id)
					}
					v.Mailbox(id)
				}
			}
		}()
	}
	for range 300 {
		s.Apply(s.Index()+1, h.batch(s.View()))
	}
	close(stop)
	for range readers {
		<-done
	}
	s.Apply(s.Index()+1, &clusterv1.Batch{})
}
