// Calls: what clients were promised an answer to. The rules are those of package queue; this file applies them, keeps the bounds, and
// numbers the results of each client.

package state

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

// applyCall applies a command about calls; false when it is about something else.
func (a *applier) applyCall(c *clusterv1.Command) (r Result, ok bool) {
	switch k := c.GetKind().(type) {
	case *clusterv1.Command_SubmitCall:
		return a.submitCall(k.SubmitCall), true
	case *clusterv1.Command_BeginCall:
		return a.beginCall(k.BeginCall), true
	case *clusterv1.Command_DeferCall:
		return a.deferCall(k.DeferCall), true
	case *clusterv1.Command_EndCall:
		return a.endCall(k.EndCall), true
	case *clusterv1.Command_CancelCall:
		return a.become(k.CancelCall.GetKey(), func(c *queue.Call) (*queue.Call, error) { return c.Cancel(a.meta.time) }), true
	case *clusterv1.Command_AssignCalls:
		r.Count, r.Err = a.assignCalls(k.AssignCalls)
	case *clusterv1.Command_ExpireCalls:
		r.Count = a.expireCalls(k.ExpireCalls)
	case *clusterv1.Command_TakeDelivery:
		r.Duplicate, r.Err = a.takeDelivery(k.TakeDelivery)
	case *clusterv1.Command_OpenClient:
		r.Duplicate, r.Err = a.openClient(k.OpenClient)
	case *clusterv1.Command_RekeyClient:
		r.Duplicate, r.Count, r.Err = a.rekeyClient(k.RekeyClient)
	case *clusterv1.Command_RetryCall:
		return a.retryCall(k.RetryCall), true
	case *clusterv1.Command_PurgeCalls:
		r.Count, r.Err = a.purgeCalls(k.PurgeCalls)
	default:
		return r, false
	}
	return r, true
}

func noCall(k queue.Key) error {
	return fault.New(fault.NotFound, "call %q of client session %q: there is none; it may have been collected after its end", clip(k.RequestID, 64), clip(k.Session, 64))
}

// submitCall takes a call, or says what became of the one that has its key.
func (a *applier) submitCall(p *clusterv1.SubmitCall) Result {
	k := pbconv.CallKeyFromProto(p.GetKey())
	old := a.calls.get(a.base, k)
	if old != nil && !old.Anew() {
		if old.RequestHash != p.GetRequestHash() {
			return Result{Err: fault.New(fault.AlreadyExists, "call %q: this request_id was used for another request; use a new one", k.RequestID).WithField("request_id")}
		}
		return Result{Call: old, Duplicate: true}
	}
	c, err := pbconv.CallFromSubmit(p)
	if err != nil {
		return Result{Err: fault.New(fault.Invalid, "call: %w", err)}
	}
	if err := c.Validate(a.meta.time); err != nil {
		return Result{Err: err}
	}
	spent, err := a.roomForCall(c, old)
	if err != nil {
		return Result{Err: err}
	}
	a.dropCalls(spent)
	row, err := a.touchClient(k.Client(), "")
	if err != nil {
		return Result{Err: err} // roomForCall has asked: spent is empty then
	}
	a.meta.call++
	a.internCall(c, row)
	c.Number, c.CreateTime = a.meta.call, a.meta.time
	if old != nil {
		c.Attempt = old.Attempt + 1 // so that nothing said about the old attempt is taken for one about the new
	}
	if p.GetBegin() && (c.OrderKey == "" || a.orders.get(a.base, c.OrderKey) == nil) {
		if c, err = c.Begin(c.Server, c.Attempt, a.meta.time); err != nil {
			panic(fmt.Sprintf("state: a new call cannot begin: %v", err)) // a defect of package queue
		}
	}
	a.putCall(row, old, c)
	return Result{Call: c}
}

// internCall makes the call share what others have, too.
func (a *applier) internCall(c *queue.Call, row *clientRow) {
	c.Owner, c.Session = row.Owner, row.Session
	c.Tool, c.Server, c.OrderKey = a.intern.str(c.Tool), a.intern.str(c.Server), a.intern.str(c.OrderKey)
	c.Caller = a.internCaller(c.Caller)
}

func (a *applier) internCaller(c queue.Caller) queue.Caller {
	return queue.Caller{TokenID: a.intern.str(c.TokenID), Name: a.intern.str(c.Name), Role: a.intern.str(c.Role), Namespace: a.intern.str(c.Namespace)}
}

