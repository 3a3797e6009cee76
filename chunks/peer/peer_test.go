// Who may take what, and what becomes of a peer that cannot, or lies.

package peer

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/chunkstest"
	chunkhttp "github.com/neolith/orchestrator/chunks/http"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "a token that nobody guesses"

// kept is a cache.
type kept map[chunk.ID][]byte

func (k kept) Get(_ context.Context, id chunk.ID) ([]byte, error) {
	if frame, ok := k[id]; ok {
		return frame, nil
	}
	return nil, chunks.NotFound(id, "the cache")
}

func all(chunk.ID) bool { return true }

// node is a Lender behind a server, with a clock of its own and what it logged.
type node struct {
	*Lender
	server *httptest.Server
	now    atomic.Int64 // seconds
	log    bytes.Buffer
}

func newNode(t *testing.T, frames ...chunks.Frame) *node {
	t.Helper()
	k := kept{}
	for _, f := range frames {
		k[f.ID] = f.Bytes
	}
	n := &node{}
	n.Lender = NewLender(LenderOptions{From: k, Now: func() time.Time { return time.Unix(n.now.Load(), 0) },
		Logger: slog.New(slog.NewTextHandler(&n.log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	n.server = httptest.NewServer(n)
	t.Cleanup(n.server.Close)
	return n
}

func borrow(t *testing.T, url, token string, timeout time.Duration) *Borrower {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	b, err := NewBorrower(BorrowerOptions{URL: url, Token: token, Transport: tr, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// gives checks whether a borrower gets a chunk, and nothing else than it.
func gives(t *testing.T, b *Borrower, f chunks.Frame, want bool) {
	t.Helper()
	got, ok := b.Get(t.Context(), f.ID)
	if ok != want || ok && !bytes.Equal(got, f.Bytes) {
		t.Errorf("got %d bytes, %t; want %t", len(got), ok, want)
	}
}

func TestLentToWhoHasTheToken(t *testing.T) {
	of, other := chunkstest.Chunk(1, 5000), chunkstest.Chunk(2, 5000)
	n := newNode(t, of, other)
	gives(t, borrow(t, n.server.URL, token, 0), of, false) // nothing is lent
	n.Lend("s", token, func(id chunk.ID) bool { return id == of.ID })
	n.Lend("t", "another token of another", func(id chunk.ID) bool { return id == other.ID })
	b := borrow(t, n.server.URL, token, 0)
	gives(t, b, of, true)
	gives(t, b, other, false) // the node has it, and it is another session's
	gives(t, b, chunkstest.Chunk(3, 10), false)
	gives(t, b, of, true)
	if b.Tired() || b.Failures() != 0 {
		t.Error("that a peer has no such chunk counts as a failure")
	}
	for _, wrong := range []string{"", "x", token + "x", token[:len(token)-1], strings.ToUpper(token)} {
		w := borrow(t, n.server.URL, wrong, 0)
		gives(t, w, of, false)
		gives(t, w, of, false)
		refused := n.Counters().Refused.Load()
		gives(t, w, of, false)
		if !w.Tired() || n.Counters().Refused.Load() != refused {
			t.Errorf("with token %q the peer is asked on and on", wrong)
		}
	}
	if c := n.Counters(); c.Chunks.Load() != 2 || c.Bytes.Load() != 2*int64(len(of.Bytes)) {
		t.Errorf("%d chunks, %d bytes were lent", c.Chunks.Load(), c.Bytes.Load())
	}
	if strings.Contains(n.log.String(), token) {
		t.Error("the token is in the log")
	}
}

// A lent session is for taking: whoever has the token puts nothing, and learns nothing of what else is there.
func TestNothingCanBePut(t *testing.T) {
	of := chunkstest.Chunk(1, 5000)
	n := newNode(t, of)
	n.Lend("s", token, all)
	c, err := chunkhttp.NewClient(chunkhttp.ClientOptions{URL: n.server.URL, AttemptsMax: 1, Credentials: func(r *http.Request) error {
		r.Header.Set("Authorization", "Bearer "+token)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Put(t.Context(), of.ID, of.Bytes); !fault.Is(err, fault.PermissionDenied) {
		t.Errorf("put: %v", err)
	}
	if _, err := c.Missing(t.Context(), []chunk.ID{of.ID}); !fault.Is(err, fault.PermissionDenied) {
		t.Errorf("missing: %v", err)
	}
	if got, errs := c.GetBatch(t.Context(), []chunk.ID{of.ID}); errs[0] != nil || !bytes.Equal(got[0], of.Bytes) {
		t.Errorf("a batch: %v", errs)
	}
}

func TestALoanEnds(t *testing.T) {
	of := chunkstest.Chunk(1, 100)
	n := newNode(t, of)
	asked := func(tok string, want bool) {
		t.Helper()
		gives(t, borrow(t, n.server.URL, tok, 0), of, want)
	}
	n.Lend("s", token, all)
	n.Recall("s", time.Minute) // the process has ended; its target is about to fetch the rest
	n.now.Add(59)
	asked(token, true)
	n.Recall("s", time.Hour) // later than it was to end
	n.now.Add(1)
	asked(token, false)
	n.Lend("s", token, all)
	asked(token, true)
	n.Recall("s", time.Minute)
	n.Lend("s", "the token of the next leader", all) // it goes on, and who has the old one may finish
	n.now.Add(3600)
	asked(token, true)
	asked("the token of the next leader", true)
	n.Lend("s", "and of the one after that", all)
	asked(token, false)
	asked("the token of the next leader", true)
	n.Recall("s", 0)
	asked("and of the one after that", false)
	if len(n.loans) != 0 || len(n.names) != 0 {
		t.Errorf("%d loans and %d tokens are left", len(n.loans), len(n.names))
	}
	for i := range loansMax + 10 {
		n.Lend(fmt.Sprint(i), fmt.Sprint("a long enough token ", i), all)
	}
	if len(n.loans) != loansMax {
		t.Errorf("%d loans", len(n.loans))
	}
}

// A peer that hangs, dies or lies is left alone after its second failure, and never believed.
func TestBadPeers(t *testing.T) {
	of, other := chunkstest.Chunk(1, 5000), chunkstest.Chunk(2, 5000)
	hold := make(chan struct{})
	for name, serve := range map[string]http.HandlerFunc{
		"dies": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(of.Bytes)))
			_, _ = w.Write(of.Bytes[:100])
			panic(http.ErrAbortHandler)
		},
		"hangs": func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-hold:
			}
		},
		"lies":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(other.Bytes) },
		"garbage": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte("x"), len(of.Bytes))) },
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			for range 4 * chunk.MaxFrameBytes / len(other.Bytes) {
				if _, err := w.Write(other.Bytes); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked.Add(1); serve(w, r) }))
			defer s.Close()
			b := borrow(t, s.URL, token, 100*time.Millisecond)
			for range 5 {
				gives(t, b, of, false)
			}
			if n := asked.Load(); n != failuresMax {
				t.Errorf("asked %d times, want %d", n, failuresMax)
			}
		})
	}
	close(hold)
	t.Run("nobody is there", func(t *testing.T) {
		s := httptest.NewServer(http.NotFoundHandler())
		s.Close()
		b := borrow(t, s.URL, token, time.Second)
		gives(t, b, of, false)
		gives(t, b, of, false)
		if !b.Tired() {
			t.Error("asked again")
		}
	})
}
