// Where calls lie: their rows, the sets that order them, the counts, and who gives way when there is no room.
//
// A call's row has two entries in memdb, by key and by number. The sets hold numbers only. The results that a client has not let go
// of hang off its row (clients.go), and so do the calls of one order key: they are taken from the front, and a set would not
// show what the same log entry has added to it.

package state

import (
	"encoding/binary"
	"iter"
	"slices"
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/session"
)

// CallCounts counts calls by status and priority; index it with both.
type CallCounts [queue.Dead + 1][session.Low + 1]uint64

// Of is how many calls have the status.
func (n CallCounts) Of(s queue.Status) (sum uint64) {
	for _, c := range n[s] {
		sum += c
	}
	return sum
}

// Live is how many calls are not over.
func (n CallCounts) Live() uint64 { return n.Of(queue.Queued) + n.Of(queue.Running) }

// Total is how many calls there are.
func (n CallCounts) Total() uint64 { return n.Live() + n.Of(queue.Ended) + n.Of(queue.Dead) }

// bytesOf is what the call's bytes count in: dead calls, which are kept for long, would else leave no room for others.
func (s *Stats) bytesOf(c *queue.Call) *uint64 {
	if c.Status == queue.Dead {
		return &s.DeadCallBytes
	}
	return &s.CallBytes
}

// orderRow is the calls of one order key that are not over, by number.
type orderRow struct {
	key     string
	numbers []uint64 // never empty, never changed in place; what is appended may share the array
}

// callStanding is where a call appears besides its row. Set keys end with the call's number.
type callStanding struct{ on, due, ended, given, dead string }

func callStandingOf(c *queue.Call, delivered uint64) (st callStanding) {
	number := timeKey(int64(c.Number))
	switch c.Status {
	case queue.Dead:
		st.dead = timeKey(c.EndTime) + number
	case queue.Ended:
		st.ended = timeKey(c.EndTime) + number
		if c.Order <= delivered {
			st.given = st.ended
		}
	default:
		st.on = string(byte(c.Priority)) + number
		st.due = timeKey(c.Deadline) + number
	}
	return st
}

// putCall puts a call in place of an old one (nil: none), or removes it (nil), and brings all that counts it along. The client's row
// is one that this entry may change.
func (a *applier) putCall(row *clientRow, old, c *queue.Call) {
	var was, is callStanding
	if old != nil {
		was = callStandingOf(old, row.Delivered)
		a.meta.stats.Calls[old.Status][old.Priority]--
		*a.meta.stats.bytesOf(old) -= old.StateBytes()
		row.uncount(old)
		a.leaveOrder(old)
		a.uncountDead(old)
	}
	if c != nil {
		c.ModifyIndex = a.meta.index
		is = callStandingOf(c, row.Delivered)
		a.meta.stats.Calls[c.Status][c.Priority]++
		*a.meta.stats.bytesOf(c) += c.StateBytes()
		row.count(c)
		a.enterOrder(c)
		a.countDead(c)
		a.calls.put(c.Key, c)
	} else {
		a.calls.put(old.Key, nil)
	}
	a.moveCall(old, c, was, is)
	a.clients.put(row.ClientKey, row)
}

// moveCall brings the sets along.
func (a *applier) moveCall(old, c *queue.Call, was, is callStanding) {
	from, to := "", ""
	if old != nil {
		from = old.Server
	}
	if c != nil {
		to = c.Server
	}
	if from == to {
		a.moveKey(setCallsOn, to, was.on, is.on, "")
	} else {
		a.moveKey(setCallsOn, from, was.on, "", "")
		a.moveKey(setCallsOn, to, "", is.on, "")
	}
	a.moveKey(setCallsDue, "", was.due, is.due, "")
	a.moveKey(setCallsEnded, "", was.ended, is.ended, "")
	a.moveKey(setCallsGiven, "", was.given, is.given, "")
	a.moveKey(setCallsDead, "", was.dead, is.dead, "")
}

// enterOrder and leaveOrder keep the calls of an order key that are not over.
func (a *applier) enterOrder(c *queue.Call) {
	if c.OrderKey == "" || c.Status.Over() {
		return
	}
	r := orderRow{key: c.OrderKey}
	if old := a.orders.get(a.base, c.OrderKey); old != nil {
		r.numbers = old.numbers
	}
	if n := len(r.numbers); n == 0 || r.numbers[n-1] < c.Number {
		r.numbers = append(r.numbers, c.Number)
	} else {
		at, _ := slices.BinarySearch(r.numbers, c.Number)
		r.numbers = slices.Insert(slices.Clone(r.numbers), at, c.Number)
	}
	a.orders.put(c.OrderKey, &r)
}

func (a *applier) leaveOrder(c *queue.Call) {
	if c.OrderKey == "" || c.Status.Over() {
		return
	}
	old := a.orders.get(a.base, c.OrderKey)
	at, _ := slices.BinarySearch(old.numbers, c.Number)
	switch {
	case len(old.numbers) == 1:
		a.orders.put(c.OrderKey, nil)
	case at == 0:
		a.orders.put(c.OrderKey, &orderRow{key: old.key, numbers: old.numbers[1:]})
	default: // the last one too is not cut off: what is appended next would overwrite it in views that have it
		a.orders.put(c.OrderKey, &orderRow{key: old.key, numbers: slices.Concat(old.numbers[:at], old.numbers[at+1:])})
	}
}

