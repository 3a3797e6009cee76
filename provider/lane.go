// A lane: one endpoint of a provider, with its key, its breaker and its limits.

package provider

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

const (
	// blockMin and blockMax bound for how long an endpoint is left alone that says "not now" without saying until when; it doubles.
	blockMin = time.Second
	blockMax = time.Minute
)

// lane is one endpoint. What is not atomic or immutable is guarded by its pool's mutex.
type lane struct {
	pool    *pool
	name    string // moonshot/1: provider and number
	url     *url.URL
	keyFile string
	keyName string // the setting's path
	weight  int
	key     atomic.Pointer[secret]
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	opened  atomic.Int64 // when the breaker opened, in Unix nanoseconds

	inFlight       int
	credit         int // what its turn is decided by, among those equally busy
	blockedUntil   time.Time
	blockedBecause string
	refusals       int // "not now" in a row
	requests       quota
	tokens         quota
	calls, failed  int64
	lastError      string
	lastErrorTime  time.Time
	health         string // "" when well
	healthTime     time.Time
}

// errExcluded is reported to a breaker for what says nothing about its endpoint.
var errExcluded = errors.New("says nothing about the endpoint")

func newLane(p *pool, i int, c EndpointConfig, keyName string) (*lane, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, err
	}
	key, err := readKey(keyName, c.KeyFile)
	if err != nil {
		return nil, err
	}
	l := &lane{pool: p, name: fmt.Sprintf("%s/%d", p.cfg.Name, i+1), url: u, keyFile: c.KeyFile, keyName: keyName, weight: c.Weight}
	l.key.Store(&key)
	l.requests.perMinute, l.tokens.perMinute = int64(p.cfg.RequestsPerMinute), int64(p.cfg.TokensPerMinute)
	l.breaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:        l.name,
		MaxRequests: 1, // one call tries an endpoint that failed
		Timeout:     p.cfg.BreakerOpen,
		ReadyToTrip: func(c gobreaker.Counts) bool { return int(c.ConsecutiveFailures) >= p.cfg.BreakerFailures },
		IsExcluded:  func(err error) bool { return errors.Is(err, errExcluded) },
		OnStateChange: func(_ string, from, to gobreaker.State) { // the breaker is locked
			level := slog.LevelInfo
			if to == gobreaker.StateOpen {
				l.opened.Store(time.Now().UnixNano())
			}
			if from == gobreaker.StateClosed {
				level = slog.LevelWarn
			}
			p.log.Log(context.Background(), level, "provider: the breaker of an endpoint changed", "endpoint", l.name, "from", from.String(), "to", to.String())
		},
	})
	return l, nil
}

func (l *lane) currentKey() secret { return *l.key.Load() }

// reloadKey reads the key's file again, and reports whether there is a new one. What cannot be read leaves the old one in place.
func (l *lane) reloadKey() bool {
	if l.keyFile == "" {
		return false
	}
	key, err := readKey(l.keyName, l.keyFile)
	if err != nil {
		l.pool.log.Warn("provider: a key cannot be read again; the old one is kept", "endpoint", l.name, "error", err)
		return false
	}
	if key.same(l.currentKey()) {
		return false
	}
	l.key.Store(&key)
	l.pool.log.Info("provider: a key has changed", "endpoint", l.name, slog.Any("key", key))
	return true
}

// reopens returns how long the breaker stays open.
func (l *lane) reopens(now time.Time) time.Duration {
	if l.breaker.State() != gobreaker.StateOpen {
		return 0
	}
	return max(time.Unix(0, l.opened.Load()).Add(l.pool.cfg.BreakerOpen).Sub(now), time.Millisecond)
}

// wait returns how long the lane cannot be taken for a call of so many tokens, and why; 0 when it can be now, but for its breaker.
func (l *lane) wait(tokens int64, now time.Time) (time.Duration, string) {
	if d := l.blockedUntil.Sub(now); d > 0 {
		return d, l.blockedBecause
	}
	if d := l.reopens(now); d > 0 {
		return d, "breaker open"
	}
	r, t := l.requests.wait(1, now), l.tokens.wait(tokens, now)
	if d := max(r, t); d > 0 {
		return d, "rate limit"
	}
	return 0, ""
}

// backoff is for how long to leave the endpoint alone: what it says, and otherwise longer with each refusal, with jitter.
func (l *lane) backoff(said time.Duration) time.Duration {
	if said > 0 {
		return said
	}
	l.pool.mu.Lock()
	n := min(l.refusals, 6)
	l.pool.mu.Unlock()
	d := min(blockMin<<n, blockMax)
	return d/2 + time.Duration(l.pool.chance()*float64(d)/2)
}
