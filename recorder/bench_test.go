// What a record costs on its way from whoever hands it over to the sink, without the sink's own part.

package recorder

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// confirming is a sink that keeps nothing.
type confirming struct{ Sink }

func (confirming) Write(_ context.Context, batch []Interaction) (int, error) { return len(batch), nil }

// BenchmarkWay reports the processor time, user and system, of a record: of messages of 256 bytes and their short answers in turns.
func BenchmarkWay(b *testing.B) {
	cfg := Default()
	cfg.Spool.Dir = b.TempDir()
	r, err := Open(Options{Config: cfg, Sink: confirming{}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(ctx) }()
	text := strings.Repeat("what a message says; ", 13)[:256]
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before, n := used(), 0
	for b.Loop() {
		i := Interaction{ID: fmt.Sprintf("01234567-89ab-7def-0123-456789abcdef/m%d.zzzzzzzzzzzz", n), Time: time.Now(), Kind: Message, Namespace: "default",
			Session: "01234567-89ab-7def-0123-456789abcdef", RequestID: strconv.Itoa(n), Principal: "token:admin"}
		if n%2 == 0 {
			i.Request = text
		} else {
			i.Kind, i.Response = Answer, text[:10]
		}
		if err := r.Take(&i); err != nil {
			b.Fatal(err)
		}
		if n++; n%1000 == 0 { // as it comes in
			if err := r.Flush(ctx); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.StopTimer()
	stop()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64((used()-before).Nanoseconds())/float64(n), "cpu-ns/record")
	b.ReportMetric(float64(r.State().Shipped)/float64(n), "shipped/record")
	if err := r.Close(); err != nil {
		b.Fatal(err)
	}
}
