// What is in the log is recorded, whoever leads and whoever dies.

package record

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/recorder"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a recorder that keeps what it is given; one that is full holds up who gives it more.
type memory struct {
	mu   sync.Mutex
	all  []recorder.Interaction
	full chan struct{} // nil unless it is full; closed when there is room again
	err  error         // of Room
}

func (m *memory) Take(i *recorder.Interaction) error {
	m.mu.Lock()
	full := m.full
	m.mu.Unlock()
	if full != nil {
		<-full
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, *i)
	return nil
}

func (m *memory) Room(context.Context) error { return m.err }

func (m *memory) taken() []recorder.Interaction {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.all)
}

// crash loses what was recorded last, as a process that is killed does.
func (m *memory) crash(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = m.all[:max(len(m.all)-n, 0)]
}

// log is what was committed, and makes sessions that are talked to.
type log struct {
	entries []*clusterv1.Batch
	facts   uint64
	sent    map[string]uint64 // messages to each session
	acked   map[string]uint64
}

func newLog() *log {
	l := &log{sent: map[string]uint64{}, acked: map[string]uint64{}}
	l.add(&clusterv1.Command{Kind: &clusterv1.Command_RegisterNode{RegisterNode: &clusterv1.RegisterNode{NodeId: "n", Name: "n", Incarnation: 1}}})
	return l
}

func (l *log) add(c ...*clusterv1.Command) {
	l.entries = append(l.entries, &clusterv1.Batch{Time: int64(len(l.entries)+1) * int64(time.Millisecond), Commands: c})
}

func (l *log) fact(id string, f *nodev1.Fact) {
	l.facts++
	f.Index, f.SessionId, f.Epoch = l.facts, id, 1
	l.add(&clusterv1.Command{Kind: &clusterv1.Command_ApplyFacts{ApplyFacts: &clusterv1.ApplyFacts{NodeId: "n", Incarnation: 1, Facts: []*nodev1.Fact{f}}}})
}

func (l *log) spawn(id, namespace string) {
	l.add(&clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{SessionId: id, NodeId: "n", Spec: &apiv1.SessionSpec{Namespace: namespace, Command: []string{"cat"}}}}})
	l.fact(id, &nodev1.Fact{Kind: &nodev1.Fact_Started{Started: &nodev1.Started{}}})
	l.sent[id] = 0
}

func (l *log) send(id string) {
	l.sent[id]++
	l.add(&clusterv1.Command{Kind: &clusterv1.Command_SendMessage{SendMessage: &clusterv1.SendMessage{SessionId: id, Priority: apiv1.Priority_NORMAL, Text: fmt.Appendf(nil, "message %d", l.sent[id])}}})
}

func (l *log) answer(id string) {
	if l.acked[id] < l.sent[id] {
		l.acked[id]++
		l.fact(id, &nodev1.Fact{Kind: &nodev1.Fact_TurnEnded{TurnEnded: &nodev1.TurnEnded{Sequence: l.acked[id], Result: fmt.Appendf(nil, "answer %d", l.acked[id])}}})
	}
}

// node is a server: its state, its feed, its record. What it recorded outlives it.
type node struct {
	t       *testing.T
	record  *memory
	missed  func() float64
	store   *state.Store
	feed    *Feed
	applied int
	stop    func()

	mu      sync.Mutex
	leads   bool
	changed chan struct{}
}

func newNode(t *testing.T) *node {
	n := &node{t: t, record: &memory{}}
	n.start()
	return n
}

// start begins with an empty state, which replays the log.
func (n *node) start() {
	n.store, n.applied, n.changed, n.leads = state.New(state.DefaultLimits()), 0, make(chan struct{}), false
	reg := prometheus.NewRegistry()
	f, err := NewFeed(FeedOptions{State: n.store, Recorder: n.record, Leads: n.who, Logger: slog.New(slog.DiscardHandler), Registerer: reg})
	if err != nil {
		n.t.Fatal(err)
	}
	n.feed = f
	n.missed = func() float64 {
		all, err := reg.Gather()
		if err != nil || len(all) != 1 {
			n.t.Fatal(all, err)
		}
		return all[0].GetMetric()[0].GetCounter().GetValue()
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := f.Run(ctx); err != nil {
			n.t.Error(err)
		}
	}()
	n.stop = func() { cancel(); <-ended; f.Close() }
}

func (n *node) who() (bool, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leads, n.changed
}

