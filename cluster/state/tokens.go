// Tokens: made, revoked.

package state

import (
	"bytes"
	"crypto/sha256"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// createToken adds a token. The same one again is the same one: true.
func (a *applier) createToken(c *clusterv1.CreateToken) (*Token, bool, error) {
	if err := a.checkToken(c); err != nil {
		return nil, false, err
	}
	if t := a.tokens.get(a.base, c.GetId()); t != nil {
		if bytes.Equal(t.Hash, c.GetHash()) {
			return t, true, nil
		}
		return nil, false, fault.New(fault.AlreadyExists, "token %s: exists", t.ID)
	}
	switch n := a.meta.stats.Tokens; {
	case c.GetOnlyFirst() && n > 0:
		return nil, false, fault.New(fault.FailedPrecondition, "token: the cluster has its first token already; ask an admin for one")
	case n >= uint64(a.limits.Tokens):
		return nil, false, fault.New(fault.Exhausted, "token: there are %d, the limit; revoke some", n).WithRetry(a.limits.RetryAfter)
	}
	t := &Token{
		ID: c.GetId(), Name: c.GetName(), Role: a.intern.str(c.GetRole()), Namespace: a.intern.str(c.GetNamespace()),
		Hash: c.GetHash(), CreateTime: a.meta.time, ExpireTime: c.GetExpireTime(),
	}
	a.meta.stats.Tokens++
	a.tokens.put(t.ID, t)
	a.event(Event{Type: "token.created", Namespace: t.Namespace, Message: "token " + t.ID + " (" + t.Name + ") with role " + t.Role})
	return t, false, nil
}

// checkToken says what is wrong with a token that is asked for.
func (a *applier) checkToken(c *clusterv1.CreateToken) error {
	if err := checkID("token", c.GetId()); err != nil {
		return err
	}
	switch c.GetRole() {
	case "admin", "operator", "client", "node", "viewer":
	default:
		return fault.New(fault.Invalid, "token: %q is not a role; use admin, operator, client, node or viewer", clip(c.GetRole(), 64)).WithField("role")
	}
	if c.GetNamespace() != "" {
		if wrong := session.CheckName(c.GetNamespace()); wrong != "" {
			return fault.New(fault.Invalid, "token namespace: %s", wrong).WithField("namespace")
		}
	}
	switch {
	case len(c.GetName()) > session.MaxNameBytes:
		return fault.New(fault.Invalid, "token name: is over %d bytes", session.MaxNameBytes).WithField("name")
	case len(c.GetHash()) != sha256.Size:
		return fault.New(fault.Invalid, "token: the hash is %d bytes, not %d", len(c.GetHash()), sha256.Size).WithField("hash")
	case c.GetExpireTime() != 0 && c.GetExpireTime() <= a.meta.time:
		return fault.New(fault.Invalid, "token: it would have expired already").WithField("expire_time")
	}
	return nil
}

// reissueToken gives a token another secret: whoever asks for it again did not get the first one.
func (a *applier) reissueToken(id string, c *clusterv1.CreateToken) (*Token, error) {
	if len(c.GetHash()) != sha256.Size {
		return nil, a.checkToken(c) // which says what is wrong with it
	}
	old := a.tokens.get(a.base, id)
	if old == nil || old.ExpireTime != 0 && old.ExpireTime <= a.meta.time {
		return nil, fault.New(fault.NotFound, "token %s: was made with this idempotency key, and is gone; use a new key", id)
	}
	t := *old
	t.Hash = c.GetHash()
	a.tokens.put(id, &t)
	a.event(Event{Type: "token.reissued", Namespace: t.Namespace, Message: "token " + t.ID + " (" + t.Name + ") has another secret"})
	return &t, nil
}

// revokeToken ends a token.
func (a *applier) revokeToken(c *clusterv1.RevokeToken) error {
	t := a.tokens.get(a.base, c.GetId())
	if t == nil {
		return fault.New(fault.NotFound, "token %s: there is none", clip(c.GetId(), 64))
	}
	a.dropToken(t, "token.revoked")
	return nil
}

func (a *applier) dropToken(t *Token, kind string) {
	a.tokens.put(t.ID, nil)
	a.meta.stats.Tokens--
	a.event(Event{Type: kind, Namespace: t.Namespace, Message: "token " + t.ID + " (" + t.Name + ") with role " + t.Role})
}
