// Idempotency: what a client's key stood for, so that its retry is the same request; and the collection of what is old.

package state

import (
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
	number, known := a.keys[k]
	if !known {
		return nil, nil
	}
	r := a.meta.keys.at(number)
	if r.hash != hash {
		return nil, fault.New(fault.AlreadyExists, "idempotency key %q was used for another request; use a new key", k.key).WithField("idempotency_key")
	}
	return r, nil
}

// maxScopeBytes bounds the scope of a key: a method with the names of what it is about.
const maxScopeBytes = 1024

// about is the id of what a command was about, for its retry.
func (r *Result) about() string {
	switch {
	case r.Session != nil:
		return r.Session.ID
	case r.Node != nil:
		return r.Node.ID
	case r.Token != nil:
		return r.Token.ID
	default:
		return r.Subject
	}
}

// again answers a command that was applied before: with what it was about, as that is now.
func (a *applier) again(c *clusterv1.Command, known *idempotencyRow) Result {
	r := Result{Duplicate: true, Count: uint32(known.sequence), Subject: known.sessionID}
	switch k := c.GetKind().(type) {
	case *clusterv1.Command_TerminateSession:
		if r.Session = a.sessions.get(a.base, known.sessionID); r.Session == nil {
			r.Err = noSession(known.sessionID)
		}
	case *clusterv1.Command_SetNodeSchedulable:
		if r.Node = a.nodes.get(a.base, known.sessionID); r.Node == nil {
			r.Err = noNode(known.sessionID)
		}
	case *clusterv1.Command_CreateToken:
		r.Token, r.Err = a.reissueToken(known.sessionID, k.CreateToken)
	}
	return r
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
		a.dropKey()
	}
	a.meta.stats.IdempotencyKeys++
	a.keys[k] = a.meta.keys.push(idempotencyRow{
		idempotencyKey: k, hash: hash, sessionID: sessionID, sequence: sequence, time: a.meta.time, index: a.meta.index,
	})
}

// dropKey lets the oldest key go.
func (a *applier) dropKey() {
	delete(a.keys, a.oldestKey().idempotencyKey)
	a.meta.keys.pop()
	a.meta.stats.IdempotencyKeys--
}

// oldestKey returns the row of the oldest key; nil when there is none.
func (a *applier) oldestKey() *idempotencyRow {
	if a.meta.keys.len() == 0 {
		return nil
	}
	return a.meta.keys.at(a.meta.keys.first)
}

// collectGarbage removes what is old: sessions that ended before a time; checkpoints, idempotency keys,
// results of calls, clients, conversations and tokens by their age.
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
	n += a.collectCheckpoints(limit - n)
	for r := a.oldestKey(); r != nil && n < limit && time.Duration(a.meta.time-r.time) >= a.limits.IdempotencyKeep; r = a.oldestKey() {
		a.dropKey()
		n++
	}
	n += a.collectCalls(limit - n)
	n += a.collectConversations(limit - n)
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