// become applies a rule to one call.
func (a *applier) become(key *clusterv1.CallKey, rule func(*queue.Call) (*queue.Call, error)) Result {
	k := pbconv.CallKeyFromProto(key)
	c := a.calls.get(a.base, k)
	if c == nil {
		return Result{Err: noCall(k)}
	}
	n, err := rule(c)
	switch {
	case err != nil:
		return Result{Err: err}
	case n == c:
		return Result{Call: c, Duplicate: true}
	}
	return Result{Call: a.saveCall(c, n)}
}

// saveCall puts what a rule made of a call; a result that has come gets its place among those of its client.
func (a *applier) saveCall(old, c *queue.Call) *queue.Call {
	row := a.ownClient(c.Client())
	if c.Status.Over() && !old.Status.Over() {
		row.Order++
		c.Order = row.Order
		if c.Status == queue.Dead {
			a.event(Event{Type: "call.dead", Namespace: c.Namespace(), Message: fmt.Sprintf("call %s of %s became a dead letter at attempt %d: %s", c.ID(), c.Tool, c.Attempt, a.reason(c.LastError))})
		}
	}
	a.putCall(row, old, c)
	return c
}

// beginCall lets a call begin whose turn it is: of those with one order key, the first.
func (a *applier) beginCall(p *clusterv1.BeginCall) Result {
	return a.become(p.GetKey(), func(c *queue.Call) (*queue.Call, error) {
		n, err := c.Begin(p.GetServerId(), p.GetAttempt(), a.meta.time)
		if err != nil || n == c || c.OrderKey == "" {
			return n, err
		}
		if first := a.orders.get(a.base, c.OrderKey).numbers[0]; first != c.Number {
			return nil, fault.New(fault.FailedPrecondition, "begin: call %s is number %d, and number %d comes before it by their order key", c.ID(), c.Number, first)
		}
		return n, nil
	})
}

func (a *applier) deferCall(p *clusterv1.DeferCall) Result {
	return a.become(p.GetKey(), func(c *queue.Call) (*queue.Call, error) {
		why := a.reason(p.GetCode() + ": " + p.GetMessage())
		return c.Defer(p.GetServerId(), p.GetAttempt(), p.GetNotBefore(), why, a.meta.time)
	})
}

// endCall ends a call. Its outcome finds room always: those that wait for it were let in.
func (a *applier) endCall(p *clusterv1.EndCall) Result {
	o, err := pbconv.OutcomeFromProto(p.GetOutcome())
	switch {
	case err != nil:
		return Result{Err: fault.New(fault.Invalid, "end call: %w", err)}
	case o == nil:
		return Result{Err: fault.New(fault.Invalid, "end call: it has no outcome").WithField("outcome")}
	}
	if err := o.Outputs.Validate("outcome.outputs"); err != nil {
		return Result{Err: err}
	}
	o.Code, o.Field = a.intern.str(clip(o.Code, queue.MaxNameBytes)), a.intern.str(clip(o.Field, queue.MaxNameBytes))
	o.Message = clip(o.Message, queue.MaxTextBytes)
	r := a.become(p.GetKey(), func(c *queue.Call) (*queue.Call, error) {
		return c.End(p.GetServerId(), p.GetAttempt(), o, p.GetDead(), a.meta.time)
	})
	if over := a.meta.stats.CallBytes; r.Err == nil && over > a.limits.CallBytes {
		a.dropCalls(a.givenCalls(0, over-a.limits.CallBytes))
	}
	return r
}

// assignCalls gives the calls of a server that is gone to others: those with one order key to one of them, the rest in turn.
func (a *applier) assignCalls(p *clusterv1.AssignCalls) (uint32, error) {
	to := p.GetToServerIds()
	for _, id := range append([]string{p.GetFromServerId()}, to...) {
		if err := checkID("server", id); err != nil {
			return 0, err
		}
	}
	if len(to) == 0 || slices.Contains(to, p.GetFromServerId()) {
		return 0, fault.New(fault.Invalid, "assign calls: name other servers than the one that has them").WithField("to_server_ids")
	}
	why := p.GetReason()
	if why == "" {
		why = "its server (" + p.GetFromServerId() + ") was lost"
	}
	why = a.reason(why)
	a.flush()
	limit, turn := a.callLimit(p.GetLimit()), 0
	var calls []*queue.Call
	for c := range callsOf(a.base, setID{setCallsOn, p.GetFromServerId()}) {
		if calls = append(calls, c); len(calls) == limit {
			break
		}
	}
	for _, c := range calls {
		at := turn
		if c.OrderKey != "" {
			h := fnv.New32a()
			_, _ = h.Write([]byte(c.OrderKey)) // never fails
			at = int(h.Sum32() & 0x7fffffff)
		} else {
			turn++
		}
		n, err := c.Assign(a.intern.str(to[at%len(to)]), why, a.meta.time)
		if err != nil {
			return 0, err // a defect: what is listed there is not over
		}
		a.saveCall(c, n)
	}
	return uint32(len(calls)), nil
}

