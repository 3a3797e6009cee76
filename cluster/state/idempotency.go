// Idempotency: what a client's key stood for, so that its retry is the same request; and the collection of what is old.

package state

import (
	"strings"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// seen returns what the key stood for; nil when it is new or empty. The same key for another request is refused.
func (a *applier) seen(k idempotencyKey, hash uint64) (*idempotencyRow, error) {
	if k.key == "" {
		return nil, nil
	}
	if len(k.key) > session.MaxKeyBytes {
		return nil, fault.New(fault.Invalid, "idempotency key: is %d bytes, more than %d", len(k.key), session.MaxKeyBytes).WithField("idempotency_key")
	}
	r := a.idempotency.get(a.base, k)
	if r != nil && r.hash != hash {
		return nil, fault.New(fault.AlreadyExists, "idempotency key %q was used for another request; use a new key", k.key).WithField("idempotency_key")
	}
	return r, nil
}

// roomForKey says why a new key would not be taken; nil when it would. A key old enough gives way.
func (a *applier) roomForKey(key string) error {
	if key == "" || a.meta.stats.IdempotencyKeys < uint64(a.limits.IdempotencyKeys) {
		return nil
	}
	if r := a.oldestKey(); r != nil {
		if age := time.Duration(a.meta.time - r.time); age < a.limits.IdempotencyMinKeep {
			return fault.New(fault.Exhausted, "idempotency key: %d keys are kept, the limit, and the oldest for %s of its %s", a.meta.stats.IdempotencyKeys, age, a.limits.IdempotencyMinKeep).WithRetry(a.limits.IdempotencyMinKeep - age)
		}
	}
	return nil
}

// remember records what a key stands for, and lets the oldest go when the table is full. roomForKey was asked.
func (a *applier) remember(k idempotencyKey, hash uint64, sessionID string, sequence uint64) {
	if k.key == "" {
		return
	}
	if a.meta.stats.IdempotencyKeys >= uint64(a.limits.IdempotencyKeys) {
		a.dropKey(a.oldestKey())
	}
	a.meta.idempotency++
	a.meta.stats.IdempotencyKeys++
	r := &idempotencyRow{
		idempotencyKey: k, hash: hash, sessionID: sessionID, sequence: sequence,
		time: a.meta.time, index: a.meta.index, number: a.meta.idempotency,
	}
	a.idempotency.add(k, r)
	a.set(setIdempotency, "", string(numberBytes(r.number)), string(k.bytes()))
}

func (a *applier) dropKey(r *idempotencyRow) {
	a.idempotency.put(r.idempotencyKey, nil)
	a.meta.stats.IdempotencyKeys--
	a.unset(setIdempotency, "", string(numberBytes(r.number)))
}

// oldestKey returns the row of the oldest key; nil when there is none.
func (a *applier) oldestKey() *idempotencyRow {
	for number, value := range (setID{kind: setIdempotency}).all(a.base) {
		scope, key, _ := strings.Cut(value, "\x00")
		// A key that this entry let go may stand for something new by now, under another number.
		if r := a.idempotency.get(a.base, idempotencyKey{scope, key}); r != nil && string(numberBytes(r.number)) == number {
			return r
		}
	}
	if len(a.ops) > 0 { // all keys are of this very entry
		a.flush()
		return a.oldestKey()
	}
	return nil
}

// collectGarbage removes what is old: sessions that ended before a time, idempotency keys and tokens by their age.
func (a *applier) collectGarbage(c *clusterv1.CollectGarbage) uint32 {
	limit := int(c.GetLimit())
	if limit <= 0 || limit > a.limits.CollectRows {
		limit = a.limits.CollectRows
	}
	a.flush()
	n := 0
	for _, id := range (setID{kind: setEnded}).all(a.base) {
		s := a.sessions.get(a.base, id)
		if n >= limit || s.EndTime >= c.GetBefore() {
			break
		}
		a.forget(s)
		n++
	}
	for _, value := range (setID{kind: setIdempotency}).all(a.base) {
		scope, key, _ := strings.Cut(value, "\x00")
		r := a.idempotency.get(a.base, idempotencyKey{scope, key})
		if n >= limit || time.Duration(a.meta.time-r.time) < a.limits.IdempotencyKeep {
			break
		}
		a.dropKey(r)
		n++
	}
	var expired []*Token
	prefixed(a.base, tableTokens, nil, func(t *Token) bool {
		if n < limit && t.ExpireTime != 0 && t.ExpireTime <= a.meta.time {
			expired = append(expired, t)
			n++
		}
		return n < limit
	})
	for _, t := range expired {
		a.dropToken(t, "token.expired")
	}
	return uint32(n)
}
