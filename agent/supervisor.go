// The supervisor: the one goroutine that owns the table of sessions, the facts, and the lease.

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/agent/health"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

// What reaches the supervisor beside frames and events.
type (
	// linkUp: a server answered the hello.
	linkUp struct {
		server string
		ack    *nodev1.HelloAck
	}
	// linkDown: the link is gone.
	linkDown struct{ err error }
	// leaseWritten: a deadline stands in the lease file, or could not be written.
	leaseWritten struct {
		deadline time.Duration
		err      error
	}
	// removed: the janitor has forgotten a session.
	removed string
	// sampled: the machine was measured.
	sampled health.Sample
)

const (
	// retryInterval is how soon what the link had no room for is tried again.
	retryInterval = 50 * time.Millisecond
	// eventsPerTurn bounds how many events are taken in before their facts are sent: together they make fuller frames, and
	// nothing waits long.
	eventsPerTurn = 256
	// maxTombstones bounds the memory of sessions that are forgotten; the oldest go first.
	maxTombstones = 4096

	// endOnStopGrace is the time from SIGTERM to SIGKILL for sessions that end with their agent, and endOnStopPatience how
	// long the agent stays for that.
	endOnStopGrace    = 5 * time.Second
	endOnStopPatience = 8 * time.Second

	defaultRenew     = 3 * time.Second
	defaultHeartbeat = 10 * time.Second
)

// entry is one session as the supervisor sees it.
type entry struct {
	id string
	// run is the epoch that runs, or ran last; nil when none did.
	run *run
	// next is the epoch to start once the older one is gone and the lease is held; nil for none.
	next *nextRun
	// forget: once the run has ended, its directory may go.
	forget bool
	// endFact is the number of the fact that reports the run's end.
	endFact uint64
	// removing: the janitor has its directory in hand.
	removing bool
	waiters  []waiter
	// lent: another node may fetch its chunks from here.
	lent bool
}

// nextRun is an epoch that waits to be started.
type nextRun struct {
	rec     *record
	spec    *session.Spec
	inbox   *inbox // takes messages already
	since   time.Duration
	restore *nodev1.Restore
	peer    *checkpoint.Peer
	plan    plan
}

// live reports whether something of the session runs, or may.
func (e *entry) live() bool { return e.run != nil && e.run.live() }

// epoch is the highest epoch that the entry knows.
func (e *entry) epoch() uint32 {
	switch {
	case e.next != nil:
		return e.next.rec.Epoch
	case e.run != nil:
		return e.run.epoch
	}
	return 0
}

// supervisor is owned by the goroutine in loop, except for what says otherwise.
type supervisor struct {
	*Agent
	entries map[string]*entry
	staging map[string]*staging // sessions that are expected here
	runs    sync.WaitGroup
	runCtx  context.Context
	facts   factLog
	acks    factsPatience
	tombs   tombstones

	cluster       atomic.Pointer[string] // read when a hello is made
	linkedEver    bool
	farewell      farewell
	stopping      bool // sessions are being ended; none is started any more
	renew         time.Duration
	heartbeat     time.Duration
	leaseLength   time.Duration // as the last hello_ack said
	lastHealth    time.Duration // boottime of the last heartbeat that carried health
	lastAnswered  time.Duration // sent_at of the last heartbeat that was answered
	lastAnswer    time.Time
	roundTrip     time.Duration
	ended         []*run // whose directories are kept, oldest first
	verdict       health.Verdict
	sample        health.Sample
	inventoryOwed []string // request ids of get_sessions that could not be answered yet
	adopting      int      // sessions of an earlier agent of which nothing is known yet

	renewTimer, leaseTimer, retryTimer *time.Timer
}

func (s *supervisor) init(a *Agent) {
	s.Agent = a
	s.entries, s.staging = map[string]*entry{}, map[string]*staging{}
	s.tombs = tombstones{epochs: map[string]uint32{}}
	s.renew, s.heartbeat = defaultRenew, defaultHeartbeat
	s.cluster.Store(&a.data.id.ClusterID)
	s.sample.Missing = map[health.Measure]bool{health.CPU: true, health.Memory: true, health.DiskPercent: true, health.DiskBytes: true}
	s.verdict = health.Judge(health.Verdict{}, health.Input{Sample: s.sample})
}

func (s *supervisor) clusterID() string { return *s.cluster.Load() }

