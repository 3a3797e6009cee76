// Reading: blocks by their times, in them interactions by their marks.

package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/neolith/orchestrator/recorder"
)

// headsMax is how many blocks' marks are read at a time.
const headsMax = 16

// page is what List has found so far.
type page struct {
	q    recorder.Query
	rows []recorder.Interaction // in order once settled
	full bool                   // what lies behind the last of rows is not in the page

	from, to   int64 // times that are asked for
	afterAt    int64 // of the cursor
	afterID    string
	hasCursor  bool
	hashes     struct{ session, namespace uint32 }
	descending bool
}

// span is a range of times, both ends in it, Unix microseconds.
type span struct{ from, to int64 }

// head is a block without its interactions.
type head struct {
	number, first int64
	marks         []mark
}

// List implements recorder.Sink.
func (s *Sink) List(ctx context.Context, q recorder.Query) (rows []recorder.Interaction, next string, err error) {
	p, err := newPage(q)
	if err != nil {
		return nil, "", err
	}
	if err := s.list(ctx, p); err != nil {
		return nil, "", fmt.Errorf("recorder: list from %s: %w", s.file, err)
	}
	rows, next = q.Cut(p.rows)
	return rows, next, nil
}

func newPage(q recorder.Query) (*page, error) {
	p := &page{q: q, from: math.MinInt64, to: math.MaxInt64, descending: !q.OldestFirst}
	if !q.Since.IsZero() {
		p.from = q.Since.UnixMicro()
	}
	if !q.Until.IsZero() {
		p.to = q.Until.UnixMicro()
	}
	at, id, ok, err := q.After()
	if err != nil {
		return nil, err
	}
	if ok {
		p.afterAt, p.afterID, p.hasCursor = at.UnixMicro(), id, true
		if p.descending {
			p.to = min(p.to, p.afterAt)
		} else {
			p.from = max(p.from, p.afterAt)
		}
	}
	p.hashes.session, p.hashes.namespace = uint32(hash(q.Session)), uint32(hash(q.Namespace))
	return p, nil
}

// list reads in one transaction: blocks may be removed meanwhile.
func (s *Sink) list(ctx context.Context, p *page) error {
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // it has changed nothing
	if err := s.addOld(ctx, tx, p); err != nil {
		return err
	}
	spans, err := p.spans(ctx, tx)
	if err != nil {
		return err
	}
	for _, r := range spans {
		if done, err := p.scan(ctx, tx, r); done || err != nil {
			return err
		}
	}
	return nil
}

// spans returns where to look, in the page's order, each more than spanMicros from the next one.
func (p *page) spans(ctx context.Context, tx *sql.Tx) ([]span, error) {
	kind, name := ofSession, p.q.Session
	if name == "" {
		kind, name = ofNamespace, p.q.Namespace
	}
	if name == "" {
		return []span{{p.from, p.to}}, nil
	}
	rows, err := tx.QueryContext(ctx, "SELECT minute FROM minutes WHERE kind = ? AND name = ? AND minute BETWEEN ? AND ? ORDER BY minute", kind, name, floorMinute(p.from), floorMinute(p.to))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []span
	for rows.Next() {
		var m int64
		if err := rows.Scan(&m); err != nil {
			return nil, err
		}
		from, to := max(m*microsPerMinute, p.from), min((m+1)*microsPerMinute-1, p.to)
		if n := len(all); n > 0 && all[n-1].to == from-1 {
			all[n-1].to = to
			continue
		}
		all = append(all, span{from, to})
	}
	if p.descending {
		slices.Reverse(all)
	}
	return all, rows.Err()
}

// scan looks through the blocks of a span, and reports whether nothing behind it can be in the page.
func (p *page) scan(ctx context.Context, tx *sql.Tx, r span) (done bool, err error) {
	from := r.from
	if from > math.MinInt64+spanMicros {
		from -= spanMicros
	}
	for at := (head{}); ; {
		heads, err := p.heads(ctx, tx, span{from, r.to}, at)
		if err != nil || len(heads) == 0 {
			return false, err
		}
		for _, h := range heads {
			if p.full && p.beyond(h.first) {
				return true, nil
			}
			if err := p.take(ctx, tx, h); err != nil {
				return false, err
			}
		}
		at = heads[len(heads)-1]
	}
}

// beyond reports whether all of a block that begins so lies behind a page that is full.
func (p *page) beyond(first int64) bool {
	last := p.rows[len(p.rows)-1].Time.UnixMicro()
	if p.descending {
		return first+spanMicros < last
	}
	return first > last
}

// heads returns the next blocks of those that begin within a span, behind one whose number is not 0.
func (p *page) heads(ctx context.Context, tx *sql.Tx, r span, behind head) ([]head, error) {
	where, order := "first BETWEEN ? AND ?", "ASC"
	args := []any{r.from, r.to}
	if p.descending {
		order = "DESC"
	}
	if behind.number != 0 {
		where += " AND (first, number) " + map[bool]string{false: ">", true: "<"}[p.descending] + " (?, ?)"
		args = append(args, behind.first, behind.number)
	}
	rows, err := tx.QueryContext(ctx, fmt.Sprintf("SELECT number, first, marks FROM batches WHERE %s ORDER BY first %s, number %s LIMIT %d", where, order, order, headsMax), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []head
	for rows.Next() {
		var h head
		var b sql.RawBytes
		if err := rows.Scan(&h.number, &h.first, &b); err != nil {
			return nil, err
		}
		if h.marks, err = parseMarks(b); err != nil {
			return nil, err
		}
		all = append(all, h)
	}
	return all, rows.Err()
}

// take adds what a block has of the page.
func (p *page) take(ctx context.Context, tx *sql.Tx, h head) error {
	var text []byte // read when there is a reason to
	own, found := p.q, 0
	for k := range h.marks {
		n := k
		if p.descending {
			n = len(h.marks) - 1 - k
		}
		m := &h.marks[n]
		if m.at < p.from || m.at > p.to || p.q.Session != "" && m.session != p.hashes.session || p.q.Namespace != "" && m.namespace != p.hashes.namespace {
			continue
		}
		if text == nil {
			if err := tx.QueryRowContext(ctx, "SELECT interactions FROM batches WHERE number = ?", h.number).Scan(&text); err != nil {
				return err
			}
		}
		i, err := decode(h.marks, text, n)
		if err != nil {
			return err
		}
		if !p.q.Fits(&i) || !p.behindCursor(&i) {
			continue
		}
		p.rows = append(p.rows, i)
		if found++; own.Enough(&i) || found > p.q.Page() { // the others of the block come later
			break
		}
	}
	if found > 0 {
		p.settle()
	}
	return nil
}

func (p *page) behindCursor(i *recorder.Interaction) bool {
	if !p.hasCursor {
		return true
	}
	c := cmp.Or(cmp.Compare(i.Time.UnixMicro(), p.afterAt), strings.Compare(i.ID, p.afterID))
	return p.descending && c < 0 || !p.descending && c > 0
}

// settle brings what was found into order, and lets go of what is behind the page.
func (p *page) settle() {
	slices.SortFunc(p.rows, func(a, b recorder.Interaction) int {
		c := cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.ID, b.ID))
		if p.descending {
			return -c
		}
		return c
	})
	own := p.q
	for n := range p.rows {
		if own.Enough(&p.rows[n]) || n == p.q.Page() {
			clear(p.rows[n+1:])
			p.rows, p.full = p.rows[:n+1], true
			return
		}
	}
}
