// Drains: who moves first and how many at once, what happens where there is no room, and when a drain is over.

package leader

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

func TestDecideDrain(t *testing.T) {
	now := time.Unix(1000, 0)
	on := func(id string, p session.Priority, phase session.Phase) *session.Session {
		return &session.Session{ID: id, Phase: phase, Spec: &session.Spec{Priority: p}, History: []session.HistoryEntry{{Time: now.UnixNano()}}}
	}
	low, critical, starting := on("low", session.Low, session.Running), on("critical", session.Critical, session.Running), on("starting", session.High, session.Starting)
	moving, failing := on("moving", session.Normal, session.Migrating), on("failing", session.Normal, session.Running)
	failing.CheckpointError = "no room"
	long, short := try{why: "full", noRoom: now.Add(-drainPatience), after: now.Add(1)}, try{why: "full", noRoom: now.Add(-drainPatience + 1), after: now.Add(1)}
	for name, c := range map[string]struct {
		sessions    []*session.Session
		arriving    int
		held        uint32
		late        time.Duration // 0 for before the deadline
		force       bool
		tries       map[string]try
		move, pause string
		end         state.DrainState
		reason      string
	}{
		"the most urgent first":                          {sessions: []*session.Session{low, critical}, move: "critical low"},
		"what starts waits until it runs":                {sessions: []*session.Session{starting, low, moving}, move: "low", reason: "starting: it is STARTING, and moves once it runs"},
		"nothing is left":                                {end: state.Drained},
		"one is still being restored":                    {arriving: 1},
		"one is on its way here":                         {held: 1},
		"no room, and no force":                          {sessions: []*session.Session{low}, tries: map[string]try{"low": long}, reason: "low: full"},
		"no room for a moment":                           {sessions: []*session.Session{low}, force: true, tries: map[string]try{"low": short}, reason: "low: full"},
		"no room for long":                               {sessions: []*session.Session{low, critical}, force: true, tries: map[string]try{"low": long}, move: "critical", pause: "low"},
		"tried again when its time has come":             {sessions: []*session.Session{low}, tries: map[string]try{"low": {why: "failed", after: now}}, move: "low", reason: "low: failed"},
		"the deadline":                                   {sessions: []*session.Session{low, critical, moving}, late: 1, tries: map[string]try{"critical": short}, end: state.DrainIncomplete, reason: "critical: full; moving: it is MIGRATING; low: its turn did not come"},
		"the deadline, with force":                       {sessions: []*session.Session{low, moving}, late: 1, force: true, pause: "low", reason: "moving: it is MIGRATING"},
		"what cannot be saved is not asked all the time": {sessions: []*session.Session{failing}, late: 1, force: true, reason: "failing: it could not be saved: no room"},
		"force does not go on for ever":                  {sessions: []*session.Session{moving}, late: drainGrace, force: true, end: state.DrainIncomplete, reason: "moving: it is MIGRATING"},
		"all are gone at the deadline":                   {late: 1, end: state.Drained},
		"the last arrive behind the deadline":            {late: 1, force: true, arriving: 1},
	} {
		n := &state.Node{Sessions: uint32(len(c.sessions)) + c.held, Drain: &state.Drain{State: state.Draining, Force: c.force, Deadline: now.Add(1).UnixNano()}}
		if c.late > 0 {
			n.Drain.Deadline = now.Add(-c.late).UnixNano()
		}
		before := slices.Clone(c.sessions)
		d := decideDrain(drainInput{node: n, now: now, sessions: c.sessions, arriving: c.arriving, tries: c.tries})
		if ids(d.move) != c.move || ids(d.pause) != c.pause || d.end != c.end || d.reason != c.reason {
			t.Errorf("%s: move %q, pause %q, end %s, reason %q", name, ids(d.move), ids(d.pause), d.end, d.reason)
		}
		if !slices.Equal(before, c.sessions) {
			t.Errorf("%s: its input was changed", name)
		}
	}
}

func ids(sessions []*session.Session) string {
	var all []string
	for _, s := range sessions {
		all = append(all, s.ID)
	}
	return strings.Join(all, " ")
}

