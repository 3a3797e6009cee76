// The suite of all stores over three directories, and what only a majority has: members that fail, lag and are repaired.

package majority

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/chunkstest"
	"github.com/neolith/orchestrator/chunks/dir"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// whole is a store with its members; settle waits for the background after each put.
type whole struct {
	*Store
	kept   []*dir.Store
	settle bool
}

func (w *whole) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	err := w.Store.Put(ctx, id, frame)
	if w.settle {
		err = errors.Join(err, w.Settle(context.Background()))
	}
	if e := fault.As(err); e != nil {
		return e
	}
	return err
}

func (w *whole) Close() error {
	err := w.Store.Close()
	for _, k := range w.kept {
		err = errors.Join(err, k.Close())
	}
	return err
}

func openWhole(t testing.TB, state string, maxBytes int64, settle bool) *whole {
	t.Helper()
	w := &whole{settle: settle}
	var members []Member
	for i := range 3 {
		k, err := dir.Open(filepath.Join(state, fmt.Sprint(i)), dir.Options{MaxBytes: maxBytes})
		if err != nil {
			t.Fatal(err)
		}
		w.kept = append(w.kept, k)
		members = append(members, Member{Name: fmt.Sprint(i), Store: k, Local: i == 1})
	}
	var err error
	if w.Store, err = New(members, Options{}); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestConformance(t *testing.T) {
	for name, settle := range map[string]bool{"as it is": false, "settled": true} {
		t.Run(name, func(t *testing.T) {
			chunkstest.Run(t, chunkstest.Harness{
				Open: func(t testing.TB, state string, maxBytes int64) chunks.Store {
					return openWhole(t, state, maxBytes, settle)
				},
				Bounded: settle, // unsettled, a member may have room for a chunk that the others refused
				Heals:   true,
				Damage: func(t testing.TB, state string, id chunk.ID) {
					names, _ := filepath.Glob(filepath.Join(state, "*/*/*", id.String()))
					if len(names) < 2 {
						t.Fatal("too few copies:", names)
					}
					if err := os.Truncate(names[0], 20); err != nil {
						t.Fatal(err)
					}
				},
			})
		})
	}
}

// member is a store in memory that can be made to fail, to wait, and to lose things.
type member struct {
	mu     sync.Mutex
	kept   map[chunk.ID][]byte
	broken error
	hold   chan struct{} // calls wait until it is closed
	puts   int
}

func (m *member) enter(ctx context.Context) error {
	m.mu.Lock()
	hold, broken := m.hold, m.broken
	m.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.Join(ctx.Err(), broken)
}

func (m *member) Missing(ctx context.Context, ids []chunk.ID) (missing []chunk.ID, err error) {
	if err := m.enter(ctx); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		if _, ok := m.kept[id]; !ok {
			missing = append(missing, id)
		}
	}
	return missing, nil
}

func (m *member) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	if err := m.enter(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.puts++
	m.kept[id] = frame
	return nil
}

func (m *member) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	if err := m.enter(ctx); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	frame, ok := m.kept[id]
	switch {
	case !ok:
		return nil, chunks.NotFound(id, "a member")
	case chunks.Verify(id, frame) != nil:
		delete(m.kept, id)
		return nil, chunks.Damaged(id, "a member", chunk.ErrCorrupt)
	}
	return frame, nil
}

func (m *member) has(f chunks.Frame) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Equal(m.kept[f.ID], f.Bytes)
}

func (m *member) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = err
}

func (m *member) stop() (release func()) {
	hold := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hold = hold
	return func() { close(hold) }
}

