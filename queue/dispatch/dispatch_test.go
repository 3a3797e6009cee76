// What a dispatcher does with calls: order, bounds, retries, cancelling, deadlines, and what others do meanwhile. Time is simulated.
package dispatch_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errCancelled = errors.New("cancelled by its client")

// work is a runner that does as a test says: tools are hold (until let go), fail (in a passing way, so often), echo and large.
type work struct {
	mu    sync.Mutex
	began []string // request ids, in the order in which runs began
	gates map[string]chan struct{}
	fails map[string]int
	runs  map[string]int
}

func newWork() *work {
	return &work{gates: map[string]chan struct{}{}, fails: map[string]int{}, runs: map[string]int{}}
}

func (w *work) gate(id string) chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gates[id] == nil {
		w.gates[id] = make(chan struct{})
	}
	return w.gates[id]
}

func (w *work) Run(ctx context.Context, r dispatch.Run) dispatch.Answer {
	id := r.Call.RequestID
	w.mu.Lock()
	w.began = append(w.began, id)
	w.runs[id]++
	fail := w.fails[id] > 0
	w.fails[id]--
	w.mu.Unlock()
	if fail {
		return dispatch.Answer{Code: "OVER_CAPACITY", Message: "the mailbox is full", Passing: true, Again: true}
	}
	if r.Call.Tool == "hold" {
		select {
		case <-w.gate(id):
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), errCancelled) {
				return dispatch.Answer{Cancelled: true, Passing: true}
			}
			return dispatch.Answer{Code: "TIMEOUT", Message: "no answer in time", Passing: true}
		}
	}
	if r.Call.Tool == "large" {
		return dispatch.Answer{Outputs: []byte(strings.Repeat(string(r.Arguments[:8]), len(r.Arguments)/8))}
	}
	return dispatch.Answer{Outputs: r.Arguments}
}

func (w *work) order() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.began)
}

// sink is a client that writes down what it is told.
type sink struct {
	mu      sync.Mutex
	said    []string
	orders  []uint64
	outputs map[string]string
	full    chan struct{} // nil while it takes results
	waits   map[string]uint64
}

// stuff has it take no results until the channel is closed.
func (s *sink) stuff(full chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = full
}

func (s *sink) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = append(s.said, fmt.Sprintf(format, args...))
}

func (s *sink) Waits() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.waits)
}

// wait has it wait for a call.
func (s *sink) wait(c *queue.Call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waits == nil {
		s.waits = map[string]uint64{}
	}
	s.waits[c.RequestID] = c.Number
}

func (s *sink) Accepted(c *queue.Call, known bool) {
	s.wait(c)
	if known {
		s.say("%s known", c.RequestID)
	} else {
		s.say("%s accepted", c.RequestID)
	}
}
func (s *sink) Refused(id string, err error) { s.say("%s refused: %s", id, fault.KindOf(err)) }
func (s *sink) Progress(id, note string)     { s.say("%s: %s", id, note) }
func (s *sink) Chunk(context.Context, string, string) error {
	return nil
}

func (s *sink) Room() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.full:
		s.full = nil
	default:
	}
	return s.full
}

func (s *sink) Ended(r dispatch.Result) {
	what := r.Call.Outcome.Code
	switch {
	case r.Err != nil:
		what = r.Err.Error()
	case r.Call.Outcome.Cancelled:
		what = "cancelled"
	case what == "":
		what = "done"
	}
	if r.Kept {
		what += " (kept)"
	}
	if r.Call.Status == queue.Dead {
		what += " (dead)"
	}
	s.say("%s %s", r.Call.RequestID, what)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waits, r.Call.RequestID)
	if !r.Kept {
		s.orders = append(s.orders, r.Call.Order)
	}
	if s.outputs == nil {
		s.outputs = map[string]string{}
	}
	s.outputs[r.Call.RequestID] = string(r.Outputs)
}

