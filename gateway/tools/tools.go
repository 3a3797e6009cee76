// The set of tools: finding, checking, running.

package tools

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder"
)

// ErrCancelled is the cause of a context whose caller wants the call undone as far as it can be, rather than not to wait for it.
var ErrCancelled = errors.New("the caller cancelled the call")

// ErrWouldWait is returned for calls that were to be made at once and would have to wait before they are begun.
var ErrWouldWait = errors.New("the call would have to wait")

// Call is one call of a tool.
type Call struct {
	// ID names the call: calls with one ID have one effect. A call without gets one of its own, unless its tool is ReadOnly.
	ID string
	// Arguments are a JSON object that the tool's schema accepts.
	Arguments json.RawMessage
	// Priority is critical, high, normal or low, for tools that queue something; empty leaves it to the tool.
	Priority string
	// Progress is told what is going on; nil for nobody. It may be called from one goroutine at a time and does not block.
	Progress func(message string)
	// Origin is where the call came from, for whoever observes it.
	Origin Origin
	// AtOnce has the call refused with ErrWouldWait, and nothing done, where it could not be begun without waiting for something. It is for tools that
	// are AtOnce.
	AtOnce bool
	// Chunk takes a part of an answer that is on its way; nil where nobody does. It waits for a slow reader.
	Chunk func(ctx context.Context, text string) error
}

// Origin is a client's call, as the record knows it.
type Origin = recorder.Origin

// Observer is told of each call.
type Observer interface {
	// Begin may give a call a context of its own, or refuse it before anything is done, with a fault. It does not wait with a context that has
	// ended, which is all that it is given for a call that is to be made at once.
	Begin(ctx context.Context, t *Tool, c *Call) (context.Context, error)
	// End is told how it ended, before the caller is.
	End(ctx context.Context, t *Tool, c *Call, began time.Time, out []Output, err error)
}

// progress says what is going on.
func (c *Call) progress(message string) {
	if c.Progress != nil {
		c.Progress(message)
	}
}

// Output is a part of an answer.
type Output struct {
	Type string `json:"type"` // text
	Text string `json:"text"`
}

// Tool is something that can be called.
type Tool struct {
	Name        string
	Description string
	Schema      *Schema
	// ReadOnly tools change nothing; Destructive ones end or move something that somebody may be using.
	ReadOnly, Destructive bool
	// AtOnce tools answer from what this server has in memory: they wait for nothing, neither on another server nor on whoever reads the answer. They
	// are ReadOnly and do not ask models.
	AtOnce bool
	// AsksModels: what fails is most often a provider elsewhere, and not the cluster.
	AsksModels bool
	// OrderKey is by what calls of the tool run one after the other, in the order in which they were made: those with the same key. nil, or an empty key, is
	// for calls that run beside one another.
	OrderKey func(arguments json.RawMessage) string

	run func(ctx context.Context, api api, c *Call) ([]Output, error)
}

// OfSession reports whether a tool is about one session, which its argument id names.
func (t *Tool) OfSession() bool { return t.takes("id") }

// Namespaced reports whether a tool takes a namespace.
func (t *Tool) Namespaced() bool { return t.takes("namespace") }

func (t *Tool) takes(property string) bool {
	_, takes := t.Schema.Properties[property]
	return takes
}

// Set is the tools of one server.
type Set struct {
	api      api
	list     []Tool
	byName   map[string]*Tool
	observer Observer        // nil for nobody
	ended    context.Context // one that has ended, for what is not to wait
}

// api is the public API as tools call it.
type api struct {
	conn     grpc.ClientConnInterface
	sessions apiv1.SessionServiceClient
	nodes    apiv1.NodeServiceClient
	models   apiv1.ProviderServiceClient
}

// New returns the tools, which call the public API over a connection.
func New(conn grpc.ClientConnInterface) *Set {
	again := &repeating{conn}
	s := &Set{
		api:    api{conn: again, sessions: apiv1.NewSessionServiceClient(again), nodes: apiv1.NewNodeServiceClient(again), models: apiv1.NewProviderServiceClient(again)},
		list:   slices.Concat(sessionTools(), moveTools(), nodeTools(), modelTools()),
		byName: map[string]*Tool{},
	}
	for i := range s.list {
		s.byName[s.list[i].Name] = &s.list[i]
	}
	return s
}

// List returns the tools in the order in which they are shown. It is not to be changed.
func (s *Set) List() []Tool { return s.list }

