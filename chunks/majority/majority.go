// The store over its members.

package majority

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Member is one of the stores.
type Member struct {
	Name  string
	Store chunks.Store
	Local bool // it is asked first
}

// restAfter is how long a member that could not be asked for a chunk is asked after the others.
const restAfter = 5 * time.Second

// Options are the bounds of a store.
type Options struct {
	// BackgroundMaxBytes is how much may wait for slow members after a put was answered (64 MiB). What goes beyond is left to repair.
	BackgroundMaxBytes int64
	// TimeoutPerMember bounds one call of a member (30 s).
	TimeoutPerMember time.Duration
	// Patience is how long a question waits for the last members when a majority has answered (200 ms): without their answers, chunks
	// may seem to be missing that are not, and are put again.
	Patience time.Duration
	// Logger hears of members that fail in the background; nil is silence.
	Logger *slog.Logger
}

// Store is several stores as one. It implements chunks.Store.
type Store struct {
	members []Member // the local one first
	opts    Options
	log     *slog.Logger
	waiting *semaphore.Weighted // bytes of frames in the background
	resting []atomic.Int64      // of each member: until when it is asked last, in Unix nanoseconds

	ctx    context.Context //nolint:containedctx // ends the work in the background
	cancel context.CancelFunc
	mu     sync.Mutex
	closed bool
	all    sync.WaitGroup // goroutines that may outlive a call
}

// New makes one store of members; there must be at least one, and their names differ.
func New(members []Member, o Options) (*Store, error) {
	if len(members) == 0 {
		return nil, fault.New(fault.Invalid, "chunks: a majority of no stores")
	}
	if o.BackgroundMaxBytes <= 0 {
		o.BackgroundMaxBytes = 64 << 20
	}
	if o.TimeoutPerMember <= 0 {
		o.TimeoutPerMember = 30 * time.Second
	}
	if o.Patience <= 0 {
		o.Patience = 200 * time.Millisecond
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{opts: o, log: o.Logger, waiting: semaphore.NewWeighted(o.BackgroundMaxBytes)}
	names := make(map[string]bool)
	for _, local := range []bool{true, false} {
		for _, m := range members {
			if m.Local == local {
				s.members = append(s.members, m)
			}
			if !local && names[m.Name] {
				return nil, fault.New(fault.Invalid, "chunks: two stores of a majority are called %q", m.Name)
			}
			names[m.Name] = !local
		}
	}
	s.resting = make([]atomic.Int64, len(s.members))
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Members is how many stores there are.
func (s *Store) Members() int { return len(s.members) }

// quorum is how many members are more than half.
func (s *Store) quorum() int { return len(s.members)/2 + 1 }

// Close ends what goes on in the background, and waits for it. The members stay open.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.all.Wait()
	return nil
}

// Settle waits until nothing goes on in the background, or for ctx; for a server that stops in order.
func (s *Store) Settle(ctx context.Context) error {
	if err := s.waiting.Acquire(ctx, s.opts.BackgroundMaxBytes); err != nil {
		return err
	}
	s.waiting.Release(s.opts.BackgroundMaxBytes)
	return nil
}

// begin admits a call's goroutines.
func (s *Store) begin(ctx context.Context, goroutines int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fault.New(fault.Unavailable, "chunks: the store is closed")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.all.Add(goroutines)
	return nil
}

// outcome is what a member answered.
type outcome[T any] struct {
	member int
	value  T
	err    error
}

// ask calls every member at once. The answers come as they come, one for each member; the calls end with ctx, or later where it does
// not end: whoever stops listening cancels it.
func ask[T any](ctx context.Context, s *Store, call func(ctx context.Context, m Member) (T, error)) (<-chan outcome[T], error) {
	if err := s.begin(ctx, len(s.members)); err != nil {
		return nil, err
	}
	answers := make(chan outcome[T], len(s.members))
	for i, m := range s.members {
		go func() {
			defer s.all.Done()
			ctx, cancel := context.WithTimeout(ctx, s.opts.TimeoutPerMember)
			defer cancel()
			v, err := call(ctx, m)
			answers <- outcome[T]{i, v, err}
		}()
	}
	return answers, nil
}

// Put implements chunks.Store.
func (s *Store) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := chunks.VerifyPut(id, frame); err != nil {
		return err
	}
	// The calls end with the caller's context until the put is answered, with the store's afterwards.
	work, stop := context.WithCancel(s.ctx)
	detach := context.AfterFunc(ctx, stop)
	defer detach()
	answers, err := ask(work, s, func(ctx context.Context, m Member) (struct{}, error) { return struct{}{}, m.Store.Put(ctx, id, frame) })
	if err != nil {
		stop()
		return err
	}
	var failed []error
	have, heard := 0, 0
	for have < s.quorum() && len(s.members)-len(failed) >= s.quorum() {
		select {
		case a := <-answers:
			heard++
			if a.err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", s.members[a.member].Name, a.err))
			} else {
				have++
			}
		case <-ctx.Done():
			stop()
			return ctx.Err()
		}
	}
	if have < s.quorum() {
		stop()
		if err := ctx.Err(); err != nil {
			return err
		}
		return s.lacking("put", id, failed)
	}
	// The majority has it; the rest goes on, if there is room for it.
	if !detach() || heard == len(s.members) || !s.background(work, stop, answers, len(s.members)-heard, id, int64(len(frame))) {
		stop()
	}
	return nil
}