func (n *node) lead(yes bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.leads != yes {
		n.leads = yes
		close(n.changed)
		n.changed = make(chan struct{})
	}
}

func (n *node) apply(l *log) {
	for ; n.applied < len(l.entries); n.applied++ {
		for _, r := range n.store.Apply(uint64(n.applied+1), l.entries[n.applied]) {
			if r.Err != nil {
				n.t.Fatal(r.Err)
			}
		}
	}
}

func distinct(all ...[]recorder.Interaction) map[string]recorder.Interaction {
	m := map[string]recorder.Interaction{}
	for _, i := range slices.Concat(all...) {
		m[i.ID] = i
	}
	return m
}

// TestFeed: what the log has, in words.
func TestFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l := newNode(t), newLog()
		defer func() { n.stop() }()
		n.lead(true)
		l.spawn("s", "films")
		l.send("s")
		l.send("s")
		l.answer("s")
		l.add(&clusterv1.Command{Kind: &clusterv1.Command_BuryMessages{BuryMessages: &clusterv1.BuryMessages{SessionId: "s", Sequences: []uint64{2}, Cause: "nobody wants it"}}})
		n.apply(l)
		time.Sleep(senderTime + gatherTime)
		synctest.Wait()
		var got []string
		for _, i := range n.record.taken() {
			if i.Session != "s" || i.Namespace != "films" || i.Time.IsZero() || !strings.HasPrefix(i.ID, "s/") {
				t.Errorf("%+v", i)
			}
			got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s %s%s%s", i.Kind, i.RequestID, i.Tool, i.Request, i.Response, i.Error)))
		}
		for _, want := range []string{"message 1  message 1", "message 2  message 2", "answer 1  answer 1", "answer 2  nobody wants it", "session_event  session.running process started"} {
			if !slices.Contains(got, want) {
				t.Errorf("%q is not in\n%s", want, strings.Join(got, "\n"))
			}
		}
		if len(distinct(n.record.taken())) != len(got) {
			t.Errorf("an id comes twice: %q", got)
		}
	})
}

// TestSenders: a message is recorded with its sender, also when that is known a little later than the message; and without it when nobody says.
func TestSenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l := newNode(t), newLog()
		defer func() { n.stop() }()
		n.lead(true)
		l.spawn("s", "default")
		n.feed.Sent("s", 1, "client:early")
		l.send("s")
		l.send("s")
		l.send("s")
		n.apply(l)
		synctest.Wait()
		messages := func() (all []string) {
			for _, i := range n.record.taken() {
				if i.Kind == recorder.Message {
					all = append(all, i.RequestID+" "+i.Principal)
				}
			}
			return all
		}
		if got := messages(); len(got) > 1 {
			t.Errorf("before anybody said who sent them: %q", got)
		}
		n.feed.Sent("s", 2, "client:late")
		time.Sleep(senderTime + gatherTime)
		synctest.Wait()
		if got := messages(); !slices.Equal(got, []string{"1 client:early", "2 client:late", "3 "}) {
			t.Errorf("%q", got)
		}
		for k := range uint64(2 * sendersMax) {
			n.feed.Sent("s", 100+k, "x")
		}
		if len(n.feed.senders) != sendersMax || len(n.feed.noted) != sendersMax {
			t.Errorf("%d senders are remembered", len(n.feed.senders))
		}
	})
}

// TestTheEndIsRecorded: what was applied when the server stops, or another one leads, and was not read yet.
func TestTheEndIsRecorded(t *testing.T) {
	for _, end := range []func(*node){func(n *node) { n.stop() }, func(n *node) { n.lead(false); synctest.Wait(); n.stop() }} {
		synctest.Test(t, func(t *testing.T) {
			n, l := newNode(t), newLog()
			n.lead(true)
			synctest.Wait()
			l.spawn("s", "default")
			for range 500 {
				l.send("s")
			}
			n.apply(l)
			end(n)
			if all := n.record.taken(); len(all) < 500 || all[len(all)-1].Request != "message 500" {
				t.Errorf("%d are recorded", len(all))
			}
		})
	}
}