// take returns what was said since it was asked last, once all is quiet.
func (s *sink) take() []string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.said
	s.said = nil
	return out
}

// node is a server under test.
type node struct {
	*dispatch.Dispatcher
	server *dispatchtest.Server
	work   *work
	stop   func(ctx context.Context) // in good order
	crash  func()                    // as with SIGKILL, as far as the others can tell
}

func quietLog() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// start starts a server of the cluster, with a runner of its own unless one is given.
func start(t testing.TB, server *dispatchtest.Server, change func(*dispatch.Options)) *node {
	t.Helper()
	n := &node{server: server, work: newWork()}
	log := server.Log(quietLog())
	o := dispatch.Options{
		Server: server.ID, State: dispatch.StoreState{Store: server.Store}, Log: log, Runner: n.work, MaxInFlight: 10, MaxWaiting: 100,
		Cancelled: errCancelled, Retry: dispatch.Retry{Max: 3, First: time.Second, Factor: 2}, Logger: quietLog(),
	}
	if change != nil {
		change(&o)
	}
	n.Dispatcher = dispatch.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		if err := n.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	end := sync.OnceFunc(func() {
		cancel()
		<-ran
		log.Close()
	})
	n.stop = func(ctx context.Context) { n.Close(ctx); end() }
	n.crash = func() {
		server.Kill()
		end()
		n.stop(done())
	}
	t.Cleanup(func() { n.stop(done()) })
	return n
}

// done is a context that has ended.
func done() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

var alice = queue.ClientKey{Owner: "token a", Session: "story"}

func request(id, tool string) dispatch.Request {
	return dispatch.Request{
		Key: queue.Key{Owner: alice.Owner, Session: alice.Session, RequestID: id}, Caller: queue.Caller{Name: "alice", Role: "client"}, Tool: tool,
		Arguments: []byte(`{"a":1}`), Priority: session.Normal, Hash: 7, Deadline: time.Now().Add(5 * time.Minute), Repeatable: true,
	}
}

func (n *node) submit(s *sink, id, tool string, change func(*dispatch.Request)) {
	r := request(id, tool)
	if change != nil {
		change(&r)
	}
	n.Submit(r, s)
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("it said\n  %s\nand not\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// in runs a test under simulated time.
func in(t *testing.T, f func(t *testing.T, c *dispatchtest.Cluster)) {
	synctest.Test(t, func(t *testing.T) { f(t, dispatchtest.New()) })
}

func TestACallIsTakenRunAndAnswered(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		for _, lead := range []string{"here", "there"} {
			a := start(t, c.Add(lead+"-1"), nil)
			s := &sink{}
			id := "r-" + lead
			a.submit(s, id, "echo", nil)
			expect(t, s.take(), id+" accepted", id+" done")
			row := a.Find(request(id, "").Key)
			if row == nil || row.Status != queue.Ended || row.Attempt != 1 || row.Server != a.server.ID || s.outputs[id] != `{"a":1}` {
				t.Errorf("row %+v, outputs %q", row, s.outputs[id])
			}
			// Asked again it is the same call, here and with other arguments a mistake.
			a.submit(s, id, "echo", nil)
			expect(t, s.take(), id+" known", id+" done (kept)")
			a.submit(s, id, "echo", func(r *dispatch.Request) { r.Hash = 8 })
			expect(t, s.take(), id+" refused: already exists")
			if n := a.work.runs[id]; n != 1 {
				t.Errorf("it ran %d times", n)
			}
		}
	})
}