// load makes an entry for each session that has a directory.
func (s *supervisor) load() error {
	records, damaged, err := s.host.store.list()
	if err != nil {
		return err
	}
	for name, why := range damaged {
		s.sweep(name)
		to, err := s.host.store.setAside(name)
		if err != nil {
			return err
		}
		s.log.Error("a session's record is damaged; what lived of it was killed and its directory set aside", "session", name, "kept_in", to, "error", why)
		s.metrics.damaged.Inc()
	}
	for _, rec := range records {
		p, err := rec.spec()
		if err != nil {
			return err // list has read it before
		}
		spec := pbconv.SpecFromProto(p)
		spec.Normalize()
		s.entries[rec.SessionID] = &entry{id: rec.SessionID, run: newRun(s.host, rec, spec, true)}
	}
	return nil
}

// sweep kills what lives of a session that cannot be adopted: the agent would renew its lease for ever.
func (s *supervisor) sweep(name string) {
	if s.opts.Sweep == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.StartTimeout)
	defer cancel()
	if err := s.opts.Sweep(ctx, s.host.store.dir(name)); err != nil {
		s.log.Error("what may live of a damaged session could not be killed", "session", name, "error", err)
	}
}

// loop is the supervisor's goroutine. It returns once every session was let go.
func (s *supervisor) loop(ctx context.Context) (err error) {
	runCtx, cancelRuns := context.WithCancel(context.WithoutCancel(ctx))
	s.runCtx = runCtx
	s.renewTimer, s.leaseTimer, s.retryTimer = stoppedTimer(), stoppedTimer(), stoppedTimer()
	s.acks, s.farewell = newFactsPatience(), newFarewell()
	defer s.farewell.stop()
	defer s.renewTimer.Stop()
	defer s.leaseTimer.Stop()
	defer s.retryTimer.Stop()
	defer s.acks.renew()
	defer func() {
		cancelRuns()
		s.letGo()
	}()
	s.adoptAll()
	stop := ctx.Done()
	for {
		s.checkLease()
		s.expireStaging()
		s.flush()
		if s.farewellOver(false) {
			return nil
		}
		select {
		case m := <-s.in:
			if err := s.fromLink(m); err != nil {
				return err
			}
		case e := <-s.events:
			s.fromRun(e)
		case n := <-s.notes:
			s.note(n)
		case f := <-s.progress:
			s.tellProgress(f)
		case <-s.renewTimer.C:
			s.sendHeartbeat()
		case <-s.leaseTimer.C:
		case <-s.retryTimer.C:
		case <-s.acks.timer.C:
			s.factsOverdue()
		case <-s.farewell.again.C:
			s.askToBeDrained()
		case <-stop:
			stop = nil
			if s.toldToStop(context.Cause(ctx)) {
				return nil
			}
		case <-s.farewell.patience.C:
			if s.farewellOver(true) {
				return nil
			}
		}
	}
}

// adoptAll starts the runs of what an earlier agent left.
func (s *supervisor) adoptAll() {
	var ended []*entry
	for _, e := range s.entries {
		if e.run.rec.Ended != nil {
			ended = append(ended, e)
			continue
		}
		s.adopting++
		s.launch(e.run)
	}
	slices.SortFunc(ended, func(a, b *entry) int { return a.run.rec.Ended.Time.Compare(b.run.rec.Ended.Time) })
	for _, e := range ended {
		s.reportEnded(e)
	}
}

// reportEnded reports an end that an earlier agent wrote down and may not have reported.
func (s *supervisor) reportEnded(e *entry) {
	e.run.ended = e.run.rec.Ended
	close(e.run.done)
	s.tell(e.run.fact(exitedFact(e.run.ended)))
	s.keep(e)
}

// reportAgain says once more what the cluster was told and has forgotten: what runs, what has ended, and what is gone. Of
// what it still knows, the facts have no effect.
func (s *supervisor) reportAgain() {
	for _, id := range slices.Sorted(maps.Keys(s.entries)) {
		e := s.entries[id]
		if e.run == nil {
			continue
		}
		e.run.mu.Lock()
		proc, end := e.run.proc, e.run.ended
		e.run.mu.Unlock()
		if proc != nil {
			s.tell(e.run.fact(&nodev1.Fact{Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: int32(proc.PID())}}}))
		}
		if end != nil {
			s.tell(e.run.fact(exitedFact(end)))
			e.endFact = s.facts.last()
		}
	}
	gone := session.Exit{Cause: session.CauseLost, Message: "it ended on this node, which has nothing of it any more"}
	for _, id := range slices.Sorted(maps.Keys(s.tombs.epochs)) {
		f := exitedFact(&ending{Exit: gone})
		f.SessionId, f.Epoch, f.Time = id, s.tombs.epochs[id], timestamppb.Now()
		s.tell(f)
	}
}

