// What is written in blocks is read as if it were rows: against a list in memory, after any writes, repetitions, removals and starts.

package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"hash/fnv"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/recorder/sinktest"
)

func TestHashIsFNV(t *testing.T) {
	for _, text := range []string{"", "a", "session/m1.x", strings.Repeat("漢", 99)} {
		h := fnv.New64a()
		h.Write([]byte(text))
		if hash(text) != h.Sum64() {
			t.Errorf("%q: %x, not %x", text, hash(text), h.Sum64())
		}
	}
}

// model is what a sink should have, in order.
type model []recorder.Interaction

func (m *model) write(batch []recorder.Interaction) (added int) {
	for _, i := range batch {
		if !slices.ContainsFunc(*m, func(o recorder.Interaction) bool { return o.ID == i.ID }) {
			*m = append(*m, i)
			added++
		}
	}
	slices.SortFunc(*m, func(a, b recorder.Interaction) int {
		if c := a.Time.Compare(b.Time); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return added
}

func (m *model) prune(before time.Time) (removed int64) {
	was := len(*m)
	*m = slices.DeleteFunc(*m, func(i recorder.Interaction) bool { return i.Time.Before(before) })
	return int64(was - len(*m))
}

func (m *model) list(q recorder.Query) (all []recorder.Interaction) {
	for _, i := range *m {
		if q.Fits(&i) {
			all = append(all, i)
		}
	}
	if !q.OldestFirst {
		slices.Reverse(all)
	}
	return all
}

// TestBlocksAreLikeRows: also of a file that version 1 began.
func TestBlocksAreLikeRows(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		file := filepath.Join(t.TempDir(), "x.db")
		m := model{}
		// Few times, at every distance: within a block, on both sides of its span, of a minute, of an hour.
		offsets := []time.Duration{0, time.Microsecond, time.Second, 5 * time.Second, 10 * time.Second, 10*time.Second + time.Microsecond, 11 * time.Second, time.Minute, time.Hour}
		at := rapid.Custom(func(rt *rapid.T) time.Time {
			return sinktest.Begin.Add(rapid.SampledFrom(offsets).Draw(rt, "offset") + rapid.SampledFrom(offsets).Draw(rt, "more"))
		})
		some := func(most int) []recorder.Interaction {
			batch := sinktest.Some(rapid.IntRange(1, most).Draw(rt, "count"))
			for n := range batch {
				i := &batch[n]
				i.Time = at.Draw(rt, "time")
				i.ID = fmt.Sprintf("%d-%d", rapid.IntRange(0, 9).Draw(rt, "id"), i.Time.UnixMicro()) // one id has one time
				i.Session, i.Namespace = rapid.SampledFrom([]string{"", "a", "b"}).Draw(rt, "session"), rapid.SampledFrom([]string{"x", "y"}).Draw(rt, "namespace")
			}
			return batch
		}
		if rapid.Bool().Draw(rt, "began in version 1") {
			batch := some(20)
			m.write(batch)
			writeOld(t, file, m)
		}
		quick := func() *Sink { // no power is lost here
			s := open(t, file)
			if _, err := s.write.Exec("PRAGMA synchronous = off"); err != nil {
				rt.Fatal(err)
			}
			return s
		}
		s := quick()
		defer func() { _ = s.Close() }()
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			switch rapid.IntRange(0, 9).Draw(rt, "step") {
			case 0:
				if err := s.Close(); err != nil {
					rt.Fatal(err)
				}
				s = quick()
			case 1:
				before := at.Draw(rt, "before")
				got, err := s.Prune(t.Context(), recorder.Retention{Before: before})
				if want := m.prune(before); err != nil || got != want {
					rt.Fatalf("%d removed, %v; want %d", got, err, want)
				}
			default:
				batch := some(40)
				got, err := s.Write(t.Context(), batch)
				if want := m.write(batch); err != nil || got != want {
					rt.Fatalf("%d added, %v; want %d", got, err, want)
				}
			}
			q := recorder.Query{OldestFirst: rapid.Bool().Draw(rt, "oldest first"), Limit: rapid.SampledFrom([]int{1, 3, 1000}).Draw(rt, "limit"),
				Session: rapid.SampledFrom([]string{"", "a", "c"}).Draw(rt, "of session"), Namespace: rapid.SampledFrom([]string{"", "x"}).Draw(rt, "of namespace")}
			if rapid.Bool().Draw(rt, "bounded") {
				q.Since, q.Until = at.Draw(rt, "since"), at.Draw(rt, "until")
			}
			if got, want := sinktest.All(t, s, q), m.list(q); !slices.Equal(got, want) {
				rt.Fatalf("%+v\ngot  %s\nwant %s", q, ids(got), ids(want))
			}
		}
	})
}