// TestADrainMovesTheMostUrgentFirst: never more at once than the limit, and it is over when the last one runs elsewhere.
func TestADrainMovesTheMostUrgentFirst(t *testing.T) {
	limit := func(o *Options) { o.Moves = MoveLimits{PerNode: 2, PerCluster: 8} }
	reigningWith(t, limit, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1", "node-2", "node-3")
		c.run("node-1", func(s *apiv1.SessionSpec) { s.Priority = apiv1.Priority_LOW }, "low-1", "low-2")
		c.run("node-1", nil, "normal")
		c.run("node-1", func(s *apiv1.SessionSpec) { s.Priority = apiv1.Priority_CRITICAL }, "critical-1", "critical-2")
		c.drain("node-1", time.Minute, false)
		n := c.nodes[0]
		time.Sleep(tickEvery)
		var order []string
		for range 5 {
			c.listen()
			if len(n.leave) == 0 || len(n.leave) > 2 {
				t.Fatalf("told to leave: %v, after %v", n.leave, order)
			}
			order = append(order, n.leave[0])
			c.left(n, n.leave[0])
			if got := len(c.start()); got != 1 {
				t.Fatalf("%d sessions arrive", got)
			}
		}
		slices.Sort(order[:2])
		slices.Sort(order[3:])
		if strings.Join(order, " ") != "critical-1 critical-2 normal low-1 low-2" {
			t.Errorf("moved in the order %v", order)
		}
		if d := c.drained("node-1"); !d.Under() {
			t.Errorf("over before its end was decided: %+v", d)
		}
		c.pass(time.Second)
		if d := c.drained("node-1"); d.State != state.Drained || d.Moved != 5 || d.Paused != 0 || d.Total != 5 {
			t.Errorf("at the end %+v", d)
		}
		for _, id := range order {
			if s := c.session(id); s.Phase != session.Running || s.NodeID == "id-node-1" {
				t.Errorf("%s is %s on %s", id, s.Phase, s.NodeID)
			}
		}
	})
}

// TestADrainWithoutRoom waits and says why; with force it pauses what has no place, and a new leader's first seconds, in which no
// node is linked, are no reason to.
func TestADrainWithoutRoom(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1", "node-2")
		c.run("node-1", func(s *apiv1.SessionSpec) { s.CpuMilli = 3000 }, "big")
		c.run("node-1", func(s *apiv1.SessionSpec) { s.CpuMilli = 1000 }, "small")
		c.run("node-2", func(s *apiv1.SessionSpec) { s.CpuMilli = 3000 }, "other")
		c.drain("node-1", 30*time.Second, false)
		c.pass(10 * time.Second)
		c.where("small", "node-2")
		c.where("big", "node-1")
		want := "big: no other node fits: node-2 too little CPU free"
		if why := l.DrainReason("id-node-1"); why != want {
			t.Errorf("it waits because %q", why)
		}
		c.pass(21 * time.Second)
		if d := c.drained("node-1"); d.State != state.DrainIncomplete || d.Reason != want || d.Moved != 1 || l.DrainReason("id-node-1") != "" {
			t.Errorf("at its deadline %+v, and it waits because %q", d, l.DrainReason("id-node-1"))
		}
		c.drain("node-1", time.Minute, true)
		c.pass(drainPatience - time.Second)
		c.where("big", "node-1")
		c.pass(3 * time.Second)
		c.phase("big", session.Paused)
		if s := c.session("big"); !strings.HasPrefix(s.History[len(s.History)-2].Reason, "being checkpointed for a pause: node-1 is drained: no other node fits") {
			t.Errorf("paused: %s", s.History[len(s.History)-2].Reason)
		}
		if d := c.drained("node-1"); d.State != state.Drained || d.Paused != 1 || d.Total != 1 {
			t.Errorf("with force %+v", d)
		}
	})
}

// TestADrainTriesAnotherNode: after a move that failed, later and later.
func TestADrainTriesAnotherNode(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1", "node-2", "node-3")
		c.run("node-1", nil, "s")
		c.full["s"] = true
		c.drain("node-1", time.Hour, false)
		var targets []string
		var began []int64
		for range 30 {
			c.pass(time.Second)
			if m := c.session("s").Migration; len(began) == 0 || m.StartTime != began[len(began)-1] {
				targets, began = append(targets, m.Target), append(began, m.StartTime)
			}
		}
		if len(began) < 4 || len(began) > 6 {
			t.Fatalf("%d moves in 30 s", len(began))
		}
		for i := 1; i < len(began); i++ {
			if targets[i] == targets[i-1] {
				t.Errorf("move %d goes to %s again", i, targets[i])
			}
			if i > 1 && began[i]-began[i-1]+int64(time.Second) < began[i-1]-began[i-2] { // what nodes do takes up to a second here
				t.Errorf("move %d began sooner than the one before", i)
			}
		}
		if why := l.DrainReason("id-node-1"); !strings.Contains(why, "s: its last move failed: no checkpoint could be made: no room") {
			t.Errorf("it waits because %q", why)
		}
		delete(c.full, "s")
		c.pass(30 * time.Second)
		if d := c.drained("node-1"); d.State != state.Drained || c.session("s").NodeID == "id-node-1" {
			t.Errorf("%+v", d)
		}
	})
}