func (s *supervisor) launch(r *run) {
	s.running.Add(1)
	s.runs.Go(func() {
		defer s.running.Add(-1)
		r.main(s.runCtx)
	})
}

// letGo waits for all runs, which let their processes go, and sends their last facts.
func (s *supervisor) letGo() {
	done := make(chan struct{})
	go func() {
		s.runs.Wait()
		close(done)
	}()
	for {
		select {
		case e := <-s.events:
			if e.fact != nil {
				s.facts.add(e.fact)
			}
		case <-s.in:
		case <-s.notes:
		case <-done:
			s.flush()
			return
		}
	}
}

// fromLink deals with what came over the link. Its errors end the agent.
func (s *supervisor) fromLink(m any) error {
	switch m := m.(type) {
	case linkUp:
		return s.linkUp(m)
	case linkDown:
		s.linked.Store(false)
		s.renewTimer.Stop()
		s.acks.renew()
		s.dropWaiters()
		s.farewell.answered = false
		if !s.host.lease.held() {
			s.dropNext("the link was lost before the node had a lease")
		}
		s.log.Warn("the node link is down; sessions go on until the lease ends", "lease_left", s.leaseLeft(), "error", m.err)
	case *nodev1.Frame:
		if s.linked.Load() { // else it is of a server that is not this node's
			s.frame(m)
		}
	}
	return nil
}

// linkUp begins to use a link.
func (s *supervisor) linkUp(up linkUp) error {
	if err := s.data.joinCluster(up.ack.GetClusterId(), up.server); err != nil {
		if s.linkedEver {
			// One wrong address among good ones must not end a node that runs sessions.
			s.linked.Store(false)
			s.log.Error("a server of another cluster answered", "server", up.server, "error", err)
			s.bounce("another cluster's server")
			return nil
		}
		return err
	}
	id := s.data.id.ClusterID
	s.cluster.Store(&id)
	s.linkedEver = true
	s.linked.Store(true)
	s.dropWaiters() // of an earlier leader on the same link
	s.renew = positive(up.ack.GetRenewInterval().AsDuration(), defaultRenew)
	s.heartbeat = positive(up.ack.GetHeartbeatInterval().AsDuration(), defaultHeartbeat)
	s.leaseLength = up.ack.GetLease().AsDuration()
	s.facts.resend()
	s.acks.renew()
	if up.ack.GetFactIndex() < s.facts.committed {
		// The cluster has forgotten the node and taken it in again, or its state was restored from a snapshot.
		s.log.Warn("the server knows fewer facts of this incarnation than were committed; numbering what is left after them",
			"server", up.server, "knows", up.ack.GetFactIndex(), "committed", s.facts.committed)
		s.facts.renumber(up.ack.GetFactIndex())
		s.reportAgain()
	} else if !s.commit(up.ack.GetFactIndex()) {
		// This incarnation was used before: the data directory came back from a copy. Lower numbers would have no effect.
		s.log.Error("the server knows facts of this incarnation that this agent never reported; numbering its own after them",
			"server", up.server, "committed", up.ack.GetFactIndex(), "last", s.facts.last())
		s.facts.renumber(up.ack.GetFactIndex())
	}
	s.lastHealth = math.MinInt64 / 2
	s.sendHeartbeat()
	s.farewell.answered = false
	s.askToBeDrained()
	s.log.Info("the node link is up", "server", up.server, "cluster", id, "facts_waiting", len(s.facts.unacked))
	return nil
}

func positive(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}

// fromRun takes in an event and those that wait behind it.
func (s *supervisor) fromRun(e event) {
	for range eventsPerTurn {
		s.event(e)
		select {
		case e = <-s.events:
		default:
			return
		}
	}
	s.event(e)
}

func (s *supervisor) event(e event) {
	if e.fact != nil {
		s.facts.add(e.fact)
	}
	if e.settled {
		s.adopting--
	}
	ent := s.entries[e.run.id]
	if ent == nil || ent.run != e.run {
		return
	}
	if e.absent {
		ent.run, ent.removing = nil, true
		s.janitor.forget(ent.id)
		return
	}
	if e.asked > 0 {
		s.answerAskers(ent, e)
	}
	s.answerWaiters(ent)
	if e.ended {
		s.recall(ent, lentAfterEnd)
		s.unrestored(e.run)
		s.keep(ent)
		s.advance(ent)
	}
}