func TestReadsTakeOneCommit(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		c.SetLatency(3 * time.Millisecond)
		a := start(t, c.Add("a"), nil)
		s := &sink{}
		reads := func(r *dispatch.Request) { r.ReadOnly = true }
		began, before := time.Now(), c.Commits()
		a.submit(s, "quick", "echo", reads)
		time.Sleep(3 * time.Millisecond)
		expect(t, s.take(), "quick accepted", "quick done")
		if n := c.Commits() - before; n != 1 || time.Since(began) != 3*time.Millisecond {
			t.Errorf("%d commits in %s", n, time.Since(began))
		}
		// One that takes longer than the head start is taken meanwhile.
		a.submit(s, "slow", "hold", reads)
		time.Sleep(4 * time.Millisecond)
		expect(t, s.take(), "slow accepted")
		close(a.work.gate("slow"))
		time.Sleep(5 * time.Millisecond)
		expect(t, s.take(), "slow done")
		if n := a.Stats().Fast; n != 1 {
			t.Errorf("%d were fast", n)
		}
	})
}

func TestCallsBeyondTheRoomWaitByPriority(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), func(o *dispatch.Options) { o.MaxInFlight = 2; o.MaxWaiting = 5 })
		s := &sink{}
		for i, p := range []session.Priority{session.Normal, session.Normal, session.Low, session.Normal, session.Critical, session.High, session.Normal} {
			a.submit(s, fmt.Sprint(i), "hold", func(r *dispatch.Request) { r.Priority = p })
			synctest.Wait()
		}
		if st := a.Stats(); st.Running != 2 || st.Waiting != 5 {
			t.Errorf("%+v", st)
		}
		a.submit(s, "over", "hold", nil)
		if said := s.take(); said[len(said)-1] != "over refused: exhausted" {
			t.Errorf("beyond the bound: %v", said)
		}
		for _, id := range []string{"0", "1", "4", "5", "3", "6", "2"} {
			close(a.work.gate(id))
			synctest.Wait()
		}
		if got := a.work.order(); !slices.Equal(got, []string{"0", "1", "4", "5", "3", "6", "2"}) {
			t.Errorf("they began as %v", got)
		}
		if got := s.orders; !slices.Equal(got, []uint64{1, 2, 3, 4, 5, 6, 7}) {
			t.Errorf("results came as %v", got)
		}
	})
}

func TestCallsOfOneKeyRunInTurn(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
		s := &sink{}
		keyed := func(r *dispatch.Request) { r.OrderKey = "talk" }
		for i := range 3 {
			a.submit(s, fmt.Sprint(i), "hold", keyed)
			synctest.Wait()
		}
		b.submit(s, "elsewhere", "hold", keyed)
		synctest.Wait()
		a.submit(s, "4", "hold", func(r *dispatch.Request) { keyed(r); r.Priority = session.Critical })
		a.submit(s, "free", "echo", nil)
		synctest.Wait()
		if got := append(a.work.order(), b.work.order()...); !slices.Equal(got, []string{"0", "free"}) {
			t.Errorf("they began as %v", got)
		}
		for _, id := range []string{"0", "1", "2"} {
			close(a.work.gate(id))
			time.Sleep(time.Second)
		}
		if got := b.work.order(); !slices.Equal(got, []string{"elsewhere"}) || len(a.work.order()) != 4 {
			t.Errorf("they began as %v, and elsewhere as %v", a.work.order(), got)
		}
		close(b.work.gate("elsewhere"))
		time.Sleep(time.Second)
		if got := a.work.order(); got[len(got)-1] != "4" {
			t.Errorf("they began as %v", got)
		}
		close(a.work.gate("4"))
	})
}

func TestFailuresAreTriedAgainAndGivenUp(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), nil)
		s := &sink{}
		a.work.fails["twice"], a.work.fails["always"], a.work.fails["once"], a.work.fails["late"] = 2, 100, 100, 100
		a.submit(s, "twice", "echo", nil)
		expect(t, s.take(), "twice accepted")
		time.Sleep(2900 * time.Millisecond)
		expect(t, s.take())
		time.Sleep(200 * time.Millisecond)
		expect(t, s.take(), "twice done")
		a.submit(s, "always", "echo", nil)
		time.Sleep(8 * time.Second)
		expect(t, s.take(), "always accepted", "always OVER_CAPACITY (dead)")
		if n := a.work.runs["always"]; n != 4 {
			t.Errorf("it was tried %d times", n)
		}
		// What may not be repeated is not, and nothing is tried beyond its deadline.
		a.submit(s, "once", "echo", func(r *dispatch.Request) { r.Repeatable = false })
		expect(t, s.take(), "once accepted", "once OVER_CAPACITY")
		a.submit(s, "late", "echo", func(r *dispatch.Request) { r.Deadline = time.Now().Add(2500 * time.Millisecond) })
		time.Sleep(1500 * time.Millisecond)
		expect(t, s.take(), "late accepted", "late OVER_CAPACITY (dead)")
	})
}

