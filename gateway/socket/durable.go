// Calls that the cluster keeps: they are acked once they are committed, answered once their end is, and whoever comes back to any server is given
// what it missed. Package dispatch runs them; here is what their clients see.

package socket

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/queue/dispatch"
	"github.com/neolith/orchestrator/session"
)

// Calls keeps calls in the cluster, as dispatch.Dispatcher does.
type Calls interface {
	Submit(r dispatch.Request, s dispatch.Sink)
	Open(ctx context.Context, client queue.ClientKey, s dispatch.Sink) (dispatch.Opened, error)
	Resume(client queue.ClientKey, after uint64)
	Release(client queue.ClientKey)
	Lookup(ctx context.Context, key queue.Key) (*queue.Call, error)
	Join(ctx context.Context, key queue.Key, s dispatch.Sink) (*queue.Call, error)
	Forget(client queue.ClientKey, s dispatch.Sink)
	Delivered(client queue.ClientKey, order uint64, now bool)
	Fetched(client queue.ClientKey, order uint64)
	Cancel(ctx context.Context, key queue.Key) error
	Rekey(ctx context.Context, from, to queue.ClientKey, caller queue.Caller) error
	Find(key queue.Key) *queue.Call
	Client(key queue.ClientKey) *queue.Client
	Outputs(ctx context.Context, c *queue.Call) ([]byte, error)
	Close(ctx context.Context)
}

// clusterPatience is how long the cluster may take to answer what a client waits for.
const clusterPatience = 6 * time.Second

// replicated keeps calls in the cluster.
type replicated struct {
	hub   *Hub
	calls Calls
}

// keeperOf says who keeps a call. c.mu is held.
func (c *client) keeperOf(t *toolCall, conn *conn) (keeper, *failure) {
	h := c.hub
	durable := h.cluster != nil && h.o.Durable
	if t.durable != unsaid {
		durable = t.durable == said
	}
	switch {
	case durable && h.cluster == nil:
		return nil, invalid("durable", "is true, and this server keeps no calls in the cluster")
	case !durable && h.cluster != nil && (c.inCluster || conn == nil): // a connection has asked the cluster, or its session was made here
		if row := h.cluster.calls.Find(queue.Key{Owner: c.key.Owner, Session: c.session, RequestID: t.id}); row != nil && !row.Anew() {
			durable = true // the cluster has it already
		}
	}
	if durable {
		return h.cluster, nil
	}
	return h.memory, nil
}

// take implements keeper.
func (d *replicated) take(k *call, t toolCall) {
	c := k.client
	c.inCluster = true
	p := session.Normal
	if t.priority != "" {
		p, _ = session.ParsePriority(t.priority) // it was checked
	}
	repeatable := t.tool.ReadOnly || !t.tool.AsksModels
	d.calls.Submit(dispatch.Request{
		Key: k.key(), Caller: callerOf(c.who), Tool: t.name, Arguments: t.arguments, Priority: p, Hash: k.hash, Deadline: k.deadline,
		OrderKey: orderKey(c.key.Owner, t.orderKey()), Repeatable: repeatable, ReadOnly: t.tool.ReadOnly,
	}, c)
}

// key is the call's name in the cluster. client.mu is held.
func (k *call) key() queue.Key {
	c := k.client
	return queue.Key{Owner: c.key.Owner, Session: c.session, RequestID: k.id}
}

func callerOf(who auth.Identity) queue.Caller {
	return queue.Caller{TokenID: who.TokenID, Name: who.Name, Role: string(who.Role), Namespace: who.Namespace}
}

// orderKey is a client's order key among those of all: nobody waits for another's calls.
func orderKey(owner, key string) string {
	if key == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(owner))
	return hex.EncodeToString(sum[:6]) + " " + key
}

// cancel implements keeper.
func (d *replicated) cancel(k *call, failed func(*failure)) {
	c := k.client
	c.mu.Lock()
	key, again := k.key(), k.cancelling
	k.cancelling = true
	c.mu.Unlock()
	if again || !d.hub.enter() {
		return // its end tells
	}
	go func() {
		defer d.hub.work.Done()
		ctx, cancel := context.WithTimeout(d.hub.life, clusterPatience)
		defer cancel()
		err := d.calls.Cancel(ctx, key)
		c.mu.Lock()
		k.cancelling = false
		over := k.result != nil
		c.mu.Unlock()
		switch {
		case err == nil || over:
		case fault.Is(err, fault.NotFound):
			failed(notInFlight())
		default:
			failed(failureOf(err))
		}
	}()
}

