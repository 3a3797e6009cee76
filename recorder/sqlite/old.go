// What version 1 left: a table with a row for each interaction. It is read until retention has emptied it, and written no more.

package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/neolith/orchestrator/recorder"
)

const oldColumns = `id, time, kind, namespace, session, epoch, client, request_id, principal, tool, provider, model, tokens_in, tokens_out, cost_micros, latency_micros,
 status, code, error, request, response, request_bytes, response_bytes, request_truncated, response_truncated, redactions`

// openOld looks whether there is a table of version 1, and drops one that is empty.
func (s *Sink) openOld(ctx context.Context) error {
	fail := func(err error) error { return fmt.Errorf("recorder: open %s: %w", s.file, err) }
	var tables int
	if err := s.write.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'interactions'").Scan(&tables); err != nil {
		return fail(err)
	}
	if tables == 0 {
		return nil
	}
	var last sql.NullInt64
	if err := s.write.QueryRowContext(ctx, "SELECT max(time) FROM interactions").Scan(&last); err != nil {
		return fail(err)
	}
	if !last.Valid {
		if _, err := s.write.ExecContext(ctx, "DROP TABLE interactions"); err != nil {
			return fail(err)
		}
		return nil
	}
	var err error
	if s.oldID, err = s.write.PrepareContext(ctx, "SELECT 1 FROM interactions WHERE id = ?"); err != nil {
		return fail(err)
	}
	s.old, s.oldLast = true, last.Int64
	return nil
}

// fromOld adds the ids that the table of version 1 has.
func (w *writing) fromOld(all []keyed, gone map[string]bool) error {
	if !w.s.old {
		return nil
	}
	for _, k := range all {
		if k.at > w.s.oldLast {
			return nil
		}
		var one int
		switch err := w.oldID.QueryRowContext(w.ctx, k.i.ID).Scan(&one); {
		case err == nil:
			gone[k.i.ID] = true
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
	}
	return nil
}

// addOld adds to a page what the table of version 1 has of it.
func (s *Sink) addOld(ctx context.Context, tx *sql.Tx, p *page) error {
	if !s.old {
		return nil
	}
	q := p.q
	where, args, err := q.SQL(func(int) string { return "?" }, func(t time.Time) any { return t.UnixMicro() })
	if err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, "SELECT "+oldColumns+" FROM interactions"+where, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var i recorder.Interaction
		var at, epoch, latency int64
		if err := rows.Scan(&i.ID, &at, &i.Kind, &i.Namespace, &i.Session, &epoch, &i.Client, &i.RequestID, &i.Principal, &i.Tool, &i.Provider, &i.Model, &i.TokensIn,
			&i.TokensOut, &i.CostMicros, &latency, &i.Status, &i.Code, &i.Error, &i.Request, &i.Response, &i.RequestBytes, &i.ResponseBytes,
			&i.RequestTruncated, &i.ResponseTruncated, &i.Redactions); err != nil {
			return err
		}
		i.Time, i.Epoch, i.Latency = time.UnixMicro(at).UTC(), uint64(epoch), time.Duration(latency)*time.Microsecond
		p.rows = append(p.rows, i)
		if q.Enough(&i) {
			break
		}
	}
	p.settle()
	return rows.Err()
}

// pruneOld removes a few rows of version 1, the oldest first: those before a time.
func (s *Sink) pruneOld(ctx context.Context, before int64, limit int) (int64, error) {
	if !s.old {
		return 0, nil
	}
	res, err := s.write.ExecContext(ctx, "DELETE FROM interactions WHERE rowid IN (SELECT rowid FROM interactions WHERE time < ? ORDER BY time, id LIMIT ?)", before, limit)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}