func newMembers(t testing.TB, n int, o Options) (*Store, []*member) {
	t.Helper()
	var all []*member
	var members []Member
	for i := range n {
		m := &member{kept: make(map[chunk.ID][]byte)}
		all = append(all, m)
		members = append(members, Member{Name: fmt.Sprint("server-", i), Store: m, Local: i == 0})
	}
	s, err := New(members, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, all
}

var (
	bg   = context.Background()
	down = fault.New(fault.Unavailable, "down")
	full = fault.New(fault.Exhausted, "full").WithRetry(time.Minute)
)

func TestPutNeedsAMajority(t *testing.T) {
	f := chunkstest.Chunk(1, 1000)
	for _, c := range []struct {
		fails []error // of each member
		want  fault.Kind
		good  bool
	}{
		{fails: []error{nil}, good: true},
		{fails: []error{down}, want: fault.Unavailable},
		{fails: []error{nil, down}, want: fault.Unavailable},
		{fails: []error{nil, nil, down}, good: true},
		{fails: []error{full, nil, nil}, good: true},
		{fails: []error{nil, down, down}, want: fault.Unavailable},
		{fails: []error{nil, full, down}, want: fault.Exhausted},
		{fails: []error{down, nil, nil, nil, down}, good: true},
		{fails: []error{down, down, nil, nil, errors.New("odd")}, want: fault.Unavailable},
	} {
		s, members := newMembers(t, len(c.fails), Options{})
		for i, err := range c.fails {
			members[i].fail(err)
		}
		err := s.Put(bg, f.ID, f.Bytes)
		if (err == nil) != c.good || !c.good && !fault.Is(err, c.want) {
			t.Errorf("%v: %v", c.fails, err)
		}
		if c.want == fault.Exhausted && fault.As(err).RetryAfter != time.Minute {
			t.Errorf("%v: to come back after %s", c.fails, fault.As(err).RetryAfter)
		}
		if err := s.Settle(bg); err != nil {
			t.Error(err)
		}
		for i, err := range c.fails {
			if c.good && members[i].has(f) != (err == nil) {
				t.Errorf("%v: member %d has it: %t", c.fails, i, members[i].has(f))
			}
		}
	}
}

// A put is answered before the slowest member, which gets it all the same; when too much waits, repair brings it.
func TestSlowMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, members := newMembers(t, 3, Options{BackgroundMaxBytes: 2500})
		release := members[2].stop()
		frames := []chunks.Frame{chunkstest.Chunk(1, 1000), chunkstest.Chunk(2, 1000), chunkstest.Chunk(3, 1000)}
		for _, f := range frames {
			if err := s.Put(bg, f.ID, f.Bytes); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		release()
		if err := s.Settle(bg); err != nil {
			t.Fatal(err)
		}
		if !members[2].has(frames[0]) || !members[2].has(frames[1]) {
			t.Error("the slow member lacks what had room to wait")
		}
		if members[2].has(frames[2]) {
			t.Error("the slow member has what had no room to wait")
		}
		done, err := s.Repair(bg, liveOf(frames...), Budget{})
		if want := (Repaired{Checked: 3, Copied: 1, CopiedBytes: 1010, Finished: true}); err != nil || done != want {
			t.Errorf("repair: %+v, %v", done, err)
		}
		if !members[2].has(frames[2]) {
			t.Error("it was not repaired")
		}
	})
}

func TestCloseEndsTheBackground(t *testing.T) {
	s, members := newMembers(t, 3, Options{})
	defer members[1].stop()()
	f := chunkstest.Chunk(1, 1000)
	if err := s.Put(bg, f.ID, f.Bytes); err != nil {
		t.Fatal(err)
	}
	s.Close() // it would hang
	if err := s.Put(bg, f.ID, f.Bytes); !fault.Is(err, fault.Unavailable) {
		t.Error("after the close:", err)
	}
}

func TestCancelWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, members := newMembers(t, 3, Options{})
		defer members[1].stop()()
		defer members[2].stop()()
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		f := chunkstest.Chunk(1, 1000)
		if err := s.Put(ctx, f.ID, f.Bytes); !errors.Is(err, context.DeadlineExceeded) {
			t.Error("put:", err)
		}
		if _, err := s.Missing(ctx, []chunk.ID{f.ID}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error("missing:", err)
		}
	})
}

func TestMissingCountsCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, members := newMembers(t, 3, Options{})
		var ids []chunk.ID
		for n := range 4 { // the chunk n is at n members
			f := chunkstest.Chunk(uint64(n), 100)
			ids = append(ids, f.ID, f.ID)
			for i := range n {
				members[i].kept[f.ID] = f.Bytes
			}
		}
		want := func(from int, what string) {
			t.Helper()
			if got, err := s.Missing(bg, ids); err != nil || !slices.Equal(got, ids[:2*from]) {
				t.Errorf("%s: missing %d, %v; want %d", what, len(got), err, 2*from)
			}
		}
		want(2, "all answer")
		members[0].fail(down)
		want(3, "one is down")
		members[0].fail(nil)
		release := members[0].stop()
		begin := time.Now()
		want(3, "one is slow")
		if took := time.Since(begin); took != 200*time.Millisecond {
			t.Errorf("the slow one was waited for during %s", took)
		}
		release()
		members[0].fail(down)
		members[1].fail(down)
		if _, err := s.Missing(bg, ids); !fault.Is(err, fault.Unavailable) {
			t.Error("two are down:", err)
		}
	})
}

