// Package serializertest has a store in memory, for tests of whoever captures and restores.
package serializertest

import (
	"context"
	"fmt"
	"sync"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Store keeps chunks in memory. It is a serializer.Sink and a serializer.Source; the zero value is empty and ready.
type Store struct {
	// OnPut, OnGet and OnMissing, where they are not nil, are asked first, and their error is the answer. Set them before use.
	OnPut     func(id chunk.ID, frame []byte) error
	OnGet     func(id chunk.ID) error
	OnMissing func(ids []chunk.ID) error

	mu     sync.Mutex
	frames map[chunk.ID][]byte
	puts   int
	gets   int
}

// Missing returns those ids that are not there.
func (s *Store) Missing(ctx context.Context, ids []chunk.ID) (missing []chunk.ID, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.OnMissing != nil {
		if err := s.OnMissing(ids); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if _, ok := s.frames[id]; !ok {
			missing = append(missing, id)
		}
	}
	return missing, nil
}

// Put keeps a copy of the frame, and refuses one that is not what its id says.
func (s *Store) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.OnPut != nil {
		if err := s.OnPut(id, frame); err != nil {
			return err
		}
	}
	if _, err := chunk.Open(nil, id, frame); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.frames == nil {
		s.frames = map[chunk.ID][]byte{}
	}
	s.puts++
	s.frames[id] = append([]byte(nil), frame...)
	return nil
}

// Get returns a copy of a frame.
func (s *Store) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.OnGet != nil {
		if err := s.OnGet(id); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets++
	frame, ok := s.frames[id]
	if !ok {
		return nil, fault.New(fault.NotFound, "chunk %s is not there", id)
	}
	return append([]byte(nil), frame...), nil
}

// Delete removes chunks.
func (s *Store) Delete(ids ...chunk.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.frames, id)
	}
}

// Replace puts bytes in a chunk's place, whatever they are.
func (s *Store) Replace(id chunk.ID, frame []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frames[id] = frame
}

// IDs returns what is there, in no order.
func (s *Store) IDs() (ids []chunk.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.frames {
		ids = append(ids, id)
	}
	return ids
}

// Counts returns how many chunks were put and gotten since the beginning, and how many bytes of frames are there.
func (s *Store) Counts() (puts, gets int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.frames {
		bytes += int64(len(f))
	}
	return s.puts, s.gets, bytes
}
