// A restore from the node that a session comes from: what comes from where, and whatever the peer does, the tree is right.

package checkpoint

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neolith/orchestrator/chunks/cache"
	"github.com/neolith/orchestrator/chunks/peer"
)

const peerToken = "a token of a move that is tested"

// lending is a Disk with a cache that lends, and the server before it.
func lending(t *testing.T, store *faulty, wrap func(http.Handler) http.Handler) (*Disk, *httptest.Server) {
	t.Helper()
	c, err := cache.Open(t.TempDir(), cache.Options{MaxBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	l := peer.NewLender(peer.LenderOptions{From: c})
	d, err := New(Options{Store: store, Cache: c, Lender: l, SpoolDir: filepath.Join(t.TempDir(), "spool"), Release: "test"})
	if err != nil {
		t.Fatal(err)
	}
	var h http.Handler = l
	if wrap != nil {
		h = wrap(h)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return d, s
}

// borrowing is a Disk that asks peers.
func borrowing(t *testing.T, store *faulty) *Disk {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	d, err := New(Options{Store: store, SpoolDir: filepath.Join(t.TempDir(), "spool"), Release: "test", Borrow: func(p Peer) (*peer.Borrower, error) {
		return peer.NewBorrower(peer.BorrowerOptions{URL: "http://" + p.Address, Token: p.Token, Transport: tr, Timeout: 200 * time.Millisecond})
	}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRestoreFromThePeer(t *testing.T) {
	for name, c := range map[string]struct {
		token string
		wrap  func(http.Handler) http.Handler
		after func(*Disk) // the checkpoint
		peer  func(chunks int64) (least, most int64)
		fails int64 // at least
	}{
		"it gives all": {peer: func(n int64) (int64, int64) { return n, n }},
		"wrong token":  {token: "not the token that was given out", peer: none, fails: 2},
		"expired":      {after: func(d *Disk) { d.Recall("s", 0) }, peer: none, fails: 2},
		"nearly expired": {after: func(d *Disk) { d.Recall("s", time.Minute) },
			peer: func(n int64) (int64, int64) { return n, n }},
		"it dies in the middle": {wrap: func(h http.Handler) http.Handler {
			var n atomic.Int32
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1) > 2 {
					panic(http.ErrAbortHandler)
				}
				h.ServeHTTP(w, r)
			})
		}, peer: func(int64) (int64, int64) { return 2, 2 }, fails: 1},
		"it sends garbage": {wrap: func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("garbage", 100)) })
		}, peer: none, fails: 2},
		"it hangs": {wrap: func(http.Handler) http.Handler {
			return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		}, peer: none, fails: 2},
		"it has lost some": {after: func(d *Disk) {
			// Another session's checkpoint is known by that name now: most of what was lent is not this one's.
			d.learn("s", nil, nil, time.Time{})
		}, peer: none},
	} {
		t.Run(name, func(t *testing.T) {
			shared := newFaulty(t)
			a, server := lending(t, shared, c.wrap)
			b := borrowing(t, shared)
			s := newSession(t)
			a.Lend("s", peerToken)
			st := store(t, capt(t, a, s))
			if c.after != nil {
				c.after(a)
			}
			token := c.token
			if token == "" {
				token = peerToken
			}
			to := t.TempDir()
			r, err := b.Restore(t.Context(), Restore{Dir: to, SessionID: "s", Manifest: st.Manifest, Epoch: 2, OutputLine: 8,
				Peer: &Peer{Address: strings.TrimPrefix(server.URL, "http://"), Token: token}})
			if err != nil {
				t.Fatal(err)
			}
			sameTree(t, filepath.Join(to, Workspace), filepath.Join(s.Dir, Workspace))
			from := b.Sources()
			chunks := from.PeerChunks.Load() + from.StoreChunks.Load()
			least, most := c.peer(chunks)
			if n := from.PeerChunks.Load(); n < least || n > most || chunks < 3 {
				t.Errorf("%d of %d chunks came from the peer, want %d to %d", n, chunks, least, most)
			}
			if from.PeerFailures.Load() < c.fails || from.CacheChunks.Load() != 0 {
				t.Errorf("%d failures, %d chunks of a cache that is none", from.PeerFailures.Load(), from.CacheChunks.Load())
			}
			if r.Fetched != from.PeerBytes.Load()+from.StoreBytes.Load() {
				t.Errorf("%d bytes fetched, %d of the peer and %d of the store", r.Fetched, from.PeerBytes.Load(), from.StoreBytes.Load())
			}
		})
	}
}

