// What a restore must not take back of calls: which results a client was given since, by their numbers; and what it cannot bring
// back: the attempts that were under way.

package state

import (
	"fmt"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/queue"
)

// restoredReason is why the attempts that a snapshot holds are over.
const restoredReason = "the cluster was restored from a snapshot"

// callsGoingOn is what goingOn knows of calls.
type callsGoingOn struct {
	time int64 // the snapshot's
	// ended are calls that end by the restore; they wait for the rows of their clients, which come behind and number them.
	ended map[queue.ClientKey][]*queue.Call
	// seen are the clients whose rows have come.
	seen map[queue.ClientKey]bool
}

func (g *goingOn) headCalls(h *clusterv1.SnapshotHeader) {
	g.calls = callsGoingOn{time: h.GetTime(), ended: map[queue.ClientKey][]*queue.Call{}, seen: map[queue.ClientKey]bool{}}
	if h.CallNumber = max(h.GetCallNumber(), g.now.meta.call); h.CallNumber > 0 {
		h.CallNumber += uint64(DefaultLimits().CallsPerClient) // as many orders may be given out below: new clients begin behind them
	}
	if h.GetCallNumber() > 0 || g.now.meta.stats.Clients > 0 {
		h.Version = max(h.GetVersion(), rowsWithoutTalk)
	}
}

func (g *goingOn) call(r *clusterv1.CallRow) error {
	c, err := pbconv.CallFromRow(r)
	if err != nil {
		return err
	}
	now := g.now.Call(c.Key)
	if c.Status == queue.Queued && !c.Repeatable && g.begunSince(c) {
		c.Status = queue.Running // as far as anybody knows: it is given up
	}
	if c.Status != queue.Running {
		if now != nil { // what is said about attempts that were given out since is not about those to come
			r.Attempt = max(c.Attempt, attemptBehind(c, now))
		}
		g.w.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Call{Call: r}})
		return nil
	}
	n, err := c.Assign(c.Server, restoredReason, g.calls.time)
	if err != nil {
		return fmt.Errorf("call %d: %w", c.Number, err)
	}
	if now != nil {
		n.Attempt = max(n.Attempt, attemptBehind(n, now))
	}
	if n.Status.Over() {
		g.calls.ended[n.Client()] = append(g.calls.ended[n.Client()], n)
		return nil
	}
	g.w.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Call{Call: pbconv.CallToRow(n)}})
	return nil
}

// begunSince reports whether a call that waits in the snapshot, and may not be repeated, may have begun since: it was taken in the present
// state, too, and waits there no more. One that waits there has never begun, as it would not wait again.
func (g *goingOn) begunSince(c *queue.Call) bool {
	if c.Number > g.now.meta.call {
		return false // the present state has not come so far
	}
	now := callByNumber(g.now.txn, c.Number) // by its key it may have another owner, or be made anew
	return now == nil || now.Status != queue.Queued || now.Session != c.Session || now.RequestID != c.RequestID
}

// attemptBehind is the least attempt at which a call goes on, so that nothing said about its attempts in the present state is taken for
// something about those to come.
func attemptBehind(c, now *queue.Call) uint32 {
	if c.Status == queue.Queued && now.Status != queue.Queued {
		return now.Attempt + 1
	}
	return now.Attempt
}

func (g *goingOn) client(r *clusterv1.ClientRow) error {
	c := pbconv.ClientFromRow(r)
	g.calls.seen[c.ClientKey] = true
	if now := g.now.Client(c.ClientKey); now != nil {
		c.Order, c.Delivered, c.Time = max(c.Order, now.Order), max(c.Delivered, now.Delivered), max(c.Time, now.Time)
	}
	for _, call := range g.calls.ended[c.ClientKey] {
		c.Order++
		call.Order = c.Order
		g.w.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Call{Call: pbconv.CallToRow(call)}})
	}
	delete(g.calls.ended, c.ClientKey)
	g.w.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Client{Client: pbconv.ClientToRow(c)}})
	return nil
}

// restClients has the clients that the snapshot does not know go on with their numbers: what they were promised since is lost, and what
// they are given next must not be taken for what they have.
func (g *goingOn) restClients() error {
	if len(g.calls.ended) > 0 {
		return fmt.Errorf("calls of %d client sessions have no row of their client", len(g.calls.ended))
	}
	for c := range g.now.Clients() {
		if !g.calls.seen[c.ClientKey] {
			row := pbconv.ClientToRow(c)
			row.Delivered = row.GetOrder()
			g.w.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Client{Client: row}})
		}
	}
	return nil
}