// TestADrainAtItsDeadline with force pauses what has not had its turn.
func TestADrainAtItsDeadline(t *testing.T) {
	limit := func(o *Options) { o.Moves = MoveLimits{PerNode: 1, PerCluster: 8} }
	reigningWith(t, limit, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1", "node-2")
		c.run("node-1", nil, "s1", "s2")
		c.frozen["s1"] = true
		c.drain("node-1", 10*time.Second, true)
		c.pass(9 * time.Second)
		c.phase("s1", session.Migrating)
		c.phase("s2", session.Running)
		c.pass(2 * time.Second)
		c.phase("s2", session.Paused)
		delete(c.frozen, "s1")
		c.pass(2 * time.Second)
		c.where("s1", "node-2")
		if d := c.drained("node-1"); d.State != state.Drained || d.Moved != 1 || d.Paused != 1 {
			t.Errorf("%+v", d)
		}
	})
}

// TestAnUncordonEndsADrain: what moves goes on, what does not stays.
func TestAnUncordonEndsADrain(t *testing.T) {
	limit := func(o *Options) { o.Moves = MoveLimits{PerNode: 1, PerCluster: 8} }
	reigningWith(t, limit, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1", "node-2")
		c.run("node-1", nil, "s1", "s2")
		c.frozen["s1"] = true
		c.drain("node-1", time.Minute, false)
		c.pass(time.Second)
		c.cordon("node-1", false)
		delete(c.frozen, "s1")
		c.pass(5 * time.Second)
		c.where("s1", "node-2")
		c.where("s2", "node-1")
	})
}

// TestANewLeaderGoesOnWithADrain: all that it needs is in the state.
func TestANewLeaderGoesOnWithADrain(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1", "node-2")
		c.run("node-1", nil, "s1", "s2", "s3")
		c.frozen["s1"], c.frozen["s2"], c.frozen["s3"] = true, true, true
		c.drain("node-1", time.Minute, true)
		time.Sleep(tickEvery)
		c.listen()
		next, end := &soleHub{}, make(chan struct{})
		o := l.opts
		o.Hub = next
		ctx, cancel := context.WithCancel(t.Context())
		go func() { defer close(end); New(o).Run(ctx, 6) }()
		synctest.Wait()
		time.Sleep(3 * time.Second) // nobody is linked, and nothing is paused for it
		c.hub = next
		for _, n := range c.nodes {
			var has []*nodev1.SessionState
			if n.name == "node-1" {
				has = []*nodev1.SessionState{{SessionId: "s1", Epoch: 1}, {SessionId: "s2", Epoch: 1}, {SessionId: "s3", Epoch: 1}}
			}
			n.link, n.leave = link(t, next, n.name, has...), nil
		}
		clear(c.frozen)
		c.pass(10 * time.Second)
		if d := log.store.View().Node("id-node-1").Drain; d.State != state.Drained || d.Moved != 3 || d.Paused != 0 {
			t.Errorf("%+v", d)
		}
		cancel()
		<-end
	})
}

// askToBeDrained has the agent of a node ask.
func (c *crowd) askToBeDrained(n *crowdNode, deadline time.Duration) {
	c.t.Helper()
	c.hub.frame(n.link, &nodev1.Frame{Payload: &nodev1.Frame_DrainNode{DrainNode: &nodev1.DrainNode{Deadline: durationpb.New(deadline)}}})
	synctest.Wait()
}

