// Where interactions end up, and how they are asked for.

package recorder

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// Sink keeps interactions. Package sinktest holds what is promised here.
type Sink interface {
	// Write keeps all of a batch, or none of it and says why; interactions whose id it has are left as they are. It returns how many were new.
	// Whoever records something again gives it the same time: a sink need not look for an id elsewhere.
	// Invalid means that trying again is of no use: something in the batch can never be kept.
	Write(ctx context.Context, batch []Interaction) (added int, err error)
	// List returns a page of what a query asks for, and the cursor of the next one, empty behind the last.
	List(ctx context.Context, q Query) (page []Interaction, next string, err error)
	// Prune removes what is too old or too much, the oldest first, and returns how many that were.
	Prune(ctx context.Context, keep Retention) (removed int64, err error)
	// Close lets go of the sink; it may be called once nothing else is.
	Close() error
}

// Retention bounds what a sink keeps. Zero values keep everything.
type Retention struct {
	Before   time.Time // interactions that began before it go
	MaxBytes int64     // of the database
}

// Query says which interactions are asked for. Empty fields leave it open.
type Query struct {
	Namespace string
	Session   string // its id
	Kind      Kind
	Status    Status
	Principal string
	Client    string // a client's session
	RequestID string
	Tool      string
	Provider  string
	Model     string
	Since     time.Time // they began then or later
	Until     time.Time // and before this

	OldestFirst bool   // else the latest come first
	Limit       int    // of a page; PageDefault when 0, at most PageMax
	Cursor      string // of the page before

	rows, read int // so many rows, and bytes of payloads in them, for Enough
}

const (
	// PageDefault is the length of a page of which nobody said how long it is to be.
	PageDefault = 100
	// PageMax bounds a page.
	PageMax = 1000
	// pageBytesMax bounds what of payloads a page holds; one interaction is there in any case. A page goes over gRPC in one message.
	pageBytesMax = 1 << 20
)

// Page returns how many interactions a page may have.
func (q *Query) Page() int {
	if q.Limit <= 0 {
		return PageDefault
	}
	return min(q.Limit, PageMax)
}

// SQL returns a query's conditions, order and limit, as they stand behind SELECT … FROM …, and their arguments. mark is the n-th argument's
// placeholder, from 1 on; stamp is how the database keeps times. It reads one row more than the page may have, for Cut.
func (q *Query) SQL(mark func(n int) string, stamp func(time.Time) any) (text string, args []any, err error) {
	var conditions []string
	add := func(condition string, values ...any) {
		marks := make([]any, len(values))
		for i, v := range values {
			args = append(args, v)
			marks[i] = mark(len(args))
		}
		conditions = append(conditions, fmt.Sprintf(condition, marks...))
	}
	for _, f := range []struct{ column, value string }{
		{"namespace", q.Namespace}, {"session", q.Session}, {"kind", string(q.Kind)}, {"status", string(q.Status)}, {"principal", q.Principal},
		{"client", q.Client}, {"request_id", q.RequestID}, {"tool", q.Tool}, {"provider", q.Provider}, {"model", q.Model},
	} {
		if f.value != "" {
			add(f.column+" = %s", f.value)
		}
	}
	if !q.Since.IsZero() {
		add("time >= %s", stamp(q.Since))
	}
	if !q.Until.IsZero() {
		add("time < %s", stamp(q.Until))
	}
	order, than := "DESC", "<"
	if q.OldestFirst {
		order, than = "ASC", ">"
	}
	at, id, ok, err := q.After()
	if err != nil {
		return "", nil, err
	}
	if ok {
		add("(time, id) "+than+" (%s, %s)", stamp(at), id)
	}
	if len(conditions) > 0 {
		text = " WHERE " + strings.Join(conditions, " AND ")
	}
	return text + fmt.Sprintf(" ORDER BY time %s, id %s LIMIT %d", order, order, q.Page()+1), args, nil
}

// After returns the last interaction of the page before; false for a first page, and Invalid for what is no cursor.
func (q *Query) After() (at time.Time, id string, ok bool, err error) {
	if q.Cursor == "" {
		return time.Time{}, "", false, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(q.Cursor)
	micros, id, cut := strings.Cut(string(b), " ")
	n, perr := strconv.ParseInt(micros, 10, 64)
	if err != nil || perr != nil || !cut {
		return time.Time{}, "", false, fault.New(fault.Invalid, "recorder: %.64q is not a cursor; give the one that the page before came with", q.Cursor).WithField("cursor")
	}
	return time.UnixMicro(n).UTC(), id, true, nil
}

// Fits reports whether a query asks for an interaction, whatever its cursor and limit are: for sinks without SQL.
func (q *Query) Fits(i *Interaction) bool {
	for _, f := range [...]struct{ want, have string }{
		{q.Namespace, i.Namespace}, {q.Session, i.Session}, {string(q.Kind), string(i.Kind)}, {string(q.Status), string(i.Status)}, {q.Principal, i.Principal},
		{q.Client, i.Client}, {q.RequestID, i.RequestID}, {q.Tool, i.Tool}, {q.Provider, i.Provider}, {q.Model, i.Model},
	} {
		if f.want != "" && f.want != f.have {
			return false
		}
	}
	return (q.Since.IsZero() || !i.Time.Before(q.Since)) && (q.Until.IsZero() || i.Time.Before(q.Until))
}

// Enough is told of each row that a sink reads, and reports when further ones would not be in the page: payloads may be large.
func (q *Query) Enough(row *Interaction) bool {
	q.rows++
	q.read += len(row.Request) + len(row.Response)
	return q.read > pageBytesMax && q.rows > 1
}

// Cut makes a page of rows, of which the sink has read one more than the page may have: the page, and the cursor of the next one.
func (q *Query) Cut(rows []Interaction) (page []Interaction, next string) {
	n, bytes := min(len(rows), q.Page()), 0
	for i := range n {
		if bytes += len(rows[i].Request) + len(rows[i].Response); bytes > pageBytesMax && i > 0 {
			n = i
			break
		}
	}
	if n == len(rows) {
		return rows, ""
	}
	last := &rows[n-1]
	return rows[:n], Cursor(last.Time, last.ID)
}

// Cursor is that of a page whose last interaction is of that time and id. It holds for every sink.
func Cursor(at time.Time, id string) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %s", at.UnixMicro(), id))
}

// Export writes all that a query asks for, page by page, as JSON lines, and returns how many. The query's limit bounds them all; 0 does
// not.
func Export(ctx context.Context, from Sink, q Query, w io.Writer) (n int, err error) {
	buf := bufio.NewWriterSize(w, 64<<10)
	var line []byte
	limit := q.Limit
	for {
		q.Limit = PageMax
		if limit > 0 {
			q.Limit = min(limit-n, PageMax)
		}
		page, next, err := from.List(ctx, q)
		if err != nil {
			return n, err
		}
		for i := range page {
			line = append(page[i].AppendJSON(line[:0]), '\n')
			if _, err := buf.Write(line); err != nil {
				return n, fmt.Errorf("recorder: export: %w", err)
			}
			n++
		}
		if next == "" || limit > 0 && n >= limit {
			break
		}
		q.Cursor = next
	}
	if err := buf.Flush(); err != nil {
		return n, fmt.Errorf("recorder: export: %w", err)
	}
	return n, nil
}
