// Package postgres keeps interactions in PostgreSQL, also in Supabase's.
//
// Opening a sink asks nobody: a database that is away when the server starts is one that is away, and the recorder's spool holds what it
// misses. The tables are made, or brought up to date, before the first use, by one server at a time. They are in the schema "orchestrator", and belong to the role in
// the URL: row-level security does not bind their owner, and lets each other role read only the namespaces that orchestrator.interaction_readers
// lists for it (migrations/ has the policies).
//
// Behind a pooler in transaction mode, such as Supabase's, each transaction may meet another connection, so nothing is prepared and nothing is kept in
// a session: each statement goes with its arguments in one round trip (driver.go), and the lock of migrations is a row.
package postgres

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	schema = "orchestrator"
	// pruneRows is how many rows are removed in one transaction.
	pruneRows = 5000
	// connectTime bounds how long a connection may take to be made.
	connectTime = 10 * time.Second
	// migrateTime bounds the migrations, with the wait for another server that makes them.
	migrateTime = 5 * time.Minute
	// idleTime and lifeTime are when connections are given back: a pooler, and a database that moved, are told soon.
	idleTime, lifeTime = 5 * time.Minute, time.Hour
)

// Options of a sink.
type Options struct {
	URL      string        // postgres://…
	MaxConns int           // at most; 4 when 0
	Timeout  time.Duration // of one write; 30 s when 0
	Logger   *slog.Logger
}

// Sink is a pool of connections. It implements recorder.Sink.
type Sink struct {
	cfg     *pgconn.Config
	pool    *sql.DB
	timeout time.Duration
	log     *slog.Logger

	migrating sync.Mutex
	migrated  bool
}

// Open reads the URL; it connects to nobody. A URL that is none is refused with Invalid.
func Open(o Options) (*Sink, error) {
	cfg, err := pgconn.ParseConfig(o.URL)
	if err != nil {
		// The error of the parser quotes the URL, with what is in it.
		return nil, fault.New(fault.Invalid, "recorder: the database's URL cannot be read; write postgres://user:password@host:port/name?sslmode=verify-full")
	}
	s := &Sink{cfg: cfg, timeout: o.Timeout, log: o.Logger}
	if s.timeout <= 0 {
		s.timeout = 30 * time.Second
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	cfg.ConnectTimeout = connectTime
	cfg.RuntimeParams["application_name"] = "orchestrator-recorder"
	s.pool = sql.OpenDB(connector{cfg})
	s.pool.SetMaxOpenConns(cmp.Or(o.MaxConns, 4))
	s.pool.SetConnMaxIdleTime(idleTime)
	s.pool.SetConnMaxLifetime(lifeTime)
	return s, nil
}

// migrate makes the tables, once.
func (s *Sink) migrate(ctx context.Context) error {
	s.migrating.Lock()
	defer s.migrating.Unlock()
	if s.migrated {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, migrateTime)
	defer cancel()
	// Not of the pool: the lock is renewed over a second connection, and the pool may have but one.
	db := sql.OpenDB(connector{s.cfg})
	defer db.Close()
	if err := s.up(ctx, db); err != nil {
		return fmt.Errorf("recorder: make the tables: %w", err)
	}
	s.migrated = true
	return nil
}

func (s *Sink) up(ctx context.Context, db *sql.DB) error {
	if _, err := db.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS "+schema); err != nil && !alreadyThere(err) {
		return err
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	only, err := lock.NewPostgresTableLocker(lock.WithTableName(schema+".recorder_lock"), lock.WithTableLockTimeout(time.Second, uint64(migrateTime/time.Second)))
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName(schema+".recorder_migrations"), goose.WithLocker(only),
		goose.WithDisableGlobalRegistry(true), goose.WithSlog(s.log))
	if err != nil {
		return err
	}
	done, err := p.Up(ctx)
	for _, d := range done {
		s.log.Info("the recorder's database was brought up to date", "migration", d.Source.Path, "took", d.Duration)
	}
	return err
}

// alreadyThere reports whether another server made the schema in the same moment.
func alreadyThere(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "42P06" || pg.Code == "23505")
}

// row is an interaction as json_to_recordset takes it.
type row struct {
	ID                string `json:"id"`
	Time              string `json:"time"`
	Kind              string `json:"kind"`
	Namespace         string `json:"namespace"`
	Session           string `json:"session"`
	Epoch             uint64 `json:"epoch"`
	Client            string `json:"client"`
	RequestID         string `json:"request_id"`
	Principal         string `json:"principal"`
	Tool              string `json:"tool"`
	Provider          string `json:"provider"`
	Model             string `json:"model"`
	TokensIn          int64  `json:"tokens_in"`
	TokensOut         int64  `json:"tokens_out"`
	CostMicros        int64  `json:"cost_micros"`
	LatencyMicros     int64  `json:"latency_micros"`
	Status            string `json:"status"`
	Code              string `json:"code"`
	Error             string `json:"error"`
	Request           string `json:"request"`
	Response          string `json:"response"`
	RequestBytes      int64  `json:"request_bytes"`
	ResponseBytes     int64  `json:"response_bytes"`
	RequestTruncated  bool   `json:"request_truncated"`
	ResponseTruncated bool   `json:"response_truncated"`
	Redactions        int    `json:"redactions"`
}