// TestANodeThatEndsIsDrainedFirst: its sessions move, those without a place stay, its agent is told how that goes, and when the next
// agent comes the node takes sessions again.
func TestANodeThatEndsIsDrainedFirst(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1", "node-2")
		c.run("node-1", func(s *apiv1.SessionSpec) { s.CpuMilli = 3000 }, "big")
		c.run("node-1", nil, "s1", "s2")
		c.run("node-2", func(s *apiv1.SessionSpec) { s.CpuMilli = 3000 }, "other")
		n := c.nodes[0]
		n.link.take()
		c.askToBeDrained(n, time.Minute)
		c.askToBeDrained(n, time.Minute) // again, for an answer may be lost
		first := n.link.take()
		if d := c.drained("node-1"); !d.Under() || d.Force || d.Agent != 1 || d.Deadline != time.Now().Add(time.Minute).UnixNano() {
			t.Fatalf("asked for: %+v", d)
		}
		if told := drainsTold(first); len(told) == 0 || told[0].GetState() != apiv1.Drain_DRAINING || told[0].GetTotal() != 3 || told[0].GetRemaining() != 3 {
			t.Errorf("answered %v", told)
		}
		told := func() *nodev1.DrainState {
			t.Helper()
			if len(n.drains) == 0 {
				t.Fatal("its agent is told nothing")
			}
			d := proto.CloneOf(n.drains[len(n.drains)-1])
			if !strings.HasPrefix(d.GetReason(), "big: no other node fits") {
				t.Errorf("told last %v, and not why it waits", d)
			}
			d.Reason = ""
			return d
		}
		c.pass(10 * time.Second)
		c.where("s1", "node-2")
		c.where("s2", "node-2")
		if got, want := told(), (&nodev1.DrainState{State: apiv1.Drain_DRAINING, Total: 3, Moved: 2, Remaining: 1}); !proto.Equal(got, want) {
			t.Errorf("told %v, want %v", got, want)
		}
		c.pass(time.Minute)
		c.phase("big", session.Running)
		if got, want := told(), (&nodev1.DrainState{State: apiv1.Drain_INCOMPLETE, Total: 3, Moved: 2, Remaining: 1}); !proto.Equal(got, want) {
			t.Errorf("at the end told %v, want %v", got, want)
		}
		if e := drainEvent(log); e != "3 sessions are to go, by "+farewellActor {
			t.Errorf("the event says %q", e)
		}
		again := linkAs(t, hub, "node-1", 2)
		if row := log.store.View().Node("id-node-1"); !row.Schedulable || row.Drain != nil {
			t.Errorf("its next agent is here: schedulable %v, drain %+v", row.Schedulable, row.Drain)
		}
		if told := drainsTold(again.take()); told != nil {
			t.Errorf("the next agent, which did not ask, is told %v", told)
		}
	})
}

// TestANodeThatEndsAsksEachLeader: a new leader goes on with the drain, and tells the node once it has asked there.
func TestANodeThatEndsAsksEachLeader(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1", "node-2")
		c.run("node-1", nil, "s")
		c.frozen["s"] = true
		n := c.nodes[0]
		log.mu.Lock()
		log.refuse = fault.New(fault.Unavailable, "no leader")
		log.mu.Unlock()
		c.askToBeDrained(n, time.Minute)
		if told := drainsTold(n.link.take()); told != nil {
			t.Fatalf("told of a drain that was not begun: %v", told)
		}
		log.mu.Lock()
		log.refuse = nil
		log.mu.Unlock()
		c.askToBeDrained(n, time.Minute)
		number := c.drained("node-1").Number
		n.link = link(t, hub, "node-1", &nodev1.SessionState{SessionId: "s", Epoch: 1}) // as over another leader
		time.Sleep(time.Second)
		c.askToBeDrained(n, time.Minute)
		told := drainsTold(n.link.take())
		if d := c.drained("node-1"); d.Number != number || d.Deadline != d.StartTime+int64(time.Minute) || len(told) != 1 || told[0].GetRemaining() != 1 {
			t.Errorf("asked again: %+v, told %v", d, told)
		}
		c.cordon("node-1", false)
		if told := drainsTold(n.link.take()); len(told) != 1 || told[0].GetState() != apiv1.Drain_CANCELLED || told[0].GetReason() != "uncordoned" {
			t.Errorf("uncordoned, it is told %v", told)
		}
	})
}

// TestANodeHearsOfItsOwnDrainOnly: the one before, that ended when its agent came back, is none of an answer.
func TestANodeHearsOfItsOwnDrainOnly(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1")
		c.run("node-1", nil, "s")
		n := c.nodes[0]
		c.askToBeDrained(n, time.Minute)
		n.link = linkAs(t, hub, "node-1", 2, &nodev1.SessionState{SessionId: "s", Epoch: 1})
		if d := c.drained("node-1"); d.State != state.DrainCancelled {
			t.Fatalf("its next agent is here: %+v", d)
		}
		log.mu.Lock()
		log.holds = true
		log.mu.Unlock()
		c.askToBeDrained(n, time.Minute)
		log.do(t, &clusterv1.Command{Kind: &clusterv1.Command_SetNodeStatus{SetNodeStatus: &clusterv1.SetNodeStatus{NodeId: "id-node-1", Status: apiv1.Node_DEGRADED, Reason: "busy"}}})
		c.pass(time.Second)
		c.askToBeDrained(n, time.Minute)
		if len(n.drains) != 0 {
			t.Errorf("before its drain began it was told %v", n.drains)
		}
		log.mu.Lock()
		log.holds = false
		held := log.held
		log.mu.Unlock()
		if len(held) != 1 {
			t.Fatalf("%d drains are proposed", len(held))
		}
		held[0]()
		c.pass(time.Second)
		if len(n.drains) == 0 || n.drains[0].GetState() != apiv1.Drain_DRAINING {
			t.Errorf("then it was told %v", n.drains)
		}
	})
}

