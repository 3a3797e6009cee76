// Large arguments and results, which are chunks.
package dispatch_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
	"github.com/neolith/orchestrator/serializer/chunk"
)

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