// TestWhoeverLeadsAndDies: histories in which the lead goes from server to server, and servers are killed with the last of what they
// recorded, and come back. What one server that leads all the time records is recorded, under the same ids.
func TestWhoeverLeadsAndDies(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			calm, l := newNode(t), newLog()
			defer func() { calm.stop() }()
			calm.lead(true)
			nodes := []*node{newNode(t), newNode(t), newNode(t)}
			leader := nodes[0]
			leader.lead(true)
			kills := 0
			for range 150 {
				ids := slices.Sorted(maps.Keys(l.sent))
				switch n := r.IntN(100); {
				case n < 10 || len(ids) == 0:
					l.spawn(fmt.Sprintf("s%d", len(ids)), fmt.Sprintf("ns%d", len(ids)%2))
				case n < 50:
					l.send(ids[r.IntN(len(ids))])
				case n < 85:
					l.answer(ids[r.IntN(len(ids))])
				case n < 93: // another one leads; this one may have read less than it has applied
					leader.lead(false)
					leader = nodes[r.IntN(len(nodes))]
					for _, o := range nodes {
						o.apply(l)
					}
					leader.lead(true)
				default: // the leader is killed, and its log is replayed; another one leads meanwhile
					kills++
					leader.stop()
					leader.record.crash(r.IntN(30))
					leader.start()
					leader.apply(l)
					leader = nodes[r.IntN(len(nodes))]
					leader.apply(l)
					leader.lead(true)
				}
				for _, o := range append(nodes, calm) {
					if r.IntN(3) > 0 {
						o.apply(l)
					}
				}
				if r.IntN(4) == 0 {
					synctest.Wait()
				}
			}
			for _, o := range append(nodes, calm) {
				o.apply(l)
			}
			time.Sleep(senderTime + gatherTime)
			synctest.Wait()
			for _, o := range nodes {
				o.stop()
			}
			want := distinct(calm.record.taken())
			got := distinct(nodes[0].record.taken(), nodes[1].record.taken(), nodes[2].record.taken())
			if len(want) < 50 {
				t.Fatalf("seed %d: only %d happened", seed, len(want))
			}
			for id, i := range want {
				if g, ok := got[id]; !ok || g.Request != i.Request || g.Response != i.Response || g.Namespace != i.Namespace || !g.Time.Equal(i.Time) {
					t.Errorf("seed %d, %d kills: %s: %+v, want %+v", seed, kills, id, g, i)
				}
			}
			if len(got) != len(want) {
				t.Errorf("seed %d: %d recorded, %d happened", seed, len(got), len(want))
			}
		})
	}
}

// TestFollowersRememberLittle: bounded in number and bytes, and the newest.
func TestFollowersRememberLittle(t *testing.T) {
	f := &Feed{o: FeedOptions{State: state.New(state.DefaultLimits())}}
	event := func(n int, bytes int) *state.Change {
		return &state.Change{Events: []*state.Event{{Number: uint64(n), SessionID: "s", Message: strings.Repeat("x", bytes)}}}
	}
	for n := range recentMax + 100 {
		f.take(event(n, 10), false)
	}
	if len(f.recent) != recentMax || f.rows != recentMax || f.recent[0].events[0].Number != 100 || f.bytes != 10*recentMax {
		t.Errorf("%d, the first %d, %d bytes", len(f.recent), f.recent[0].events[0].Number, f.bytes)
	}
	for n := range 100 {
		f.take(event(n, 1<<20), false)
	}
	if f.bytes > recentBytesMax || len(f.recent) != recentBytesMax>>20 {
		t.Errorf("%d, %d bytes", len(f.recent), f.bytes)
	}
}

// TestAFullRecordIsToldAndCounted: a leader whose record takes nothing for long misses what the state does not hold any more, and goes on with the rest.
func TestAFullRecordIsToldAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l := newNode(t), newLog()
		defer func() { n.stop() }()
		n.lead(true)
		l.spawn("s", "default")
		n.apply(l)
		synctest.Wait()
		room := make(chan struct{})
		n.record.mu.Lock()
		n.record.full = room
		n.record.mu.Unlock()
		limit := state.DefaultLimits().FeedChanges
		for range limit/2 + 100 {
			l.send("s")
			l.answer("s")
		}
		n.apply(l)
		synctest.Wait()
		n.record.mu.Lock()
		n.record.full = nil
		n.record.mu.Unlock()
		close(room)
		time.Sleep(senderTime + gatherTime)
		synctest.Wait()
		if missed := n.missed(); missed < 100 || missed > 300 {
			t.Errorf("%v changes are counted as missed", missed)
		}
		if last := fmt.Sprintf("answer %d", l.acked["s"]); !slices.ContainsFunc(n.record.taken(), func(i recorder.Interaction) bool { return i.Response == last }) {
			t.Errorf("%q is not recorded", last)
		}
	})
}
