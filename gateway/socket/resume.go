// Coming back: what a client is told of what the cluster promised it, at whichever server it is now.

package socket

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/queue/dispatch"
)

// seen is what a client says that it has.
type seen struct {
	seq, order *uint64 // the last that it saw; nil where it does not say
}

// number reads a number that may be left out; what is none is left out, too.
func (r *request) number(field string) *uint64 {
	raw := r.field(field)
	if isNull(raw) {
		return nil
	}
	n := new(uint64)
	if json.Unmarshal(raw, n) != nil {
		return nil
	}
	return n
}

// open finds what the cluster promised a client that comes with a session of its own.
func (c *client) open() (dispatch.Opened, error) {
	ctx, cancel := context.WithTimeout(c.hub.life, clusterPatience)
	defer cancel()
	c.mu.Lock()
	c.inCluster = true
	key := c.key
	c.mu.Unlock()
	return c.hub.cluster.calls.Open(ctx, key, c)
}

// pickUp makes known what is in flight, and returns behind which result the client is to be given those that it missed. again are frames that are
// written once more: results among them come from the cluster instead. c.mu is held.
func (c *client) pickUp(o *dispatch.Opened, has seen, again []frame) (after uint64) {
	for _, row := range o.Unfinished {
		c.adopt(row, elsewhere)
	}
	after = max(c.given, o.Delivered)
	switch {
	case has.order != nil:
		after = min(*has.order, o.Order)
	default:
		for _, f := range again {
			if f.order > 0 {
				after = min(after, f.order-1)
			}
		}
	}
	c.given, c.fetchedOrders = after, nil // it says itself what it has
	return after
}

// resume has the results come that the client missed, and those to come. c.mu is not held.
func (c *client) resume(after uint64, has seen) {
	c.mu.Lock()
	key := c.key
	c.mu.Unlock()
	if has.order != nil {
		c.hub.cluster.calls.Delivered(key, after, false)
	}
	c.hub.cluster.calls.Resume(key, after)
}

// release takes an open back whose connection was not attached: another one has the client, and its results are told to that as they come. c.mu is
// not held.
func (c *client) release() {
	c.mu.Lock()
	key := c.key
	c.mu.Unlock()
	c.hub.cluster.calls.Release(key)
}

// rekeyInCluster gives the client's calls to another owner, where the cluster knows it.
func (c *client) rekeyInCluster(to queue.ClientKey, who auth.Identity) *failure {
	c.mu.Lock()
	from, known := c.key, c.inCluster
	c.mu.Unlock()
	if known && from != to {
		ctx, cancel := context.WithTimeout(c.hub.life, clusterPatience)
		defer cancel()
		if err := c.hub.cluster.calls.Rekey(ctx, from, to, callerOf(who)); err != nil {
			return failureOf(err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.key = to
	return nil
}

// leaveBehind counts out the calls that go on elsewhere when this server has ended.
func (c *client) leaveBehind() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, k := range c.calls {
		if k.result != nil || k.keeper == keeper(c.hub.memory) {
			continue
		}
		delete(c.calls, id)
		k.leave()
	}
}

// elsewhere reports whether the client has gone to another server, as the cluster knows.
func (c *client) isElsewhere() bool {
	c.mu.Lock()
	key, ask := c.key, c.inCluster && c.conn != nil
	c.mu.Unlock()
	if !ask {
		return false
	}
	row := c.hub.cluster.calls.Client(key)
	return row != nil && row.Server != "" && row.Server != c.hub.o.Server
}

// result answers over HTTP for a call that is not known here.
func (d *replicated) result(w http.ResponseWriter, r *http.Request, a *asked) {
	id := a.id
	ctx, cancel := context.WithTimeout(r.Context(), clusterPatience)
	defer cancel()
	key := queue.Key{Owner: ownerOf(a.who), Session: a.session, RequestID: id}
	row, err := d.calls.Lookup(ctx, key)
	switch {
	case err != nil:
		f := failureOf(err)
		reply(w, statusOf(f), &message{Op: "call_tool_res", RequestID: id, Error: f})
	case row == nil:
		reply(w, http.StatusNotFound, unknownCall(id))
	case row.Status.Over():
		d.ended(ctx, w, a, row)
	default:
		c, f := d.hub.sessionOf(a)
		var k *call
		if f == nil {
			if k, row, err = d.join(ctx, c, key); err != nil {
				f = failureOf(err)
			}
		}
		switch {
		case f != nil:
			reply(w, statusOf(f), &message{Op: "call_tool_res", RequestID: id, Error: f})
		case row == nil:
			reply(w, http.StatusNotFound, unknownCall(id))
		case k == nil:
			d.ended(ctx, w, a, row)
		default:
			d.hub.await(w, r, c, k, a.wait, false)
		}
	}
}

// join has a client hear of a call that was made elsewhere; there is no call where it is over, and no row where there is none. The call is made known
// first: its end is told as soon as the client is joined, and then only.
func (d *replicated) join(ctx context.Context, c *client, key queue.Key) (*call, *queue.Call, error) {
	c.mu.Lock()
	had := c.calls[key.RequestID]
	k := c.adopt(d.calls.Find(key), nil)
	c.mu.Unlock()
	row, err := d.calls.Join(ctx, key, c)
	over := err != nil || row == nil || row.Status.Over()
	switch {
	case k != nil && k != had && over:
		c.mu.Lock()
		k.disown()
		c.mu.Unlock()
		return nil, row, err
	case over:
		return nil, row, err
	case k == nil: // it has just come to be seen
		return d.join(ctx, c, key)
	}
	return k, row, nil
}

// disown lets go of a call that was made known for nothing: it has ended before anybody here could hear of it. client.mu is held.
func (k *call) disown() {
	c := k.client
	if k.result != nil {
		return
	}
	k.result, k.again = &message{Op: "call_tool_res", RequestID: k.id}, true
	if c.calls[k.id] == k {
		delete(c.calls, k.id)
	}
	k.leave()
	k.done.happen()
}

// ended answers with the result of a call that is over. It counts as given.
func (d *replicated) ended(ctx context.Context, w http.ResponseWriter, a *asked, row *queue.Call) {
	res := dispatch.Result{Call: row}
	res.Outputs, res.Err = d.calls.Outputs(ctx, row)
	v := verdictOf(&res)
	m := v.message(row.RequestID)
	m.Order = row.Order
	if c, f := d.hub.sessionOf(a); f == nil && res.Err == nil {
		c.mu.Lock()
		c.took(row.Order)
		c.mu.Unlock()
	}
	reply(w, statusOfAnswer(&m), &m)
}

func unknownCall(id string) *message {
	return &message{Op: "call_tool_res", RequestID: id, Error: failed(codeNotFound, "no call of this request_id and session is known; make it again, it has no second effect")}
}

// kickThoseElsewhere closes connections of clients that are at another server by now: they have two, and one of them is dead.
func (h *Hub) kickThoseElsewhere(all []*client) {
	if h.cluster == nil {
		return
	}
	for _, c := range all {
		if !c.isElsewhere() {
			continue
		}
		if conn := c.current(); conn != nil && time.Since(conn.start) > sweepEvery { // one that has just come is known here first
			conn.kick(closeProtocol, "another connection took over this session, at another server", takeoverPatience)
		}
	}
}
