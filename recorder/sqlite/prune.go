// Retention: the oldest blocks go, and of the one across the bound a part.

package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"

	"github.com/neolith/orchestrator/recorder"
)

const (
	// pruneBlocks and pruneRows are how many blocks, and rows of version 1, are removed in one transaction: writers wait for it.
	pruneBlocks = 64
	pruneRows   = 2000
)

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
		if err := s.tidy(ctx); err != nil {
			return removed, fmt.Errorf("recorder: prune %s: %w", s.file, err)
		}
	}
	return removed, nil
}

// prune removes a few interactions, none when nothing is too old or too much.
func (s *Sink) prune(ctx context.Context, keep recorder.Retention) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recent = recent{} // it may have what goes
	if keep.MaxBytes > 0 {
		used, err := s.used(ctx)
		if err != nil {
			return 0, err
		}
		if used > keep.MaxBytes {
			n, err := s.pruneOld(ctx, math.MaxInt64, s.few(ctx, "interactions", pruneRows))
			if n > 0 || err != nil {
				return n, err
			}
			return s.drop(ctx, "1", s.few(ctx, "batches", pruneBlocks))
		}
	}
	if keep.Before.IsZero() {
		return 0, nil
	}
	before := keep.Before.UnixMicro()
	n, err := s.pruneOld(ctx, before, pruneRows)
	if n > 0 || err != nil {
		return n, err
	}
	if n, err = s.drop(ctx, "first < ?1 AND last < ?1", pruneBlocks, before); n > 0 || err != nil {
		return n, err
	}
	return s.cut(ctx, before)
}

// few is how many rows of a table go at once for the bound in bytes: few of few, so that not much more goes than has to.
func (s *Sink) few(ctx context.Context, table string, most int) int {
	var rows int
	if err := s.write.QueryRowContext(ctx, fmt.Sprintf("SELECT count(*) FROM (SELECT 1 FROM %s LIMIT %d)", table, 20*most)).Scan(&rows); err != nil {
		return 1
	}
	return max(rows/20, 1)
}

// drop removes the oldest blocks that fit a condition, and returns how many interactions they had.
func (s *Sink) drop(ctx context.Context, where string, limit int, args ...any) (removed int64, err error) {
	rows, err := s.write.QueryContext(ctx, fmt.Sprintf("DELETE FROM batches WHERE number IN (SELECT number FROM batches WHERE %s ORDER BY first LIMIT %d) RETURNING count", where, limit), args...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var n int64
		if err := rows.Scan(&n); err != nil {
			return removed, err
		}
		removed += n
	}
	return removed, rows.Err()
}

// cut removes the beginning of one block across a time.
func (s *Sink) cut(ctx context.Context, before int64) (int64, error) {
	var number int64
	var b, text []byte
	err := s.write.QueryRowContext(ctx, "SELECT number, marks, interactions FROM batches WHERE first < ?1 AND last >= ?1 LIMIT 1", before).Scan(&number, &b, &text)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	marks, err := parseMarks(b)
	if err != nil {
		return 0, err
	}
	n := 0
	for n < len(marks)-1 && marks[n].at < before {
		n++
	}
	if n == 0 {
		return 0, errBlock // its columns say otherwise
	}
	marks, text, err = cutFront(marks, text, n)
	if err != nil {
		return 0, err
	}
	_, err = s.write.ExecContext(ctx, "UPDATE batches SET first = ?, count = ?, marks = ?, interactions = ? WHERE number = ?", marks[0].at, len(marks), appendMarks(nil, marks), string(text), number)
	return int64(n), err
}

// tidy forgets the minutes of which nothing is left, and gives back pages.
func (s *Sink) tidy(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.write.ExecContext(ctx, "DELETE FROM minutes WHERE minute < coalesce((SELECT min(first) FROM batches), ?) / ?", int64(math.MaxInt64), microsPerMinute); err != nil {
		return err
	}
	_, err := s.write.ExecContext(ctx, "PRAGMA incremental_vacuum")
	return err
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
