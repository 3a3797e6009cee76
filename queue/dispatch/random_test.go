// Random stories: clients call and go from server to server while servers crash and come back, the leader is lost, answers of the log are lost,
// and servers lag. In the end each call that was asked for has one outcome, and its client was given each result in order and once.
package dispatch_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
	"github.com/neolith/orchestrator/session"
)

const storyServers, storyClients = 3, 2

// story is a cluster, its clients, and what became of both.
type story struct {
	t       *testing.T
	c       *dispatchtest.Cluster
	nodes   []*node
	alive   []bool
	work    *storyWork
	clients []*wanderer
	log     []string
	wrong   []string
}

// storyWork is what runs do on all servers: they hold until they are let go, or fail a few times.
type storyWork struct {
	mu    sync.Mutex
	gates map[string]chan struct{}
	runs  map[uint64]int // of calls that may not be repeated, by number
	fails map[string]int
	open  bool // nothing is held any more
}

func (w *storyWork) gate(id string) chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gates[id] == nil {
		w.gates[id] = make(chan struct{})
		if w.open {
			close(w.gates[id])
		}
	}
	return w.gates[id]
}

func (w *storyWork) release(id string) {
	g := w.gate(id)
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-g:
	default:
		close(g)
	}
}

func (w *storyWork) Run(ctx context.Context, r dispatch.Run) dispatch.Answer {
	w.mu.Lock()
	if !r.Call.Repeatable && r.Call.Number > 0 {
		w.runs[r.Call.Number]++
	}
	fail := w.fails[r.Call.RequestID] > 0
	if fail {
		w.fails[r.Call.RequestID]--
	}
	w.mu.Unlock()
	if fail {
		return dispatch.Answer{Code: "OVER_CAPACITY", Message: "full", Passing: true, Again: true}
	}
	if r.Call.Tool == "hold" {
		select {
		case <-w.gate(r.Call.RequestID):
		case <-ctx.Done():
			if context.Cause(ctx) == errCancelled {
				return dispatch.Answer{Cancelled: true, Passing: true}
			}
			return dispatch.Answer{Code: "TIMEOUT", Passing: true}
		}
	}
	return dispatch.Answer{Outputs: []byte(r.Call.RequestID)}
}

// wanderer is a client that asks again for what it has no result of.
type wanderer struct {
	s    *story
	key  queue.ClientKey
	next queue.ClientKey // the key that it is to have; zero for none
	at   int             // its server; -1 for none
	sink *ear

	mu       sync.Mutex
	asked    []dispatch.Request
	accepted map[string]bool
	results  map[string]int // however they came
	last     uint64
	full     chan struct{} // while it takes no more results
}

// ear is one connection of a client; what comes on a former one is not heard.
type ear struct{ w *wanderer }

func (e *ear) mine() bool { return e.w.sink == e }

func (e *ear) Accepted(c *queue.Call, _ bool) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.w.accepted[c.RequestID] = true
}
func (e *ear) Refused(string, error)                       {}
func (e *ear) Progress(string, string)                     {}
func (e *ear) Chunk(context.Context, string, string) error { return nil }

func (e *ear) Waits() map[string]uint64 { return nil } // no story sets the state back

// Room is for one result in a while.
func (e *ear) Room() <-chan struct{} {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	if e.w.full == nil {
		return nil
	}
	return e.w.full
}