func none(int64) (least, most int64) { return 0, 0 }

// A target that has a session ready in rounds gets each round's news from the source, which still works on it; and the last
// piece although the source's process has ended. The store is not asked for anything.
func TestStageFromThePeer(t *testing.T) {
	shared := newFaulty(t)
	a, server := lending(t, shared, nil)
	b := borrowing(t, shared)
	at := &Peer{Address: strings.TrimPrefix(server.URL, "http://"), Token: peerToken}
	s := newSession(t)
	a.Lend("s", peerToken)
	ready := filepath.Join(t.TempDir(), "ready", "s")
	for i := range 3 {
		write(t, filepath.Join(s.Dir, Workspace, "news"), noise(uint64(100+i), 50_000))
		round, err := a.Copy(t.Context(), s, true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Stage(t.Context(), Staging{SessionID: "s", Dir: ready, Manifest: round.Manifest, Peer: at}); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(s.Dir, Workspace, "news"), noise(200, 50_000))
	st := store(t, capt(t, a, s))
	a.Recall("s", time.Minute)
	to := t.TempDir()
	if _, err := b.Restore(t.Context(), Restore{Dir: to, SessionID: "s", Manifest: st.Manifest, Epoch: 2, OutputLine: 8, Peer: at}); err != nil {
		t.Fatal(err)
	}
	sameTree(t, filepath.Join(to, Workspace), filepath.Join(s.Dir, Workspace))
	if from := b.Sources(); from.StoreChunks.Load() != 0 || from.PeerChunks.Load() == 0 || from.PeerBytes.Load() < 550_000 {
		t.Errorf("%d chunks of the store, %d of the peer", from.StoreChunks.Load(), from.PeerChunks.Load())
	}
}

// reports are what a Progress was told.
type reports struct {
	mu sync.Mutex
	of [][2]int64
}

func (r *reports) tell(done, total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.of = append(r.of, [2]int64{done, total})
}

// take checks that what was told grew to its end, and returns the end.
func (r *reports) take(t *testing.T, step string) int64 {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	of := r.of
	r.of = nil
	if len(of) == 0 {
		t.Errorf("%s: nothing was told", step)
		return 0
	}
	last := of[len(of)-1]
	if !slices.IsSortedFunc(of, func(a, b [2]int64) int { return int(a[0] - b[0]) }) || last[0] != last[1] {
		t.Errorf("%s: told %v", step, of)
	}
	return last[1]
}

func TestProgressIsTold(t *testing.T) {
	shared := newFaulty(t)
	a, b := newDisk(t, shared, 0), newDisk(t, shared, 0)
	var far reports
	s := newSession(t)
	s.Progress = far.tell
	c := capt(t, a, s)
	if n := far.take(t, "read"); n < 400_000 {
		t.Errorf("%d bytes to read", n)
	}
	st := store(t, c)
	if n := far.take(t, "stored"); n < 400_000 {
		t.Errorf("%d bytes to store", n)
	}
	ready := filepath.Join(t.TempDir(), "ready", "s")
	if _, err := b.Stage(t.Context(), Staging{SessionID: "s", Dir: ready, Manifest: st.Manifest, Progress: far.tell}); err != nil {
		t.Fatal(err)
	}
	if n := far.take(t, "made ready"); n < 400_000 {
		t.Errorf("%d bytes to write", n)
	}
	write(t, filepath.Join(s.Dir, Workspace, "news"), noise(7, 50_000))
	s.Progress = nil
	st = store(t, capt(t, a, s))
	if _, err := b.Restore(t.Context(), Restore{Dir: t.TempDir(), SessionID: "s", Manifest: st.Manifest, Epoch: 2, OutputLine: 8, Progress: far.tell}); err != nil {
		t.Fatal(err)
	}
	if n := far.take(t, "restored"); n < 50_000 || n > 60_000 {
		t.Errorf("%d bytes to write of a session of which all but 50000 are ready", n)
	}
}
