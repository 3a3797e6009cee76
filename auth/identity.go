// Identity: a caller who has shown who it is, and what it may do.

package auth

import (
	"context"
	"strings"

	"github.com/neolith/orchestrator/internal/fault"
)

// Identity is a caller.
type Identity struct {
	// TokenID is empty for a caller that showed a certificate.
	TokenID string
	Name    string
	Role    Role
	// Namespace is the one the caller is bound to; empty for all.
	Namespace string
}

// String names the caller in logs, histories and refusals.
func (i Identity) String() string {
	name := i.Name
	if name == "" {
		name = i.TokenID
	}
	return string(i.Role) + ":" + name
}

// Owner is whose something is that the caller leaves with the cluster: the holder's of a token or a certificate.
func (i Identity) Owner() string {
	if i.TokenID != "" {
		return "token " + i.TokenID
	}
	return i.String() + " " + i.Namespace
}

// Authorize checks a method (a gRPC full method, or MethodLink) against the table. Errors are of kind
// fault.PermissionDenied and say what would be enough.
func (i Identity) Authorize(method string) error {
	rule, known := Methods[method]
	switch {
	case !known:
		return fault.New(fault.PermissionDenied, "%s: nobody may call it: this server does not know it", method)
	case !i.Role.Has(rule.Right):
		if rule.Right == Relay {
			return fault.New(fault.PermissionDenied, "%s: only servers may call it, with a certificate of role server (`orchestrator ca issue --role server`); this is %s", method, i)
		}
		return fault.New(fault.PermissionDenied, "%s: %s may not; ask an admin for a token of role %s (`orchctl tokens create --role`)", shorten(method), i, joinRoles(rolesWith(rule.Right)))
	case rule.Scope == ClusterWide && i.Namespace != "" && rule.Right != Public:
		return fault.New(fault.PermissionDenied, "%s: %s is bound to namespace %s, and this is about the whole cluster; use a token without a namespace", shorten(method), i, i.Namespace)
	}
	return nil
}

// MayUse reports whether the caller may touch what is in a namespace.
func (i Identity) MayUse(namespace string) bool { return i.Namespace == "" || i.Namespace == namespace }

// CheckNamespace is MayUse as an error of kind fault.PermissionDenied.
func (i Identity) CheckNamespace(namespace string) error {
	if i.MayUse(namespace) {
		return nil
	}
	return fault.New(fault.PermissionDenied, "namespace %.64q: %s is bound to namespace %s; use that one, or another token", namespace, i, i.Namespace)
}

// shorten drops the package of a method: people know SessionService/SpawnSession.
func shorten(method string) string {
	slash := strings.LastIndexByte(method, '/')
	if dot := strings.LastIndexByte(method[:max(slash, 0)], '.'); dot >= 0 {
		return method[dot+1:]
	}
	return method
}

type identityKey struct{}

// NewContext returns a context that carries the caller.
func NewContext(ctx context.Context, i Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, i)
}

// FromContext returns the caller; false when nobody was authenticated.
func FromContext(ctx context.Context) (Identity, bool) {
	i, ok := ctx.Value(identityKey{}).(Identity)
	return i, ok
}
