// One call: what it asks for, what its caller is told meanwhile, and how it ended.

package toolclient

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// Priority says which calls go first, here and at the server.
type Priority string

// The priorities; a call that names none is normal.
const (
	Critical Priority = "critical"
	High     Priority = "high"
	Normal   Priority = "normal"
	Low      Priority = "low"
)

// levels is the number of priorities.
const levels = 4

func (p Priority) level() int {
	switch p {
	case Critical:
		return 0
	case High:
		return 1
	case Low:
		return 3
	}
	return 2
}

// Option changes one call.
type Option func(*Pending)

// WithPriority says how urgent the call is.
func WithPriority(p Priority) Option { return func(k *Pending) { k.priority = p } }

// WithDeadline bounds the call, beside its context: Config.CallTimeout is for calls with neither.
func WithDeadline(t time.Time) Option { return func(k *Pending) { k.deadline = t } }

// WithRequestID names the call, 1–128 characters of printable ASCII without spaces. Within a session a call of the same id and
// arguments is the same call: whoever repeats it, in this process or a later one, gets its result and no second effect.
func WithRequestID(id string) Option { return func(k *Pending) { k.id = id } }

// WithKey has calls of the session with one key run one after the other, in the order in which they were made; 1–128 bytes.
func WithKey(key string) Option { return func(k *Pending) { k.key = key } }

// WithoutDurability says that the call's result need not survive its server: it is quicker, and asked for again at another one.
func WithoutDurability() Option {
	return func(k *Pending) { no := false; k.durable = &no }
}

// OnProgress has f told what the call is at. It is called by the goroutine that waits for the call.
func OnProgress(f func(text string)) Option { return func(k *Pending) { k.onProgress = f } }

// OnChunk has f told of the answer's parts while they come, in order. It is called by the goroutine that waits for the call. The
// result is whole without them.
func OnChunk(f func(Chunk)) Option { return func(k *Pending) { k.onChunk = f } }

// Chunk is a part of an answer that streams.
type Chunk struct {
	Text string
	// Again: the call is made anew, at another server, and so is its stream. What came before this chunk is void.
	Again bool
}

// Result is how a call ended well.
type Result struct {
	RequestID string
	Outputs   []Output
	// FromCache and FromInflight: it was asked for again, by this client or an earlier one, and this is the answer of the first.
	FromCache, FromInflight bool
	// Truncated: parts of the stream were left out, because nobody took them. The outputs are whole.
	Truncated bool
}

// Text is the text of all outputs.
func (r *Result) Text() string {
	var b strings.Builder
	for _, o := range r.Outputs {
		b.WriteString(o.Text)
	}
	return b.String()
}

// Decode reads the text as JSON, which answers of the cluster's own tools are.
func (r *Result) Decode(into any) error {
	if err := json.Unmarshal([]byte(r.Text()), into); err != nil {
		return fault.New(fault.Internal, "read the answer of call %s: %w", r.RequestID, err)
	}
	return nil
}

// phase is where a call is.
type phase uint8

const (
	waiting phase = iota // for a way to a server, or for room there
	delayed              // refused for a while
	asked                // at a server, or lost with the connection to one
	ended
)

// Pending is a call under way. What says nothing else is not changed once the call is made.
type Pending struct {
	c          *Client
	id, name   string
	arguments  json.RawMessage
	priority   Priority
	key        string
	durable    *bool
	deadline   time.Time
	onProgress func(string)
	onChunk    func(Chunk)

	done   chan struct{} // closed once result and err are there
	result *Result
	err    error
	stop   func() bool  // does not watch the context any more
	lapsed func() error // whether it has ended

	// The owner's.
	n         uint64 // in which order calls were made
	phase     phase
	on        *conn // where it was asked for; nil when over HTTP, or lost
	bytes     int   // of its last message
	open      bool  // it was asked for, and not answered in any way
	tries     int   // how often it was asked for
	refusals  int   // in a row
	code      string
	timeout   *timer // for its deadline
	pause     *timer // while it is delayed
	cancelled error  // why its caller does not want it any more
	giveUp    *timer // for the server's word that it was cancelled
	streamed  bool   // chunks came
	anew      bool   // the next chunk begins the stream again
	truncated bool

	// The owner's, over HTTP.
	poll       func()      // ends the request for its result; nil when there is none
	cancelling func()      // ends the request that cancels it; nil when there is none
	viaHTTP    bool        // it was asked for so last; a WebSocket says nothing of its end
	stray      time.Time   // until when a request that was left may still arrive
	cancels    int         // how often it was to be cancelled again
	again      *timer      // for the next time
	unwanted   atomic.Bool // cancelled is set; who asks for its result must not make it anew

	mu    sync.Mutex
	notes []note
	size  int
	cut   bool // notes were left out
	wake  chan struct{}
}

// note is what a caller is told while it waits.
type note struct {
	progress bool
	chunk    Chunk
}

