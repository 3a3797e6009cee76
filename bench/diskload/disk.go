// Package diskload keeps a disk busy: it writes a mebibyte, syncs it, and again.
package diskload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/testbed"
)

// Role is the name of the helper.
const Role = "disk"

const (
	writeBytes = 1 << 20
	fileWrites = 64 // after which the file is begun anew, so that the disk does not fill
	maxKept    = 1 << 20
)

// Written says what was written. Times are those of one write with its sync.
type Written = measure.Summary

type writer struct {
	cancel context.CancelFunc
	done   chan error
	times  measure.Latencies
	begin  time.Time
}

// Serve returns what the helper answers.
func Serve() testbed.Handlers {
	w := &writer{}
	return testbed.Handlers{
		"start": testbed.Handle(w.start),
		"stop":  testbed.Handle(w.stop),
	}
}

func (w *writer) start(ctx context.Context, dir string) (struct{}, error) {
	if w.cancel != nil {
		return struct{}{}, errors.New("it writes already")
	}
	f, err := os.Create(filepath.Join(dir, "busy"))
	if err != nil {
		return struct{}{}, err
	}
	ctx, w.cancel = context.WithCancel(ctx)
	w.done, w.begin = make(chan error, 1), time.Now()
	go func() { w.done <- errors.Join(w.write(ctx, f), f.Close()) }()
	return struct{}{}, nil
}

func (w *writer) write(ctx context.Context, f *os.File) error {
	block := make([]byte, writeBytes)
	for i := 0; ctx.Err() == nil; i++ {
		start := time.Now()
		if _, err := f.WriteAt(block, int64(i%fileWrites)*writeBytes); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if err := f.Sync(); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		if len(w.times) < maxKept {
			w.times = append(w.times, time.Since(start))
		}
	}
	return nil
}

// stop ends the writing and tells of it.
func (w *writer) stop(context.Context, struct{}) (Written, error) {
	w.cancel()
	err := <-w.done
	return w.times.Summarize(time.Since(w.begin)), err
}