// abandon cancels a call that was not made on this server.
func (d *replicated) abandon(c *client, id string, failed func(*failure)) {
	c.mu.Lock()
	k := c.adopt(d.calls.Find(queue.Key{Owner: c.key.Owner, Session: c.session, RequestID: id}), elsewhere)
	c.mu.Unlock()
	if k == nil {
		failed(notInFlight())
		return
	}
	d.cancel(k, failed)
}

// keeps implements keeper: the cluster has the result; nothing stays here.
func (d *replicated) keeps(k *call, v *verdict) {
	c := k.client
	k.again = !v.kept()
	if c.calls[k.id] == k {
		delete(c.calls, k.id)
	}
}

// whereabouts says where a call is.
func (d *replicated) whereabouts(k *call, at string) string {
	k.client.mu.Lock()
	key := k.key()
	k.client.mu.Unlock()
	switch row := d.calls.Find(key); {
	case row == nil:
		return at
	case row.Status == queue.Queued && row.LastError != "":
		return fmt.Sprintf("%s waits to be tried again on server %s: %s", k.name, row.Server, row.LastError)
	case row.Status == queue.Queued:
		return fmt.Sprintf("%s waits for its turn on server %s", k.name, row.Server)
	case row.Server != d.hub.o.Server:
		return at + ", on server " + row.Server
	}
	return at
}

// adopt makes a call known here that was made elsewhere and is in flight; nil when there is none. c.mu is held.
func (c *client) adopt(row *queue.Call, conn *conn) *call {
	if row == nil || row.Status.Over() {
		return nil
	}
	if k := c.calls[row.RequestID]; k != nil && k.result == nil {
		return k
	}
	k := c.newCall(c.hub.cluster, row.RequestID, row.Tool, time.Unix(0, row.Deadline))
	c.hub.count.durable.Add(1)
	c.inCluster = true
	k.hash, k.conn, k.number = row.RequestHash, conn, row.Number
	if row.CreateTime > 0 {
		k.began = time.Unix(0, row.CreateTime)
	}
	k.accept()
	return k
}

// The client as dispatch.Sink.

// Accepted implements dispatch.Sink.
func (c *client) Accepted(row *queue.Call, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.calls[row.RequestID]
	if k == nil || k.accepted {
		return
	}
	k.number = row.Number
	if known {
		if row.Status.Over() {
			c.hub.count.cached.Add(1)
			k.cached = true
		} else {
			c.hub.count.joined.Add(1)
			k.moved = true
			k.deadline = time.Unix(0, row.Deadline)
		}
	}
	k.accept()
}

// Refused implements dispatch.Sink.
func (c *client) Refused(id string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.calls[id]; k != nil {
		k.refuse(failureOf(err))
	}
}

// inFlightCall returns a call that the cluster keeps and that is in flight, nil for none.
func (c *client) inFlightCall(id string) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.calls[id]; k != nil && k.result == nil && k.keeper != keeper(c.hub.memory) {
		return k
	}
	return nil
}

// Progress implements dispatch.Sink.
func (c *client) Progress(id, note string) {
	if k := c.inFlightCall(id); k != nil {
		k.progress(note)
	}
}

// Chunk implements dispatch.Sink.
func (c *client) Chunk(ctx context.Context, id, text string) error {
	if k := c.inFlightCall(id); k != nil {
		return k.chunk(ctx, text)
	}
	return nil
}

// Waits implements dispatch.Sink.
func (c *client) Waits() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	waits := map[string]uint64{}
	for id, k := range c.calls {
		if k.accepted && k.result == nil && k.keeper != keeper(c.hub.memory) {
			waits[id] = k.number
		}
	}
	return waits
}

// Room implements dispatch.Sink: a client that is away is told nothing that would wait for it.
func (c *client) Room() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return nil
	}
	return c.waitRoom()
}