func TestDeadlinesAndCancelling(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), func(o *dispatch.Options) { o.MaxInFlight = 2 }), start(t, c.Add("b"), nil)
		s := &sink{}
		a.submit(s, "runs", "hold", nil)
		a.submit(s, "elsewhere", "hold", nil)
		synctest.Wait()
		a.submit(s, "waits", "hold", nil)
		a.submit(s, "late", "hold", func(r *dispatch.Request) { r.Deadline = time.Now().Add(time.Second) })
		expect(t, s.take(), "runs accepted", "elsewhere accepted", "waits accepted", "late accepted")
		time.Sleep(time.Second)
		expect(t, s.take(), "late TIMEOUT")
		cancel := func(n *node, id string) error { return n.Cancel(t.Context(), request(id, "").Key) }
		for _, x := range []struct {
			at *node
			id string
		}{{a, "waits"}, {a, "runs"}, {b, "elsewhere"}} {
			if err := cancel(x.at, x.id); err != nil {
				t.Errorf("cancel %s: %v", x.id, err)
			}
			expect(t, s.take(), x.id+" cancelled")
		}
		for _, id := range []string{"runs", "never made"} {
			if err := cancel(b, id); !fault.Is(err, fault.NotFound) {
				t.Errorf("cancel %s: %v", id, err)
			}
		}
		a.submit(s, "short", "hold", func(r *dispatch.Request) { r.Deadline = time.Now().Add(time.Second) })
		time.Sleep(time.Second)
		expect(t, s.take(), "short accepted", "short TIMEOUT")
	})
}

// What another server did with a call counts: its end is told here, and a call that it was given is not ended by this one.
func TestAServerIsLost(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
		s := &sink{}
		c.Lead("b")
		a.submit(s, "again", "hold", nil)
		a.submit(s, "never", "hold", func(r *dispatch.Request) { r.Repeatable = false })
		a.submit(s, "done", "echo", nil)
		expect(t, s.take(), "again accepted", "never accepted", "done accepted", "done done")
		a.Delivered(alice, 0, false) // it says nothing of what it gave
		a.crash()
		here := &sink{}
		opened, err := b.Open(t.Context(), alice, here)
		if err != nil || !opened.Known || opened.Order != 1 || opened.Delivered != 0 || len(opened.Unfinished) != 2 {
			t.Fatalf("opened %+v, %v", opened, err)
		}
		b.Resume(alice, opened.Delivered)
		expect(t, here.take(), "done done")
		c.Do(&clusterv1.Command{Kind: &clusterv1.Command_AssignCalls{AssignCalls: &clusterv1.AssignCalls{FromServerId: "a", ToServerIds: []string{"b"}, Reason: "server a was lost", Limit: 100}}})
		expect(t, here.take(), "never SERVICE_UNAVAILABLE (dead)")
		if got := b.work.order(); !slices.Equal(got, []string{"again"}) {
			t.Errorf("b began %v", got)
		}
		close(b.work.gate("again"))
		expect(t, here.take(), "again done")
		if !slices.Equal(here.orders, []uint64{1, 2, 3}) {
			t.Errorf("results came as %v", here.orders)
		}
	})
}

