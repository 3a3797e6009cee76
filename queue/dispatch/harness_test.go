// What the tests work with: runners that do as they are told, clients that write down what they hear, and servers.
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

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
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

func (s *sink) Progress(id, note string) { s.say("%s: %s", id, note) }

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
