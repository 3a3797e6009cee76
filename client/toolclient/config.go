// What a Client needs to know: where, as whom, over what, and how patiently.

package toolclient

import (
	"context"
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/internal/fault"
)

// The defaults of Config.
const (
	DefaultAddress        = "127.0.0.1:8079"
	DefaultCallTimeout    = 5 * time.Minute
	DefaultConnectTimeout = 10 * time.Second
	DefaultPingEvery      = 15 * time.Second
	DefaultCancelPatience = 2 * time.Second
	DefaultMaxInFlight    = 64
	DefaultMaxWaiting     = 1000
	DefaultMaxCallBytes   = 1 << 20
	DefaultMaxAnswerBytes = 32 << 20
	DefaultFallbackAfter  = 3
)

// Bounds that nobody needs to set.
const (
	maxAddresses      = 64
	maxMissedPings    = 3
	maxDeadline       = 24 * time.Hour  // what a server takes at most by default
	maxInFlight       = 4096            // the highest MaxInFlight
	maxQueuedFrames   = 4 * maxInFlight // to be written to one connection
	envelopeBytes     = 256             // of a call's message, beside what it names
	maxNotes          = 1024            // progress and chunks that one call's caller has not taken
	maxNoteBytes      = 4 << 20         // of them
	inboxEvents       = 256
	stableAfter       = 10 * time.Second // a connection that lived so long ends a row of failures
	httpPoll          = 25 * time.Second // how long a server holds a request over HTTP
	compressMinBytes  = 1 << 10
	writeTimeout      = 10 * time.Second
	closeGrace        = time.Second
	refusedWithin     = time.Second           // a call over HTTP that is not refused within this was taken
	retryFirst        = 50 * time.Millisecond // the pause of a call that was refused without saying for how long
	retryMax          = 5 * time.Second
	maxRequestIDBytes = 128
)

// Config says where a Client goes and how. Only Addresses is needed.
type Config struct {
	// Addresses are servers' client ports, any of which will do: host:port, or URLs such as https://console.example.com/orchestrator.
	// They are tried in turn, from a random one on.
	Addresses []string
	// Token is asked at each connection, and when a server refuses a call for want of a permission: another one than before makes a
	// new connection. nil for servers that need none. It is refused where it would cross a network in plain text.
	Token func(ctx context.Context) (string, error)
	// TLS makes connections to host:port addresses TLS ones, and says how https:// ones are verified.
	TLS *tls.Config
	// Insecure allows plain text beyond loopback, without a token.
	Insecure bool
	// SessionID is 3–64 characters of A–Z a–z 0–9 _ -; a random one when empty. Two clients must not share one at a time.
	SessionID string

	CallTimeout    time.Duration // of a call that has no other deadline
	ConnectTimeout time.Duration // of one attempt at one address, with its hello
	PingEvery      time.Duration // three that are missed end a connection
	CancelPatience time.Duration // for a cancelled call to be confirmed
	Backoff        Backoff
	Breaker        Breaker
	// FallbackAfter is after how many failed WebSocket attempts in a row HTTP is used. Negative for never.
	FallbackAfter int
	// GiveUpAfter is after how many attempts in a row that reached nobody the calls that wait fail. 0 for never: they have deadlines.
	GiveUpAfter int

	MaxInFlight    int // calls at the server at once; others wait here, the most urgent first
	MaxWaiting     int // calls that wait here; further ones are refused
	MaxCallBytes   int // of a call's message; a server refuses larger ones by closing the connection
	MaxAnswerBytes int // of one message of a server

	Logger *slog.Logger
	// Dial replaces the network, for tests and tunnels. TLS is made over what it returns.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Rand gives the jitter: numbers in [0, 1). It is called from one goroutine.
	Rand func() float64
}

// Backoff is how long a Client waits between attempts to connect: between 0 and a bound that doubles from Min to Max; after so
// many Attempts in a row, between SlowMin and a bound that doubles to SlowMax.
type Backoff struct {
	Min, Max         time.Duration // 1 s and 30 s when 0
	Attempts         int           // 10 when 0
	SlowMin, SlowMax time.Duration // 30 s and 5 min when 0
}

// Breaker is the circuit breaker before each address and way (WebSocket, HTTP): it opens after so many failures in a row, and lets one
// attempt through when it has been open for so long.
type Breaker struct {
	Failures int           // 5 when 0
	OpenFor  time.Duration // 30 s when 0
}

