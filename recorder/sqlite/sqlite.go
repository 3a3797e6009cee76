// Package sqlite keeps interactions in a file: the sink that needs nobody else.
//
// The file is in WAL mode, and a batch is durable when Write returns, so what the recorder has confirmed survives a loss of power. One connection
// writes; readers have others, and neither waits for the other. What is removed gives its pages back to the file system.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"modernc.org/sqlite" // registers the driver

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder"
)

const (
	schemaVersion = 1
	readersMax    = 4
	// pruneRows is how many rows are removed in one transaction: writers wait for it.
	pruneRows = 2000
	// rowsAtOnce is how many rows a statement inserts, where there are so many: the work around a statement is as much as that for a few rows.
	rowsAtOnce = 16
	// checkpointPages is after how many pages the journal is copied into the database: pages of indexes are written again and again, and so copied once.
	checkpointPages = 8000
	// journalBytesMax bounds the file of the journal between checkpoints.
	journalBytesMax = 64 << 20
)

const schema = `
CREATE TABLE IF NOT EXISTS interactions (
  id TEXT NOT NULL PRIMARY KEY,
  time INTEGER NOT NULL, -- Unix microseconds
  kind TEXT NOT NULL, namespace TEXT NOT NULL, session TEXT NOT NULL, epoch INTEGER NOT NULL,
  client TEXT NOT NULL, request_id TEXT NOT NULL, principal TEXT NOT NULL, tool TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
  tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, cost_micros INTEGER NOT NULL, latency_micros INTEGER NOT NULL,
  status TEXT NOT NULL, code TEXT NOT NULL, error TEXT NOT NULL, request TEXT NOT NULL, response TEXT NOT NULL,
  request_bytes INTEGER NOT NULL, response_bytes INTEGER NOT NULL, request_truncated INTEGER NOT NULL, response_truncated INTEGER NOT NULL,
  redactions INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS interactions_time ON interactions (time, id);
CREATE INDEX IF NOT EXISTS interactions_namespace ON interactions (namespace, time, id);
CREATE INDEX IF NOT EXISTS interactions_session ON interactions (session, time, id) WHERE session <> '';
`

const columns = `id, time, kind, namespace, session, epoch, client, request_id, principal, tool, provider, model, tokens_in, tokens_out, cost_micros, latency_micros,
 status, code, error, request, response, request_bytes, response_bytes, request_truncated, response_truncated, redactions`

// Sink is an open database. It implements recorder.Sink.
type Sink struct {
	file               string
	write              *sql.DB // of one connection
	read               *sql.DB
	insert, insertMany *sql.Stmt // of one row, and of rowsAtOnce
}

// Open opens a database, which is made when it is not there (mode 0600, its directory 0700). One that is damaged, or that a newer build wrote, is
// refused with FailedPrecondition.
func Open(ctx context.Context, file string) (*Sink, error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, fmt.Errorf("recorder: open %s: %w", file, err)
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600) // SQLite would let others read it
	if err != nil {
		return nil, fmt.Errorf("recorder: open %s: %w", file, err)
	}
	f.Close()
	s := &Sink{file: file}
	if err := s.open(ctx); err != nil {
		_ = s.Close() // the first error counts
		if damaged(err) {
			return nil, fault.New(fault.FailedPrecondition, "recorder: %s is damaged or no database; move it away, and a new one is begun: %w", file, err)
		}
		return nil, err
	}
	return s, nil
}