func TestAServerThatWasThoughtDeadEndsNothing(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
		s := &sink{}
		a.submit(s, "1", "hold", nil)
		expect(t, s.take(), "1 accepted")
		a.server.Hold(true) // it sees nothing of what follows
		c.Lead("b")
		c.Do(&clusterv1.Command{Kind: &clusterv1.Command_AssignCalls{AssignCalls: &clusterv1.AssignCalls{FromServerId: "a", ToServerIds: []string{"b"}, Limit: 100}}})
		synctest.Wait()
		close(a.work.gate("1"))
		synctest.Wait()
		if row := b.Find(request("1", "").Key); row.Status != queue.Running || row.Server != "b" {
			t.Fatalf("the call is %+v", row)
		}
		a.server.Hold(false)
		close(b.work.gate("1"))
		expect(t, s.take(), "1 done")
		if row := b.Find(request("1", "").Key); row.Status != queue.Ended || row.Server != "b" {
			t.Errorf("the call is %+v", row)
		}
	})
}

// A server that is started anew knows its calls from the state.
func TestAServerComesBack(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		server := c.Add("a")
		a := start(t, server, func(o *dispatch.Options) { o.MaxInFlight = 2 })
		s := &sink{}
		a.submit(s, "again", "hold", nil)
		a.submit(s, "never", "hold", func(r *dispatch.Request) { r.Repeatable = false })
		synctest.Wait()
		a.submit(s, "waits", "echo", nil)
		expect(t, s.take(), "again accepted", "never accepted", "waits accepted")
		a.stop(done())
		expect(t, s.take())
		a = start(t, server, nil)
		here := &sink{}
		opened, err := a.Open(t.Context(), alice, here)
		if err != nil {
			t.Fatal(err)
		}
		a.Resume(alice, opened.Delivered)
		close(a.work.gate("again"))
		said := here.take()
		slices.Sort(said)
		expect(t, said, "again done", "never SERVICE_UNAVAILABLE (dead)", "waits done")
		if row := a.Find(request("again", "").Key); row.Attempt != 2 {
			t.Errorf("it ended with attempt %d", row.Attempt)
		}
		if n := a.Stats().Orphans; n != 2 {
			t.Errorf("%d orphans", n)
		}
	})
}

func TestTheLogFails(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), nil)
		s := &sink{}
		c.LoseAnswers(1) // the submission is committed, and sent again
		a.submit(s, "lost", "echo", func(r *dispatch.Request) { r.Repeatable = false })
		time.Sleep(time.Second)
		expect(t, s.take(), "lost accepted", "lost done")
		a.submit(s, "ends", "hold", nil)
		expect(t, s.take(), "ends accepted")
		c.LoseAnswers(2)
		close(a.work.gate("ends"))
		time.Sleep(time.Second)
		expect(t, s.take(), "ends done")
		// Without a leader a call is refused in time, and what ended is told once there is one.
		a.submit(s, "waits", "hold", nil)
		expect(t, s.take(), "waits accepted")
		c.Lead("")
		close(a.work.gate("waits"))
		a.submit(s, "refused", "echo", nil)
		if _, err := a.Open(t.Context(), alice, s); !fault.Is(err, fault.Unavailable) {
			t.Errorf("open: %v", err)
		}
		time.Sleep(20 * time.Second)
		expect(t, s.take(), "refused refused: unavailable")
		c.Lead("a")
		expect(t, s.take(), "waits done")
	})
}