// background listens to the last members; false when too much waits.
func (s *Store) background(work context.Context, stop func(), answers <-chan outcome[struct{}], left int, id chunk.ID, n int64) bool {
	n = min(max(n, 1), s.opts.BackgroundMaxBytes)
	if !s.waiting.TryAcquire(n) {
		return false
	}
	if s.begin(work, 1) != nil {
		s.waiting.Release(n)
		return false
	}
	go func() {
		defer s.all.Done()
		defer s.waiting.Release(n)
		defer stop()
		for range left {
			if a := <-answers; a.err != nil && work.Err() == nil {
				s.log.Warn("chunks: a member lacks a chunk until it is repaired", "member", s.members[a.member].Name, "chunk", id.String(), "error", a.err)
			}
		}
	}()
	return true
}

// lacking is the error of a call that too few members answered well. Its kind is what a caller can do about it.
func (s *Store) lacking(verb string, id chunk.ID, failed []error) error {
	all := errors.Join(failed...)
	kind, retry := fault.Unavailable, time.Duration(0)
	for _, err := range failed {
		if e := fault.As(err); e != nil && e.Kind == fault.Exhausted {
			kind, retry = fault.Exhausted, max(retry, e.RetryAfter)
		}
	}
	return fault.New(kind, "chunks: %s %s: of %d stores %d are needed and %d failed: %w", verb, id, len(s.members), s.quorum(), len(failed), all).WithRetry(retry)
}

// Missing implements chunks.Store: what no majority has is missing.
func (s *Store) Missing(ctx context.Context, ids []chunk.ID) ([]chunk.ID, error) {
	lacks, failed, err := s.survey(ctx, ids)
	if err != nil {
		return nil, err
	}
	if len(s.members)-len(failed) < s.quorum() {
		return nil, s.lacking("ask for", chunk.ID{}, failed)
	}
	var missing []chunk.ID
	for _, id := range ids {
		if copies(lacks, id) < s.quorum() {
			missing = append(missing, id)
		}
	}
	return missing, nil
}

// lack is what a member lacks; nil for a member that did not answer.
type lack map[chunk.ID]struct{}

func (l lack) has(id chunk.ID) bool { _, ok := l[id]; return ok }

// copies is how many members said that they have a chunk.
func copies(lacks []lack, id chunk.ID) (n int) {
	for _, l := range lacks {
		if l != nil && !l.has(id) {
			n++
		}
	}
	return n
}