// expireCalls ends calls whose deadline was before a time.
func (a *applier) expireCalls(p *clusterv1.ExpireCalls) uint32 {
	a.flush()
	limit := a.callLimit(p.GetLimit())
	var due []*queue.Call
	for c := range callsOf(a.base, setID{kind: setCallsDue}) {
		if len(due) == limit || c.Deadline >= p.GetBefore() {
			break
		}
		due = append(due, c)
	}
	for _, c := range due {
		n, err := c.Expire(a.meta.time)
		if err != nil {
			panic(fmt.Sprintf("state: a call that is due cannot expire: %v", err)) // a defect of package queue
		}
		a.saveCall(c, n)
	}
	return uint32(len(due))
}

// retryCall gives a dead call another chance.
func (a *applier) retryCall(p *clusterv1.RetryCall) Result {
	k := pbconv.CallKeyFromProto(p.GetKey())
	old := a.calls.get(a.base, k)
	if old == nil {
		return Result{Err: noCall(k)}
	}
	if err := checkID("server", p.GetServerId()); err != nil {
		return Result{Err: err}
	}
	if p.GetDeadline() <= a.meta.time {
		return Result{Err: fault.New(fault.Timeout, "retry: the call's new deadline has passed")}
	}
	if live := a.meta.stats.Calls.Live(); live >= uint64(a.limits.Calls) {
		return Result{Err: a.callsFull(live)}
	}
	if kept := a.clients.get(a.base, k.Client()).kept(); old.Status == queue.Dead && kept >= a.limits.CallsPerClient {
		return Result{Err: fault.New(fault.Exhausted, "retry: the call's client session has %d calls, the limit", kept).WithRetry(a.limits.RetryAfter)}
	}
	c, err := old.Retry(a.intern.str(p.GetServerId()), p.GetDeadline(), a.meta.call+1)
	if err != nil {
		return Result{Err: err}
	}
	spent, err := a.roomForBytes(c.StateBytes(), 0) // its bytes are among those of dead calls no more
	if err != nil {
		return Result{Err: err}
	}
	a.dropCalls(spent)
	a.meta.call++
	c.CreateTime = a.meta.time
	a.event(Event{Type: "call.retried", Namespace: c.Namespace(), Message: fmt.Sprintf("call %s of %s was a dead letter and waits again", c.ID(), c.Tool)})
	return Result{Call: a.saveCall(old, c)}
}

// purgeCalls forgets dead calls: those of a namespace (empty: all), or one.
func (a *applier) purgeCalls(p *clusterv1.PurgeCalls) (uint32, error) {
	var dead []*queue.Call
	if p.GetKey() != nil {
		k := pbconv.CallKeyFromProto(p.GetKey())
		c := a.calls.get(a.base, k)
		if c == nil || c.Status != queue.Dead || p.GetNamespace() != "" && p.GetNamespace() != c.Namespace() {
			return 0, fault.New(fault.NotFound, "purge: call %s is not a dead letter", k.ID())
		}
		dead = append(dead, c)
	} else {
		a.flush()
		for c := range callsOf(a.base, setID{kind: setCallsDead}) {
			if p.GetNamespace() == "" || p.GetNamespace() == c.Namespace() {
				dead = append(dead, c)
			}
		}
	}
	if len(dead) == 0 {
		return 0, nil
	}
	a.dropCalls(dead)
	a.event(Event{Type: "call.purged", Namespace: p.GetNamespace(), Message: fmt.Sprintf("%d dead calls were purged", len(dead))})
	return uint32(len(dead)), nil
}

// callLimit is how many calls one command may change, at most as many as one collection removes.
func (a *applier) callLimit(asked uint32) int {
	if asked == 0 || int(asked) > a.limits.CollectRows {
		return a.limits.CollectRows
	}
	return int(asked)
}

// callKeyBytes writes a key for the table of calls.
func callKeyBytes(k queue.Key) []byte {
	return append(clientKeyBytes(k.Client(), len(k.RequestID)), k.RequestID...)
}

// clientKeyBytes writes a client's key, which begins those of its calls, with room for so many bytes more.
func clientKeyBytes(k queue.ClientKey, more int) []byte {
	b := make([]byte, 0, len(k.Owner)+len(k.Session)+2+more)
	b = append(append(b, k.Owner...), 0)
	return append(append(b, k.Session...), 0)
}

// callNumber reads the number at the end of a key of a set of calls.
func callNumber(key string) uint64 { return binary.BigEndian.Uint64([]byte(key[len(key)-8:])) }
