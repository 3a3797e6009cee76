// The source's side: who may take which chunks, and until when.

package peer

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/neolith/orchestrator/chunks"
	chunkhttp "github.com/neolith/orchestrator/chunks/http"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

const (
	// loansMax bounds the sessions that are lent at one time; others come from the store.
	loansMax = 4096
	// tokensMax are valid for one session: a new leader makes another, and who has the one before may finish.
	tokensMax = 2
	// tokenMinBytes is the least that counts as a token.
	tokenMinBytes = 16

	// Requests that are served at one time; each holds a chunk.
	requestsMax, requestsPerSessionMax = 32, 16
)

// LenderOptions say what a Lender serves, and how.
type LenderOptions struct {
	// From has the chunks: the node's cache.
	From chunks.Source
	// Limiter bounds the bytes that are sent, with whatever else shares it; nil does not.
	Limiter *rate.Limiter
	// Now is time.Now when nil.
	Now    func() time.Time
	Logger *slog.Logger
}

// LenderCounters count what was lent.
type LenderCounters struct {
	Chunks, Bytes atomic.Int64
	Refused       atomic.Int64 // requests without a token that counts
}

// Lender serves the chunks of sessions that leave. It is an http.Handler for what is under /v1/chunks/.
type Lender struct {
	o       LenderOptions
	handler *chunkhttp.Handler
	counts  LenderCounters

	mu    sync.Mutex
	loans map[string]*loan  // by session
	names map[digest]string // the session of each token
}

// digest is a token's SHA-256: tokens themselves are not kept. That a map looks it up tells nobody a token, for who tries
// cannot choose what its digest begins with.
type digest [sha256.Size]byte

// loan is one session's.
type loan struct {
	tokens []digest // the newest last
	may    func(chunk.ID) bool
	until  time.Time // zero until it is called back
}

// NewLender makes a Lender that lends nothing yet.
func NewLender(o LenderOptions) *Lender {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Lender{o: o, loans: map[string]*loan{}, names: map[digest]string{}}
	l.handler = chunkhttp.NewHandler(lent{l}, chunkhttp.HandlerOptions{Authorize: l.authorize, RequestsMax: requestsMax,
		RequestsPerClientMax: requestsPerSessionMax, Limiter: o.Limiter, Logger: o.Logger})
	return l
}

// Counters are what was lent since it was made.
func (l *Lender) Counters() *LenderCounters { return &l.counts }

// ServeHTTP implements http.Handler.
func (l *Lender) ServeHTTP(w http.ResponseWriter, r *http.Request) { l.handler.ServeHTTP(w, r) }

// Lend lets whoever shows the token take those chunks of a session of which may says so, until Recall. The token before this one
// goes on to count.
func (l *Lender) Lend(session, token string, may func(chunk.ID) bool) {
	if len(token) < tokenMinBytes {
		return // whoever guesses it is let in
	}
	d := digest(sha256.Sum256([]byte(token)))
	l.mu.Lock()
	defer l.mu.Unlock()
	if other, ok := l.names[d]; ok && other != session {
		return
	}
	n := l.loans[session]
	if n == nil {
		if len(l.loans) >= loansMax {
			l.sweep()
		}
		if len(l.loans) >= loansMax {
			l.o.Logger.Warn("chunks: too many sessions are lent to other nodes; this one is fetched from the store", "session", session, "most", loansMax)
			return
		}
		n = &loan{}
		l.loans[session] = n
	}
	n.may, n.until = may, time.Time{}
	if _, ok := l.names[d]; ok {
		return
	}
	l.names[d] = session
	if n.tokens = append(n.tokens, d); len(n.tokens) > tokensMax {
		delete(l.names, n.tokens[0])
		n.tokens = n.tokens[1:]
	}
}

// Recall ends a loan after a while; one that was called back already ends when that was to be.
func (l *Lender) Recall(session string, after time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.loans[session]
	if n == nil {
		return
	}
	if until := l.o.Now().Add(after); n.until.IsZero() || until.Before(n.until) {
		n.until = until
	}
	l.sweep()
}

// sweep forgets what was called back. l.mu is held.
func (l *Lender) sweep() {
	now := l.o.Now()
	for name, n := range l.loans {
		if n.over(now) {
			for _, d := range n.tokens {
				delete(l.names, d)
			}
			delete(l.loans, name)
		}
	}
}

func (n *loan) over(now time.Time) bool { return !n.until.IsZero() && !now.Before(n.until) }

// authorize says which session a request's token is for.
func (l *Lender) authorize(r *http.Request) (string, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	d := digest(sha256.Sum256([]byte(token)))
	l.mu.Lock()
	defer l.mu.Unlock()
	name := l.names[d]
	if n := l.loans[name]; ok && n != nil && !n.over(l.o.Now()) {
		for _, t := range n.tokens {
			if subtle.ConstantTimeCompare(t[:], d[:]) == 1 {
				return name, nil
			}
		}
	}
	l.counts.Refused.Add(1)
	return "", fault.New(fault.Unauthenticated, "chunks: no move has this token, or it is over; ask the store")
}

// lent is what a Lender serves: a store that gives only.
type lent struct{ l *Lender }

// Get implements chunks.Store. What the session is not made of is not here, whatever else the node has.
func (s lent) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	s.l.mu.Lock()
	n := s.l.loans[chunkhttp.ClientName(ctx)]
	var may func(chunk.ID) bool
	if n != nil {
		may = n.may
	}
	s.l.mu.Unlock()
	if may == nil || !may(id) {
		return nil, chunks.NotFound(id, "this node, for that session,")
	}
	frame, err := s.l.o.From.Get(ctx, id)
	if err == nil {
		s.l.counts.Chunks.Add(1)
		s.l.counts.Bytes.Add(int64(len(frame)))
	}
	return frame, err
}

var errGivesOnly = fault.New(fault.PermissionDenied, "chunks: a node only gives chunks; ask the store")

// Missing implements chunks.Store.
func (s lent) Missing(context.Context, []chunk.ID) ([]chunk.ID, error) { return nil, errGivesOnly }

// Put implements chunks.Store.
func (s lent) Put(context.Context, chunk.ID, []byte) error { return errGivesOnly }
