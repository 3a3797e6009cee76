// A driver for database/sql over pgconn, which is what of pgx speaks the protocol. The types that pgx brings for values of every kind would be
// a megabyte of the server's program, and here all values are texts, whole numbers and times.

package postgres

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// The types of the database's times, by their OIDs, and how they come.
const (
	timestamptz = 1184
	timestamp   = 1114
)

var timeLayouts = map[uint32][]string{
	timestamptz: {"2006-01-02 15:04:05Z07", "2006-01-02 15:04:05Z07:00"}, // the second one where the time zone has minutes
	timestamp:   {time.DateTime},
}

// connector makes connections. It implements driver.Connector.
type connector struct{ cfg *pgconn.Config }

// Connect implements driver.Connector.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	got, err := pgconn.ConnectConfig(ctx, c.cfg)
	if err != nil {
		return nil, err // pgconn's errors name host, user and database, and no password
	}
	return &conn{got}, nil
}

// Driver implements driver.Connector.
func (c connector) Driver() driver.Driver { return c }

// Open implements driver.Driver, by which nobody opens.
func (connector) Open(string) (driver.Conn, error) {
	return nil, errors.New("postgres: use a connector")
}

// conn is one connection. Statements go by the extended protocol without a name, each with its arguments in one round trip, so that nothing is
// prepared and a pooler may send the next one elsewhere.
type conn struct{ c *pgconn.PgConn }

var (
	_ driver.ExecerContext   = (*conn)(nil)
	_ driver.QueryerContext  = (*conn)(nil)
	_ driver.ConnBeginTx     = (*conn)(nil)
	_ driver.Validator       = (*conn)(nil)
	_ driver.SessionResetter = (*conn)(nil)
)

// closeTime bounds the farewell.
const closeTime = 2 * time.Second

// Close implements driver.Conn.
func (c *conn) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	return c.c.Close(ctx)
}

// IsValid implements driver.Validator: a statement whose context ended closes its connection.
func (c *conn) IsValid() bool { return !c.c.IsClosed() }

// ResetSession implements driver.SessionResetter.
func (c *conn) ResetSession(context.Context) error {
	if c.c.IsClosed() || c.c.TxStatus() != 'I' {
		return driver.ErrBadConn
	}
	return nil
}

// Prepare implements driver.Conn, for nobody.
func (c *conn) Prepare(string) (driver.Stmt, error) {
	return nil, errors.New("postgres: nothing is prepared")
}

// Begin implements driver.Conn.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx implements driver.ConnBeginTx, with the database's own isolation.
func (c *conn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	if o.Isolation != 0 || o.ReadOnly {
		return nil, errors.New("postgres: transactions are of the default kind")
	}
	if _, err := c.ExecContext(ctx, "BEGIN", nil); err != nil {
		return nil, err
	}
	return tx{c}, nil
}

// tx is the transaction of a connection.
type tx struct{ c *conn }

// Commit implements driver.Tx.
func (t tx) Commit() error {
	tag, err := t.c.c.ExecParams(context.Background(), "COMMIT", nil, nil, nil, nil).Close()
	if err == nil && tag.String() == "ROLLBACK" {
		err = errors.New("postgres: the transaction had failed, and was rolled back")
	}
	return err
}

// Rollback implements driver.Tx.
func (t tx) Rollback() error {
	_, err := t.c.ExecContext(context.Background(), "ROLLBACK", nil)
	return err
}

// start sends a statement with its arguments as texts; the database knows of which types they are to be.
func (c *conn) start(ctx context.Context, query string, args []driver.NamedValue) (*pgconn.ResultReader, error) {
	texts := make([][]byte, len(args))
	for i, a := range args {
		switch v := a.Value.(type) {
		case nil:
		case string:
			texts[i] = []byte(v)
		case int64:
			texts[i] = strconv.AppendInt(nil, v, 10)
		case bool:
			texts[i] = strconv.AppendBool(nil, v)
		case time.Time:
			texts[i] = []byte(v.UTC().Format(time.RFC3339Nano))
		default:
			return nil, fmt.Errorf("postgres: argument %d is a %T", i+1, v)
		}
	}
	return c.c.ExecParams(ctx, query, texts, nil, nil, nil), nil
}

// lost makes of a connection that had broken before anything was sent a reason for another one.
func lost(err error) error {
	if pgconn.SafeToRetry(err) {
		return driver.ErrBadConn
	}
	return err
}

// ExecContext implements driver.ExecerContext.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	r, err := c.start(ctx, query, args)
	if err != nil {
		return nil, err
	}
	tag, err := r.Close()
	if err != nil {
		return nil, lost(err)
	}
	return driver.RowsAffected(tag.RowsAffected()), nil
}

// QueryContext implements driver.QueryerContext.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	r, err := c.start(ctx, query, args)
	if err != nil {
		return nil, err
	}
	rows := &rows{r: r}
	rows.first = r.NextRow() // only then the columns are known
	for _, f := range r.FieldDescriptions() {
		rows.columns, rows.types = append(rows.columns, f.Name), append(rows.types, f.DataTypeOID)
	}
	if !rows.first {
		if _, err := r.Close(); err != nil {
			return nil, lost(err)
		}
	}
	return rows, nil
}

// rows are an answer that is being read.
type rows struct {
	r       *pgconn.ResultReader
	columns []string
	types   []uint32 // OIDs
	first   bool     // its first row was read, and not handed out
}

// Columns implements driver.Rows.
func (r *rows) Columns() []string { return r.columns }

// Close implements driver.Rows.
func (r *rows) Close() error {
	_, err := r.r.Close()
	return err
}

// Next implements driver.Rows. Values are texts, but for times; whoever scans turns them into numbers.
func (r *rows) Next(into []driver.Value) error {
	if !r.first && !r.r.NextRow() {
		if _, err := r.r.Close(); err != nil {
			return err
		}
		return io.EOF
	}
	r.first = false
	for i, v := range r.r.Values() {
		layouts := timeLayouts[r.types[i]]
		switch {
		case v == nil:
			into[i] = nil
		case layouts != nil:
			at, err := parseTime(string(v), layouts)
			if err != nil {
				return fmt.Errorf("postgres: read column %s: %w", r.columns[i], err)
			}
			into[i] = at
		default:
			into[i] = string(v)
		}
	}
	return nil
}

func parseTime(text string, layouts []string) (at time.Time, err error) {
	for _, l := range layouts {
		if at, err = time.Parse(l, text); err == nil {
			break
		}
	}
	return at, err
}