func TestGetFromAny(t *testing.T) {
	f := chunkstest.Chunk(1, 1000)
	bad := slices.Clone(f.Bytes)
	bad[500] ^= 1
	for _, c := range []struct {
		name   string
		keeps  []string // good, bad, "" none, down
		want   fault.Kind
		good   bool
		mended bool // members that lacked it have it then
	}{
		{name: "local", keeps: []string{"good", "", ""}, good: true},
		{name: "far", keeps: []string{"", "", "good"}, good: true, mended: true},
		{name: "damaged here", keeps: []string{"bad", "good", "good"}, good: true, mended: true},
		{name: "down here", keeps: []string{"down", "", "good"}, good: true},
		{name: "nowhere", keeps: []string{"", "", ""}, want: fault.NotFound},
		{name: "perhaps", keeps: []string{"", "", "down"}, want: fault.Unavailable},
		{name: "damaged, and perhaps", keeps: []string{"bad", "", "down"}, want: fault.Unavailable},
		{name: "damaged everywhere", keeps: []string{"bad", "bad", "bad"}, want: fault.Internal},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, members := newMembers(t, 3, Options{})
			for i, k := range c.keeps {
				switch k {
				case "good":
					members[i].kept[f.ID] = f.Bytes
				case "bad":
					members[i].kept[f.ID] = bad
				case "down":
					members[i].fail(down)
				}
			}
			got, err := s.Get(bg, f.ID)
			if (err == nil) != c.good || c.good && !bytes.Equal(got, f.Bytes) || !c.good && fault.KindOf(err) != c.want {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
			if !c.good && (c.want == fault.Internal) != errors.Is(err, chunk.ErrCorrupt) && c.keeps[2] != "down" {
				t.Error("damage is not told:", err)
			}
			if err := s.Settle(bg); err != nil {
				t.Fatal(err)
			}
			for i := range members {
				if c.mended && !members[i].has(f) {
					t.Errorf("member %d was not mended", i)
				}
			}
		})
	}
	s, members := newMembers(t, 3, Options{})
	members[0].kept[f.ID] = f.Bytes
	if _, err := s.Get(bg, f.ID); err != nil || members[1].puts+members[2].puts > 0 {
		t.Error("a get that the local member answered reached others:", err)
	}
}

// A member that cannot be asked is asked last for a while.
func TestGetLetsTheDeadRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, members := newMembers(t, 3, Options{TimeoutPerMember: time.Second})
		f := chunkstest.Chunk(1, 1000)
		members[2].kept[f.ID] = f.Bytes
		defer members[1].stop()()
		took := func() time.Duration {
			t.Helper()
			begin := time.Now()
			if _, err := s.Get(bg, f.ID); err != nil {
				t.Error(err)
			}
			took := time.Since(begin)
			synctest.Wait()
			delete(members[0].kept, f.ID) // it was mended
			return took
		}
		if d := took(); d != time.Second {
			t.Errorf("the first get took %s", d)
		}
		if d := took(); d != 0 {
			t.Errorf("the second get took %s", d)
		}
		time.Sleep(restAfter)
		if d := took(); d != time.Second {
			t.Errorf("a later get took %s", d)
		}
	})
}

func liveOf(frames ...chunks.Frame) chunks.Live {
	return func(context.Context) iter.Seq2[chunk.ID, error] {
		return func(yield func(chunk.ID, error) bool) {
			for _, f := range frames {
				if !yield(f.ID, nil) {
					return
				}
			}
		}
	}
}

func TestPlan(t *testing.T) {
	a, b, c, d := chunk.ID{1}, chunk.ID{2}, chunk.ID{3}, chunk.ID{4}
	lacks := []lack{{a: {}, b: {}, d: {}}, nil, {b: {}, d: {}}, {d: {}}}
	got := plan([]chunk.ID{a, b, c, d}, lacks)
	want := []task{
		{id: d, to: []int{0, 2, 3}, silent: 1},
		{id: b, from: []int{3}, to: []int{0, 2}, silent: 1},
		{id: a, from: []int{2, 3}, to: []int{0}, silent: 1},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, members := newMembers(t, 3, Options{})
		var frames []chunks.Frame
		for i := range uint64(10) {
			f := chunkstest.Chunk(i, 100_000)
			frames = append(frames, f)
			members[i%3].kept[f.ID] = f.Bytes // one copy of each: 20 copies to make
		}
		garbage, lost := chunkstest.Chunk(100, 10), chunkstest.Chunk(101, 10)
		members[0].kept[garbage.ID] = garbage.Bytes
		live := liveOf(append(frames, frames[0], lost)...)

		begin := time.Now()
		done, err := s.Repair(bg, live, Budget{BytesPerSecond: 1 << 20, BytesMax: 500_000})
		if err != nil || done.Finished || done.CopiedBytes < 500_000 || done.CopiedBytes > 700_000 {
			t.Errorf("a run with a small budget: %+v, %v", done, err)
		}
		copied := done.Copied
		done, err = s.Repair(bg, live, Budget{BytesPerSecond: 1 << 19})
		if err != nil || !done.Finished || done.Copied+copied != 20 || done.Lost != 1 || done.Failed != 0 {
			t.Errorf("a run that finishes: %+v, %v", done, err)
		}
		if took := time.Since(begin); took < time.Second/2 {
			t.Errorf("%d bytes took %s", done.CopiedBytes, took)
		}
		for _, f := range frames {
			for i, m := range members {
				if !m.has(f) {
					t.Errorf("member %d lacks a chunk", i)
				}
			}
		}
		if members[1].has(garbage) || members[2].has(garbage) {
			t.Error("garbage was copied")
		}
		members[1].fail(down)
		if done, err = s.Repair(bg, live, Budget{}); err != nil || done.Copied != 0 || done.Lost != 0 {
			t.Errorf("with a member down: %+v, %v", done, err)
		}
	})
}
