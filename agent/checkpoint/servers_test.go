// Several servers as one store: whoever answers will do.

package checkpoint

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/chunkstest"
	"github.com/neolith/orchestrator/chunks/dir"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

func TestServers(t *testing.T) {
	shared := newFaulty(t).Store
	stores := map[string]*faulty{"a": {Store: shared}, "b": {Store: shared}, "c": {Store: shared}}
	var opened []string
	s := NewServers([]string{"a", "b", "c"}, func(address string) (chunks.Store, error) {
		opened = append(opened, address)
		if stores[address] == nil {
			return nil, fault.New(fault.Unavailable, "%s has no address", address)
		}
		return stores[address], nil
	})
	defer s.Close()
	f := chunkstest.Chunk(1, 1000)
	put := func() {
		t.Helper()
		if err := s.Put(t.Context(), f.ID, f.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	put()
	stores["a"].down.Store(true)
	put()
	put()
	if a, b, c := stores["a"].calls.Load(), stores["b"].calls.Load(), stores["c"].calls.Load(); a != 2 || b != 2 || c != 0 {
		t.Errorf("a was asked %d times, b %d, c %d; want 2, 2, 0: who answered last is asked first", a, b, c)
	}
	s.Use("gone", []string{"a", "c", "c"})
	if got, err := s.Get(t.Context(), f.ID); err != nil || !bytes.Equal(got, f.Bytes) {
		t.Fatal(err)
	}
	if got := s.addresses(); !slices.Equal(got, []string{"c", "gone", "a"}) {
		t.Errorf("%v", got)
	}
	if missing, err := s.Missing(t.Context(), []chunk.ID{f.ID, {1}}); err != nil || len(missing) != 1 {
		t.Errorf("%v, %v", missing, err)
	}
	stores["a"].down.Store(false)
	other := newFaulty(t)
	stores["d"] = other
	s.Use("d", []string{"a"})
	g := chunkstest.Chunk(2, 1000)
	if err := other.Put(t.Context(), g.ID, g.Bytes); err != nil {
		t.Fatal(err)
	}
	frames, errs := s.GetBatch(t.Context(), []chunk.ID{g.ID, f.ID, {1}})
	if errs[0] != nil || errs[1] != nil || !fault.Is(errs[2], fault.NotFound) || !bytes.Equal(frames[1], f.Bytes) {
		t.Errorf("%v", errs)
	}
	other.down.Store(true)
	for _, err := range s.PutBatch(t.Context(), []chunks.Frame{g, f, {ID: f.ID, Bytes: g.Bytes}}) {
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Error(err)
		}
	}
	stores["a"].down.Store(true)
	for _, err := range s.PutBatch(t.Context(), []chunks.Frame{g, f}) {
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("with nobody there: %v", err)
		}
	}
	s.Use("", nil)
	if _, err := s.Get(t.Context(), f.ID); err == nil || !strings.Contains(err.Error(), "no server is known") {
		t.Errorf("got %v", err)
	}
	if n := len(opened); n != 5 {
		t.Errorf("%d stores were opened: %v", n, opened)
	}
}

func TestServersConformance(t *testing.T) {
	chunkstest.Run(t, chunkstest.Harness{Open: func(t testing.TB, state string, maxBytes int64) chunks.Store {
		inner := openDir(t, state, maxBytes)
		down := &faulty{Store: inner}
		down.down.Store(true)
		return &both{NewServers([]string{"down", "up"}, func(a string) (chunks.Store, error) {
			if a == "up" {
				return inner, nil
			}
			return down, nil
		}), inner}
	}, Bounded: true})
}

// both is the servers and the directory behind them, which is closed once.
type both struct {
	*Servers
	inner *dir.Store
}

func (b *both) Close() error { return b.inner.Close() }

func openDir(t testing.TB, state string, maxBytes int64) *dir.Store {
	t.Helper()
	s, err := dir.Open(state, dir.Options{MaxBytes: maxBytes, Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
