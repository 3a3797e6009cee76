// The recorder's settings, their defaults, and what contradicts itself.

package recorder

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/neolith/orchestrator/internal/config"
	"github.com/neolith/orchestrator/recorder/redact"
)

// What the spool does when it is full.
const (
	Block        = "block"          // Record waits for room
	DropAndCount = "drop-and-count" // Record does not, and what it was given is counted and gone
)

// The sinks.
const (
	SinkNone     = "none" // nothing is recorded
	SinkSQLite   = "sqlite"
	SinkPostgres = "postgres"
)

// Config is the settings of a recorder.
type Config struct {
	Sink            string       `yaml:"sink" help:"where interactions are kept: sqlite, a file in the data directory; postgres; none records nothing"`
	MaxPayloadBytes config.Bytes `yaml:"max_payload_bytes" help:"how much of a request, and of a response, is kept"`
	Redact          []string     `yaml:"redact" help:"regular expressions of secrets to take out, beside those that are built in; of one with a group named secret only the group"`

	Spool struct {
		Dir          string        `yaml:"dir" help:"where interactions wait for the sink; below the data directory when empty"`
		MaxBytes     config.Bytes  `yaml:"max_bytes" help:"how much may wait for the sink"`
		AlarmPercent int           `yaml:"alarm_percent" help:"how full it may be before there is an alarm"`
		WhenFull     string        `yaml:"when_full" help:"block: the work waits until there is room; drop-and-count: it goes on, and what is not recorded is counted"`
		SyncEvery    time.Duration `yaml:"sync_every" help:"how often what was recorded is made durable"`
	} `yaml:"spool"`

	Retention struct {
		MaxAge   time.Duration `yaml:"max_age" help:"how long interactions are kept; 0 for ever"`
		MaxBytes config.Bytes  `yaml:"max_bytes" help:"how large the SQLite file may become before the oldest interactions go; 0 leaves the bound to the disk"`
	} `yaml:"retention"`

	SQLite struct {
		File string `yaml:"file" help:"the database; in the data directory when empty"`
	} `yaml:"sqlite"`

	Postgres struct {
		URL      string        `yaml:"url" secret:"true" help:"the database, as postgres://user:password@host:port/name?sslmode=verify-full"`
		URLFile  string        `yaml:"url_file" help:"file with the URL, which only this user may read"`
		MaxConns int           `yaml:"max_conns" help:"connections to the database at most"`
		Timeout  time.Duration `yaml:"timeout" help:"how long one write may take"`
	} `yaml:"postgres"`
}

// Default returns the settings of a recorder into SQLite, without its directories.
func Default() Config {
	var c Config
	c.Sink = SinkSQLite
	c.MaxPayloadBytes = 64 << 10
	c.Spool.MaxBytes, c.Spool.AlarmPercent = 1<<30, 80
	c.Spool.WhenFull, c.Spool.SyncEvery = Block, 50*time.Millisecond
	c.Retention.MaxAge, c.Retention.MaxBytes = 30*24*time.Hour, 10<<30
	c.Postgres.MaxConns, c.Postgres.Timeout = 4, 30*time.Second
	return c
}

const (
	payloadBytesMax = 1 << 20
	spoolBytesMin   = 4 * segmentBytes
	segmentBytes    = 8 << 20
)

// Validate refuses what contradicts itself; prefix is the settings' path, such as "recorder".
func (c *Config) Validate(prefix string) error {
	bad := func(key, format string, args ...any) error { return config.Bad(prefix+"."+key, format, args...) }
	s := c.Spool
	switch {
	case c.MaxPayloadBytes < 1<<10 || c.MaxPayloadBytes > payloadBytesMax:
		return bad("max_payload_bytes", "%s is not between 1KiB and %s", c.MaxPayloadBytes, config.Bytes(payloadBytesMax))
	case s.MaxBytes < spoolBytesMin:
		return bad("spool.max_bytes", "%s is below %s; a database that restarts would stop the work", s.MaxBytes, config.Bytes(spoolBytesMin))
	case s.AlarmPercent < 1 || s.AlarmPercent > 99:
		return bad("spool.alarm_percent", "%d is not between 1 and 99", s.AlarmPercent)
	case s.WhenFull != Block && s.WhenFull != DropAndCount:
		return bad("spool.when_full", "%q is not a policy; use %s, and the work waits, or %s, and some of it is not recorded", s.WhenFull, Block, DropAndCount)
	case s.SyncEvery < time.Millisecond || s.SyncEvery > 10*time.Second:
		return bad("spool.sync_every", "%s is not between 1ms and 10s", s.SyncEvery)
	case c.Retention.MaxAge < 0:
		return bad("retention.max_age", "%s is negative; 0 keeps interactions for ever", c.Retention.MaxAge)
	case c.Retention.MaxAge != 0 && c.Retention.MaxAge < time.Minute:
		return bad("retention.max_age", "%s is below 1m; nobody could read what was recorded", c.Retention.MaxAge)
	case c.Retention.MaxBytes != 0 && c.Retention.MaxBytes < 1<<20:
		return bad("retention.max_bytes", "%s is below 1MiB; 0 leaves the bound to the disk", c.Retention.MaxBytes)
	}
	if _, err := redact.New(c.Redact...); err != nil {
		return bad("redact", "%s", strings.TrimPrefix(err.Error(), "redact: "))
	}
	return c.validateSink(bad)
}

func (c *Config) validateSink(bad func(key, format string, args ...any) error) error {
	p := c.Postgres
	named := p.URL != "" || p.URLFile != ""
	switch c.Sink {
	case SinkNone, SinkSQLite:
		if named {
			return bad("sink", "is %s, and postgres names a database; set sink: %s, or leave the database out", c.Sink, SinkPostgres)
		}
		return nil
	case SinkPostgres:
	default:
		return bad("sink", "%q is not a sink; use %s, %s or %s", c.Sink, SinkSQLite, SinkPostgres, SinkNone)
	}
	switch {
	case !named:
		return bad("postgres.url_file", "is empty; give a file with the database's URL")
	case p.URL != "" && p.URLFile != "":
		return bad("postgres.url", "and url_file are both given; leave out one of them")
	case p.MaxConns < 1 || p.MaxConns > 100:
		return bad("postgres.max_conns", "%d is not between 1 and 100", p.MaxConns)
	case p.Timeout < time.Second:
		return bad("postgres.timeout", "%s is below 1s", p.Timeout)
	}
	if p.URL != "" {
		if err := CheckURL(p.URL); err != nil {
			return bad("postgres.url", "%s", err)
		}
	}
	return nil
}

// CheckURL says what is wrong with a database's URL, and not what is in it.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return fmt.Errorf("is not postgres://user:password@host:port/name (the value is not shown)")
	}
	return nil
}