func (e *ear) Ended(r dispatch.Result) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	if !e.mine() {
		return
	}
	if e.w.full == nil {
		full := make(chan struct{})
		e.w.full = full
		time.AfterFunc(30*time.Millisecond, func() {
			e.w.mu.Lock()
			defer e.w.mu.Unlock()
			e.w.full = nil
			close(full)
		})
	} else if !r.Kept {
		e.w.s.wrong = append(e.w.s.wrong, r.Call.RequestID+" came where there was no room")
	}
	id := r.Call.RequestID
	e.w.results[id]++
	if o := r.Call.Outcome; o.Code == "" && !o.Cancelled && string(r.Outputs) != id {
		e.w.s.wrong = append(e.w.s.wrong, fmt.Sprintf("%s was answered with %q", id, r.Outputs))
	}
	if r.Kept {
		return
	}
	if r.Call.Order <= e.w.last {
		e.w.s.wrong = append(e.w.s.wrong, fmt.Sprintf("%s of order %d came after %d", id, r.Call.Order, e.w.last))
	}
	e.w.last = r.Call.Order
	e.w.s.nodes[e.w.at].Delivered(e.w.key, e.w.last, false)
}

// connect brings a client to a server, where it asks again.
func (w *wanderer) connect(at int) bool {
	w.mu.Lock()
	w.at, w.sink = at, &ear{w}
	sink, last := w.sink, w.last
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 12*time.Second)
	defer cancel()
	if w.next.Owner != "" && !w.rekey(ctx) {
		w.at = -1
		return false
	}
	opened, err := w.s.nodes[at].Open(ctx, w.key, sink)
	if err != nil {
		w.at = -1
		return false
	}
	if last > opened.Order {
		w.s.wrong = append(w.s.wrong, fmt.Sprintf("%s has results up to %d, and the cluster has %d", w.key.Session, last, opened.Order))
	}
	w.s.nodes[at].Resume(w.key, last)
	synctest.Wait()
	w.askAgain()
	return true
}

// rekey gives the client's session to the owner that it is to have.
func (w *wanderer) rekey(ctx context.Context) bool {
	// Where a first try was committed and not answered, a call that was on its way may have made the former session anew: the client goes on with the new one.
	if err := w.s.nodes[w.at].Rekey(ctx, w.key, w.next, queue.Caller{}); err != nil && !fault.Is(err, fault.AlreadyExists) {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.key, w.next = w.next, queue.ClientKey{}
	for i := range w.asked {
		w.asked[i].Owner = w.key.Owner
	}
	return true
}

func (w *wanderer) askAgain() {
	w.mu.Lock()
	var again []dispatch.Request
	for _, r := range w.asked {
		if w.results[r.RequestID] == 0 {
			again = append(again, r)
		}
	}
	sink := w.sink
	w.mu.Unlock()
	for _, r := range again {
		r.Deadline = time.Now().Add(10 * time.Minute)
		w.s.nodes[w.at].Submit(r, sink)
	}
}

// step is one thing that happens.
type step struct {
	Kind           string
	Client, Server int
	Call           int
	Hold, Once     bool
	Read, Keyed    bool
	Fails          int
	Priority       int
	Wait           time.Duration
}

var kinds = []string{"call", "call", "call", "call", "release", "release", "crash", "revive", "assign", "move", "cancel", "leaderless", "lead", "lose", "lag", "rekey", "pass", "pass"}

func drawSteps(t *rapid.T) []step {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		return step{
			Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), Client: rapid.IntRange(0, storyClients-1).Draw(t, "client"), Server: rapid.IntRange(0, storyServers-1).Draw(t, "server"),
			Call: rapid.IntRange(0, 30).Draw(t, "call"), Hold: rapid.Bool().Draw(t, "hold"), Once: rapid.IntRange(0, 4).Draw(t, "once") == 0,
			Read: rapid.IntRange(0, 3).Draw(t, "read") == 0, Keyed: rapid.IntRange(0, 2).Draw(t, "keyed") == 0, Fails: max(rapid.IntRange(-4, 2).Draw(t, "fails"), 0),
			Priority: rapid.IntRange(int(session.Critical), int(session.Low)).Draw(t, "priority"),
			Wait:     time.Duration(rapid.IntRange(0, 3000).Draw(t, "wait")) * time.Millisecond,
		}
	}), 5, 60).Draw(t, "steps")
}

