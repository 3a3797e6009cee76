// Where a call came from, carried along to what it causes.

package recorder

import "context"

// Origin is the call of a client in which something happens.
type Origin struct {
	Client    string // the client's session at the gateway
	RequestID string // the client's name for the call
}

type originKey struct{}

// NewContext returns a context of what a call causes.
func NewContext(ctx context.Context, o Origin) context.Context {
	return context.WithValue(ctx, originKey{}, o)
}

// OriginOf returns the call that a context belongs to; an empty one where it belongs to none, or the call came from another server.
func OriginOf(ctx context.Context) Origin {
	o, _ := ctx.Value(originKey{}).(Origin)
	return o
}
