// Addresses: the ring of them, with a circuit breaker for each way to each.

package toolclient

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/neolith/orchestrator/internal/fault"
)

// endpoint is an address of a server, perhaps of different ones over time.
type endpoint struct {
	name     string // as logs and errors show it
	ws, http string // URLs; http is what /v1/… is appended to
	server   string // who answered there last; the owner's

	byWS, byHTTP *breaker
}

// breaker stands before one way to one address.
type breaker struct {
	*gobreaker.TwoStepCircuitBreaker[struct{}]
	openFor time.Duration
	opened  atomic.Int64 // unix ns
}

// errExcluded is reported for what says nothing about the address.
var errExcluded = errors.New("says nothing about the address")

func (e *endpoint) breakers(c *Config) {
	e.byWS, e.byHTTP = newBreaker(c, e.name+" (WebSocket)"), newBreaker(c, e.name+" (HTTP)")
}

func newBreaker(c *Config, name string) *breaker {
	b := &breaker{openFor: c.Breaker.OpenFor}
	b.TwoStepCircuitBreaker = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name: name, MaxRequests: 1, Timeout: c.Breaker.OpenFor,
		ReadyToTrip: func(n gobreaker.Counts) bool { return int(n.ConsecutiveFailures) >= c.Breaker.Failures },
		IsExcluded:  func(err error) bool { return errors.Is(err, errExcluded) },
		OnStateChange: func(_ string, from, to gobreaker.State) {
			level := slog.LevelDebug
			if to == gobreaker.StateOpen {
				b.opened.Store(time.Now().UnixNano())
				level = slog.LevelWarn
			}
			c.Logger.Log(context.Background(), level, "client gateway: the breaker of an address changed", "address", name, "from", from.String(), "to", to.String())
		},
	})
	return b
}

// reopens is how long it still lets nothing through.
func (b *breaker) reopens() time.Duration {
	if b.State() != gobreaker.StateOpen {
		return 0
	}
	return max(time.Until(time.Unix(0, b.opened.Load()).Add(b.openFor)), time.Millisecond)
}

// allow asks to make an attempt; done must be told how it went.
func (b *breaker) allow() (done func(error), err error) {
	done, err = b.Allow()
	if err != nil {
		return nil, fault.New(fault.Unavailable, "%s: failed too often and is left alone for %s", b.Name(), b.reopens().Round(time.Millisecond))
	}
	return done, nil
}

// ring are the addresses, in the order in which they are tried.
type ring struct {
	all []*endpoint
	at  int
}

// next is the next address that a breaker lets through; wait says for how long there is none.
func (r *ring) next(http bool) (e *endpoint, wait time.Duration) {
	for range r.all {
		e = r.all[r.at%len(r.all)]
		r.at++
		w := e.byWS.reopens()
		if http {
			w = min(w, e.byHTTP.reopens())
		}
		if w == 0 {
			return e, 0
		}
		if wait == 0 || w < wait {
			wait = w
		}
	}
	return nil, wait
}
