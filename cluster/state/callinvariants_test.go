// What holds of calls after every entry, recounted from the rows; and what holds of their lives, watched command by command.

package state

import (
	"cmp"
	"context"
	"slices"
	"testing"

	"pgregory.net/rapid"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/queue"
)

// checkCalls recounts everything about calls that is counted as it changes.
func checkCalls(t fataler, v *View, want *Stats) {
	t.Helper()
	rows := map[queue.ClientKey]clientRow{}
	for c := range v.Clients() {
		want.Clients++
		if c.Delivered > c.Order || v.Client(c.ClientKey) != c {
			t.Fatalf("client %v was given %d of %d results, or is not found", c.ClientKey, c.Delivered, c.Order)
		}
		rows[c.ClientKey] = clientRow{Client: *c}
	}
	orders, dead := map[string][]uint64{}, map[string]deadOwnerRow{}
	sets := map[setID][]string{}
	list := func(kind setKind, owner, key string) {
		if key != "" {
			sets[setID{kind, owner}] = append(sets[setID{kind, owner}], key)
		}
	}
	var last uint64
	for c := range v.Calls(0) {
		row, ok := rows[c.Client()]
		if !ok || c.Number <= last || c.Number > v.meta.call || v.Call(c.Key) != c {
			t.Fatalf("call %+v: has no client, or is out of order, or is not found", c)
		}
		last = c.Number
		want.Calls[c.Status][c.Priority]++
		if c.Status == queue.Dead {
			want.DeadCallBytes += c.StateBytes()
			dead[c.Owner] = deadOwnerRow{c.Owner, dead[c.Owner].calls + 1, dead[c.Owner].bytes + c.StateBytes()}
		} else {
			want.CallBytes += c.StateBytes()
		}
		checkCall(t, c, &row.Client)
		st := callStandingOf(c, row.Delivered)
		list(setCallsOn, c.Server, st.on)
		list(setCallsDue, "", st.due)
		list(setCallsEnded, "", st.ended)
		list(setCallsGiven, "", st.given)
		list(setCallsDead, "", st.dead)
		list(setCallsDeadOf, c.Owner, st.dead)
		row.count(c)
		rows[c.Client()] = row
		if c.OrderKey != "" && !c.Status.Over() {
			if orders[c.OrderKey] = append(orders[c.OrderKey], c.Number); c.Status == queue.Running && len(orders[c.OrderKey]) > 1 {
				t.Fatalf("call %d runs, and %v come before it by the order key %q", c.Number, orders[c.OrderKey], c.OrderKey)
			}
		}
	}
	for k, row := range rows {
		list(setClients, "", clientAge(&row.Client))
		slices.SortFunc(row.ended, func(a, b endedCall) int { return cmp.Compare(a.order, b.order) })
		got := first[clientRow](v.txn, tableClients, byID, clientKeyBytes(k, 0))
		if got.live != row.live || got.dead != row.dead || !slices.Equal(got.ended, row.ended) {
			t.Fatalf("client %v: %+v, recounted %+v", k, got, row)
		}
	}
	prefixed(v.txn, tableOrders, nil, func(r *orderRow) bool {
		if !slices.Equal(r.numbers, orders[r.key]) {
			t.Fatalf("order key %q: %v, recounted %v", r.key, r.numbers, orders[r.key])
		}
		delete(orders, r.key)
		return true
	})
	if len(orders) > 0 {
		t.Fatalf("order keys without a row: %v", orders)
	}
	prefixed(v.txn, tableDeadOwners, nil, func(r *deadOwnerRow) bool {
		if *r != dead[r.owner] {
			t.Fatalf("dead calls: %+v, recounted %+v", *r, dead[r.owner])
		}
		delete(dead, r.owner)
		return true
	})
	if len(dead) > 0 {
		t.Fatalf("dead calls without their owner's row: %v", dead)
	}
	checkCallSets(t, v, sets)
	want.DeadCallsDropped = v.Stats().DeadCallsDropped
}

func checkCallSets(t fataler, v *View, want map[setID][]string) {
	t.Helper()
	for id := range want {
		slices.Sort(want[id])
	}
	prefixed(v.txn, tableSets, nil, func(c *chunk) bool {
		switch c.kind {
		case setCallsOn, setCallsDue, setCallsEnded, setCallsGiven, setCallsDead, setCallsDeadOf, setClients:
		default:
			return true
		}
		for _, e := range c.entries {
			if rest := want[c.setID]; len(rest) == 0 || rest[0] != e.key {
				t.Fatalf("set %c %q holds %q, recounted %q", c.kind, c.owner, e.key, rest)
			}
			want[c.setID] = want[c.setID][1:]
		}
		return true
	})
	var servers []string
	for id, rest := range want {
		if len(rest) > 0 {
			t.Fatalf("set %c %q lacks %q", id.kind, id.owner, rest)
		}
		if id.kind == setCallsOn {
			servers = append(servers, id.owner)
		}
	}
	slices.Sort(servers)
	if got := slices.Collect(v.CallServers()); !slices.Equal(got, servers) {
		t.Fatalf("servers with calls: %v, recounted %v", got, servers)
	}
}

