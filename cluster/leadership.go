// Leadership: duties run while this server leads, and are over before it may lead again.

package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// barrierTimeout bounds the wait for a new leader's own state to catch up with its log.
const barrierTimeout = 2 * time.Minute

// transferStuck is longer than any transfer of the leadership lasts that does not hang: until its request times out.
const transferStuck = transportTimeout + 2*time.Second

// ErrTransferHangs is given to Options.Fatal.
var ErrTransferHangs = errors.New("a transfer of the leadership hangs inside raft")

// barrierRetry is how soon it is tried again.
const barrierRetry = 100 * time.Millisecond

// Leader is who leads, as far as this server knows.
type Leader struct {
	ID      string
	Address string // of its gRPC API; empty when not known yet
	Self    bool
	// Term is the one that this server leads in, once Ready.
	Term uint64
	// Ready is set on the leader itself once its state holds all that was committed before.
	Ready bool
}

// leaderWatch holds the present leader and wakes those who wait for a change.
type leaderWatch struct {
	mu      sync.Mutex
	leader  Leader
	changed chan struct{}
}

func (w *leaderWatch) get() (Leader, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leader, w.changed
}

func (w *leaderWatch) set(l Leader) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.leader == l {
		return
	}
	w.leader = l
	close(w.changed)
	w.changed = make(chan struct{})
}

// lead runs the duties as long as raft says that this server leads. Its caller waits for it.
func (n *Node) lead(ctx context.Context) {
	defer n.log.Info("leadership ended", "term", n.raft.CurrentTerm())
	began := n.opts.Now()
	for {
		err := n.raft.Barrier(barrierTimeout).Error()
		if err == nil {
			break
		}
		if errors.Is(err, raft.ErrLeadershipTransferInProgress) && n.opts.Now().Sub(began) > transferStuck {
			// A transfer of an earlier term can hang for ever (hashicorp/raft#696), and its server refuses every write from
			// then on, also when it leads again. Nothing but a new start ends that.
			n.opts.Fatal(fmt.Errorf("%w: %w; start this server again", ErrTransferHangs, err))
			return
		}
		n.log.Warn("barrier of a new leader failed", "error", err)
		if errors.Is(err, raft.ErrRaftShutdown) || n.raft.State() != raft.Leader {
			return
		}
		select { // it is refused at once while the leadership is being transferred
		case <-ctx.Done():
			return
		case <-time.After(barrierRetry):
		}
	}
	term := n.raft.CurrentTerm()
	n.log.Info("this server leads", "term", term, "index", n.raft.AppliedIndex())
	n.watch.set(Leader{ID: n.opts.ID, Address: n.opts.GRPCAddress, Self: true, Ready: true, Term: term})
	if n.pilot != nil {
		n.pilotInfo.forget()
		n.pilot.Start(ctx)
		defer func() { <-n.pilot.Stop() }()
	}
	n.opts.Lead(ctx, term)
	<-ctx.Done()
}

// watchLeadership starts and ends lead by raft's notifications, until ctx ends.
func (n *Node) watchLeadership(ctx context.Context) {
	var stop func()
	end := func() {
		if stop != nil {
			stop()
			stop = nil
			n.watch.set(Leader{})
		}
	}
	defer end()
	// While lead runs, who leads is its to say: nobody may hear of a successor before the duties here are over.
	refresh := func() {
		if stop == nil {
			n.refreshLeader()
		}
	}
	observed := make(chan raft.Observation, 16)
	observer := raft.NewObserver(observed, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	n.raft.RegisterObserver(observer)
	defer n.raft.DeregisterObserver(observer)
	// The address of a known leader may be learnt by gossip only later, and an observation may be dropped: look again.
	tick := time.NewTicker(leaderRefresh)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case leads := <-n.notify:
			end()
			if leads {
				stop = n.startLead(ctx)
			}
			refresh()
		case <-observed:
			refresh()
		case <-tick.C:
			refresh()
		}
	}
}

// leaderRefresh is how often the leader's address is looked up again.
const leaderRefresh = 250 * time.Millisecond

func (n *Node) startLead(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.lead(ctx)
	}()
	return func() { cancel(); <-done }
}

// refreshLeader tells watchers who leads now.
func (n *Node) refreshLeader() {
	_, id := n.raft.LeaderWithID()
	l := Leader{ID: string(id)}
	if l.ID == n.opts.ID {
		return // lead itself says when it is ready
	}
	if l.ID != "" {
		l.Address = n.grpcAddress(l.ID)
	}
	n.watch.set(l)
}