func (s *Sink) open(ctx context.Context) (err error) {
	// Every connection of a pool runs these; auto_vacuum counts only while there is no table.
	pragmas := url.Values{"_pragma": {"busy_timeout(10000)", "auto_vacuum(incremental)", "journal_mode(wal)", "synchronous(full)",
		fmt.Sprintf("journal_size_limit(%d)", journalBytesMax), fmt.Sprintf("wal_autocheckpoint(%d)", checkpointPages), "cache_size(-16384)", "temp_store(memory)"}, "_txlock": {"immediate"}}
	if s.write, err = sql.Open("sqlite", "file:"+(&url.URL{Path: s.file}).EscapedPath()+"?"+pragmas.Encode()); err != nil {
		return fmt.Errorf("recorder: open %s: %w", s.file, err)
	}
	s.write.SetMaxOpenConns(1)
	var version int
	if err := s.write.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return fmt.Errorf("recorder: open %s: %w", s.file, err)
	}
	if version > schemaVersion {
		return fault.New(fault.FailedPrecondition, "recorder: %s is of version %d and this build knows version %d; start the build that wrote it", s.file, version, schemaVersion)
	}
	if _, err := s.write.ExecContext(ctx, schema+fmt.Sprintf("PRAGMA user_version = %d;", schemaVersion)); err != nil {
		return fmt.Errorf("recorder: open %s: make the tables: %w", s.file, err)
	}
	row := "(?" + strings.Repeat(", ?", strings.Count(columns, ",")) + ")"
	for _, p := range []struct {
		rows int
		into **sql.Stmt
	}{{1, &s.insert}, {rowsAtOnce, &s.insertMany}} {
		insert := "INSERT INTO interactions (" + columns + ") VALUES " + row + strings.Repeat(", "+row, p.rows-1) + " ON CONFLICT (id) DO NOTHING"
		if *p.into, err = s.write.PrepareContext(ctx, insert); err != nil {
			return fmt.Errorf("recorder: open %s: %w", s.file, err)
		}
	}
	readOnly := url.Values{"_pragma": {"busy_timeout(10000)", "query_only(1)"}}
	if s.read, err = sql.Open("sqlite", "file:"+(&url.URL{Path: s.file}).EscapedPath()+"?"+readOnly.Encode()); err != nil {
		return fmt.Errorf("recorder: open %s: %w", s.file, err)
	}
	s.read.SetMaxOpenConns(readersMax)
	return nil
}

// Write implements recorder.Sink.
func (s *Sink) Write(ctx context.Context, batch []recorder.Interaction) (added int, err error) {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("recorder: write to %s: %w", s.file, err)
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback() // it may have been rolled back already
		}
	}()
	// A context that can end costs a goroutine for each statement; they are short, and it is looked at between them.
	calm := context.WithoutCancel(ctx)
	one, many := tx.StmtContext(calm, s.insert), tx.StmtContext(calm, s.insertMany)
	defer one.Close()
	defer many.Close()
	args := make([]any, 0, rowsAtOnce*(strings.Count(columns, ",")+1))
	for len(batch) > 0 {
		if err := ctx.Err(); err != nil {
			return 0, fmt.Errorf("recorder: write to %s: %w", s.file, err)
		}
		insert, n := one, 1
		if len(batch) >= rowsAtOnce {
			insert, n = many, rowsAtOnce
		}
		args = args[:0]
		for k := range n {
			i := &batch[k]
			args = append(args, i.ID, i.Time.UnixMicro(), string(i.Kind), i.Namespace, i.Session, int64(i.Epoch), i.Client, i.RequestID, i.Principal,
				i.Tool, i.Provider, i.Model, i.TokensIn, i.TokensOut, i.CostMicros, i.Latency.Microseconds(), string(i.Status), i.Code, i.Error, i.Request,
				i.Response, i.RequestBytes, i.ResponseBytes, i.RequestTruncated, i.ResponseTruncated, i.Redactions)
		}
		res, err := insert.ExecContext(calm, args...)
		if err != nil {
			return 0, s.writeError(err)
		}
		rows, err := res.RowsAffected()
		if err != nil {
			return 0, s.writeError(err)
		}
		added, batch = added+int(rows), batch[n:]
	}
	if err := tx.Commit(); err != nil {
		return 0, s.writeError(err)
	}
	return added, nil
}

// SQLite's result codes, as far as anybody decides on them.
const (
	codeTooBig     = 18
	codeConstraint = 19
	codeCorrupt    = 11
	codeNotADB     = 26
)

