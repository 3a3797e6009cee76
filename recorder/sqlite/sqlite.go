// Package sqlite keeps interactions in a file: the sink that needs nobody else.
//
// A row of the table batches holds many interactions, as JSON in the order of their times, and beside that a mark of each to find it by: what is
// recorded is written all the time and seldom read, and a row and its place in four indexes cost ten times as much. For those who look into the
// file with other programs, the view records has a row for each.
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
	"sync"

	"modernc.org/sqlite" // registers the driver

	"github.com/neolith/orchestrator/internal/fault"
)

const (
	schemaVersion = 2 // 1 had a row for each interaction; see old.go
	readersMax    = 4
	// pageBytes is of a new file: what is written is mostly large.
	pageBytes = 8 << 10
	// checkpointBytes is after how much the journal is copied into the database.
	checkpointBytes = 32 << 20
	// journalBytesMax bounds the file of the journal between checkpoints.
	journalBytesMax = 64 << 20
)

// schema: marks has, for each interaction, its time (8 bytes, Unix microseconds), the hash of its id (8), the lower halves of those of its session and
// namespace (4 each), and where its JSON ends (4), all little-endian; the hash is FNV-1a of 64 bits. minutes has in which minutes, since 1970, there
// is anything of a session (kind s) or a namespace (kind n).
const schema = `
CREATE TABLE IF NOT EXISTS batches (
  number INTEGER PRIMARY KEY,
  first INTEGER NOT NULL, last INTEGER NOT NULL, -- times, Unix microseconds
  count INTEGER NOT NULL,
  marks BLOB NOT NULL,
  interactions TEXT NOT NULL -- a JSON array
);
CREATE INDEX IF NOT EXISTS batches_first ON batches (first, number, last);
CREATE TABLE IF NOT EXISTS minutes (kind TEXT NOT NULL, name TEXT NOT NULL, minute INTEGER NOT NULL, PRIMARY KEY (kind, name, minute)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS minutes_minute ON minutes (minute);
CREATE VIEW IF NOT EXISTS records AS SELECT
  value->>'id' AS id, value->>'time' AS time, value->>'kind' AS kind, value->>'namespace' AS namespace, value->>'session' AS session, value->>'epoch' AS epoch,
  value->>'client' AS client, value->>'requestId' AS request_id, value->>'principal' AS principal, value->>'tool' AS tool, value->>'provider' AS provider,
  value->>'model' AS model, value->>'tokensIn' AS tokens_in, value->>'tokensOut' AS tokens_out, value->>'costMicros' AS cost_micros,
  value->>'latencyNanos' AS latency_nanos, value->>'status' AS status, value->>'code' AS code, value->>'error' AS error, value->>'request' AS request,
  value->>'response' AS response FROM batches, json_each(batches.interactions);
`

// Sink is an open database. It implements recorder.Sink.
type Sink struct {
	file  string
	write *sql.DB // of one connection
	read  *sql.DB
	// Statements of the connection that writes.
	insert, overlapping, marks, text, minute, oldID *sql.Stmt
	old                                             bool // there is a table of version 1

	mu     sync.Mutex
	recent recent // of what was written last
	// oldLast is the time of the last interaction of version 1.
	oldLast int64
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
	// Every connection of a pool runs these; page_size and auto_vacuum count only while there is no table.
	pragmas := url.Values{"_pragma": {"busy_timeout(10000)", fmt.Sprintf("page_size(%d)", pageBytes), "auto_vacuum(incremental)", "journal_mode(wal)", "synchronous(full)",
		fmt.Sprintf("journal_size_limit(%d)", journalBytesMax), "cache_size(-16384)", "temp_store(memory)"}, "_txlock": {"immediate"}}
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
	if err := s.openOld(ctx); err != nil {
		return err
	}
	// The size of pages is the file's, of whichever version made it.
	if _, err := s.write.ExecContext(ctx, fmt.Sprintf("PRAGMA wal_autocheckpoint = %d", checkpointBytes/s.pageBytes(ctx))); err != nil {
		return fmt.Errorf("recorder: open %s: %w", s.file, err)
	}
	if err := s.prepare(ctx); err != nil {
		return err
	}
	readOnly := url.Values{"_pragma": {"busy_timeout(10000)", "query_only(1)"}}
	if s.read, err = sql.Open("sqlite", "file:"+(&url.URL{Path: s.file}).EscapedPath()+"?"+readOnly.Encode()); err != nil {
		return fmt.Errorf("recorder: open %s: %w", s.file, err)
	}
	s.read.SetMaxOpenConns(readersMax)
	return nil
}

// pageBytes returns the size of the file's pages.
func (s *Sink) pageBytes(ctx context.Context) (n int64) {
	if err := s.write.QueryRowContext(ctx, "PRAGMA page_size").Scan(&n); err != nil || n <= 0 {
		return pageBytes
	}
	return n
}

// prepare prepares the statements of Write.
func (s *Sink) prepare(ctx context.Context) (err error) {
	for _, p := range []struct {
		into **sql.Stmt
		text string
	}{
		{&s.insert, "INSERT INTO batches (first, last, count, marks, interactions) VALUES (?, ?, ?, ?, ?) RETURNING number"},
		{&s.overlapping, "SELECT number FROM batches WHERE first BETWEEN ? AND ? AND last >= ?"},
		{&s.marks, "SELECT marks FROM batches WHERE number = ?"},
		{&s.text, "SELECT interactions FROM batches WHERE number = ?"},
		{&s.minute, "INSERT INTO minutes (kind, name, minute) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"},
	} {
		if *p.into, err = s.write.PrepareContext(ctx, p.text); err != nil {
			return fmt.Errorf("recorder: open %s: %w", s.file, err)
		}
	}
	return nil
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

// Close implements recorder.Sink.
func (s *Sink) Close() error {
	var errs []error
	for _, st := range []*sql.Stmt{s.insert, s.overlapping, s.marks, s.text, s.minute, s.oldID} {
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
