// Calls of clients that their servers do not care for any more: those of a server that is gone are given to others, and those whose
// deadline has passed are ended.
//
// A server is gone when it is no member any more, or has not answered the leader for a while: raft asks it many times a second,
// whether there is anything to tell it or not. One that has said that it stops is given only the time in which it would answer again; as
// long as it does, it is ending its calls by itself.

package leader

import (
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
)

const (
	// serverSilence is how long a server may be silent before its calls are given to others. It is a multiple of the pauses of a busy
	// machine: what had begun and may not be repeated is given up by it. A new leader counts from its election.
	serverSilence = 3 * time.Second
	// leftSilence is the same of a server that has said that it stops.
	leftSilence = 500 * time.Millisecond
	// callGrace is how long after its deadline a call is ended by the leader: its server should have done it at the deadline.
	callGrace = 5 * time.Second
	// callsPerCommand is how many calls one command assigns or ends, so that its entry and the change that it makes stay small.
	callsPerCommand = 500
)

// callWatch is what a reign knows of calls beside the state.
type callWatch struct {
	since     time.Time       // when it began to listen to servers
	assigning map[string]bool // servers whose calls are being given away
	expiring  bool
}

// watchCalls looks after calls; a tick costs what there is to do.
func (r *reign) watchCalls(now time.Time) {
	view := r.opts.State.View()
	if view.Stats().Calls.Live() == 0 {
		return
	}
	r.expireCalls(view, now)
	if r.opts.Servers == nil {
		return
	}
	servers := r.opts.Servers()
	var there []string
	for _, s := range servers {
		if !s.Left && r.goneFor(s, now) < serverSilence {
			there = append(there, s.ID)
		}
	}
	if len(there) == 0 {
		return
	}
	for id := range view.CallServers() {
		if why := r.gone(servers, id, now); why != "" && !r.calls.assigning[id] {
			r.assignCalls(id, there, why)
		}
	}
}

// goneFor is how long a server has been silent.
func (r *reign) goneFor(s cluster.Presence, now time.Time) time.Duration {
	if s.Heard.Before(r.calls.since) {
		return now.Sub(r.calls.since)
	}
	return now.Sub(s.Heard)
}

// gone says why a server's calls are to be given to others; nothing while it is there.
func (r *reign) gone(servers []cluster.Presence, id string, now time.Time) string {
	for _, s := range servers {
		if s.ID != id {
			continue
		}
		switch silent := r.goneFor(s, now); {
		case s.Left && silent >= leftSilence:
			return "its server (" + id + ") was stopped"
		case silent >= serverSilence:
			return "its server (" + id + ") was lost"
		default:
			return ""
		}
	}
	return "its server (" + id + ") is no member of the cluster any more"
}

// assignCalls gives a piece of a server's calls to those that are there; the next tick finds the rest.
func (r *reign) assignCalls(from string, to []string, why string) {
	r.calls.assigning[from] = true
	failed := r.logFailures("giving away the calls of a server")
	r.propose(func(results []state.Result, err error) {
		delete(r.calls.assigning, from)
		failed(results, err)
		if err == nil && results[0].Err == nil && results[0].Count > 0 {
			r.log.Info("calls were given to other servers", "calls", results[0].Count, "why", why)
		}
	}, &clusterv1.Command{Kind: &clusterv1.Command_AssignCalls{AssignCalls: &clusterv1.AssignCalls{
		FromServerId: from, ToServerIds: to, Reason: why, Limit: callsPerCommand,
	}}})
}

// expireCalls ends calls whose deadline has long passed.
func (r *reign) expireCalls(view *state.View, now time.Time) {
	if r.calls.expiring {
		return
	}
	before := now.Add(-callGrace).UnixNano()
	for c := range view.CallsDue() {
		if c.Deadline >= before {
			return
		}
		break
	}
	r.calls.expiring = true
	failed := r.logFailures("ending calls whose deadline has passed")
	r.propose(func(results []state.Result, err error) {
		r.calls.expiring = false
		failed(results, err)
	}, &clusterv1.Command{Kind: &clusterv1.Command_ExpireCalls{ExpireCalls: &clusterv1.ExpireCalls{Before: before, Limit: callsPerCommand}}})
}
