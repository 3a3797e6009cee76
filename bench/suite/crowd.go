// Crowds: what each of many that are connected at once costs a server, in plain text and with TLS.

package suite

import (
	"context"
	"fmt"
	"iter"
	"os"
	"path/filepath"

	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/testbed"
)

const bytesInAKB = 1000

// crowds are the names under which a crowd is measured, as far as they are wanted, and whether that is in plain text.
func (b *Bench) crowds(part string, count int) iter.Seq2[string, bool] {
	return func(yield func(name string, plain bool) bool) {
		for _, plain := range []bool{true, false} {
			name := fmt.Sprintf("%s %s, TLS", measure.Amount(float64(count), ""), part)
			if plain {
				name = fmt.Sprintf("%s %s, plain text", measure.Amount(float64(count), ""), part)
			}
			if b.wanted(name) && !yield(name, plain) {
				return
			}
		}
	}
}

// crowd measures one, as often as was asked for.
func (b *Bench) crowd(part string, plain bool, run func() error) error {
	for i := range b.o.Runs {
		b.logf("%s: run %d of %d, plain text: %v", part, i+1, b.o.Runs, plain)
		if err := run(); err != nil {
			return err
		}
	}
	return nil
}

// memoryEach adds what each of a crowd takes of a server's memory, from before they come until they are there; those says who, and how.
func (b *Bench) memoryEach(ctx context.Context, s *testbed.Server, count int, those string, memory *measure.Figure, come func() error) (kb float64, err error) {
	before, err := settledRSS(ctx, s)
	if err != nil {
		return 0, err
	}
	if err := come(); err != nil {
		return 0, err
	}
	after, err := settledRSS(ctx, s)
	if err != nil {
		return 0, err
	}
	if b.o.Profiles != "" {
		if err := os.MkdirAll(b.o.Profiles, 0o755); err != nil {
			return 0, err
		}
		if err := s.Profile(ctx, filepath.Join(b.o.Profiles, "heap-"+slug(memory.Name)+".pprof"), 0); err != nil {
			return 0, err
		}
	}
	kb = float64(after-before) / float64(count) / bytesInAKB
	memory.Runs = append(memory.Runs, kb)
	memory.Note = fmt.Sprintf("resident memory %d MB before, %d MB with all %s, each after a collection, in the last run", before/1e6, after/1e6, those)
	return kb, nil
}

// settledRSS is a server's resident memory once it has given back what it can.
func settledRSS(ctx context.Context, s *testbed.Server) (int64, error) {
	for range 2 { // what finalizers held is free after the second time
		if err := s.FreeMemory(ctx); err != nil {
			return 0, err
		}
	}
	return measure.RSS(s.PID())
}