func TestRandomStories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := drawSteps(rt)
		var s *story
		synctest.Test(t, func(t *testing.T) {
			s = tell(t, steps)
		})
		if len(s.wrong) > 0 {
			rt.Fatalf("%v\n%v", s.wrong, s.log)
		}
	})
}

// tell plays a story to its end.
func tell(t *testing.T, steps []step) *story {
	s := &story{t: t, c: dispatchtest.New(), work: &storyWork{gates: map[string]chan struct{}{}, runs: map[uint64]int{}, fails: map[string]int{}}}
	s.c.SetLatency(2 * time.Millisecond)
	for i := range storyServers {
		s.nodes = append(s.nodes, s.start(s.c.Add(fmt.Sprint("server-", i))))
		s.alive = append(s.alive, true)
	}
	for i := range storyClients {
		w := &wanderer{s: s, key: queue.ClientKey{Owner: "token a", Session: fmt.Sprint("client-", i)}, accepted: map[string]bool{}, results: map[string]int{}}
		s.clients = append(s.clients, w)
		w.connect(i)
	}
	for i, st := range steps {
		s.log = append(s.log, fmt.Sprintf("\n%d %+v", i, st))
		s.play(i, st)
		time.Sleep(st.Wait)
	}
	s.end()
	for _, n := range s.nodes {
		n.stop(done())
	}
	return s
}

func (s *story) start(server *dispatchtest.Server) *node {
	return start(s.t, server, func(o *dispatch.Options) {
		o.Runner, o.MaxInFlight = s.work, 3
		o.Retry = dispatch.Retry{Max: 3, First: 100 * time.Millisecond, Factor: 2}
	})
}

func (s *story) play(i int, st step) {
	w := s.clients[st.Client]
	switch st.Kind {
	case "call":
		s.call(i, w, st)
	case "release":
		s.work.release(fmt.Sprint("call-", st.Call))
	case "crash":
		s.crash(st.Server)
	case "revive":
		s.revive(st.Server)
	case "assign":
		s.assign()
	case "move":
		if s.alive[st.Server] {
			w.connect(st.Server)
		}
	case "cancel":
		if w.at >= 0 && len(w.asked) > 0 {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_ = s.nodes[w.at].Cancel(ctx, w.asked[st.Call%len(w.asked)].Key)
			cancel()
		}
	case "rekey":
		w.next = queue.ClientKey{Owner: fmt.Sprint("token ", i), Session: w.key.Session}
		if w.at >= 0 {
			ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
			if !w.rekey(ctx) {
				w.mu.Lock()
				w.at, w.sink = -1, nil
				w.mu.Unlock()
			}
			cancel()
		}
	case "leaderless":
		s.c.Lead("")
	case "lead":
		s.lead(st.Server)
	case "lose":
		s.c.LoseAnswers(1 + st.Call%3)
	case "lag":
		n := s.nodes[st.Server].server
		n.Hold(true)
		time.Sleep(st.Wait)
		n.Hold(false)
	}
}

func (s *story) call(i int, w *wanderer, st step) {
	if w.at < 0 {
		return
	}
	id := fmt.Sprint("call-", i)
	r := dispatch.Request{
		Key: queue.Key{Owner: w.key.Owner, Session: w.key.Session, RequestID: id}, Tool: "echo", Arguments: []byte("{}"), Priority: session.Priority(st.Priority),
		Hash: uint64(i), Deadline: time.Now().Add(10 * time.Minute), Repeatable: !st.Once, ReadOnly: st.Read && !st.Once,
	}
	if st.Hold {
		r.Tool = "hold"
	}
	if st.Keyed {
		r.OrderKey = "talk"
	}
	s.work.mu.Lock()
	s.work.fails[id] = st.Fails
	s.work.mu.Unlock()
	w.mu.Lock()
	w.asked = append(w.asked, r)
	sink := w.sink
	w.mu.Unlock()
	s.nodes[w.at].Submit(r, sink)
}