// Ended implements dispatch.Sink.
func (c *client) Ended(r dispatch.Result) {
	v := verdictOf(&r)
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.calls[r.Call.RequestID]
	if k != nil && (!k.accepted || k.number != r.Call.Number || k.result != nil || k.keeper == keeper(c.hub.memory)) {
		k = nil
	}
	switch {
	case k != nil && r.Kept:
		m := v.message(k.id)
		m.FromCache, m.Order = true, r.Call.Order
		k.conclude(m, &v)
	case k != nil:
		k.finish(v, r.Call.Order)
	case r.Kept || c.conn == nil: // a client that is away is given it when it comes back
	default: // it was missed, or made elsewhere
		m := v.message(r.Call.RequestID)
		m.Order = r.Call.Order
		c.answer(&m)
	}
}

// conclude ends a call that had ended before, with its kept result. client.mu is held.
func (k *call) conclude(m message, v *verdict) {
	c := k.client
	k.result, k.ends = &m, time.Now()
	k.keeper.keeps(k, v)
	k.leave()
	if k.conn != nil {
		m.Order = 0 // it stands outside of the order
		for range k.joined + 1 {
			told := m
			c.answer(&told)
		}
	}
	k.done.happen()
}

// verdictOf is how a call came out, as the cluster keeps it.
func verdictOf(r *dispatch.Result) verdict {
	o := r.Call.Outcome
	switch {
	case r.Err != nil:
		f := failureOf(r.Err)
		if f.Details == nil {
			f.Details = &details{RetryAfterMS: 1000}
		}
		return verdict{failure: f}
	case o.Cancelled:
		return verdict{cancelled: true}
	case o.Code != "":
		f := failed(o.Code, o.Message)
		if o.RetryAfter > 0 || o.Field != "" {
			f.Details = &details{RetryAfterMS: o.RetryAfter.Milliseconds(), Field: o.Field}
		}
		return verdict{failure: f}
	}
	return verdict{outputs: json.RawMessage(r.Outputs)}
}

// maxFetched bounds the results of a client that are known to have been fetched before others: the rest may be given again.
const maxFetched = 1024

// took notes that the client fetched a result. What it was given counts up to the first that it was not given, so one that it fetched before others
// counts once it has those, too. c.mu is held.
func (c *client) took(order uint64) {
	given, sure := c.givenSoFar()
	if order <= c.given {
		return
	}
	if c.fetchedOrders == nil {
		c.fetchedOrders = map[uint64]struct{}{}
	}
	if len(c.fetchedOrders) < maxFetched || order == c.given+1 {
		c.fetchedOrders[order] = struct{}{}
	}
	c.noteFetched(given, sure)
}

// tookMore counts what the client fetched here before it was given others at another server. c.mu is not held.
func (c *client) tookMore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.fetchedOrders) > 0 {
		given, sure := c.givenSoFar()
		c.noteFetched(given, sure)
	}
}

// givenSoFar brings along what the client was given by other servers, or before it was forgotten here. It returns up to where that is now, and whether
// the cluster knows it all. What was written to a former connection here may never have arrived: while the client is at another server, it does not count.
// c.mu is held.
func (c *client) givenSoFar() (given uint64, sure bool) {
	row := c.hub.cluster.calls.Client(c.key)
	if row == nil {
		return c.given, false
	}
	if c.conn == nil && row.Server != "" && row.Server != c.hub.o.Server {
		c.given = row.Delivered
	}
	c.given = max(c.given, row.Delivered)
	return c.given, c.given == row.Delivered
}

// noteFetched has the cluster know what of that which was fetched joins up with what was given. c.mu is held.
func (c *client) noteFetched(given uint64, sure bool) {
	c.joinFetched()
	switch {
	case c.given == given:
	case sure:
		c.hub.cluster.calls.Fetched(c.key, c.given)
	default:
		c.hub.cluster.calls.Delivered(c.key, c.given, false)
	}
}

// joinFetched counts what was fetched and joins up with what was given. c.mu is held.
func (c *client) joinFetched() {
	if len(c.fetchedOrders) == 0 {
		return
	}
	for order := range c.fetchedOrders {
		if order <= c.given {
			delete(c.fetchedOrders, order)
		}
	}
	for {
		if _, ok := c.fetchedOrders[c.given+1]; !ok {
			return
		}
		c.given++
		delete(c.fetchedOrders, c.given)
	}
}