func drainsTold(frames []*nodev1.Frame) (told []*nodev1.DrainState) {
	for _, f := range frames {
		if d := f.GetDrainState(); d != nil {
			told = append(told, d)
		}
	}
	return told
}

// drainEvent is what the event says with which the last drain began.
func drainEvent(log *soleLog) (message string) {
	for _, e := range log.store.View().Events(0, 1000) {
		if e.Type == "node.draining" {
			message = e.Message
		}
	}
	return message
}

// TestAdmit: what has begun goes on, then the more urgent, then the older; nobody waits for another one's node.
func TestAdmit(t *testing.T) {
	m := func(id string, number uint64, p session.Priority, source, target string, begun bool) move {
		return move{id, number, p, source, target, begun}
	}
	for name, c := range map[string]struct {
		moves  []move
		limits MoveLimits
		want   string
	}{
		"the more urgent, then the older": {
			[]move{m("a", 3, session.Normal, "x", "y", false), m("b", 2, session.Normal, "x", "y", false), m("c", 9, session.Critical, "x", "y", false), m("d", 1, session.Low, "x", "y", false)},
			MoveLimits{2, 9}, "b c",
		},
		"what has begun is not sent back": {
			[]move{m("a", 1, session.Low, "x", "y", true), m("b", 2, session.Low, "x", "y", true), m("c", 3, session.Critical, "x", "y", false)},
			MoveLimits{1, 9}, "a b",
		},
		"source and target both count": {
			[]move{m("a", 1, session.Normal, "x", "y", false), m("b", 2, session.Normal, "y", "z", false), m("c", 3, session.Normal, "z", "w", false)},
			MoveLimits{1, 9}, "a c",
		},
		"the cluster's limit": {
			[]move{m("a", 1, session.Normal, "1", "2", true), m("b", 2, session.Normal, "3", "4", false), m("c", 3, session.Normal, "5", "6", false)},
			MoveLimits{9, 2}, "a b",
		},
	} {
		got := admit(c.moves, c.limits)
		var all []string
		for id := range got {
			all = append(all, id)
		}
		slices.Sort(all)
		if strings.Join(all, " ") != c.want {
			t.Errorf("%s: %v, want %s", name, all, c.want)
		}
	}
}

// TestMovesWaitForTheirTurn: those beyond the limit work on, say so, can be cancelled, and come by urgency.
func TestMovesWaitForTheirTurn(t *testing.T) {
	limit := func(o *Options) { o.Moves = MoveLimits{PerNode: 1, PerCluster: 8} }
	reigningWith(t, limit, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1", "node-2")
		c.run("node-1", nil, "first", "cancelled", "last")
		c.run("node-1", func(s *apiv1.SessionSpec) { s.Priority = apiv1.Priority_CRITICAL }, "urgent")
		n := c.nodes[0]
		for _, id := range []string{"first", "cancelled", "last", "urgent"} {
			c.migrate(id, "node-2")
		}
		c.listen()
		if !slices.Equal(n.leave, []string{"first"}) {
			t.Fatalf("told to leave: %v", n.leave)
		}
		if p := l.Progress("last"); p.GetStep() != StepWaiting || l.Progress("first") != nil {
			t.Errorf("last: %v, first: %v", p, l.Progress("first"))
		}
		log.do(t, &clusterv1.Command{Kind: &clusterv1.Command_CancelMigration{CancelMigration: &clusterv1.CancelMigration{SessionId: "cancelled"}}})
		var order []string
		for range 3 {
			c.listen()
			if len(n.leave) != 1 {
				t.Fatalf("told to leave: %v, after %v", n.leave, order)
			}
			order = append(order, n.leave[0])
			c.left(n, n.leave[0])
			c.listen()
			if len(n.leave) > 0 {
				t.Errorf("%v goes before %s runs", n.leave, order[len(order)-1])
			}
			c.start()
		}
		if !slices.Equal(order, []string{"first", "urgent", "last"}) {
			t.Errorf("moved in the order %v", order)
		}
		c.where("cancelled", "node-1")
		if l.Progress("last") != nil {
			t.Error("one that has moved still waits")
		}
	})
}
