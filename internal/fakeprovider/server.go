// The server: routes, the script, and what it saw.

package fakeprovider

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	requestBytesMax = 16 << 20
	callsMax        = 100_000 // records kept; the count goes on
)

// Step says what becomes of one call. Its zero value is a good answer.
type Step struct {
	// Status other than 0 and 200 answers with an error of the call's dialect.
	Status int
	// ErrorType and ErrorText go into that error; both have a default.
	ErrorType, ErrorText string
	// RetryAfter is the header's text; none when empty.
	RetryAfter string
	// Header is added to the answer: rate limits, for instance.
	Header map[string]string

	// Delay is how long nothing is sent, not even the header.
	Delay time.Duration
	// Hang sends nothing until the client goes away.
	Hang bool
	// Garbage answers 200 with what is no answer.
	Garbage bool
	// DropConnection closes the connection without an answer.
	DropConnection bool

	// Text is the answer; the last message, echoed, when empty. A stream sends it in words.
	Text string
	// Reasoning is what the model thought before.
	Reasoning string
	// InputTokens and OutputTokens are what it says it used; the number of words when 0.
	InputTokens, OutputTokens int
	// NoUsage leaves them out.
	NoUsage bool
	// StopReason is the dialect's own word; that of a regular end when empty.
	StopReason string

	// CutAfter closes the connection after so many pieces of a stream (or in the middle of a whole answer), when Cut is set.
	Cut      bool
	CutAfter int
	// StallAfter sends nothing more after so many pieces, until the client goes away, when Stall is set.
	Stall      bool
	StallAfter int
	// Pause is waited between the pieces of a stream.
	Pause time.Duration
	// StreamError ends a stream with an error event of this type after CutAfter pieces.
	StreamError string
}

// Call is what the server saw of one call.
type Call struct {
	Dialect string // openai or anthropic
	Path    string
	Key     string // as the client showed it
	Model   string
	Stream  bool
	Body    map[string]any
	Remote  string // the client's end of the connection
	Step    Step   // what became of it
}

// Server is a provider that does as it is told. Its methods may be called from any goroutine.
type Server struct {
	mu      sync.Mutex
	script  []Step
	usual   Step
	probe   int // status of GET …/models
	keys    []string
	calls   []Call
	count   int
	probes  int
	gone    int
	running int
}

// New returns a server that behaves.
func New() *Server { return &Server{probe: http.StatusOK} }

// Script says what becomes of the next calls, in the order of their arrival, after those that were said before.
func (s *Server) Script(steps ...Step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = append(s.script, steps...)
}

// Usually says what becomes of calls that no script tells of.
func (s *Server) Usually(step Step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.usual = step
}

// Probe sets the status of GET …/models.
func (s *Server) Probe(status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probe = status
}

// Accept makes the server answer 401 to all keys but these; without any, it takes all.
func (s *Server) Accept(keys ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = keys
}

// Calls returns what arrived, in order.
func (s *Server) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Count is how many calls arrived.
func (s *Server) Count() int { s.mu.Lock(); defer s.mu.Unlock(); return s.count }

// Probes is how many times the models were listed.
func (s *Server) Probes() int { s.mu.Lock(); defer s.mu.Unlock(); return s.probes }

// Gone is how many calls ended because their client went away.
func (s *Server) Gone() int { s.mu.Lock(); defer s.mu.Unlock(); return s.gone }

// Running is how many calls are being answered.
func (s *Server) Running() int { s.mu.Lock(); defer s.mu.Unlock(); return s.running }

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/models"):
		s.models(w, r)
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/chat/completions"):
		s.chat(w, r, openAI{})
	case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/messages"):
		s.chat(w, r, anthropic{})
	default:
		http.NotFound(w, r)
	}
}

func (s *Server) models(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.probes++
	status := s.probe
	if !s.accepts(key(r)) {
		status = http.StatusUnauthorized
	}
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"fake","object":"model"}]}`)
}

// accepts is called with mu held.
func (s *Server) accepts(key string) bool { return len(s.keys) == 0 || slices.Contains(s.keys, key) }

// key is what the client shows, in either dialect.
func key(r *http.Request) string {
	if k := r.Header.Get("X-Api-Key"); k != "" {
		return k
	}
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
}

// chat records a call, takes its step, and plays it.
func (s *Server) chat(w http.ResponseWriter, r *http.Request, d dialect) {
	var body map[string]any
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, requestBytesMax))
	if err == nil {
		err = json.Unmarshal(text, &body)
	}
	if err == nil {
		err = d.check(r, body)
	}
	c := Call{Dialect: d.name(), Path: r.URL.Path, Key: key(r), Body: body, Remote: r.RemoteAddr}
	c.Model, _ = body["model"].(string)
	c.Stream, _ = body["stream"].(bool)
	step := s.arrive(c)
	switch {
	case err != nil:
		step = Step{Status: http.StatusBadRequest, ErrorType: "invalid_request_error", ErrorText: err.Error()}
	case step.Status == 0 && !s.welcome(c.Key):
		step = Step{Status: http.StatusUnauthorized, ErrorType: "authentication_error", ErrorText: "no such key: " + c.Key}
	}
	p := &play{Step: step, w: w, r: r, d: d, call: c}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.running--
		if p.left {
			s.gone++
		}
	}()
	p.run()
}

func (s *Server) welcome(key string) bool { s.mu.Lock(); defer s.mu.Unlock(); return s.accepts(key) }

// arrive records a call and returns its step.
func (s *Server) arrive(c Call) Step {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	s.running++
	c.Step = s.usual
	if len(s.script) > 0 {
		c.Step = s.script[0]
		s.script = s.script[1:]
	}
	if len(s.calls) < callsMax {
		s.calls = append(s.calls, c)
	}
	return c.Step
}
