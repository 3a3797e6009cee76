// Restoring calls and clients: their rows in any order, and what hangs off them once all are there.

package state

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

// callLoader holds the rows of a snapshot until all of them are read.
type callLoader struct {
	calls   []*queue.Call
	clients map[queue.ClientKey]*clientRow
	dead    map[string]*deadOwnerRow
}

func (l *loader) call(r *clusterv1.CallRow) error {
	c, err := pbconv.CallFromRow(r)
	if err != nil {
		return err
	}
	if err := c.Key.Validate(); err != nil {
		return err
	}
	l.calls.calls = append(l.calls.calls, c)
	return nil
}

func (l *loader) client(r *clusterv1.ClientRow) error {
	c := pbconv.ClientFromRow(r)
	if err := c.Validate(); err != nil {
		return err
	}
	c.Owner, c.Server = l.intern.str(c.Owner), l.intern.str(c.Server)
	if l.calls.clients == nil {
		l.calls.clients = make(map[queue.ClientKey]*clientRow)
	}
	if l.calls.clients[c.ClientKey] != nil {
		return fmt.Errorf("client session %q comes twice", c.Session)
	}
	l.calls.clients[c.ClientKey] = &clientRow{Client: *c}
	l.meta.stats.Clients++
	return nil
}

// finishCalls writes what was read.
func (l *loader) finishCalls() error {
	orders := make(map[string]*orderRow)
	slices.SortFunc(l.calls.calls, func(a, b *queue.Call) int { return cmp.Compare(a.Number, b.Number) })
	var last uint64
	for _, c := range l.calls.calls {
		row := l.calls.clients[c.Client()]
		if row == nil || c.Number <= last || c.Number > l.meta.call || c.Status.Over() && (c.Order == 0 || c.Order > row.Order) {
			return fault.New(fault.Invalid, "state: the snapshot holds call %d of %d behind call %d, as result %d of a client session that has no such; use another snapshot", c.Number, l.meta.call, last, c.Order)
		}
		last = c.Number
		l.putCall(row, c, orders)
	}
	for _, k := range slices.Sorted(maps.Keys(orders)) {
		l.insert(tableOrders, orders[k])
	}
	for _, k := range slices.Sorted(maps.Keys(l.calls.dead)) {
		l.insert(tableDeadOwners, l.calls.dead[k])
	}
	for _, k := range slices.SortedFunc(maps.Keys(l.calls.clients), compareClients) {
		row := l.calls.clients[k]
		slices.SortFunc(row.ended, func(a, b endedCall) int { return cmp.Compare(a.order, b.order) })
		l.set(setClients, "", clientAge(&row.Client), "")
		l.insert(tableClients, row)
	}
	return nil
}

func (l *loader) putCall(row *clientRow, c *queue.Call, orders map[string]*orderRow) {
	c.Owner, c.Session = row.Owner, row.Session
	c.Tool, c.Server, c.OrderKey = l.intern.str(c.Tool), l.intern.str(c.Server), l.intern.str(c.OrderKey)
	c.Caller = queue.Caller{TokenID: l.intern.str(c.Caller.TokenID), Name: l.intern.str(c.Caller.Name), Role: l.intern.str(c.Caller.Role), Namespace: l.intern.str(c.Caller.Namespace)}
	l.meta.stats.Calls[c.Status][c.Priority]++
	*l.meta.stats.bytesOf(c) += c.StateBytes()
	row.count(c)
	st := callStandingOf(c, row.Delivered)
	for _, at := range []struct {
		kind       setKind
		owner, key string
	}{{setCallsOn, c.Server, st.on}, {setCallsDue, "", st.due}, {setCallsEnded, "", st.ended}, {setCallsGiven, "", st.given}, {setCallsDead, "", st.dead}, {setCallsDeadOf, c.Owner, st.dead}} {
		if at.key != "" {
			l.set(at.kind, at.owner, at.key, "")
		}
	}
	if c.OrderKey != "" && !c.Status.Over() {
		r := orders[c.OrderKey]
		if r == nil {
			r = &orderRow{key: c.OrderKey}
			orders[c.OrderKey] = r
		}
		r.numbers = append(r.numbers, c.Number)
	}
	if c.Status == queue.Dead {
		l.countDead(c)
	}
	l.insert(tableCalls, c)
}

func (l *loader) countDead(c *queue.Call) {
	r := l.calls.dead[c.Owner]
	if r == nil {
		r = &deadOwnerRow{owner: c.Owner}
		if l.calls.dead == nil {
			l.calls.dead = make(map[string]*deadOwnerRow)
		}
		l.calls.dead[c.Owner] = r
	}
	r.calls++
	r.bytes += c.StateBytes()
}

func compareClients(a, b queue.ClientKey) int {
	return cmp.Or(cmp.Compare(a.Owner, b.Owner), cmp.Compare(a.Session, b.Session))
}
