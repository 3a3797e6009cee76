// Dead calls: how many each owner has, and which of them go when there are too many.
//
// Each owner has a bound of its own, well below that of all: who makes many calls that die loses its own oldest ones, and not those of others.

package state

import (
	"fmt"
	"slices"

	"github.com/neolith/orchestrator/queue"
)

// deadOwnerRow is what an owner has of dead calls. Never changed in place.
type deadOwnerRow struct {
	owner string
	calls uint64
	bytes uint64
}

// countDead and uncountDead bring along what a call's owner has of dead calls: its count, and their order by age.
func (a *applier) countDead(c *queue.Call) {
	if c.Status != queue.Dead {
		return
	}
	n := deadOwnerRow{owner: c.Owner}
	if old := a.deadOwners.get(a.base, c.Owner); old != nil {
		n = *old
	}
	n.calls++
	n.bytes += c.StateBytes()
	a.deadOwners.put(c.Owner, &n)
	a.set(setCallsDeadOf, c.Owner, callStandingOf(c, 0).dead, "")
}

func (a *applier) uncountDead(c *queue.Call) {
	if c.Status != queue.Dead {
		return
	}
	n := *a.deadOwners.get(a.base, c.Owner)
	n.calls--
	n.bytes -= c.StateBytes()
	if n.calls > 0 {
		a.deadOwners.put(c.Owner, &n)
	} else {
		a.deadOwners.put(c.Owner, nil)
	}
	a.unset(setCallsDeadOf, c.Owner, callStandingOf(c, 0).dead)
}

// boundDeadCalls lets the oldest dead calls go when there are too many, or they have too much, and says so: first of the owners that this entry has given
// more, then of all.
func (a *applier) boundDeadCalls() {
	l := a.limits
	for _, changed := range slices.Clone(a.deadOwners.cells) {
		owner := changed.key
		if r := a.deadOwners.get(a.base, owner); r != nil {
			a.dropOldest(setID{setCallsDeadOf, owner}, r.calls, r.bytes, l.DeadCallsPerOwner, l.DeadCallBytesPerOwner, "of one caller")
		}
	}
	a.dropOldest(setID{kind: setCallsDead}, a.meta.stats.Calls.Of(queue.Dead), a.meta.stats.DeadCallBytes, l.DeadCalls, l.DeadCallBytes, "in all")
}

// dropOldest lets the oldest calls of a set go until it is within bounds.
func (a *applier) dropOldest(set setID, calls, bytes uint64, maxCalls int, maxBytes uint64, whose string) {
	over := func() bool { return calls > uint64(maxCalls) || bytes > maxBytes }
	if !over() {
		return
	}
	a.flush()
	var old []*queue.Call
	for c := range callsOf(a.base, set) {
		old = append(old, c)
		calls--
		if bytes -= c.StateBytes(); !over() {
			break
		}
	}
	a.dropCalls(old)
	a.meta.stats.DeadCallsDropped += uint64(len(old))
	e := Event{Type: "call.dropped", Message: fmt.Sprintf("the %d oldest dead calls were dropped to keep within %d calls and %d bytes %s", len(old), maxCalls, maxBytes, whose)}
	if set.kind == setCallsDeadOf {
		e.Namespace = old[0].Namespace()
	}
	a.event(e)
}