// survey asks all members what they lack. When a majority has answered it waits for the others no longer than the patience.
func (s *Store) survey(ctx context.Context, ids []chunk.ID) (lacks []lack, failed []error, err error) {
	work, stop := context.WithCancel(ctx)
	defer stop()
	answers, err := ask(work, s, func(ctx context.Context, m Member) ([]chunk.ID, error) { return m.Store.Missing(ctx, ids) })
	if err != nil {
		return nil, nil, err
	}
	lacks = make([]lack, len(s.members))
	silent := make(map[int]bool, len(s.members))
	for i := range s.members {
		silent[i] = true
	}
	var patience <-chan time.Time
	answered := 0
	for len(silent) > 0 {
		select {
		case a := <-answers:
			delete(silent, a.member)
			if a.err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", s.members[a.member].Name, a.err))
				break
			}
			l := make(lack, len(a.value))
			for _, id := range a.value {
				l[id] = struct{}{}
			}
			lacks[a.member] = l
			if answered++; answered == s.quorum() {
				timer := time.NewTimer(s.opts.Patience)
				defer timer.Stop()
				patience = timer.C
			}
		case <-patience:
			for i := range silent {
				failed = append(failed, fmt.Errorf("%s: no answer within %s of the majority's", s.members[i].Name, s.opts.Patience))
			}
			return lacks, failed, nil
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	return lacks, failed, ctx.Err()
}

// Get implements chunks.Store: the local member first, then the others in turn. Members that turned out to lack the chunk are given it.
func (s *Store) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var failed []error
	var lacking []Member
	damaged := false
	for _, i := range s.order(time.Now()) {
		m := s.members[i]
		frame, err := s.getFrom(ctx, m, id)
		if err == nil {
			s.mend(lacking, id, frame)
			return frame, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		failed = append(failed, fmt.Errorf("%s: %w", m.Name, err))
		corrupt := errors.Is(err, chunk.ErrCorrupt)
		if damaged = damaged || corrupt; corrupt || fault.Is(err, fault.NotFound) {
			lacking = append(lacking, m)
		} else {
			s.resting[i].Store(time.Now().Add(restAfter).UnixNano())
		}
	}
	switch {
	case len(lacking) < len(s.members): // one who cannot be asked may have the last copy
		return nil, s.lacking("get", id, failed)
	case damaged:
		return nil, chunks.Damaged(id, "every store", errors.Join(failed...))
	}
	return nil, chunks.NotFound(id, fmt.Sprintf("the majority of %d stores", len(s.members)))
}

// order is in which order members are asked for a chunk: those that could not be asked lately after the others, so that a dead server
// costs its timeout now and then, not for each chunk.
func (s *Store) order(now time.Time) []int {
	all := make([]int, 0, len(s.members))
	for _, resting := range []bool{false, true} {
		for i := range s.members {
			if (s.resting[i].Load() > now.UnixNano()) == resting {
				all = append(all, i)
			}
		}
	}
	return all
}

func (s *Store) getFrom(ctx context.Context, m Member, id chunk.ID) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.TimeoutPerMember)
	defer cancel()
	return m.Store.Get(ctx, id)
}

func (s *Store) putTo(ctx context.Context, m Member, id chunk.ID, frame []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.TimeoutPerMember)
	defer cancel()
	return m.Store.Put(ctx, id, frame)
}

// mend gives a chunk to members that lack it, in the background, if there is room.
func (s *Store) mend(members []Member, id chunk.ID, frame []byte) {
	n := min(max(int64(len(frame)), 1), s.opts.BackgroundMaxBytes)
	for _, m := range members {
		if !s.waiting.TryAcquire(n) {
			return
		}
		if s.begin(s.ctx, 1) != nil {
			s.waiting.Release(n)
			return
		}
		go func() {
			defer s.all.Done()
			defer s.waiting.Release(n)
			if err := s.putTo(s.ctx, m, id, frame); err != nil && s.ctx.Err() == nil {
				s.log.Warn("chunks: a member lacks a chunk that was read elsewhere", "member", m.Name, "chunk", id.String(), "error", err)
			}
		}()
	}
}
