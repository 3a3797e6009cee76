// What every sink promises, in both protocols; a server that crashes and comes back under load; who may read whose.

package postgres

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/recorder/postgres/postgrestest"
	"github.com/neolith/orchestrator/recorder/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, server *postgrestest.Server) *Sink {
	t.Helper()
	s, err := Open(Options{URL: server.URL(""), Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	server := postgrestest.Start(t)
	sinktest.Run(t, func(t *testing.T) recorder.Sink {
		server.Do("", "DROP SCHEMA IF EXISTS orchestrator CASCADE")
		return open(t, server)
	})
}

// Nothing is prepared, since behind a pooler the next transaction may meet a connection that does not know it; and nothing of a session is
// changed but what poolers hand on.
func TestAPoolerMayBeBetween(t *testing.T) {
	server := postgrestest.Start(t)
	s, err := Open(Options{URL: server.URL(""), MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Write(t.Context(), sinktest.Some(3)); err != nil {
		t.Fatal(err)
	}
	sinktest.All(t, s, recorder.Query{Namespace: "ns-1"})
	for what, query := range map[string]string{
		"prepared statements": "SELECT count(*) FROM pg_prepared_statements",
		"settings":            "SELECT count(*) FROM pg_settings WHERE source = 'session'",
		"locks":               "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
	} {
		var n int
		if err := s.pool.QueryRowContext(t.Context(), query).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d %s, %v", n, what, err)
		}
	}
}

// What goes through the driver comes back as it was, and what breaks says so and leaves a connection that works.
func TestDriver(t *testing.T) {
	server := postgrestest.Start(t)
	s, err := Open(Options{URL: server.URL(""), MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := t.Context()
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)
	var text string
	var number int64
	var yes bool
	var none sql.NullString
	var with, without time.Time
	row := func() error {
		return s.pool.QueryRowContext(ctx, "SELECT $1::text, $2::bigint, $3::boolean, $4::text, $5::timestamptz, ($5::timestamptz AT TIME ZONE 'UTC')", "漢 '$1'", int64(-1<<62), true, nil, at).
			Scan(&text, &number, &yes, &none, &with, &without)
	}
	if err := row(); err != nil || text != "漢 '$1'" || number != -1<<62 || !yes || none.Valid || !with.Equal(at) || !without.Equal(at) {
		t.Errorf("%q %d %v %v %s %s, %v", text, number, yes, none, with, without, err)
	}
	if _, err := s.pool.ExecContext(ctx, "SET timezone = 'Asia/Kathmandu'"); err != nil { // 5:45
		t.Fatal(err)
	}
	if err := row(); err != nil || !with.Equal(at) {
		t.Errorf("%s, %v", with, err)
	}
	if _, err := s.pool.ExecContext(ctx, "SELECT nonsense"); err == nil {
		t.Error("nonsense is accepted")
	}
	tx, err := s.pool.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(ctx, "SELECT 1/0"); err == nil {
		t.Error("1/0")
	}
	if err := tx.Commit(); err == nil {
		t.Error("a transaction that failed was committed")
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := s.pool.ExecContext(short, "SELECT pg_sleep(60)"); err == nil {
		t.Error("a statement outlived its context")
	}
	if err := row(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	server.Stop()
	server.Restart() // the pool's connection is broken, and nobody has noticed
	_ = row()        // which it may tell, for it cannot know what became of the statement
	if err := row(); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// Servers that start together make the tables once.
func TestSeveralServersStartAtOnce(t *testing.T) {
	server := postgrestest.Start(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			s := open(t, server)
			defer s.Close()
			if _, err := s.Write(t.Context(), sinktest.Some(10)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s := open(t, server)
	defer s.Close()
	if got := sinktest.All(t, s, recorder.Query{}); len(got) != 10 {
		t.Fatalf("%d, want each once", len(got))
	}
}

// The database crashes and comes back, again and again, while interactions are recorded: each is there once.
func TestCrashesUnderLoad(t *testing.T) {
	server := postgrestest.Start(t)
	sink := open(t, server)
	defer sink.Close()
	c := recorder.Default()
	c.Spool.Dir, c.Spool.SyncEvery = t.TempDir(), 5*time.Millisecond
	r, err := recorder.Open(recorder.Options{Config: c, Sink: sink})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	const crashes, each = 3, 3000
	record := func(from, to int) {
		for n := from; n < to; n++ {
			if err := r.Record(recorder.Interaction{ID: fmt.Sprintf("%06d", n), Kind: recorder.ToolCall, Namespace: "x", Request: strings.Repeat("x", 500)}); err != nil {
				t.Error(err)
			}
		}
	}
	for n := range crashes {
		record(n*each, n*each+each/2)
		server.Stop() // with batches on their way
		record(n*each+each/2, (n+1)*each)
		if err := r.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		server.Restart()
	}
	if err := r.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	got := sinktest.All(t, sink, recorder.Query{Limit: recorder.PageMax})
	seen := map[string]bool{}
	for _, i := range got {
		seen[i.ID] = true
	}
	if len(got) != crashes*each || len(seen) != len(got) {
		t.Fatalf("%d rows, %d ids, want %d", len(got), len(seen), crashes*each)
	}
}

func TestTenantsReadTheirOwn(t *testing.T) {
	server := postgrestest.Start(t)
	server.Do("", "CREATE ROLE acme LOGIN; CREATE ROLE other LOGIN; CREATE ROLE authenticated NOLOGIN; CREATE ROLE api LOGIN IN ROLE authenticated")
	s := open(t, server)
	defer s.Close()
	if _, err := s.Write(t.Context(), sinktest.Some(10)); err != nil {
		t.Fatal(err)
	}
	server.Do("", "GRANT USAGE ON SCHEMA orchestrator TO acme, other; GRANT SELECT ON orchestrator.interactions TO acme, other; INSERT INTO orchestrator.interaction_readers VALUES ('acme', 'ns-1')")
	namespaces := func(role, before string) string {
		t.Helper()
		c, err := pgx.Connect(t.Context(), server.URL(role))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close(t.Context())
		if before != "" {
			if _, err := c.Exec(t.Context(), before); err != nil {
				t.Fatal(err)
			}
		}
		var all string
		if err := c.QueryRow(t.Context(), "SELECT coalesce(string_agg(DISTINCT namespace, ','), '') FROM orchestrator.interactions").Scan(&all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	claims := `SET ROLE authenticated; SET request.jwt.claims = '{"app_metadata":{"namespace":"ns-0"}}'`
	for _, c := range []struct{ role, before, want string }{
		{"", "", "ns-0,ns-1"},
		{"acme", "", "ns-1"},
		{"other", "", ""},
		{"other", `SET request.jwt.claims = '{"app_metadata":{"namespace":"ns-0"}}'`, ""}, // claims count only for who comes through the service
		{"api", claims, "ns-0"},
		{"api", "SET ROLE authenticated", ""},
	} {
		if got := namespaces(c.role, c.before); got != c.want {
			t.Errorf("%s after %q reads %q, want %q", c.role, c.before, got, c.want)
		}
	}
	for _, forbidden := range []string{"DELETE FROM orchestrator.interactions", "INSERT INTO orchestrator.interaction_readers VALUES ('acme', 'ns-0')", "SELECT * FROM orchestrator.interaction_readers"} {
		if err := server.Try("acme", forbidden); err == nil {
			t.Errorf("acme may: %s", forbidden)
		}
	}
}

// No error shows the password, and a database that is away is no bad one.
func TestBadURLs(t *testing.T) {
	for _, bad := range []string{"postgres://ann:hunter2@host:port/x", "://hunter2"} {
		if _, err := Open(Options{URL: bad}); !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v", err)
		}
	}
	s, err := Open(Options{URL: "postgres://ann:hunter2@127.0.0.1:1/x?sslmode=disable"})
	if err != nil {
		t.Fatal(err) // it is away, and may come back
	}
	defer s.Close()
	if _, err := s.Write(t.Context(), sinktest.Some(1)); err == nil || fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
}

func BenchmarkWrite(b *testing.B) {
	s := open(b, postgrestest.Start(b))
	defer s.Close()
	sinktest.BenchmarkWrite(b, s)
}
