// The output log as the API has it.

package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"

	"github.com/neolith/orchestrator/agent/outputlog"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
)

// One call of emit gets at most this much, and one line more.
const (
	emitLinesMax = 512
	emitBytesMax = 256 << 10
)

// bell wakes everybody who waits for more.
type bell struct {
	mu sync.Mutex
	ch chan struct{}
}

// next is closed by the next ring.
func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// ReadLogs reads the log of a session's directory from a line on, whether or not the session still runs.
func ReadLogs(ctx context.Context, sessionDir string, from uint64, emit func([]*apiv1.LogLine) error) error {
	r, err := outputlog.NewReader(LogDir(sessionDir), from)
	if err != nil {
		return err
	}
	defer r.Close()
	return emitAll(ctx, r, emit)
}

// ReadLogs is the driver's; see driver.Process.
func (p *proc) ReadLogs(ctx context.Context, from uint64, follow bool, emit func([]*apiv1.LogLine) error) error {
	r, err := outputlog.NewReader(LogDir(p.s.Dir), from)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		more := p.more.next()
		ended := isClosed(p.done)
		if err := emitAll(ctx, r, emit); err != nil {
			return err
		}
		if !follow || ended {
			return nil
		}
		select {
		case <-more:
		case <-p.done:
		case <-p.released:
			return errReleased
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func emitAll(ctx context.Context, r *outputlog.Reader, emit func([]*apiv1.LogLine) error) error {
	var batch []*apiv1.LogLine
	bytes := 0
	for {
		rec, err := r.Next()
		if err == nil && rec.Kind == outputlog.Input {
			continue
		}
		if err == nil {
			batch = append(batch, logLine(&rec))
			bytes += len(rec.Data)
		}
		if len(batch) > 0 && (err != nil || len(batch) >= emitLinesMax || bytes >= emitBytesMax) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := emit(batch); err != nil {
				return err
			}
			batch, bytes = nil, 0
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("process: read the log: %w", err)
		}
	}
}

func logLine(r *outputlog.Record) *apiv1.LogLine {
	l := &apiv1.LogLine{Time: pbconv.Time(r.Time), Epoch: r.Epoch, Text: append([]byte(nil), r.Data...), Partial: r.Partial}
	switch r.Kind {
	case outputlog.Stdout:
		l.Number, l.Stream = r.Number, apiv1.LogLine_STDOUT
	case outputlog.Stderr:
		l.Number, l.Stream = r.Number, apiv1.LogLine_STDERR
	default:
		l.Stream = apiv1.LogLine_NOTICE
	}
	return l
}

// lastLine finds the number of the last line from first on; first-1 when there is none.
func lastLine(dir string, first uint64) (uint64, error) {
	r, err := outputlog.NewReader(dir, first)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	last := max(first, 1) - 1
	for {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return 0, err
		}
		if rec.IsLine() {
			last = rec.Number
		}
	}
}

var errReleased = fault.New(fault.Unavailable, "process: the agent let go of the session")

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
