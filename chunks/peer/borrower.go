// The target's side: asked first, for a short while, and not again once it has failed.

package peer

import (
	"context"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	chunkhttp "github.com/neolith/orchestrator/chunks/http"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

const (
	// DefaultTimeout bounds the wait for one chunk of a peer.
	DefaultTimeout = 5 * time.Second
	// failuresMax is how often a peer may fail before it is not asked any more. That it has no such chunk, or is busy, is no failure.
	failuresMax = 2
)

// BorrowerOptions say how a peer is reached.
type BorrowerOptions struct {
	// URL is the peer: http or https, host and port.
	URL string
	// Token is what the leader gave for the move.
	Token string
	// Transport sends the requests, and belongs to the caller.
	Transport http.RoundTripper
	// ParallelMax is how many chunks are fetched at a time (8).
	ParallelMax int
	// Limiter bounds the bytes that come, with whatever else shares it; nil does not.
	Limiter *rate.Limiter
	// Timeout bounds the wait for one chunk (DefaultTimeout).
	Timeout time.Duration
	Logger  *slog.Logger
}

// Borrower fetches chunks from one peer for one restore. It may be used by several goroutines.
type Borrower struct {
	client   *chunkhttp.Client
	url      string
	timeout  time.Duration
	log      *slog.Logger
	failures atomic.Int32
}

// NewBorrower returns a Borrower. It connects when it is used.
func NewBorrower(o BorrowerOptions) (*Borrower, error) {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	client, err := chunkhttp.NewClient(chunkhttp.ClientOptions{URL: o.URL, Transport: o.Transport, ParallelMax: o.ParallelMax, AttemptsMax: 1,
		TimeoutPerAttempt: o.Timeout, Limiter: o.Limiter, Credentials: func(r *http.Request) error {
			r.Header.Set("Authorization", "Bearer "+o.Token)
			return nil
		}})
	if err != nil {
		return nil, err
	}
	return &Borrower{client: client, url: o.URL, timeout: o.Timeout, log: o.Logger}, nil
}

// Get returns a chunk's verified frame; false when the peer does not give it, and the store is to be asked.
func (b *Borrower) Get(ctx context.Context, id chunk.ID) ([]byte, bool) {
	if b.Tired() {
		return nil, false
	}
	one, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	frame, err := b.client.Get(one, id)
	if err == nil {
		return frame, true // the client has verified it
	}
	if ctx.Err() != nil || fault.Is(err, fault.NotFound) || fault.Is(err, fault.Exhausted) {
		return nil, false
	}
	if n := b.failures.Add(1); n <= failuresMax {
		b.log.Info("chunks: the node that a session comes from does not give a chunk; the store is asked", "peer", b.url, "chunk", id.String(),
			"error", err, "asked_again", n < failuresMax)
	}
	return nil, false
}

// Tired reports whether the peer has failed so often that it is not asked any more.
func (b *Borrower) Tired() bool { return b.failures.Load() >= failuresMax }

// Failures is how often it failed.
func (b *Borrower) Failures() int64 { return int64(b.failures.Load()) }

// Close ends what the Borrower keeps, which is nothing of the transport.
func (b *Borrower) Close() error { return b.client.Close() }
