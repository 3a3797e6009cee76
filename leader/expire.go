// What time ends: sessions with a time to live, messages with a deadline, and the memory of what is over.

package leader

import (
	"container/heap"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/session"
)

const (
	collectEvery      = 30 * time.Second
	collectLimit      = 1000 // removals in one command
	maxExpiredPerTick = 1000
)

// expiry is a session's (sequence 0) or a message's end.
type expiry struct {
	at       int64 // Unix nanoseconds
	session  string
	sequence uint64
}

// expiryHeap has the soonest on top. Entries are hints: whether something has really expired is read from the state.
type expiryHeap []expiry

func (h expiryHeap) Len() int           { return len(h) }
func (h expiryHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h expiryHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *expiryHeap) Push(x any) { *h = append(*h, x.(expiry)) }

// Pop implements heap.Interface.
func (h *expiryHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}

func (h *expiryHeap) add(at int64, id string, sequence uint64) {
	heap.Push(h, expiry{at, id, sequence})
}

func (r *reign) watchTTL(s *session.Session) {
	if s.Spec.TTL > 0 {
		r.expiries.add(s.CreateTime+int64(s.Spec.TTL), s.ID, 0)
	}
}

// expire ends what is due.
func (r *reign) expire(now time.Time) {
	for range maxExpiredPerTick {
		if len(r.expiries) == 0 || r.expiries[0].at > now.UnixNano() {
			return
		}
		e := heap.Pop(&r.expiries).(expiry)
		if e.sequence != 0 {
			r.bury(e.session, e.sequence, "its deadline passed before it was delivered")
			continue
		}
		s := r.opts.State.View().Session(e.session)
		if s == nil || s.Phase.Ended() || s.Phase == session.Terminating {
			continue
		}
		r.propose(func(results []state.Result, err error) {
			if err != nil { // try again soon
				r.expiries.add(now.Add(time.Second).UnixNano(), e.session, 0)
			}
		}, &clusterv1.Command{Kind: &clusterv1.Command_TerminateSession{TerminateSession: &clusterv1.TerminateSession{
			SessionId: s.ID, Cause: session.CauseExpired, Reason: "its time to live of " + s.Spec.TTL.String() + " is over", Grace: -1,
		}}})
	}
}

// collect forgets what ended long ago, a bounded piece at a time.
func (r *reign) collect(now time.Time) {
	if r.collecting || now.Before(r.nextGC) {
		return
	}
	r.collecting = true
	r.propose(func(results []state.Result, err error) {
		r.collecting = false
		r.nextGC = r.opts.Now().Add(collectEvery)
		if err == nil && results[0].Err == nil && results[0].Count >= collectLimit {
			r.nextGC = r.opts.Now() // there is more
		}
	}, &clusterv1.Command{Kind: &clusterv1.Command_CollectGarbage{CollectGarbage: &clusterv1.CollectGarbage{
		Before: now.Add(-r.opts.Retention).UnixNano(), Limit: collectLimit,
	}}})
}