// code returns SQLite's primary result code, 0 when the error is none of SQLite's.
func code(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

func damaged(err error) bool { c := code(err); return c == codeCorrupt || c == codeNotADB }

func (s *Sink) writeError(err error) error {
	if c := code(err); c == codeTooBig || c == codeConstraint {
		return fault.New(fault.Invalid, "recorder: write to %s: %w", s.file, err)
	}
	return fmt.Errorf("recorder: write to %s: %w", s.file, err)
}

// List implements recorder.Sink.
func (s *Sink) List(ctx context.Context, q recorder.Query) (page []recorder.Interaction, next string, err error) {
	where, args, err := q.SQL(func(int) string { return "?" }, func(t time.Time) any { return t.UnixMicro() })
	if err != nil {
		return nil, "", err
	}
	rows, err := s.read.QueryContext(ctx, "SELECT "+columns+" FROM interactions"+where, args...)
	if err != nil {
		return nil, "", fmt.Errorf("recorder: list from %s: %w", s.file, err)
	}
	defer rows.Close()
	var all []recorder.Interaction
	for rows.Next() {
		var i recorder.Interaction
		var at, epoch, latency int64
		if err := rows.Scan(&i.ID, &at, &i.Kind, &i.Namespace, &i.Session, &epoch, &i.Client, &i.RequestID, &i.Principal, &i.Tool, &i.Provider, &i.Model, &i.TokensIn,
			&i.TokensOut, &i.CostMicros, &latency, &i.Status, &i.Code, &i.Error, &i.Request, &i.Response, &i.RequestBytes, &i.ResponseBytes,
			&i.RequestTruncated, &i.ResponseTruncated, &i.Redactions); err != nil {
			return nil, "", fmt.Errorf("recorder: list from %s: %w", s.file, err)
		}
		i.Time, i.Epoch, i.Latency = time.UnixMicro(at).UTC(), uint64(epoch), time.Duration(latency)*time.Microsecond
		if all = append(all, i); q.Enough(&i) {
			break
		}
	}
	if err := rows.Err(); err != nil {
		return nil, "", fmt.Errorf("recorder: list from %s: %w", s.file, err)
	}
	page, next = q.Cut(all)
	return page, next, nil
}

// Prune implements recorder.Sink.
func (s *Sink) Prune(ctx context.Context, keep recorder.Retention) (removed int64, err error) {
	for {
		n, err := s.prune(ctx, keep)
		removed += n
		if err != nil {
			return removed, fmt.Errorf("recorder: prune %s: %w", s.file, err)
		}
		if n == 0 {
			break
		}
	}
	if removed > 0 { // a no-op would still cost a write
		if _, err := s.write.ExecContext(ctx, "PRAGMA incremental_vacuum"); err != nil {
			return removed, fmt.Errorf("recorder: prune %s: %w", s.file, err)
		}
	}
	return removed, nil
}

// prune removes a few rows, none when nothing is too old or too much.
func (s *Sink) prune(ctx context.Context, keep recorder.Retention) (int64, error) {
	before := int64(-1 << 62)
	if !keep.Before.IsZero() {
		before = keep.Before.UnixMicro()
	}
	if keep.MaxBytes > 0 {
		used, err := s.used(ctx)
		if err != nil {
			return 0, err
		}
		if used > keep.MaxBytes {
			before = 1 << 62
		}
	}
	res, err := s.write.ExecContext(ctx, "DELETE FROM interactions WHERE rowid IN (SELECT rowid FROM interactions WHERE time < ? ORDER BY time, id LIMIT ?)", before, s.pruneStep(ctx, keep, before))
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// pruneStep is how many rows go at once: few of few, so that not much more goes than has to.
func (s *Sink) pruneStep(ctx context.Context, keep recorder.Retention, before int64) int64 {
	if keep.MaxBytes == 0 || before < 1<<62 {
		return pruneRows
	}
	var rows int64
	if err := s.read.QueryRowContext(ctx, "SELECT count(*) FROM (SELECT 1 FROM interactions LIMIT ?)", 20*pruneRows).Scan(&rows); err != nil {
		return 1
	}
	return max(rows/20, 1)
}

// used returns the bytes of the database that are in use.
func (s *Sink) used(ctx context.Context) (int64, error) {
	var pages, free, size int64
	for _, p := range []struct {
		pragma string
		into   *int64
	}{{"page_count", &pages}, {"freelist_count", &free}, {"page_size", &size}} {
		if err := s.write.QueryRowContext(ctx, "PRAGMA "+p.pragma).Scan(p.into); err != nil {
			return 0, err
		}
	}
	return (pages - free) * size, nil
}

// Close implements recorder.Sink.
func (s *Sink) Close() error {
	var errs []error
	for _, st := range []*sql.Stmt{s.insert, s.insertMany} {
		if st != nil {
			errs = append(errs, st.Close())
		}
	}
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("recorder: close %s: %w", s.file, err)
	}
	return nil
}