func TestResultsAreGivenInTheirOrderAndOnce(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
		s := &sink{}
		for i := range 5 {
			a.submit(s, fmt.Sprint(i), "hold", nil)
		}
		synctest.Wait()
		s.take()
		here := &sink{}
		opened, err := b.Open(t.Context(), alice, here)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			close(a.work.gate(fmt.Sprint(i)))
			synctest.Wait()
		}
		expect(t, here.take()) // held back until it is resumed
		b.Resume(alice, opened.Delivered)
		expect(t, here.take(), "0 done", "1 done", "2 done")
		b.Delivered(alice, 2, false)
		time.Sleep(150 * time.Millisecond)
		if row := b.Client(alice); row.Delivered != 2 || row.Server != "b" {
			t.Errorf("%+v", row)
		}
		a.Delivered(alice, 3, true) // it is not there any more
		synctest.Wait()
		if row := b.Client(alice); row.Delivered != 2 {
			t.Errorf("%+v", row)
		}
		b.server.Hold(true) // the end of 3 is not seen here before that of 4, which is
		close(a.work.gate("3"))
		synctest.Wait()
		close(a.work.gate("4"))
		synctest.Wait()
		expect(t, here.take())
		b.server.Hold(false)
		expect(t, here.take(), "3 done", "4 done")
		opened, err = b.Open(t.Context(), alice, here)
		if err != nil || opened.Delivered != 2 {
			t.Fatalf("%+v %v", opened, err)
		}
		b.Resume(alice, 4)
		expect(t, here.take(), "4 done")
	})
}

func TestASessionGoesToAnotherOwner(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a, b := start(t, c.Add("a"), nil), start(t, c.Add("b"), nil)
		s := &sink{}
		c.Lead("b")
		a.submit(s, "1", "hold", nil)
		b.submit(&sink{}, "2", "hold", nil)
		expect(t, s.take(), "1 accepted")
		to := queue.ClientKey{Owner: "token b", Session: alice.Session}
		if err := a.Rekey(t.Context(), alice, to, queue.Caller{Name: "alice-2", Role: "client"}); err != nil {
			t.Fatal(err)
		}
		close(a.work.gate("1"))
		expect(t, s.take(), "1 done")
		close(b.work.gate("2"))
		expect(t, s.take(), "2 done")
		key := request("1", "").Key
		if a.Find(key) != nil {
			t.Error("the former owner has the call still")
		}
		key.Owner = to.Owner
		if row := b.Find(key); row == nil || row.Caller.Name != "alice-2" || row.Status != queue.Ended || row.Attempt != 1 {
			t.Errorf("%+v", row)
		}
		if got := s.orders; !slices.Equal(got, []uint64{1, 2}) {
			t.Errorf("results came as %v", got)
		}
	})
}

// A server that stops lets calls end, begins none, and leaves the rest to others.
func TestAServerStops(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), func(o *dispatch.Options) { o.MaxInFlight = 2 })
		s := &sink{}
		a.submit(s, "ends", "hold", nil)
		a.submit(s, "stays", "hold", nil)
		synctest.Wait()
		a.submit(s, "waits", "hold", nil)
		expect(t, s.take(), "ends accepted", "stays accepted", "waits accepted")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		stopped := make(chan struct{})
		go func() { defer close(stopped); a.Close(ctx) }()
		synctest.Wait()
		a.submit(s, "new", "hold", nil)
		close(a.work.gate("ends"))
		expect(t, s.take(), "new refused: unavailable", "ends done")
		<-stopped
		expect(t, s.take())
		for id, status := range map[string]queue.Status{"stays": queue.Running, "waits": queue.Queued} {
			if row := a.Find(request(id, "").Key); row.Status != status || row.Server != "a" {
				t.Errorf("%s is %+v", id, row)
			}
		}
	})
}

// shelf is a chunk store in memory.
type shelf struct {
	mu     sync.Mutex
	frames map[chunk.ID][]byte
	down   bool
}

func (s *shelf) Missing(context.Context, []chunk.ID) ([]chunk.ID, error) { return nil, nil }

func (s *shelf) Put(_ context.Context, id chunk.ID, frame []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return fault.New(fault.Unavailable, "the store is down")
	}
	s.frames[id] = frame
	return nil
}

func (s *shelf) Get(_ context.Context, id chunk.ID) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, fault.New(fault.Unavailable, "the store is down")
	}
	if f, ok := s.frames[id]; ok {
		return f, nil
	}
	return nil, chunks.NotFound(id, "the shelf")
}