// Find returns a tool.
func (s *Set) Find(name string) (*Tool, bool) {
	t, ok := s.byName[name]
	return t, ok
}

// Observed returns the same tools, of whose calls an observer is told.
func (s *Set) Observed(o Observer) *Set {
	observed := *s
	ended, end := context.WithCancel(context.Background())
	end()
	observed.observer, observed.ended = o, ended
	return &observed
}

// errPanicked is the end of a call of which its caller hears the panic.
var errPanicked = fault.New(fault.Internal, "the tool panicked")

// Call runs a tool whose arguments were checked. Errors are faults.
func (s *Set) Call(ctx context.Context, t *Tool, c Call) (out []Output, err error) {
	if s.observer == nil {
		return s.call(ctx, t, &c)
	}
	began := time.Now()
	if c.AtOnce {
		if _, err = s.observer.Begin(s.ended, t, &c); err != nil {
			return nil, ErrWouldWait
		}
	} else if ctx, err = s.observer.Begin(ctx, t, &c); err != nil {
		return nil, err
	}
	err = errPanicked
	defer func() { s.observer.End(ctx, t, &c, began, out, err) }()
	out, err = s.call(ctx, t, &c)
	return out, err
}

func (s *Set) call(ctx context.Context, t *Tool, c *Call) ([]Output, error) {
	if c.ID == "" && !t.ReadOnly {
		c.ID = client.NewKey()
	}
	out, err := t.run(ctx, s.api, c)
	if err != nil {
		return nil, client.Fault(err)
	}
	return out, nil
}

// decode reads arguments that the schema accepts.
func decode[A any](c *Call) (A, error) {
	var a A
	if err := json.Unmarshal(c.Arguments, &a); err != nil {
		return a, wrong("", "do not fit: %w", err)
	}
	return a, nil
}

// onOne is what most tools do: they read their arguments, ask, and answer with the session that comes back.
func onOne[A any, R interface{ GetSession() *apiv1.Session }](ask func(ctx context.Context, api api, c *Call, arguments A) (R, error)) func(context.Context, api, *Call) ([]Output, error) {
	return func(ctx context.Context, api api, c *Call) ([]Output, error) {
		a, err := decode[A](c)
		if err != nil {
			return nil, err
		}
		r, err := ask(ctx, api, c, a)
		if err != nil {
			return nil, err
		}
		return answer(r.GetSession())
	}
}

// span reads a duration that the schema accepts; 0 for none.
func span(field, s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, wrong(field, "%w", err)
	}
	return d, nil
}

// answer is a message of the API as text.
func answer(m proto.Message) ([]Output, error) {
	b, err := protojson.MarshalOptions{}.Marshal(m)
	if err != nil {
		return nil, fault.New(fault.Internal, "write the answer: %w", err)
	}
	return []Output{{Type: "text", Text: string(b)}}, nil
}

// answerJSON is any value as text.
func answerJSON(v any) ([]Output, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fault.New(fault.Internal, "write the answer: %w", err)
	}
	return []Output{{Type: "text", Text: string(b)}}, nil
}

// The pace of asking again.
const (
	againFirst = 50 * time.Millisecond
	againMax   = time.Second
	againFor   = 30 * time.Second // without an answer in between
)

// repeating asks again while a server or a leader goes away under a call. All that tools ask for is either a read, or carries
// an idempotency key when it has an ID; what has none is asked once.
type repeating struct{ grpc.ClientConnInterface }

// Invoke implements grpc.ClientConnInterface.
func (r *repeating) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	once := false
	if k, ok := args.(interface{ GetIdempotencyKey() string }); ok {
		once = k.GetIdempotencyKey() == ""
	}
	start := time.Now()
	pause, since := againFirst, start
	for ; ; start = time.Now() {
		err := r.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
		if err == nil || once {
			return err
		}
		f := fault.As(client.Fault(err))
		if f == nil || f.Kind != fault.Unavailable && f.Kind != fault.Aborted || ctx.Err() != nil {
			return err
		}
		if time.Since(start) > againFor/2 { // it waited long for something before it broke: another trouble than before
			pause, since = againFirst, time.Now()
		}
		if time.Since(since) > againFor {
			return err
		}
		t := time.NewTimer(max(pause-rand.N(pause/2), f.RetryAfter))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
		pause = min(2*pause, againMax)
	}
}
