// What every sink promises, and what is SQLite's own: versions, damage, bounds in bytes, readers beside a writer.

package sqlite

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/recorder/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, file string) *Sink {
	t.Helper()
	s, err := Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) recorder.Sink {
		return open(t, filepath.Join(t.TempDir(), "a directory with ? and #", "interactions.db"))
	})
}

func TestOpenedAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.db")
	s := open(t, file)
	if _, err := s.Write(t.Context(), sinktest.Some(5)); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v, %v", st.Mode(), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, file)
	if got := sinktest.All(t, s, recorder.Query{}); len(got) != 5 {
		t.Fatalf("%d are left", len(got))
	}
	if _, err := s.write.Exec("PRAGMA user_version = 9"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), file); !fault.Is(err, fault.FailedPrecondition) {
		t.Fatalf("of a newer build: %v", err)
	}
	if err := os.WriteFile(file, []byte(strings.Repeat("this is no database. ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), file); !fault.Is(err, fault.FailedPrecondition) {
		t.Fatalf("no database: %v", err)
	}
}

// The oldest go until the file is within its bound, and the file becomes smaller.
func TestBytesAreBounded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.db")
	s := open(t, file)
	defer s.Close()
	all := sinktest.Some(4000)
	for i := range all {
		all[i].Request = strings.Repeat("x", 1000)
	}
	if _, err := s.Write(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	const bound = 2 << 20
	n, err := s.Prune(t.Context(), recorder.Retention{MaxBytes: bound})
	if err != nil {
		t.Fatal(err)
	}
	got := sinktest.All(t, s, recorder.Query{OldestFirst: true, Limit: recorder.PageMax})
	if int64(len(got)) != 4000-n || len(got) == 0 || got[len(got)-1].ID != all[3999].ID || got[0].ID != all[n].ID {
		t.Fatalf("%d removed, %d left", n, len(got))
	}
	used, err := s.used(t.Context())
	if err != nil || used > bound || used < bound/2 {
		t.Fatalf("%d bytes are used, bound %d, %v", used, bound, err)
	}
	if _, err := s.write.Exec("PRAGMA wal_checkpoint(truncate)"); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(file); err != nil || st.Size() > bound {
		t.Fatalf("the file has %d bytes, %v", st.Size(), err)
	}
}

func TestReadersDoNotWaitForAWriter(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "x.db"))
	defer s.Close()
	if _, err := s.Write(t.Context(), sinktest.Some(5)); err != nil {
		t.Fatal(err)
	}
	tx, err := s.write.Begin() // immediate: it holds the right to write
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if got := sinktest.All(t, s, recorder.Query{}); len(got) != 5 {
		t.Fatalf("%d", len(got))
	}
}

func BenchmarkWrite(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "x.db"))
	defer s.Close()
	sinktest.BenchmarkWrite(b, s)
}

// BenchmarkMessages is what a server under load records: messages and answers of many sessions in turns. Beside the time it reports the processor
// time of one, user and system.
func BenchmarkMessages(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "x.db"))
	defer s.Close()
	const sessions = 256
	batch, at, n := make([]recorder.Interaction, 4000), sinktest.Begin, 0
	names := make([]string, sessions)
	for k := range names {
		names[k] = fmt.Sprintf("%08x-1234-7abc-9def-%012x", uint32(k)*2654435761, k)
	}
	before := processor(b)
	for b.Loop() {
		for k := range batch {
			at = at.Add(50 * time.Microsecond)
			session := names[n%sessions]
			batch[k] = recorder.Interaction{ID: fmt.Sprintf("%s/m%d.%d", session, n/sessions, at.UnixMicro()), Time: at, Kind: recorder.Message, Namespace: "default",
				Session: session, RequestID: strconv.Itoa(n / sessions), Principal: "token:admin", Status: recorder.OK, Request: strings.Repeat("x", 256), RequestBytes: 256}
			if n%2 == 1 {
				batch[k].Kind, batch[k].Request, batch[k].Response = recorder.Answer, "", "done"
			}
			n++
		}
		if _, err := s.Write(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((processor(b)-before).Microseconds())/float64(n), "cpu-us/record")
}

// processor is the processor time of this process.
func processor(tb testing.TB) time.Duration {
	tb.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
