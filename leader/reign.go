// The reign: one goroutine that owns all that a leader knows beside the state.

package leader

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
)

const (
	// tickEvery is the grain of leases, restarts and expiries.
	tickEvery = 200 * time.Millisecond
	// maxQueuedEvents bounds frames that wait for the reign; beyond it a link is closed, and its node comes back.
	maxQueuedEvents = 1 << 17
	// changesAhead bounds changes of the state that were read and not yet taken in.
	changesAhead = 64
)

// reign is what a leader knows beside the state. Only its goroutine touches it, but for the event queue.
type reign struct {
	l    *Leader
	opts Options
	log  *slog.Logger
	term uint64
	ctx  context.Context

	nodes       map[string]*node
	nodesDue    time.Time // when one of them may need attention, at the earliest
	unsent      []*node   // that something is to be sent to
	pending     map[string]*session.Session
	placing     map[string]bool
	placeDirty  bool
	restores    restores
	moves       map[string]*session.Session // that are moving, or being restored on their targets
	admitted    map[string]uint64           // the moves that go on, by session
	movesDirty  bool
	drains      map[string]*drain // by node
	drainRoom   bool              // one of them may go on before the next tick
	idle        expiryHeap        // when sessions may have been idle for long enough
	idleWatched map[string]bool   // those that are in it
	deliveries  map[string]*delivery
	preparing   map[string]session.ManifestID // what targets of moves were told to have ready
	lending     map[string]lending            // the tokens of moves, by session
	told        map[string]told               // what nodes were told beside to run a session or to end it
	toDeliver   map[string]bool
	expiries    expiryHeap
	buried      map[messageKey]bool
	beats       []beat
	verifying   bool      // the leadership is being confirmed, or soon will be
	verified    time.Time // when that was last begun
	nextGC      time.Time
	calls       callWatch
	collecting  bool

	changes chan *state.Change
	wait    sync.WaitGroup
	ended   chan struct{}

	mu     sync.Mutex
	events []func()
	wake   chan struct{}
}

// node is what the leader knows of a node beside the state.
type node struct {
	id      string
	link    nodelink.Link
	streams *nodelink.Streams
	// registered: the state holds what the hello said; synced: the inventory came, so desired sets may go out.
	registered, synced bool
	// expiry is when the leader may call the node lost.
	expiry time.Time
	// losing: it is being called lost, and gets no lease before that is settled; proposed: the log has been asked.
	losing, proposed bool
	// silentSince is when it was last heard of.
	silentSince time.Time
	// settled is the status that the row had when it was last looked at, zero once the row may have changed; settingTo is
	// the one that is being committed.
	settled, settingTo state.NodeStatus
	// nextFact is the index of the next fact, and factGap since when only later ones come; zero when it is not so.
	nextFact uint64
	factGap  time.Time
	// links counts the links of this reign: each numbers its streams from a place of its own.
	links uint64
	// drainAsked: its agent asked over this link for a drain; drainBegun: it is told how that goes; drainUntold: it is to be told now.
	drainAsked, drainBegun, drainUntold bool

	dirty   map[string]*nodev1.DesiredSession
	deliver []*nodev1.SessionMessages
	unsent  bool // it is in the reign's list of the same name
}

func newReign(l *Leader, term uint64) *reign {
	return &reign{
		l: l, opts: l.opts, log: l.opts.Logger.With("term", term), term: term,
		nodes: map[string]*node{}, pending: map[string]*session.Session{}, placing: map[string]bool{},
		deliveries: map[string]*delivery{}, told: map[string]told{}, preparing: map[string]session.ManifestID{}, lending: map[string]lending{}, toDeliver: map[string]bool{}, buried: map[messageKey]bool{},
		restores: newRestores(l.opts.Restores), moves: map[string]*session.Session{}, drains: map[string]*drain{}, idleWatched: map[string]bool{},
		calls:   callWatch{since: l.opts.Now(), assigning: map[string]bool{}},
		changes: make(chan *state.Change, changesAhead), ended: make(chan struct{}), wake: make(chan struct{}, 1),
	}
}

// run is the reign's goroutine.
func (r *reign) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	r.ctx = ctx
	defer func() {
		cancel()
		r.opts.Hub.Pause()
		close(r.ended)
		r.wait.Wait()
	}()
	sub, view := r.opts.State.Subscribe()
	r.load(view)
	r.wait.Go(func() { r.follow(ctx, sub) })
	r.opts.Hub.Lead(r)
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-r.changes:
			r.observe(c)
			r.drainChanges()
		case <-r.wake:
		case <-tick.C:
			r.tick()
		}
		r.handleEvents()
		r.flush()
	}
}