// newCall checks what is asked for.
func (c *Client) newCall(ctx context.Context, name string, arguments any, opts []Option) (*Pending, error) {
	k := &Pending{c: c, name: name, done: make(chan struct{}), wake: make(chan struct{}, 1), n: c.calls.Add(1), lapsed: ctx.Err}
	for _, o := range opts {
		o(k)
	}
	if k.id == "" {
		k.id = c.newID(k.n)
	}
	if !validRequestID(k.id) {
		return nil, fault.New(fault.Invalid, "request id %.150q: is not 1–%d characters of printable ASCII without spaces", k.id, maxRequestIDBytes).WithField("request_id")
	}
	if len(k.key) > maxRequestIDBytes {
		return nil, fault.New(fault.Invalid, "key %.150q: is more than %d bytes; choose a shorter one", k.key, maxRequestIDBytes).WithField("key")
	}
	if k.name == "" {
		return nil, fault.New(fault.Invalid, "the call names no tool; ListTools tells the names").WithField("name")
	}
	var err error
	if k.arguments, err = object(arguments); err != nil {
		return nil, err
	}
	if n := len(k.arguments) + len(k.name) + len(k.id) + len(k.key) + len(c.session) + envelopeBytes; n > c.cfg.MaxCallBytes {
		return nil, fault.New(fault.Invalid, "%s: the call is %d bytes, more than %d; send less, or raise MaxCallBytes and the servers' gateway.max_frame_bytes", name, n, c.cfg.MaxCallBytes).WithField("arguments")
	}
	if d, ok := ctx.Deadline(); ok && (k.deadline.IsZero() || d.Before(k.deadline)) {
		k.deadline = d
	}
	if k.deadline.IsZero() {
		k.deadline = time.Now().Add(c.cfg.CallTimeout)
	}
	return k, nil
}

// object writes arguments as a JSON object.
func object(arguments any) (json.RawMessage, error) {
	if arguments == nil {
		return json.RawMessage("{}"), nil
	}
	b, err := json.Marshal(arguments)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the call's arguments: %w", err).WithField("arguments")
	}
	if b = bytes.TrimSpace(b); string(b) == "null" {
		return json.RawMessage("{}"), nil
	}
	if len(b) == 0 || b[0] != '{' {
		return nil, fault.New(fault.Invalid, "the call's arguments are %.40s, not an object; give a map or a struct", b).WithField("arguments")
	}
	return b, nil
}

// validRequestID reports whether a server takes the id.
func validRequestID(s string) bool {
	if s == "" || len(s) > maxRequestIDBytes {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// request is the call's message, with what is left of its time.
func (k *Pending) request(left time.Duration, session string) request {
	return request{
		Op: "call_tool", RequestID: k.id, SessionID: session, Name: k.name, Arguments: k.arguments, Priority: k.priority, Key: k.key, Durable: k.durable,
		Deadline: max(min(left, maxDeadline).Milliseconds(), 1),
	}
}

// RequestID is the call's name within its session.
func (k *Pending) RequestID() string { return k.id }

// Done is closed when the call has ended.
func (k *Pending) Done() <-chan struct{} { return k.done }

// Cancel asks the server to end the call; Wait tells how it ended.
func (k *Pending) Cancel() { k.c.post(cancelCall{k, context.Canceled}) }

// Wait returns how the call ended. It tells OnProgress and OnChunk what comes meanwhile, so one goroutine at a time waits. When ctx
// ends first, Wait returns its error and the call goes on.
func (k *Pending) Wait(ctx context.Context) (*Result, error) {
	for {
		select {
		case <-k.done:
			k.tell()
			return k.result, k.err
		case <-k.wake:
			k.tell()
		case <-ctx.Done():
			select {
			case <-k.done:
				k.tell()
				return k.result, k.err
			default:
				return nil, fault.New(kindOf(ctx.Err()), "wait for %s: %w; the call goes on", k.name, ctx.Err())
			}
		}
	}
}

func kindOf(err error) fault.Kind {
	if err == context.DeadlineExceeded { //nolint:errorlint // a context's own error
		return fault.Timeout
	}
	return fault.Aborted
}

// note keeps what the caller is to be told. One that takes nothing misses what is beyond the bounds, and is told so.
func (k *Pending) note(n note) {
	if n.progress && k.onProgress == nil || !n.progress && k.onChunk == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if n.chunk.Again {
		k.cut = false
	}
	if k.cut && !n.progress { // a stream has no holes: it ends early
		return
	}
	if len(k.notes) >= maxNotes || k.size+len(n.chunk.Text) > maxNoteBytes {
		k.cut = k.cut || !n.progress
		return
	}
	k.notes = append(k.notes, n)
	k.size += len(n.chunk.Text)
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// tell tells the caller what was kept.
func (k *Pending) tell() {
	k.mu.Lock()
	notes := k.notes
	k.notes, k.size = nil, 0
	k.mu.Unlock()
	for _, n := range notes {
		if n.progress {
			k.onProgress(n.chunk.Text)
		} else {
			k.onChunk(n.chunk)
		}
	}
}

// wasCut reports whether the caller misses chunks.
func (k *Pending) wasCut() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cut
}
