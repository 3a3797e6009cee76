// The cluster's chunk store as a node reaches it: by way of any of its servers.

package checkpoint

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// maxServers bounds how many addresses are remembered.
const maxServers = 64

// Servers is a store behind several servers, each of which stands for all of it. The one that answered last is asked
// first, and the others when it cannot be reached. It implements chunks.Store and chunks.Batcher.
type Servers struct {
	open func(address string) (chunks.Store, error)

	mu     sync.Mutex
	order  []string // the one to ask first, first
	opened map[string]chunks.Store
}

var _ chunks.Batcher = (*Servers)(nil)

// NewServers returns the store behind the servers with these addresses; open makes the store of one, which is closed
// with the Servers when it is an io.Closer.
func NewServers(addresses []string, open func(address string) (chunks.Store, error)) *Servers {
	s := &Servers{open: open, opened: map[string]chunks.Store{}}
	s.Use("", addresses)
	return s
}

// Use replaces the addresses. The one of the server that holds the node's link is asked first; it may be empty.
func (s *Servers) Use(first string, addresses []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var order []string
	for _, a := range append([]string{first}, addresses...) {
		if a != "" && !slices.Contains(order, a) && len(order) < maxServers {
			order = append(order, a)
		}
	}
	s.order = order
}

// Close closes the stores that were opened.
func (s *Servers) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, st := range s.opened {
		if c, ok := st.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	clear(s.opened)
	return errors.Join(errs...)
}

func (s *Servers) addresses() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.order)
}

func (s *Servers) at(address string) (chunks.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.opened[address]; st != nil {
		return st, nil
	}
	st, err := s.open(address)
	if err == nil {
		s.opened[address] = st
	}
	return st, err
}

// answered has a server asked first from now on.
func (s *Servers) answered(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.order, address); i > 0 {
		s.order = slices.Insert(slices.Delete(s.order, i, i+1), 0, address)
	}
}

// better is the error that says more of two: one of a server that answered.
func better(old, err error) error {
	if old != nil && (fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Timeout)) {
		return old
	}
	return err
}

// any asks one server after the other until one answers. Another one is asked after errors for which another says so.
func (s *Servers) any(ctx context.Context, ask func(chunks.Store) error, another func(error) bool) error {
	var said error
	for _, a := range s.addresses() {
		st, err := s.at(a)
		if err == nil {
			err = ask(st)
		}
		if err == nil {
			s.answered(a)
			return nil
		}
		if said = better(said, err); ctx.Err() != nil || !another(err) {
			return err
		}
	}
	if said == nil {
		said = fault.New(fault.Unavailable, "chunks: no server is known")
	}
	return said
}

// unreachable reports whether another server may know better.
func unreachable(err error) bool {
	return fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Timeout) || fault.Is(err, fault.Exhausted)
}

// elsewhere reports whether another server may have what this one has not, or has damaged.
func elsewhere(err error) bool {
	return unreachable(err) || fault.Is(err, fault.NotFound) || fault.Is(err, fault.Internal)
}

// Missing implements chunks.Store.
func (s *Servers) Missing(ctx context.Context, ids []chunk.ID) (missing []chunk.ID, err error) {
	err = s.any(ctx, func(st chunks.Store) (err error) {
		missing, err = st.Missing(ctx, ids)
		return err
	}, unreachable)
	return missing, err
}

// Put implements chunks.Store.
func (s *Servers) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	return s.any(ctx, func(st chunks.Store) error { return st.Put(ctx, id, frame) }, unreachable)
}

// Get implements chunks.Store. A chunk that one server does not find another may.
func (s *Servers) Get(ctx context.Context, id chunk.ID) (frame []byte, err error) {
	err = s.any(ctx, func(st chunks.Store) (err error) {
		frame, err = st.Get(ctx, id)
		return err
	}, elsewhere)
	return frame, err
}

// PutBatch implements chunks.Batcher.
func (s *Servers) PutBatch(ctx context.Context, frames []chunks.Frame) []error {
	errs := make([]error, len(frames))
	open := make([]int, len(frames))
	for i := range open {
		open[i] = i
	}
	err := s.any(ctx, func(st chunks.Store) error {
		some := make([]chunks.Frame, len(open))
		for i, at := range open {
			some[i] = frames[at]
		}
		var left []int
		var failed error
		for i, err := range chunks.PutBatch(ctx, st, some, DefaultParallel) {
			at := open[i]
			if err == nil || !unreachable(err) {
				errs[at] = err
				continue
			}
			errs[at], failed = better(errs[at], err), err
			left = append(left, at)
		}
		open = left
		return failed
	}, unreachable)
	for _, at := range open {
		if errs[at] == nil {
			errs[at] = err
		}
	}
	return errs
}

// GetBatch implements chunks.Batcher.
func (s *Servers) GetBatch(ctx context.Context, ids []chunk.ID) ([][]byte, []error) {
	frames, errs := make([][]byte, len(ids)), make([]error, len(ids))
	open := make([]int, len(ids))
	for i := range open {
		open[i] = i
	}
	err := s.any(ctx, func(st chunks.Store) error {
		some := make([]chunk.ID, len(open))
		for i, at := range open {
			some[i] = ids[at]
		}
		var left []int
		var failed error
		got, gotErrs := chunks.GetBatch(ctx, st, some, DefaultParallel)
		for i, at := range open {
			frames[at] = got[i]
			if err := gotErrs[i]; err == nil || !elsewhere(err) {
				errs[at] = err
			} else {
				errs[at], failed = better(errs[at], err), err
				left = append(left, at)
			}
		}
		open = left
		return failed
	}, elsewhere)
	for _, at := range open {
		if errs[at] == nil {
			errs[at] = err
		}
	}
	return frames, errs
}