func ids(all []recorder.Interaction) (text string) {
	for _, i := range all {
		text += " " + i.ID
	}
	return text
}

// oldSchema is that of version 1.
const oldSchema = `PRAGMA journal_mode = wal;
CREATE TABLE interactions (
  id TEXT NOT NULL PRIMARY KEY,
  time INTEGER NOT NULL, -- Unix microseconds
  kind TEXT NOT NULL, namespace TEXT NOT NULL, session TEXT NOT NULL, epoch INTEGER NOT NULL,
  client TEXT NOT NULL, request_id TEXT NOT NULL, principal TEXT NOT NULL, tool TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
  tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, cost_micros INTEGER NOT NULL, latency_micros INTEGER NOT NULL,
  status TEXT NOT NULL, code TEXT NOT NULL, error TEXT NOT NULL, request TEXT NOT NULL, response TEXT NOT NULL,
  request_bytes INTEGER NOT NULL, response_bytes INTEGER NOT NULL, request_truncated INTEGER NOT NULL, response_truncated INTEGER NOT NULL,
  redactions INTEGER NOT NULL
);
CREATE INDEX interactions_time ON interactions (time, id);
CREATE INDEX interactions_namespace ON interactions (namespace, time, id);
CREATE INDEX interactions_session ON interactions (session, time, id) WHERE session <> '';
PRAGMA user_version = 1;`

// writeOld makes a file as version 1 did.
func writeOld(t *testing.T, file string, all []recorder.Interaction) {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(oldSchema); err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if _, err := db.Exec("INSERT INTO interactions VALUES (?"+strings.Repeat(", ?", 25)+")", i.ID, i.Time.UnixMicro(), string(i.Kind), i.Namespace, i.Session, int64(i.Epoch), i.Client,
			i.RequestID, i.Principal, i.Tool, i.Provider, i.Model, i.TokensIn, i.TokensOut, i.CostMicros, i.Latency.Microseconds(), string(i.Status), i.Code, i.Error,
			i.Request, i.Response, i.RequestBytes, i.ResponseBytes, i.RequestTruncated, i.ResponseTruncated, i.Redactions); err != nil {
			t.Fatal(err)
		}
	}
}

// TestVersionOneFades: its table is gone once it is empty, and nothing else is.
func TestVersionOneFades(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.db")
	all := sinktest.Some(40)
	writeOld(t, file, all[:20])
	s := open(t, file)
	if added, err := s.Write(t.Context(), all[10:]); err != nil || added != 20 {
		t.Fatalf("%d added, %v", added, err)
	}
	if got := sinktest.All(t, s, recorder.Query{OldestFirst: true, Limit: 7}); !slices.Equal(got, all) {
		t.Fatalf("got %s", ids(got))
	}
	if n, err := s.Prune(t.Context(), recorder.Retention{Before: all[25].Time}); err != nil || n != 25 {
		t.Fatalf("%d removed, %v", n, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, file)
	defer s.Close()
	var tables int
	if err := s.read.QueryRow("SELECT count(*) FROM sqlite_schema WHERE name = 'interactions'").Scan(&tables); err != nil || tables != 0 {
		t.Errorf("%d tables of version 1 are left, %v", tables, err)
	}
	if got := sinktest.All(t, s, recorder.Query{OldestFirst: true}); !slices.Equal(got, all[25:]) {
		t.Errorf("got %s", ids(got))
	}
}

// TestAnyProgramReadsTheFile: by the view.
func TestAnyProgramReadsTheFile(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "x.db"))
	defer s.Close()
	all := sinktest.Some(50)
	if _, err := s.Write(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	var n int
	var request string
	err := s.read.QueryRowContext(context.Background(), "SELECT count(*), max(request) FROM records WHERE session = 's-2' AND kind = 'message' AND time > '2026-03-01T12:00:05'").Scan(&n, &request)
	want := 0
	for k, i := range all {
		if k >= 5 && i.Session == "s-2" && i.Kind == recorder.Message {
			want++
		}
	}
	if err != nil || n != want || request != all[0].Request {
		t.Errorf("%d, %q, %v; want %d", n, request, err, want)
	}
}
