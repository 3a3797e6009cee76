// Writing: interactions become blocks, of which each holds what no other one has.

package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"github.com/neolith/orchestrator/recorder"
)

const (
	microsPerMinute = 60_000_000
	// recentBlocksMax and recentMinutesMax bound what is remembered of what was written last.
	recentBlocksMax  = 32
	recentMinutesMax = 16 << 10

	ofSession, ofNamespace = "s", "n"
)

// recent is what Write would else read again and again; each part may be forgotten at any time.
type recent struct {
	numbers []int64 // of blocks, the oldest first
	marks   map[int64][]mark
	minutes map[minuteKey]struct{} // that are in the table
}

// minuteKey is a row of the table minutes.
type minuteKey struct {
	kind, name string
	minute     int64
}

func (r *recent) block(number int64, marks []mark) {
	if r.marks == nil {
		r.marks = map[int64][]mark{}
	}
	if len(r.numbers) == recentBlocksMax {
		delete(r.marks, r.numbers[0])
		r.numbers = r.numbers[1:]
	}
	r.numbers = append(r.numbers, number)
	r.marks[number] = marks
}

// writing is one Write under way.
type writing struct {
	s   *Sink
	ctx context.Context // of the statements
	tx  *sql.Tx

	insert, overlapping, marks, text, minute, oldID *sql.Stmt
}

// Write implements recorder.Sink.
func (s *Sink) Write(ctx context.Context, batch []recorder.Interaction) (added int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("recorder: write to %s: %w", s.file, err)
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback() // it may have been rolled back already
			s.recent = recent{}
		}
	}()
	// A context that can end costs a goroutine for each statement; they are short, and it is looked at between them.
	w := &writing{s: s, ctx: context.WithoutCancel(ctx), tx: tx}
	defer w.close()
	for _, p := range w.statements() {
		if *p.of != nil {
			*p.into = tx.StmtContext(w.ctx, *p.of)
		}
	}
	for all := inOrder(batch); len(all) > 0; {
		if err := ctx.Err(); err != nil {
			return 0, fmt.Errorf("recorder: write to %s: %w", s.file, err)
		}
		n := blockLength(all)
		fresh, err := w.fresh(all[:n:n])
		if err == nil && len(fresh) > 0 {
			err = w.block(fresh)
		}
		if err != nil {
			return 0, s.writeError(err)
		}
		added, all = added+len(fresh), all[n:]
	}
	if err := tx.Commit(); err != nil {
		return 0, s.writeError(err)
	}
	return added, nil
}

// statements are those of the transaction, and what they are made of.
func (w *writing) statements() [6]struct{ into, of **sql.Stmt } {
	return [...]struct{ into, of **sql.Stmt }{
		{&w.insert, &w.s.insert}, {&w.overlapping, &w.s.overlapping}, {&w.marks, &w.s.marks}, {&w.text, &w.s.text}, {&w.minute, &w.s.minute}, {&w.oldID, &w.s.oldID},
	}
}

func (w *writing) close() {
	for _, p := range w.statements() {
		if *p.into != nil {
			_ = (*p.into).Close() // the transaction has ended
		}
	}
}

// block writes interactions that are in order, and new.
func (w *writing) block(all []keyed) error {
	marks, text := newBlock(all)
	var number int64
	err := w.insert.QueryRowContext(w.ctx, all[0].at, all[len(all)-1].at, len(all), appendMarks(make([]byte, 0, len(marks)*markBytes), marks), string(text)).Scan(&number)
	if err != nil {
		return err
	}
	w.s.recent.block(number, marks)
	last := minuteKey{} // mostly many of one namespace follow each other
	for _, k := range all {
		at := floorMinute(k.at)
		if k.i.Namespace != last.name || at != last.minute {
			last = minuteKey{ofNamespace, k.i.Namespace, at}
			if err := w.note(last); err != nil {
				return err
			}
		}
		if k.i.Session != "" {
			if err := w.note(minuteKey{ofSession, k.i.Session, at}); err != nil {
				return err
			}
		}
	}
	return nil
}

// floorMinute returns the minute of a time, which may be before 1970.
func floorMinute(micros int64) int64 {
	m := micros / microsPerMinute
	if m*microsPerMinute > micros {
		m--
	}
	return m
}

// note makes sure that a minute is in the table.
func (w *writing) note(k minuteKey) error {
	r := &w.s.recent
	if _, ok := r.minutes[k]; ok {
		return nil
	}
	if _, err := w.minute.ExecContext(w.ctx, k.kind, k.name, k.minute); err != nil {
		return err
	}
	if r.minutes == nil || len(r.minutes) >= recentMinutesMax {
		r.minutes = map[minuteKey]struct{}{}
	}
	k.name = strings.Clone(k.name) // it is a part of a whole record
	r.minutes[k] = struct{}{}
	return nil
}

// fresh leaves out, of interactions that become one block, those that are there. Who records something again gives it the same time, so only blocks
// of that time are looked through.
func (w *writing) fresh(all []keyed) ([]keyed, error) {
	first, last := all[0].at, all[len(all)-1].at
	numbers, err := w.numbers(first, last)
	if err != nil {
		return nil, err
	}
	gone := map[string]bool{}
	var mine map[uint64]bool // hashes of ids
	for _, number := range numbers {
		marks, err := w.marksOf(number)
		if err != nil {
			return nil, err
		}
		var text []byte // read when there is a reason to
		from, _ := slices.BinarySearchFunc(marks, first, func(m mark, at int64) int { return cmp.Compare(m.at, at) })
		for n := from; n < len(marks) && marks[n].at <= last; n++ {
			if mine == nil {
				mine = make(map[uint64]bool, len(all))
				for _, k := range all {
					mine[hash(k.i.ID)] = true
				}
			}
			if !mine[marks[n].id] {
				continue
			}
			if text == nil {
				if err := w.text.QueryRowContext(w.ctx, number).Scan(&text); err != nil {
					return nil, err
				}
			}
			i, err := decode(marks, text, n)
			if err != nil {
				return nil, err
			}
			gone[i.ID] = true
		}
	}
	if err := w.fromOld(all, gone); err != nil {
		return nil, err
	}
	if len(gone) == 0 {
		return all, nil
	}
	return slices.DeleteFunc(all, func(k keyed) bool { return gone[k.i.ID] }), nil
}

// numbers are those of the blocks that may hold interactions of a time.
func (w *writing) numbers(first, last int64) ([]int64, error) {
	rows, err := w.overlapping.QueryContext(w.ctx, first-spanMicros, last, first)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []int64
	for rows.Next() {
		var n int64
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, rows.Err()
}

func (w *writing) marksOf(number int64) ([]mark, error) {
	if m := w.s.recent.marks[number]; m != nil {
		return m, nil
	}
	var b []byte
	if err := w.marks.QueryRowContext(w.ctx, number).Scan(&b); err != nil {
		return nil, err
	}
	m, err := parseMarks(b)
	if err == nil {
		w.s.recent.block(number, m)
	}
	return m, err
}