// StaticToken is a token that does not change.
func StaticToken(token string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return token, nil }
}

// orDefault is v, or d when v is not positive.
func orDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Validate says what New would refuse. Errors are of kind fault.Invalid.
func (c Config) Validate() error {
	_, err := c.check()
	return err
}

// check refuses what cannot work or would not be safe, fills in defaults, and returns the addresses.
func (c *Config) check() ([]*endpoint, error) {
	if len(c.Addresses) == 0 {
		return nil, fault.New(fault.Invalid, "no server address; give at least one as host:port").WithField("addresses")
	}
	if len(c.Addresses) > maxAddresses {
		return nil, fault.New(fault.Invalid, "%d server addresses, more than %d; give fewer", len(c.Addresses), maxAddresses).WithField("addresses")
	}
	if c.SessionID != "" && !validSessionID(c.SessionID) {
		return nil, fault.New(fault.Invalid, "session id %.64q: is not 3–64 characters of A–Z a–z 0–9 _ -; choose another", c.SessionID).WithField("session_id")
	}
	orDefault(&c.CallTimeout, DefaultCallTimeout)
	orDefault(&c.ConnectTimeout, DefaultConnectTimeout)
	orDefault(&c.PingEvery, DefaultPingEvery)
	orDefault(&c.CancelPatience, DefaultCancelPatience)
	orDefault(&c.Backoff.Min, time.Second)
	orDefault(&c.Backoff.Max, 30*time.Second)
	orDefault(&c.Backoff.Attempts, 10)
	orDefault(&c.Backoff.SlowMin, 30*time.Second)
	orDefault(&c.Backoff.SlowMax, 5*time.Minute)
	orDefault(&c.Breaker.Failures, 5)
	orDefault(&c.Breaker.OpenFor, 30*time.Second)
	orDefault(&c.MaxInFlight, DefaultMaxInFlight)
	c.MaxInFlight = min(c.MaxInFlight, maxInFlight)
	orDefault(&c.MaxWaiting, DefaultMaxWaiting)
	orDefault(&c.MaxCallBytes, DefaultMaxCallBytes)
	orDefault(&c.MaxAnswerBytes, DefaultMaxAnswerBytes)
	if c.FallbackAfter == 0 {
		c.FallbackAfter = DefaultFallbackAfter
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Rand == nil {
		c.Rand = rand.Float64
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	var all []*endpoint
	for _, a := range c.Addresses {
		e, err := c.endpoint(a)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// endpoint reads one address.
func (c *Config) endpoint(address string) (*endpoint, error) {
	text := address
	if !strings.Contains(text, "://") {
		if host, port, err := net.SplitHostPort(text); err != nil || host == "" || port == "" {
			return nil, fault.New(fault.Invalid, "%.200q is not a server address; write it as host:port or as a URL", address).WithField("addresses")
		}
		text = "http://" + text
		if c.TLS != nil {
			text = "https" + strings.TrimPrefix(text, "http")
		}
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fault.New(fault.Invalid, "the server address is not a URL of a host and, perhaps, a path; write it as host:port or https://host").WithField("addresses")
	}
	switch u.Scheme {
	case "http", "https":
	case "ws", "wss":
		u.Scheme = "http" + strings.TrimPrefix(u.Scheme, "ws")
	default:
		return nil, fault.New(fault.Invalid, "server address %.200q: its scheme is none of http, https, ws, wss", address).WithField("addresses")
	}
	u.Path = strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), "/mcp")
	if u.Scheme == "http" && !client.IsLoopback(withPort(u)) {
		if !c.Insecure {
			return nil, fault.New(fault.Invalid, "refused to connect to %s: it is not on this machine and no TLS is configured; give the cluster's CA", u.Host).WithField("addresses")
		}
		if c.Token != nil {
			return nil, fault.New(fault.Invalid, "refused to send a token to %s in plain text; configure TLS, or leave the token out", u.Host).WithField("addresses")
		}
	}
	e := &endpoint{name: u.Host + u.Path, http: u.String()}
	ws := *u
	ws.Scheme = "ws" + strings.TrimPrefix(u.Scheme, "http")
	e.ws = ws.String() + "/mcp"
	e.breakers(c)
	return e, nil
}

func withPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), "80")
}

// validSessionID reports whether a server takes the id as it is.
func validSessionID(s string) bool {
	return len(s) >= 3 && len(s) <= 64 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}