// callsFull refuses what would be one call too many.
func (a *applier) callsFull(live uint64) error {
	return fault.New(fault.Exhausted, "call: %d calls wait or run, the limit; it was not accepted: try again", live).WithRetry(a.limits.RetryAfter)
}

// The calls that give way at once when there is no room: some more than are needed, so that not each call has to look for one.
const (
	giveWayShare = 8    // of a client's: one in so many
	giveWayRows  = 128  // of the cluster's
	giveWayMax   = 1024 // for the sake of bytes
)

// roomForCall says why a call would not be taken, or which of those that their clients were given must give way to it. Those that
// were not given never do before their time. old is the call that it takes the place of, nil for none.
func (a *applier) roomForCall(c, old *queue.Call) ([]*queue.Call, error) {
	full := func(format string, args ...any) ([]*queue.Call, error) {
		return nil, fault.New(fault.Exhausted, "call: "+format, args...).WithRetry(a.limits.RetryAfter)
	}
	if live := a.meta.stats.Calls.Live(); live >= uint64(a.limits.Calls) {
		return nil, a.callsFull(live)
	}
	row := a.clients.get(a.base, c.Client())
	if row == nil {
		if err := a.roomForClient(); err != nil {
			return nil, err
		}
	}
	replaced := 0
	if old != nil && old.Status == queue.Ended {
		replaced = 1
	}
	var spent []*queue.Call
	if kept := row.kept() - replaced; kept >= a.limits.CallsPerClient {
		if spent = a.givenOf(row, max(1, a.limits.CallsPerClient/giveWayShare), old); len(spent) == 0 {
			return full("client session %q has %d calls that wait, run, or have results that it was not given, the limit; take results, or wait for them", clip(c.Session, 64), kept)
		}
	}
	if rows := a.meta.stats.Calls.Total(); rows >= uint64(a.limits.KeptCalls) && old == nil && len(spent) == 0 {
		if spent = a.givenCalls(giveWayRows, 0); len(spent) == 0 {
			return full("%d calls are kept, the limit, and the results of none were given to its client", rows)
		}
	}
	freed := uint64(0)
	if old != nil && old.Status != queue.Dead {
		freed = old.StateBytes()
	}
	more, err := a.roomForBytes(c.StateBytes(), freed)
	if err != nil {
		return nil, err
	}
	spent = append(spent, more...)
	return slices.DeleteFunc(spent, func(s *queue.Call) bool { return old != nil && s.Key == old.Key }), nil
}

// roomForBytes says why a call with so many bytes, which takes the place of so many, would not be taken, or which calls that were given
// must give way to it.
func (a *applier) roomForBytes(more, freed uint64) ([]*queue.Call, error) {
	bytes := a.meta.stats.CallBytes + more - freed
	if bytes <= a.limits.CallBytes {
		return nil, nil
	}
	spent := a.givenCalls(0, bytes-a.limits.CallBytes)
	for _, g := range spent {
		bytes -= min(g.StateBytes(), bytes)
	}
	if bytes > a.limits.CallBytes {
		return nil, fault.New(fault.Exhausted, "call: the calls that are kept have %d bytes of arguments and results, their limit is %d; wait until some have ended and were given",
			a.meta.stats.CallBytes, a.limits.CallBytes).WithRetry(a.limits.RetryAfter)
	}
	return spent, nil
}

// givenCalls returns the oldest calls whose results were given: so many, or as many as hold so many bytes.
func (a *applier) givenCalls(rows int, bytes uint64) (found []*queue.Call) {
	var sum uint64
	for was := range callsOf(a.base, setID{kind: setCallsGiven}) {
		c := a.calls.get(a.base, was.Key)
		if c == nil || c.Number != was.Number || c.Status != queue.Ended {
			continue // this entry has removed it, or made it anew
		}
		found = append(found, c)
		sum += c.StateBytes()
		if rows > 0 && len(found) >= rows || rows == 0 && (sum >= bytes || len(found) >= giveWayMax) {
			break
		}
	}
	return found
}

// dropCalls forgets calls; what is gone already, or comes twice, is left alone.
func (a *applier) dropCalls(calls []*queue.Call) {
	for _, c := range calls {
		if now := a.calls.get(a.base, c.Key); now != nil {
			a.putCall(a.ownClient(c.Client()), now, nil)
		}
	}
}

// collectCalls removes what has been kept for its time: results, dead calls, and clients that have neither. It follows a flush.
func (a *applier) collectCalls(limit int) int {
	var old []*queue.Call
	aged := func(kind setKind, keep time.Duration) {
		for c := range callsOf(a.base, setID{kind: kind}) {
			if len(old) >= limit || time.Duration(a.meta.time-c.EndTime) < keep {
				break
			}
			old = append(old, c)
		}
	}
	aged(setCallsEnded, a.limits.ResultKeep)
	aged(setCallsDead, a.limits.DeadKeep)
	a.dropCalls(old)
	return len(old) + a.collectClients(limit-len(old))
}

// callsOf yields the calls of a set that txn has, in the set's order.
func callsOf(txn *memdb.Txn, set setID) iter.Seq[*queue.Call] {
	return func(yield func(*queue.Call) bool) {
		for key := range set.all(txn) {
			if !yield(callByNumber(txn, callNumber(key))) {
				return
			}
		}
	}
}

func callByNumber(txn *memdb.Txn, number uint64) *queue.Call {
	return first[queue.Call](txn, tableCalls, byNumber, binary.BigEndian.AppendUint64(nil, number))
}