// drainChanges takes in what else has happened, so that frames to nodes carry more than one change each.
func (r *reign) drainChanges() {
	for range changesAhead {
		select {
		case c := <-r.changes:
			r.observe(c)
		default:
			return
		}
	}
}

// follow reads the state's feed. When it fell behind, the reign starts again from the state as it is.
func (r *reign) follow(ctx context.Context, sub *state.Subscription) {
	defer func() { sub.Close() }()
	for {
		c, err := sub.Next(ctx)
		switch {
		case err == nil:
			select {
			case r.changes <- c:
			case <-ctx.Done():
				return
			}
		case errors.Is(err, state.ErrLagged):
			r.log.Warn("the leader fell behind the state's changes and reads the state again")
			sub.Close()
			var view *state.View
			sub, view = r.opts.State.Subscribe()
			r.post(func() { r.load(view) })
		default:
			return
		}
	}
}

// load takes in the whole state.
func (r *reign) load(v *state.View) {
	now := r.opts.Now()
	r.opts.Router.Reset(v)
	for row := range v.Nodes() {
		r.watchDrain(row)
		n := r.node(row.ID)
		n.settled = 0
		if n.expiry.IsZero() {
			// A new leader starts every lease anew: its predecessor may have answered a moment ago.
			n.silentSince = now
			r.extend(n, now)
		}
		if live, ok := r.l.Live(row.ID); ok {
			r.l.setLive(row.ID, live) // the router has forgotten it
		}
	}
	r.pending = map[string]*session.Session{}
	r.told, r.preparing = map[string]told{}, map[string]session.ManifestID{}
	r.deliveries = map[string]*delivery{} // what was acked meanwhile is not known; nodes know what they were given
	r.expiries, r.idle, r.idleWatched = nil, nil, map[string]bool{}
	r.moves = map[string]*session.Session{}
	r.restores.reset()
	for s := range v.Sessions("") {
		if s.Phase.Ended() {
			continue
		}
		r.watchTTL(s)
		r.watchMove(s)
		r.watchIdle(s)
		r.restores.watch(s)
		if s.Phase == session.Pending {
			r.pending[s.ID] = s
			continue
		}
		if n := r.nodes[s.NodeID]; n != nil && n.synced {
			r.desire(n, s)
		}
		r.loadMessages(v, s.ID)
	}
	r.admitMoves() // before a node shows its inventory, and is told what it does not know
	r.placeDirty = true
}

// observe takes in one change of the state.
func (r *reign) observe(c *state.Change) {
	if c.Restored {
		for _, n := range r.nodes {
			r.dropLink(n, nodelink.CloseNormal, "the cluster's state was restored from a snapshot; register again")
		}
		r.load(r.opts.State.View())
		return
	}
	r.opts.Router.Observe(c)
	for _, row := range c.Nodes {
		r.placeDirty = true
		r.watchDrain(row)
		n := r.node(row.ID)
		n.settled = 0
		r.tellDrain(n)
		if n.expiry.IsZero() {
			now := r.opts.Now()
			n.silentSince = now
			r.extend(n, now)
		}
	}
	for _, id := range c.RemovedNodes {
		delete(r.drains, id)
		r.removeNode(id)
	}
	for _, s := range c.Sessions {
		r.observeSession(s)
	}
	for _, s := range c.RemovedSessions {
		delete(r.pending, s.ID)
		delete(r.deliveries, s.ID)
		delete(r.told, s.ID)
		delete(r.preparing, s.ID)
		r.restores.done(s.ID)
		delete(r.lending, s.ID)
		r.l.dropProgress(s)
		if n := r.nodes[s.NodeID]; n != nil && n.synced {
			r.tell(n, &nodev1.DesiredSession{SessionId: s.ID, Epoch: s.Epoch, Action: nodev1.DesiredSession_FORGET, Reason: "the session is no longer kept"})
		}
	}
	r.observeMessages(c)
}

