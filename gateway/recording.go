// What the API itself hands to the record: calls of models, and the wait for room before a message is accepted. What becomes of messages, the record
// reads from the log.

package gateway

import (
	"context"
	"math"
	"strings"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/provider"
	"github.com/neolith/orchestrator/recorder"
)

// room waits until what is about to be done can be recorded.
func (o *Operations) room(ctx context.Context) error {
	if o.Record == nil {
		return nil
	}
	return o.Record.Recorder.Room(ctx)
}

// sent tells the record who sent a message.
func (o *Operations) sent(ctx context.Context, session string, r *state.Result) {
	if o.Record != nil && o.Record.Senders != nil && r.Err == nil && !r.Duplicate {
		o.Record.Senders.Sent(session, r.Sequence, caller(ctx).String())
	}
}

// recordModel records a call of a model that has ended; got is nil where it failed.
func (o *Operations) recordModel(ctx context.Context, who auth.Identity, began time.Time, r *provider.Request, got *provider.Response, err error) {
	if o.Record == nil {
		return
	}
	origin := recorder.OriginOf(ctx)
	i := recorder.Interaction{
		Time: began, Latency: time.Since(began), Kind: recorder.ModelCall, Namespace: r.Tenant, Principal: who.String(), Client: origin.Client, RequestID: origin.RequestID,
		Provider: r.Provider, Model: r.Model,
	}
	i.Request, i.RequestBytes = conversation(r.Messages)
	if got != nil {
		i.Provider, i.Model, i.Response = got.Provider, got.Model, got.Text
		i.TokensIn, i.TokensOut, i.CostMicros = int64(got.Usage.InputTokens), int64(got.Usage.OutputTokens), int64(math.Round(got.CostUSD*1e6))
	}
	i.Ended(ctx, err)
	_ = o.Record.Recorder.Take(&i) // what it could not keep it has counted
}

// conversation is what a model was told, a line for each message, as far as the record looks at it; and the bytes of all of it.
func conversation(messages []provider.Message) (text string, bytes int64) {
	var b strings.Builder
	for _, m := range messages {
		bytes += int64(len(m.Role) + len(": ") + len(m.Text) + len("\n"))
		if room := recorder.LookedAtBytes - b.Len(); room > 0 {
			b.WriteString(string(m.Role) + ": ")
			b.WriteString(m.Text[:min(len(m.Text), room)])
			b.WriteString("\n")
		}
	}
	return b.String(), bytes
}