// keep counts a session that has ended; beyond the bound the oldest goes whose end is committed.
func (s *supervisor) keep(e *entry) {
	e.endFact = s.facts.last()
	s.ended = append(s.ended, e.run)
	for len(s.ended) > s.opts.MaxEndedKept {
		old := s.entries[s.ended[0].id]
		if old != nil && old.run == s.ended[0] { // else it was forgotten, or started again
			if old.endFact > s.facts.committed {
				return
			}
			old.forget = true
			s.advance(old)
		}
		s.ended = s.ended[1:]
	}
}

func (s *supervisor) note(n any) {
	switch n := n.(type) {
	case leaseWritten:
		s.leaseWritten(n)
	case removed:
		s.removed(string(n))
	case sampled:
		s.sample = health.Sample(n)
		s.judge()
	case where:
		s.locate(n)
	case staged:
		s.staged(n)
	}
}

// removed is the end of a session's forgetting.
func (s *supervisor) removed(id string) {
	e := s.entries[id]
	if e == nil {
		return
	}
	e.removing = false
	if e.next == nil {
		delete(s.entries, id)
		return
	}
	e.run, e.forget = nil, false
	s.advance(e)
}

// tell makes a fact of the supervisor's own.
func (s *supervisor) tell(f *nodev1.Fact) {
	s.host.room.waiting.Add(1)
	s.facts.add(f)
}

// commit lets go of the facts up to index, and lets sessions make more; false when index was never given out.
func (s *supervisor) commit(index uint64) bool {
	before := len(s.facts.unacked)
	ok := s.facts.ack(index)
	if len(s.facts.unacked) < before {
		s.acks.renew() // flush begins to wait for the others
	}
	if s.host.room.release(before - len(s.facts.unacked)) {
		s.wakeAll()
	}
	return ok
}

// factsOverdue sends again what the leader has not acked for too long: the frame was lost between servers, or its ack
// was. Facts that it has had have no effect.
func (s *supervisor) factsOverdue() {
	waited := s.acks.lasts
	s.acks.over()
	if !s.linked.Load() || !s.facts.onTheirWay() {
		return
	}
	s.log.Warn("facts were not acknowledged in time; sending them again", "waited", waited, "from", s.facts.committed+1, "to", s.facts.sent)
	s.metrics.factResends.Inc()
	s.facts.resend()
}

func (s *supervisor) wakeAll() {
	for _, e := range s.entries {
		if e.run != nil {
			signal(e.run.wake)
		}
	}
}

// flush hands waiting facts and owed answers to the link, as far as it has room, and waits for acks.
func (s *supervisor) flush() {
	if !s.linked.Load() {
		return
	}
	defer func() {
		if s.facts.onTheirWay() {
			s.acks.begin()
		}
	}()
	for len(s.inventoryOwed) > 0 && s.adopting == 0 {
		if !s.sendInventory(s.inventoryOwed[0]) {
			return
		}
		s.inventoryOwed = s.inventoryOwed[1:]
	}
	for {
		batch := s.facts.batch()
		if len(batch) == 0 {
			return
		}
		last := batch[len(batch)-1].GetIndex()
		if !s.send(&nodev1.Frame{Index: last, Payload: &nodev1.Frame_Facts{Facts: &nodev1.Facts{Incarnation: s.Incarnation(), Facts: batch}}}) {
			return
		}
		s.facts.sentTo(last)
	}
}

// send queues a frame; false when the link has no room or is gone. What must not be lost is tried again.
func (s *supervisor) send(f *nodev1.Frame) bool {
	err := s.link.Send(f)
	if err == nil {
		return true
	}
	s.retryTimer.Reset(retryInterval)
	s.log.Debug("a frame was not queued", "error", err)
	return false
}

// tombstones remember the epochs of sessions that are gone for good, so that a frame that comes late raises nobody.
type tombstones struct {
	epochs map[string]uint32
	order  []string
}

func (t *tombstones) add(id string, epoch uint32) {
	if _, ok := t.epochs[id]; !ok {
		t.order = append(t.order, id)
	}
	t.epochs[id] = max(t.epochs[id], epoch)
	if len(t.order) > maxTombstones {
		delete(t.epochs, t.order[0])
		t.order = t.order[1:]
	}
}

// buried reports whether the epoch, or a later one, is gone for good.
func (t *tombstones) buried(id string, epoch uint32) bool { return t.epochs[id] >= epoch && epoch > 0 }

var errNoLease = errors.New("the node has no lease")

func (s *supervisor) leaseLeft() string {
	if !s.host.lease.ever() {
		return "none"
	}
	return fmt.Sprint(s.host.lease.remaining().Round(time.Millisecond))
}