func (r *reign) observeSession(s *session.Session) {
	if s.CreateIndex == s.ModifyIndex {
		r.watchTTL(s)
	}
	if s.Phase == session.Pending {
		r.pending[s.ID] = s
		r.placeDirty = true
	} else {
		delete(r.pending, s.ID)
	}
	r.watchMove(s)
	r.watchIdle(s)
	if !r.placing[s.ID] && r.restores.watch(s) && len(r.pending) > 0 {
		r.placeDirty = true
	}
	if d := r.deliveries[s.ID]; d != nil && (d.epoch != s.Epoch || s.Phase.Ended() || s.Phase == session.Pending) {
		delete(r.deliveries, s.ID)
	}
	if n := r.nodes[s.NodeID]; n != nil && n.synced && s.NodeID != "" {
		r.desire(n, s)
	}
	switch s.Phase {
	case session.Migrating:
		r.prepare(s)
	case session.Pending: // its next place may be the target all the same
	default:
		r.unprepare(s)
	}
	if !movesOn(s) {
		delete(r.lending, s.ID)
	}
	r.l.dropProgress(s)
	if s.Epoch > 1 && (s.Phase == session.Starting || s.Phase.Ended() || s.Phase == session.Running && s.StartTime == s.History[len(s.History)-1].Time) {
		r.forgetElsewhere(s) // one that is restored still needs its source until it runs
	}
	if s.Phase == session.Running && s.History[len(s.History)-1].Index == s.ModifyIndex {
		r.toDeliver[s.ID] = true // it runs, or does again; at the end of a turn there is nothing to give it that it was not given
	}
}

func (r *reign) node(id string) *node {
	n, ok := r.nodes[id]
	if !ok {
		n = &node{id: id, dirty: map[string]*nodev1.DesiredSession{}}
		r.nodes[id] = n
	}
	return n
}

func (r *reign) removeNode(id string) {
	if n := r.nodes[id]; n != nil {
		r.dropLink(n, nodelink.CloseNormal, "the node was removed")
		delete(r.nodes, id)
	}
}

// tick does what time asks for.
func (r *reign) tick() {
	now := r.opts.Now()
	r.checkNodes(now)
	r.expire(now)
	r.watchCalls(now)
	r.pauseIdle(now)
	r.drainNodes(now)
	r.resend(now)
	r.collect(now)
	r.placeDirty = r.placeDirty || len(r.pending) > 0
}

// flush sends out what the events have piled up.
func (r *reign) flush() {
	r.verifyBeats()
	if r.placeDirty {
		r.placeDirty = false
		r.place(r.opts.Now())
	}
	if r.drainRoom {
		r.drainMoves()
	}
	if r.movesDirty {
		r.admitMoves()
	}
	r.pullMessages()
	index := r.opts.State.Index()
	unsent := r.unsent
	r.unsent = nil
	for _, n := range unsent {
		n.unsent = false
		r.flushNode(n, index)
	}
}

// tell has a node told what becomes of a session, with the next flush.
func (r *reign) tell(n *node, d *nodev1.DesiredSession) {
	n.dirty[d.GetSessionId()] = d
	r.mark(n)
}

// mark notes that there is something to be sent to a node: of ten thousand nodes few have any.
func (r *reign) mark(n *node) {
	if !n.unsent {
		n.unsent = true
		r.unsent = append(r.unsent, n)
	}
}

// post queues an event. It never blocks.
func (r *reign) post(f func()) {
	r.mu.Lock()
	r.events = append(r.events, f)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reign) queued() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

func (r *reign) handleEvents() {
	r.mu.Lock()
	events := r.events
	r.events = nil
	r.mu.Unlock()
	for _, f := range events {
		f()
	}
}

// propose commits commands and has the answer handled by the reign's goroutine. Answers that come after the reign are lost
// on purpose: the next leader finds their effect in the state.
func (r *reign) propose(done func([]state.Result, error), commands ...*clusterv1.Command) {
	err := r.opts.Log.ProposeAsync(func(results []state.Result, err error) {
		r.post(func() { done(results, err) })
	}, commands...)
	if err != nil {
		r.post(func() { done(nil, err) })
	}
}

// logFailures is for commands whose failure needs no more than a line: the next tick tries again.
func (r *reign) logFailures(what string) func([]state.Result, error) {
	return func(results []state.Result, err error) {
		if err != nil {
			r.log.Debug(what+" was not committed", "error", err)
		}
		for _, res := range results {
			if res.Err != nil {
				r.log.Debug(what+" was refused", "error", res.Err)
			}
		}
	}
}