func checkCall(t fataler, c *queue.Call, row *queue.Client) {
	t.Helper()
	over := c.Status.Over()
	switch {
	case over != (c.Outcome != nil), over != (c.EndTime != 0), over != (c.Order != 0), c.Order > row.Order:
		t.Fatalf("call %+v is over, or not, and its client has %d results", c, row.Order)
	case c.Status == queue.Running && (c.Attempt == 0 || c.BeginTime == 0), c.Cancelling && c.Status != queue.Running, c.NotBefore != 0 && c.Status != queue.Queued:
		t.Fatalf("call %+v", c)
	case c.Status == queue.Ended && (len(c.Arguments.Inline) > 0 || len(c.Arguments.Chunks) > 0):
		t.Fatalf("call %d has ended and keeps its arguments", c.Number)
	}
}

// lives watches calls from entry to entry.
type lives struct {
	was    map[uint64]*queue.Call // by number: the last that was told
	ended  map[uint64]bool
	begun  map[[2]uint64]bool // number, attempt
	orders map[queue.ClientKey]uint64
	// forgets says that clients may be forgotten; their orders go on with a greater number then.
	forgets bool
}

// tell is told a change of one command.
func (l *lives) tell(t fataler, c *Change) {
	t.Helper()
	for _, r := range c.Rekeyed {
		delete(l.orders, r.To) // the session that had the name is over
		if last, ok := l.orders[r.From]; ok {
			l.orders[r.To] = last
		}
		delete(l.orders, r.From)
	}
	var ends []*queue.Call
	for _, call := range c.Calls {
		was := l.was[call.Number]
		l.was[call.Number] = call
		if was != nil && was.Attempt > call.Attempt {
			t.Fatalf("call %d went from attempt %d to %d", call.Number, was.Attempt, call.Attempt)
		}
		if call.Status == queue.Running && (was == nil || was.Status != queue.Running || was.Attempt != call.Attempt) {
			at := [2]uint64{call.Number, uint64(call.Attempt)}
			if l.begun[at] {
				t.Fatalf("attempt %d of call %d began twice", call.Attempt, call.Number)
			}
			l.begun[at] = true
		}
		switch {
		case l.ended[call.Number] && !call.Status.Over():
			t.Fatalf("call %d has ended, and is %s", call.Number, call.Status)
		case l.ended[call.Number] && (was.Outcome != call.Outcome || was.Order != call.Order):
			t.Fatalf("call %d ended twice: %+v, then %+v", call.Number, was.Outcome, call.Outcome)
		case !l.ended[call.Number] && call.Status.Over():
			l.ended[call.Number] = true
			ends = append(ends, call)
		}
	}
	slices.SortFunc(ends, func(a, b *queue.Call) int { return cmp.Compare(a.Order, b.Order) })
	for _, call := range ends {
		last, more := l.orders[call.Client()]
		if call.Order <= last || more && !l.forgets && call.Order != last+1 {
			t.Fatalf("client %v: result %d follows result %d", call.Client(), call.Order, last)
		}
		l.orders[call.Client()] = call.Order
	}
}

// TestLivesOfCalls applies one command after the other: a call ends once, an attempt begins once, and the results of a client are
// numbered without holes, as long as the client is known, and never with a number again.
func TestLivesOfCalls(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits, forgets := smallLimits(), rapid.Bool().Draw(t, "forgets clients")
		if limits.ClientKeep = 1; !forgets {
			limits.ClientKeep, limits.Clients = 1e18, 1000
		}
		h, s := newHistory(rapid.Uint64().Draw(t, "seed")), New(limits)
		sub, _ := s.Subscribe()
		defer sub.Close()
		l := &lives{map[uint64]*queue.Call{}, map[uint64]bool{}, map[[2]uint64]bool{}, map[queue.ClientKey]uint64{}, forgets}
		var old []*View // which later entries must leave as they are
		for i := range rapid.IntRange(1, 400).Draw(t, "commands") {
			if i%5 == 0 {
				old = append(old, s.View())
			}
			h.now += h.rng.Int64N(second)
			before := s.View().Stats()
			r := s.Apply(s.Index()+1, &clusterv1.Batch{Time: h.now, Commands: []*clusterv1.Command{cmd(h.call(s.View()))}})
			change, err := sub.Next(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if r[0].Err != nil && (len(change.Calls) > 0 || before != s.View().Stats()) {
				t.Fatalf("a command was refused and changed something: %v", r[0].Err)
			}
			l.tell(t, change)
			checkInvariants(t, s.View())
			checkBounds(t, s.View(), &limits)
		}
		for _, v := range old {
			checkInvariants(t, v)
		}
	})
}

// checkBounds looks at the limits; results of calls that were taken may be over that of bytes.
func checkBounds(t fataler, v *View, l *Limits) {
	t.Helper()
	st := v.Stats()
	if st.Calls.Live() > uint64(l.Calls) || st.Calls.Total() > uint64(l.KeptCalls) || st.Clients > uint64(l.Clients) ||
		st.Calls.Of(queue.Dead) > uint64(l.DeadCalls) || st.DeadCallBytes > l.DeadCallBytes {
		t.Fatalf("beyond its limits: %+v", st)
	}
	prefixed(v.txn, tableDeadOwners, nil, func(r *deadOwnerRow) bool {
		if r.calls > uint64(l.DeadCallsPerOwner) || r.bytes > l.DeadCallBytesPerOwner {
			t.Fatalf("beyond an owner's limits: %+v", r)
		}
		return true
	})
	checkTalkBounds(t, v, l)
	for c := range v.Clients() {
		if row := first[clientRow](v.txn, tableClients, byID, clientKeyBytes(c.ClientKey, 0)); row.kept() > l.CallsPerClient {
			t.Fatalf("client %v keeps %d calls", c.ClientKey, row.kept())
		}
	}
}