func (s *story) living() (n int) {
	for _, a := range s.alive {
		if a {
			n++
		}
	}
	return n
}

func (s *story) crash(i int) {
	if !s.alive[i] || s.living() == 1 {
		return
	}
	s.alive[i] = false
	s.nodes[i].crash()
	for _, w := range s.clients {
		if w.at == i {
			w.mu.Lock()
			w.at, w.sink = -1, nil
			w.mu.Unlock()
		}
	}
	s.lead(i + 1)
}

func (s *story) revive(i int) {
	if s.alive[i] {
		return
	}
	s.alive[i] = true
	s.nodes[i].server.Revive()
	s.nodes[i] = s.start(s.nodes[i].server)
}

// lead has a server lead that is alive.
func (s *story) lead(i int) {
	for n := range storyServers {
		if at := (i + n) % storyServers; s.alive[at] {
			s.c.Lead(fmt.Sprint("server-", at))
			return
		}
	}
}

// assign gives the calls of servers that are dead to those that are not.
func (s *story) assign() {
	var to []string
	for i, alive := range s.alive {
		if alive {
			to = append(to, fmt.Sprint("server-", i))
		}
	}
	for i, alive := range s.alive {
		if !alive {
			s.c.Do(&clusterv1.Command{Kind: &clusterv1.Command_AssignCalls{AssignCalls: &clusterv1.AssignCalls{FromServerId: fmt.Sprint("server-", i), ToServerIds: to, Limit: 1000}}})
		}
	}
}

// end has all go well from now on, and then judges.
func (s *story) end() {
	s.c.LoseAnswers(0)
	s.lead(0)
	s.assign()
	s.work.mu.Lock()
	s.work.open = true
	for _, g := range s.work.gates {
		select {
		case <-g:
		default:
			close(g)
		}
	}
	s.work.mu.Unlock()
	at := len(s.log) % storyServers
	for !s.alive[at] {
		at = (at + 1) % storyServers
	}
	for _, w := range s.clients {
		if w.at < 0 && !w.connect(at) {
			s.wrong = append(s.wrong, w.key.Session+" cannot connect")
			return
		}
		time.Sleep(time.Minute)
		w.askAgain()
	}
	time.Sleep(time.Hour)
	synctest.Wait()
	for _, w := range s.clients {
		s.judge(w)
	}
	s.work.mu.Lock()
	defer s.work.mu.Unlock()
	for number, n := range s.work.runs {
		if n > 1 {
			s.wrong = append(s.wrong, fmt.Sprintf("the call of number %d may not be repeated, and ran %d times", number, n))
		}
	}
}

func (s *story) judge(w *wanderer) {
	n := s.nodes[w.at]
	w.mu.Lock()
	defer w.mu.Unlock()
	orders := map[uint64]string{}
	for _, r := range w.asked {
		row := n.Find(r.Key)
		switch {
		case row == nil:
			s.wrong = append(s.wrong, r.RequestID+" is not there")
			continue
		case !row.Status.Over():
			s.wrong = append(s.wrong, fmt.Sprintf("%s is %s on %s, attempt %d", r.RequestID, row.Status, row.Server, row.Attempt))
			continue
		case orders[row.Order] != "":
			s.wrong = append(s.wrong, fmt.Sprintf("%s and %s are both of order %d", r.RequestID, orders[row.Order], row.Order))
		case w.results[r.RequestID] == 0:
			s.wrong = append(s.wrong, fmt.Sprintf("%s of order %d was never answered; %d was the last", r.RequestID, row.Order, w.last))
		}
		orders[row.Order] = r.RequestID
	}
	if c := n.Client(w.key); c != nil && c.Order != w.last {
		s.wrong = append(s.wrong, fmt.Sprintf("%s was given results up to %d of %d", w.key.Session, w.last, c.Order))
	}
}