// Not under simulated time, for the coders of chunks are kept between tests.
func TestLargeResultsAreChunks(t *testing.T) {
	c := dispatchtest.New()
	store := &shelf{frames: map[chunk.ID][]byte{}}
	with := func(o *dispatch.Options) { o.Chunks = store }
	a, b := start(t, c.Add("a"), with), start(t, c.Add("b"), with)
	s, here := &sink{}, &sink{}
	large := []byte(strings.Repeat("12345678", 200_000))
	a.submit(s, "large", "large", func(r *dispatch.Request) { r.Arguments = large })
	eventually(t, "it is done", func() bool { return len(s.outcomes()) == 1 })
	row := a.Find(request("large", "").Key)
	if s.outputs["large"] != string(large) || len(row.Outcome.Outputs.Chunks) != 2 || row.Outcome.Outputs.Inline != nil {
		t.Errorf("%d bytes of outputs, blob %+v", len(s.outputs["large"]), row.Outcome.Outputs)
	}
	opened, err := b.Open(t.Context(), alice, here)
	if err != nil {
		t.Fatal(err)
	}
	b.Resume(alice, opened.Delivered)
	eventually(t, "it is given elsewhere", func() bool { return len(here.outcomes()) == 1 })
	if here.outputs["large"] != string(large) {
		t.Errorf("elsewhere it is %d bytes", len(here.outputs["large"]))
	}
	if got, err := b.Outputs(t.Context(), row); err != nil || string(got) != string(large) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	// Without a store what is large is refused, and says so.
	n := start(t, c.Add("n"), nil)
	n.submit(s, "refused", "large", func(r *dispatch.Request) { r.Arguments = large })
	eventually(t, "it is refused", func() bool { said := s.outcomes(); return said[len(said)-1] == "refused refused: unimplemented" })
}

// outcomes are what was said of ends.
func (s *sink) outcomes() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.said {
		if !strings.HasSuffix(x, "accepted") {
			out = append(out, x)
		}
	}
	return out
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	giveUp := time.After(20 * time.Second)
	for !f() {
		select {
		case <-time.After(2 * time.Millisecond):
		case <-giveUp:
			t.Fatalf("never: %s", what)
		}
	}
}

// A client that is connected all the time, and makes no call for so long that the cluster forgets it, is answered as before.
func TestAClientThatWasForgotten(t *testing.T) {
	in(t, func(t *testing.T, c *dispatchtest.Cluster) {
		a := start(t, c.Add("a"), nil)
		s, other := &sink{}, &sink{}
		opened, err := a.Open(t.Context(), alice, s)
		if err != nil || opened.Known {
			t.Fatalf("opened %+v, %v", opened, err)
		}
		a.Resume(alice, opened.Delivered)
		for _, id := range []string{"1", "2"} {
			a.submit(s, id, "echo", nil)
			expect(t, s.take(), id+" accepted", id+" done")
		}
		time.Sleep(state.DefaultLimits().ClientKeep)
		for range 2 { // the results, then their client
			c.Do(&clusterv1.Command{Kind: &clusterv1.Command_CollectGarbage{CollectGarbage: &clusterv1.CollectGarbage{}}})
		}
		if a.Client(alice) != nil {
			t.Fatal("the client was not forgotten")
		}
		for _, id := range []string{"3", "4"} {
			a.submit(s, id, "echo", nil)
			expect(t, s.take(), id+" accepted", id+" done")
		}
		if !slices.IsSorted(s.orders) || len(slices.Compact(slices.Clone(s.orders))) != 4 {
			t.Errorf("the orders are %v", s.orders)
		}
		// A client that is new begins somewhere, and was not known.
		bob := queue.ClientKey{Owner: "token 2", Session: "bob"}
		if opened, err = a.Open(t.Context(), bob, other); err != nil || opened.Known || opened.Order != opened.Delivered {
			t.Errorf("opened %+v, %v", opened, err)
		}
	})
}
