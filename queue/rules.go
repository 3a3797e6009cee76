// The rules: what a call becomes by each thing that is said about it. Each rule returns the call as it is then, the same one when it
// was so already (so whoever does not know whether it was heard may say it again), or why it cannot be.

package queue

import (
	"fmt"

	"github.com/neolith/orchestrator/internal/fault"
)

// The codes of outcomes that nobody who ran the call gave. They are codes of the client gateway.
const (
	CodeTimeout     = "TIMEOUT"
	CodeUnavailable = "SERVICE_UNAVAILABLE"
)

// cancelled is the outcome of a call that its client did not want any more; it may want it again.
func cancelled() *Outcome { return &Outcome{Cancelled: true, Passing: true} }

// become returns a copy with the status that the event leads to.
func (c *Call) become(e Event) (*Call, error) {
	to, ok := Next(c.Status, e)
	if !ok {
		return nil, fault.New(fault.FailedPrecondition, "%s: call %s is %s", e, c.ID(), c.Status)
	}
	n := *c
	n.Status = to
	return &n, nil
}

// stale says that whoever speaks about the call does not know how it stands.
func (c *Call) stale(e Event, server string, attempt uint32) error {
	return fault.New(fault.Aborted, "%s: call %s is %s at attempt %d of server %s, not at attempt %d of server %s", e, c.ID(), c.Status, c.Attempt, c.Server, attempt, server)
}

// Begin is what a waiting call becomes when its server begins the attempt after the one that it knows of.
func (c *Call) Begin(server string, attempt uint32, now int64) (*Call, error) {
	switch {
	case c.Status == Running && c.Server == server && c.Attempt == attempt+1:
		return c, nil
	case c.Status != Queued || c.Server != server || c.Attempt != attempt:
		return nil, c.stale(Begin, server, attempt)
	}
	n, err := c.become(Begin)
	if err != nil {
		return nil, err
	}
	n.Attempt++
	n.BeginTime, n.NotBefore = now, 0
	return n, nil
}

// Defer is what a running call becomes when its attempt failed in a way that may pass. One that somebody has cancelled meanwhile ends.
func (c *Call) Defer(server string, attempt uint32, notBefore int64, why string, now int64) (*Call, error) {
	switch {
	case c.Status == Queued && c.Server == server && c.Attempt == attempt && c.NotBefore == notBefore && notBefore != 0:
		return c, nil
	case c.Status != Running || c.Server != server || c.Attempt != attempt:
		return nil, c.stale(Defer, server, attempt)
	case c.Cancelling:
		return c.end(End, cancelled(), now)
	case !c.Repeatable:
		return nil, fault.New(fault.FailedPrecondition, "defer: call %s of %s may have had its effect, and may not be repeated; end it", c.ID(), c.Tool)
	}
	n, err := c.become(Defer)
	if err != nil {
		return nil, err
	}
	n.NotBefore, n.LastError = notBefore, why
	return n, nil
}

// End is what a call becomes when its server says how it ended. It ends once: who says it again, or too late, is given the call as it
// ended the first time.
func (c *Call) End(server string, attempt uint32, o *Outcome, dead bool, now int64) (*Call, error) {
	switch {
	case c.Server != server || c.Attempt != attempt:
		return nil, c.stale(End, server, attempt)
	case c.Status.Over():
		return c, nil
	case dead:
		return c.end(GiveUp, o, now)
	default:
		return c.end(End, o, now)
	}
}

// Cancel is what a call becomes when its client does not want it any more: what waits ends, what runs is marked for its server.
func (c *Call) Cancel(now int64) (*Call, error) {
	switch {
	case c.Status.Over(), c.Cancelling:
		return c, nil
	case c.Status == Queued:
		return c.end(End, cancelled(), now)
	}
	n := *c
	n.Cancelling = true
	return &n, nil
}

// Assign is what a call becomes when its server is gone and another one is to have it. One that had begun and may not be repeated is
// given up, as nobody knows how far it came.
func (c *Call) Assign(to, why string, now int64) (*Call, error) {
	switch {
	case c.Status.Over():
		return c, nil
	case c.Cancelling:
		return c.end(End, cancelled(), now)
	case c.Status == Running && !c.Repeatable:
		return c.end(GiveUp, &Outcome{
			Code:    CodeUnavailable,
			Message: fmt.Sprintf("%s while it ran; whether it had its effect is not known, and %s may not be repeated unasked", why, c.Tool),
		}, now)
	}
	n, err := c.become(Assign)
	if err != nil {
		return nil, err
	}
	n.Server, n.BeginTime = to, 0
	n.Attempt++
	if c.Status == Running {
		n.LastError = why
	}
	return n, nil
}

// Expire is what a call becomes when its deadline has passed and nobody has ended it.
func (c *Call) Expire(now int64) (*Call, error) {
	switch {
	case c.Status.Over():
		return c, nil
	case c.Cancelling:
		return c.end(End, cancelled(), now)
	case c.Status == Queued:
		return c.end(End, &Outcome{Code: CodeTimeout, Message: "its deadline passed while it waited", Passing: true}, now)
	default:
		return c.end(End, &Outcome{
			Code: CodeTimeout, Message: fmt.Sprintf("its deadline passed, and server %s, which ran it, has not said how it ended", c.Server), Passing: true,
		}, now)
	}
}

// Retry is what a dead call becomes when a person gives it another chance: a call that was taken just now.
func (c *Call) Retry(server string, deadline int64, number uint64) (*Call, error) {
	n, err := c.become(Retry)
	if err != nil {
		return nil, err
	}
	n.Server, n.Deadline, n.Number = server, deadline, number
	n.Attempt++ // so that nothing said about the last attempt is taken for one about the next
	n.BeginTime, n.EndTime, n.NotBefore, n.Order = 0, 0, 0, 0
	n.Outcome = nil
	return n, nil
}

// Anew reports whether a client that asks again makes the call anew, and does not get the outcome that it has.
func (c *Call) Anew() bool { return c.Status.Over() && c.Outcome != nil && c.Outcome.Passing }

// end gives the call its outcome. What it was called with is needed no more, unless somebody may retry it.
func (c *Call) end(e Event, o *Outcome, now int64) (*Call, error) {
	n, err := c.become(e)
	if err != nil {
		return nil, err
	}
	n.Outcome, n.EndTime, n.NotBefore, n.Cancelling = o, now, 0, false
	if o.Code != "" {
		n.LastError = o.Code + ": " + o.Message
	}
	if n.Status == Ended {
		n.Arguments = Blob{Size: c.Arguments.Size}
	}
	return n, nil
}
