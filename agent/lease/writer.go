// The agent's side: renewing.

package lease

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// Writer renews a node's lease. Its methods may be called from several goroutines. There is one per node.
type Writer struct {
	mu   sync.Mutex
	f    *os.File
	last slot
}

// OpenWriter opens the lease file, or makes it. A lease that an earlier agent of this boot left is neither lengthened
// nor shortened: its sessions go on until its deadline.
func OpenWriter(path string) (*Writer, error) {
	boot, err := Boot()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lease: open: %w", err)
	}
	w := &Writer{f: f, last: slot{boot: boot}}
	var b [fileBytes]byte
	n, err := f.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		f.Close()
		return nil, fmt.Errorf("lease: read: %w", err)
	}
	if s, ok := newest(b[:n]); ok {
		w.last.generation = s.generation
		if s.boot == boot {
			w.last.deadline = s.deadline
		}
	}
	return w, nil
}

// Now is the clock of deadlines, in nanoseconds.
func (w *Writer) Now() int64 { return Now() }

// Deadline is the last one written in this boot; 0 for none.
func (w *Writer) Deadline() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last.deadline
}

// Renew moves the deadline, in nanoseconds of CLOCK_BOOTTIME. It never moves back: answers to heartbeats may be
// overtaken. There is no fsync: after a power failure there is no session left whose lease could matter.
func (w *Writer) Renew(deadline int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if deadline <= w.last.deadline {
		return nil
	}
	next := w.last
	next.generation++
	next.deadline = deadline
	var b [slotBytes]byte
	next.encode(&b)
	at := int64(slotBytes)
	if next.generation%2 == 1 {
		at = 0
	}
	if _, err := w.f.WriteAt(b[:], at); err != nil {
		return fmt.Errorf("lease: renew: %w", err)
	}
	w.last = next
	return nil
}

// Close closes the file; the lease holds until its deadline.
func (w *Writer) Close() error { return w.f.Close() }