const columns = `id, time, kind, namespace, session, epoch, client, request_id, principal, tool, provider, model, tokens_in, tokens_out, cost_micros, latency_micros,
 status, code, error, request, response, request_bytes, response_bytes, request_truncated, response_truncated, redactions`

// insert takes a whole batch as one text: one round trip, in either protocol.
const insert = `INSERT INTO orchestrator.interactions (` + columns + `) SELECT ` + columns + ` FROM json_to_recordset($1::json) AS r(id text, time timestamptz,
 kind text, namespace text, session text, epoch numeric, client text, request_id text, principal text, tool text, provider text, model text, tokens_in bigint,
 tokens_out bigint, cost_micros bigint, latency_micros bigint, status text, code text, error text, request text, response text, request_bytes bigint,
 response_bytes bigint, request_truncated boolean, response_truncated boolean, redactions bigint) ON CONFLICT (id) DO NOTHING`

// Write implements recorder.Sink.
func (s *Sink) Write(ctx context.Context, batch []recorder.Interaction) (int, error) {
	if err := s.migrate(ctx); err != nil {
		return 0, err
	}
	rows := make([]row, len(batch))
	for n := range batch {
		i := &batch[n]
		rows[n] = row{i.ID, i.Time.UTC().Format(time.RFC3339Nano), string(i.Kind), i.Namespace, i.Session, i.Epoch, i.Client, i.RequestID, i.Principal, i.Tool, i.Provider,
			i.Model, i.TokensIn, i.TokensOut, i.CostMicros, i.Latency.Microseconds(), string(i.Status), i.Code, i.Error, i.Request, i.Response,
			i.RequestBytes, i.ResponseBytes, i.RequestTruncated, i.ResponseTruncated, i.Redactions}
	}
	text, err := json.Marshal(rows)
	if err != nil {
		return 0, fault.New(fault.Invalid, "recorder: write to the database: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	done, err := s.pool.ExecContext(ctx, insert, string(text))
	if err != nil {
		return 0, wrap("write to", err)
	}
	added, err := done.RowsAffected()
	return int(added), err
}

// wrap says whether trying again is of no use: what the database says of the data, and not of itself. No error of pgconn's shows the password.
func wrap(verb string, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "22") || strings.HasPrefix(pg.Code, "23")) {
		return fault.New(fault.Invalid, "recorder: %s the database: %w", verb, err)
	}
	return fmt.Errorf("recorder: %s the database: %w", verb, err)
}

// List implements recorder.Sink.
func (s *Sink) List(ctx context.Context, q recorder.Query) (page []recorder.Interaction, next string, err error) {
	where, args, err := q.SQL(func(n int) string { return "$" + strconv.Itoa(n) }, func(t time.Time) any { return t })
	if err != nil {
		return nil, "", err
	}
	if err := s.migrate(ctx); err != nil {
		return nil, "", err
	}
	rows, err := s.pool.QueryContext(ctx, "SELECT "+columns+" FROM orchestrator.interactions"+where, args...)
	if err != nil {
		return nil, "", wrap("list from", err)
	}
	defer rows.Close()
	var all []recorder.Interaction
	for rows.Next() {
		var i recorder.Interaction
		var latency int64
		if err := rows.Scan(&i.ID, &i.Time, &i.Kind, &i.Namespace, &i.Session, &i.Epoch, &i.Client, &i.RequestID, &i.Principal, &i.Tool, &i.Provider, &i.Model, &i.TokensIn,
			&i.TokensOut, &i.CostMicros, &latency, &i.Status, &i.Code, &i.Error, &i.Request, &i.Response, &i.RequestBytes, &i.ResponseBytes,
			&i.RequestTruncated, &i.ResponseTruncated, &i.Redactions); err != nil {
			return nil, "", wrap("list from", err)
		}
		i.Time, i.Latency = i.Time.UTC(), time.Duration(latency)*time.Microsecond
		if all = append(all, i); q.Enough(&i) {
			break
		}
	}
	if err := rows.Err(); err != nil {
		return nil, "", wrap("list from", err)
	}
	page, next = q.Cut(all)
	return page, next, nil
}

// Prune implements recorder.Sink, by age; the size of a database is its administrator's.
func (s *Sink) Prune(ctx context.Context, keep recorder.Retention) (removed int64, err error) {
	if keep.Before.IsZero() {
		return 0, nil
	}
	if err := s.migrate(ctx); err != nil {
		return 0, err
	}
	for {
		done, err := s.pool.ExecContext(ctx, `DELETE FROM orchestrator.interactions WHERE id IN
 (SELECT id FROM orchestrator.interactions WHERE time < $1 ORDER BY time, id LIMIT `+strconv.Itoa(pruneRows)+` FOR UPDATE SKIP LOCKED)`, keep.Before)
		if err != nil {
			return removed, wrap("prune", err)
		}
		n, err := done.RowsAffected()
		if removed += n; n == 0 || err != nil {
			return removed, err
		}
	}
}

// Close implements recorder.Sink.
func (s *Sink) Close() error {
	if err := s.pool.Close(); err != nil {
		return fmt.Errorf("recorder: close the database: %w", err)
	}
	return nil
}
