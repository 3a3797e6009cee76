// A snapshot store in memory that shows a snapshot only when it is whole: the library's own shows it from its first byte.

package sim

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// snapshots implements raft.SnapshotStore and keeps the latest.
type snapshots struct {
	mu     sync.Mutex
	count  int
	latest *snapshot
}

type snapshot struct {
	store *snapshots
	meta  raft.SnapshotMeta
	data  bytes.Buffer
}

// Create implements raft.SnapshotStore.
func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	return &snapshot{store: s, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d-%d", term, index, s.count), Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}, nil
}

// List implements raft.SnapshotStore.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.latest == nil {
		return nil, nil
	}
	m := s.latest.meta
	return []*raft.SnapshotMeta{&m}, nil
}

// Open implements raft.SnapshotStore.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.latest == nil || s.latest.meta.ID != id {
		return nil, nil, fmt.Errorf("snapshot %s is not there", id)
	}
	m := s.latest.meta
	return &m, io.NopCloser(bytes.NewReader(s.latest.data.Bytes())), nil
}

// Write implements raft.SnapshotSink.
func (s *snapshot) Write(p []byte) (int, error) { return s.data.Write(p) }

// Close implements raft.SnapshotSink.
func (s *snapshot) Close() error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	s.meta.Size = int64(s.data.Len())
	if s.store.latest == nil || s.store.latest.meta.Index <= s.meta.Index {
		s.store.latest = s
	}
	return nil
}

// ID implements raft.SnapshotSink.
func (s *snapshot) ID() string { return s.meta.ID }

// Cancel implements raft.SnapshotSink.
func (s *snapshot) Cancel() error { return nil }
