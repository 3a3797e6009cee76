// Clients: sessions of clients, the numbers of their results, and what they were given.

package state

import (
	"slices"
	"strings"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

// clientTouch is how exact a client's time is: a row that changed with each call would cost more than it tells.
const clientTouch = time.Minute

// clientRow is a client's session with what is kept of its calls.
type clientRow struct {
	queue.Client
	live, dead uint32
	// ended are its results that are kept, in their order, without dead ones. Never changed in place; what is appended may share the array.
	ended []endedCall
}

// endedCall names a call that has ended.
type endedCall struct {
	order   uint64
	request string
}

func (r *clientRow) kept() int {
	if r == nil {
		return 0
	}
	return int(r.live) + len(r.ended)
}

// count and uncount bring the row along with one of its calls.
func (r *clientRow) count(c *queue.Call) {
	switch c.Status {
	case queue.Ended:
		r.ended = append(r.ended, endedCall{c.Order, c.RequestID}) // whose order is the last that was given
	case queue.Dead:
		r.dead++
	default:
		r.live++
	}
}

func (r *clientRow) uncount(c *queue.Call) {
	switch c.Status {
	case queue.Ended:
		at := r.after(c.Order - 1)
		if at == 0 {
			r.ended = r.ended[1:]
		} else { // the last one too is not cut off: what is appended next would overwrite it in views that have it
			r.ended = slices.Concat(r.ended[:at], r.ended[at+1:])
		}
	case queue.Dead:
		r.dead--
	default:
		r.live--
	}
}

// after is the place of the first result behind an order.
func (r *clientRow) after(order uint64) int {
	at, _ := slices.BinarySearchFunc(r.ended, order+1, func(e endedCall, o uint64) int {
		switch {
		case e.order < o:
			return -1
		case e.order > o:
			return 1
		default:
			return 0
		}
	})
	return at
}

// givenOf returns a client's oldest results that it was given, but not the call that is made anew.
func (a *applier) givenOf(row *clientRow, rows int, but *queue.Call) (found []*queue.Call) {
	for _, e := range row.ended {
		if e.order > row.Delivered || len(found) >= rows {
			break
		}
		if but == nil || e.request != but.RequestID {
			found = append(found, a.calls.get(a.base, queue.Key{Owner: row.Owner, Session: row.Session, RequestID: e.request}))
		}
	}
	return found
}

// ownClient returns a client's row to be changed and put back: a copy, or the one that this entry has put already.
func (a *applier) ownClient(k queue.ClientKey) *clientRow {
	old, own := a.clients.own(a.base, k)
	if own {
		return old
	}
	row := *old
	return &row
}

// clientAge is a client's key in the order of their times.
func clientAge(c *queue.Client) string { return timeKey(c.Time) + c.Owner + "\x00" + c.Session }

func clientOfAge(key string) queue.ClientKey {
	owner, session, _ := strings.Cut(key[8:], "\x00")
	return queue.ClientKey{Owner: owner, Session: session}
}

// touchClient returns the row of a client that is there now, at a server when one is named: a new one when there is none, whose orders
// begin behind those that the client may have been given before it was forgotten.
func (a *applier) touchClient(k queue.ClientKey, server string) (*clientRow, error) {
	if a.clients.get(a.base, k) == nil {
		if err := k.Validate(); err != nil {
			return nil, err
		}
		if err := a.roomForClient(); err != nil {
			return nil, err
		}
		if a.meta.stats.Clients >= uint64(a.limits.Clients) {
			a.dropClient(a.idleClient())
		}
		// Its own copies of the names: every call of the client shares them.
		k = queue.ClientKey{Owner: a.intern.str(k.Owner), Session: strings.Clone(k.Session)}
		// A client that was forgotten may be there still, and so may the stream of its results: its orders go on behind all that it can
		// have been given. Each result took a number of a call, so none has come further than these.
		row := &clientRow{Client: queue.Client{
			ClientKey: k, Server: a.intern.str(server), Order: a.meta.call, Delivered: a.meta.call, Time: a.meta.time,
		}}
		a.meta.stats.Clients++
		a.set(setClients, "", clientAge(&row.Client), "")
		a.clients.put(k, row)
		return row, nil
	}
	row := a.ownClient(k)
	if time.Duration(a.meta.time-row.Time) >= clientTouch {
		a.unset(setClients, "", clientAge(&row.Client))
		row.Time = a.meta.time
		a.set(setClients, "", clientAge(&row.Client), "")
	}
	if server != "" {
		row.Server = a.intern.str(server)
	}
	a.clients.put(k, row)
	return row, nil
}

// roomForClient says why another client would not be taken; nil when it would.
func (a *applier) roomForClient() error {
	if n := a.meta.stats.Clients; n >= uint64(a.limits.Clients) && a.idleClient() == nil {
		return fault.New(fault.Exhausted, "client: %d client sessions are known, the limit, and each has been here within %s or has calls", n, a.limits.ResultKeep).WithRetry(a.limits.RetryAfter)
	}
	return nil
}

// idleClient returns the client that was here longest ago, at least for as long as results are kept, and has no calls; nil for none.
func (a *applier) idleClient() (found *clientRow) {
	a.idleClients(a.limits.ResultKeep, func(r *clientRow) bool {
		found = r
		return false
	})
	return found
}

// idleClients calls f with clients that have no calls and have not been here for so long, oldest first, until it returns false.
func (a *applier) idleClients(keep time.Duration, f func(*clientRow) bool) {
	for key := range (setID{kind: setClients}).all(a.base) {
		was := first[clientRow](a.base, tableClients, byID, clientKeyBytes(clientOfAge(key), 0))
		if time.Duration(a.meta.time-was.Time) < keep {
			return
		}
		row := a.clients.get(a.base, was.ClientKey)
		if row == nil || row.Time != was.Time || row.live+row.dead > 0 || len(row.ended) > 0 {
			continue
		}
		if !f(row) {
			return
		}
	}
}

func (a *applier) dropClient(row *clientRow) {
	a.unset(setClients, "", clientAge(&row.Client))
	a.clients.put(row.ClientKey, nil)
	a.meta.stats.Clients--
}

// collectClients forgets clients that have been away for long.
func (a *applier) collectClients(limit int) int {
	var old []*clientRow
	a.idleClients(a.limits.ClientKeep, func(r *clientRow) bool {
		if len(old) < limit {
			old = append(old, r)
		}
		return len(old) < limit
	})
	for _, r := range old {
		a.dropClient(r)
	}
	return len(old)
}

// openClient notes where a client's session is; true when it was known.
func (a *applier) openClient(p *clusterv1.OpenClient) (known bool, err error) {
	if err := checkID("server", p.GetServerId()); err != nil {
		return false, err
	}
	k := queue.ClientKey{Owner: p.GetOwner(), Session: p.GetSession()}
	known = a.clients.get(a.base, k) != nil
	_, err = a.touchClient(k, p.GetServerId())
	return known, err
}

func noClient(k queue.ClientKey) error {
	return fault.New(fault.NotFound, "client session %q: there is none; it may have been collected", clip(k.Session, 64))
}

// takeDelivery notes up to which result a client was given its results; true when that was known.
func (a *applier) takeDelivery(p *clusterv1.TakeDelivery) (bool, error) {
	k := queue.ClientKey{Owner: p.GetOwner(), Session: p.GetSession()}
	old := a.clients.get(a.base, k)
	if old == nil {
		return false, noClient(k)
	}
	upTo := min(p.GetOrder(), old.Order)
	if upTo <= old.Delivered {
		return true, nil
	}
	row := a.ownClient(k)
	for _, e := range row.ended[row.after(row.Delivered):row.after(upTo)] {
		c := a.calls.get(a.base, queue.Key{Owner: row.Owner, Session: row.Session, RequestID: e.request})
		a.set(setCallsGiven, "", callStandingOf(c, upTo).given, "")
	}
	row.Delivered = upTo
	a.clients.put(k, row)
	return false, nil
}

// rekeyClient gives a client's session with its calls to another owner. True when that was done before.
func (a *applier) rekeyClient(p *clusterv1.RekeyClient) (again bool, moved uint32, err error) {
	from := queue.ClientKey{Owner: p.GetOwner(), Session: p.GetSession()}
	to := queue.ClientKey{Owner: p.GetNewOwner(), Session: p.GetSession()}
	if err := to.Validate(); err != nil {
		return false, 0, err
	}
	old, there := a.clients.get(a.base, from), a.clients.get(a.base, to)
	switch {
	case from == to:
		return true, 0, nil
	case old == nil && there != nil:
		return true, 0, nil
	case old == nil:
		return false, 0, noClient(from)
	case there != nil && (there.live+there.dead > 0 || len(there.ended) > 0):
		return false, 0, fault.New(fault.AlreadyExists, "rekey: the new owner has a client session %q with calls of its own", clip(from.Session, 64))
	}
	caller := a.internCaller(pbconv.CallerFromProto(p.GetCaller()))
	a.flush() // what is removed and what is put are written in this order then
	if there != nil {
		a.dropClient(there)
	}
	row := *old
	row.Owner = a.intern.str(to.Owner)
	a.dropClient(old)
	a.clients.put(to, &row)
	a.set(setClients, "", clientAge(&row.Client), "")
	a.meta.stats.Clients++
	prefixed(a.base, tableCalls, clientKeyBytes(from, 0), func(c *queue.Call) bool {
		n := *c
		n.Owner, n.Caller, n.ModifyIndex = row.Owner, caller, a.meta.index
		a.calls.put(c.Key, nil)
		a.calls.put(n.Key, &n) // counts and sets are by number, which stays, but for those by owner
		a.uncountDead(c)
		a.countDead(&n)
		moved++
		return true
	})
	a.rekeyed = append(a.rekeyed, Rekeyed{From: from, To: row.ClientKey})
	return false, moved, nil
}

// Rekeyed tells that a client's session has another owner; its calls have other keys, and their numbers.
type Rekeyed struct{ From, To queue.ClientKey }
