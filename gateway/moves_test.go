// What moves sessions: what is refused and why, what a session shows, and repetitions.
package gateway

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/router"
	"github.com/neolith/orchestrator/session"
)

// addNode registers a node and has the router take it for linked.
func (a *alone) addNode(name string) {
	a.t.Helper()
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_RegisterNode{RegisterNode: &clusterv1.RegisterNode{
		NodeId: "id-" + name, Name: name, Incarnation: 1, Capabilities: &apiv1.Capabilities{
			CanSpawnSessions: true, SupportedSessionTypes: []string{session.TypeProcess}, CpuMilli: 4000, MemoryBytes: 1 << 30,
		},
	}}})
	a.ops.Router.Reset(a.ops.State.View())
	for n := range a.ops.State.View().Nodes() {
		a.ops.Router.SetHealth(n.ID, router.Health{Linked: true})
	}
}

// facts has a node tell what happened on it.
func (a *alone) facts(node string, facts ...*nodev1.Fact) {
	a.t.Helper()
	n := a.ops.State.View().Node("id-" + node)
	for i, f := range facts {
		f.Index = n.FactIndex + uint64(i) + 1
	}
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_ApplyFacts{ApplyFacts: &clusterv1.ApplyFacts{NodeId: n.ID, Incarnation: n.Incarnation, Facts: facts}}})
}

// checkpointed tells of a checkpoint that was made: of a move, unless that is 0, with the process ended after it.
func (a *alone) checkpointed(node, id string, move uint64) {
	a.t.Helper()
	s := a.ops.State.View().Session(id)
	sequence := headSequence(s) + 1
	facts := []*nodev1.Fact{
		{SessionId: id, Epoch: s.Epoch, Kind: &nodev1.Fact_Captured{Captured: &nodev1.Captured{Sequence: sequence}}},
		{SessionId: id, Epoch: s.Epoch, Kind: &nodev1.Fact_Checkpointed{Checkpointed: &nodev1.Checkpointed{
			Sequence: sequence, Manifest: make([]byte, 32), Bytes: 1000, BytesSent: 10, BytesReused: 990, Chunks: 3, Request: s.CheckpointRequest, Move: move, Rounds: 2,
			HeldTime: pbconv.Time(a.ops.State.View().Time()),
		}}},
	}
	if move != 0 {
		facts = append(facts, &nodev1.Fact{SessionId: id, Epoch: s.Epoch, Kind: &nodev1.Fact_Exited{Exited: &nodev1.Exited{
			Exit: &apiv1.Session_Exit{Signal: "SIGKILL", Cause: session.CauseFailed},
		}}})
	}
	a.facts(node, facts...)
}

// until waits for what a session is to be.
func (a *alone) until(id string, ready func(*session.Session) bool) *session.Session {
	a.t.Helper()
	s, err := a.ops.waitSession(a.as(""), id, func(s *session.Session) (bool, error) { return ready(s), nil })
	if err != nil {
		a.t.Fatal(err)
	}
	return s
}

func (a *alone) started(id string) {
	a.t.Helper()
	s := a.until(id, func(s *session.Session) bool { return s.Phase == session.Restoring })
	a.facts(strings.TrimPrefix(s.NodeID, "id-"), &nodev1.Fact{SessionId: id, Epoch: s.Epoch, Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: 8}}})
}

// run makes a session that runs on a node.
func (a *alone) run(id, node string) {
	a.t.Helper()
	spec := &session.Spec{Name: id, Command: []string{"cat"}}
	spec.Normalize()
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{SessionId: id, Spec: pbconv.SpecToProto(spec), NodeId: "id-" + node}}})
	a.facts(node, &nodev1.Fact{SessionId: id, Epoch: 1, Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: 7}}})
	if s := a.ops.State.View().Session(id); s.Phase != session.Running {
		a.t.Fatalf("the session is %s", s.Phase)
	}
}

// wait makes a session that no node fits.
func (a *alone) wait(id string) {
	a.t.Helper()
	spec := &session.Spec{Name: id, Command: []string{"cat"}, Require: []string{"gpu"}}
	spec.Normalize()
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{SessionId: id, Spec: pbconv.SpecToProto(spec)}}})
}

// failed is how a call failed.
func failed[R any](_ R, err error) error { return err }

// TestMovesRefused: each verb says what stands in its way, before anything is committed.
func TestMovesRefused(t *testing.T) {
	a := startAlone(t)
	a.addNode("one")
	a.run("works", "one")
	a.wait("waits")
	a.wait("ended")
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_TerminateSession{TerminateSession: &clusterv1.TerminateSession{SessionId: "ended", Grace: -1}}})
	c := apiv1.NewSessionServiceClient(a.conn)
	ctx := a.as(a.admin)
	before := a.ops.State.View().Session("works").ModifyIndex
	migrate := func(id, target, mode string) error {
		return failed(c.MigrateSession(ctx, &apiv1.MigrateSessionRequest{Id: id, Target: target, Mode: mode}))
	}
	alone := migrate("works", "", "")
	a.addNode("two")
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_SetNodeSchedulable{SetNodeSchedulable: &clusterv1.SetNodeSchedulable{NodeId: "id-two"}}})
	a.addNode("three") // and the router sees that two is cordoned
	for i, tc := range []struct {
		err  error
		code codes.Code
		want string
	}{
		{alone, codes.FailedPrecondition, "session works: there is no other node; start a node-agent"},
		{migrate("works", "one", ""), codes.FailedPrecondition, "node one is where the session runs; name another"},
		{migrate("works", "id-one", "cold"), codes.FailedPrecondition, "node one is where the session runs"},
		{migrate("works", "two", ""), codes.FailedPrecondition, "node two cannot take the session: cordoned; uncordon it"},
		{migrate("works", "nine", ""), codes.NotFound, "node \"nine\": there is none"},
		{migrate("works", "", "warm"), codes.InvalidArgument, "use live or cold"},
		{migrate("waits", "", ""), codes.FailedPrecondition, "is on no node yet"},
		{migrate("ended", "", ""), codes.FailedPrecondition, "`orchctl sessions restore`"},
		{migrate("nobody", "", ""), codes.NotFound, "there is none"},
		{failed(c.CancelMigration(ctx, &apiv1.CancelMigrationRequest{Id: "works"})), codes.FailedPrecondition, "is not moving; there is nothing to cancel"},
		{failed(c.CheckpointSession(ctx, &apiv1.CheckpointSessionRequest{Id: "ended"})), codes.FailedPrecondition, "only what runs can be checkpointed"},
		{failed(c.PauseSession(ctx, &apiv1.PauseSessionRequest{Id: "ended"})), codes.FailedPrecondition, "nothing to pause"},
		{failed(c.ResumeSession(ctx, &apiv1.ResumeSessionRequest{Id: "ended"})), codes.FailedPrecondition, "not paused"},
		{failed(c.ResumeSession(ctx, &apiv1.ResumeSessionRequest{Id: "works"})), codes.OK, ""}, // it runs, as is wanted
		{failed(c.ForkSession(ctx, &apiv1.ForkSessionRequest{Id: "works"})), codes.FailedPrecondition, "has no checkpoint yet; make one with"},
		{failed(c.ForkSession(ctx, &apiv1.ForkSessionRequest{Id: "ended"})), codes.FailedPrecondition, "has no checkpoint to go on from; spawn it again"},
		{failed(c.RewindSession(ctx, &apiv1.RewindSessionRequest{Id: "works", Wait: true})), codes.FailedPrecondition, "has no checkpoint yet"},
	} {
		if status.Code(tc.err) != tc.code || tc.want != "" && !strings.Contains(tc.err.Error(), tc.want) {
			t.Errorf("%d: %v, want %s %q", i, tc.err, tc.code, tc.want)
		}
	}
	if now := a.ops.State.View().Session("works").ModifyIndex; now != before {
		t.Error("what was refused changed the session")
	}
	// Somebody else's namespace.
	films := a.as(a.token(auth.Client, "films"))
	if _, err := c.MigrateSession(films, &apiv1.MigrateSessionRequest{Id: "works"}); status.Code(err) != codes.NotFound {
		t.Errorf("from another namespace: %v", err)
	}
	if _, err := c.PauseSession(films, &apiv1.PauseSessionRequest{Namespace: "default", Id: "works"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("in another namespace: %v", err)
	}
	if r, err := c.ListCheckpoints(a.as(a.token(auth.Viewer, "")), &apiv1.ListCheckpointsRequest{Id: "works"}); err != nil || len(r.GetCheckpoints()) != 0 {
		t.Errorf("a viewer: %v %v", r, err)
	}
}

// TestAMoveThatWaitsSaysSo: the fifth from a node, of which four may be under way.
func TestAMoveThatWaitsSaysSo(t *testing.T) {
	a := startAlone(t)
	a.addNode("one")
	a.addNode("two")
	c := apiv1.NewSessionServiceClient(a.conn)
	var last *apiv1.Session_Migration
	ids := []string{"s1", "s2", "s3", "s4", "s5"}
	for _, id := range ids {
		a.run(id, "one")
		a.ops.Router.SetHealth("id-two", router.Health{Linked: true})
		if _, err := c.MigrateSession(a.as(a.admin), &apiv1.MigrateSessionRequest{Id: id, Target: "two"}); err != nil {
			t.Fatal(err)
		}
	}
	for giveUp := time.Now().Add(10 * time.Second); last.GetProgress().GetStep() != "waiting"; {
		r, err := c.GetSession(a.as(a.admin), &apiv1.GetSessionRequest{Id: "s5"})
		if err != nil || time.Now().After(giveUp) {
			t.Fatalf("%v, %v", last, err)
		}
		last = r.GetSession().GetMigration()
	}
	r, err := c.ListSessions(a.as(a.admin), &apiv1.ListSessionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range r.GetSessions() {
		if waits := s.GetMigration().GetProgress().GetStep() == "waiting"; waits != (i == 4) {
			t.Errorf("%s: %v", s.GetId(), s.GetMigration())
		}
	}
}

// TestMayMove: only what runs moves; everything else says what to do instead.
func TestMayMove(t *testing.T) {
	for p := session.Pending; p <= session.Terminated; p++ {
		err := mayMove(&session.Session{ID: "x", Phase: p})
		if (err == nil) != (p == session.Running) || err != nil && !fault.Is(err, fault.FailedPrecondition) {
			t.Errorf("%s: %v", p, err)
		}
		if err != nil && !strings.Contains(err.Error(), ";") && !strings.Contains(err.Error(), ", and ") {
			t.Errorf("%s: %v has no remedy", p, err)
		}
	}
}

// TestWhatASessionShowsOfItsMoves: the head, the lag, and the spans of a move that has ended, goes on, or was never held.
func TestWhatASessionShowsOfItsMoves(t *testing.T) {
	a := startAlone(t)
	a.addNode("one")
	a.addNode("two")
	v := a.ops.State.View()
	now := v.Time()
	ms := func(n int64) int64 { return n * int64(time.Millisecond) }
	head := &session.Checkpoint{Sequence: 4, Turn: 7, Bytes: 100, BytesSent: 30, BytesReused: 70, Chunks: 2, Epoch: 3, OutputLine: 12, Keeps: []string{"workspace"}, Manifest: session.ManifestID{0xab}}
	s := &session.Session{ID: "x", Spec: &session.Spec{}, Phase: session.Migrating, NodeID: "id-one", Saved: session.Saved{
		Checkpoints: []*session.Checkpoint{{Sequence: 2, Turn: 3}, head}, Turns: 9, UnsavedSince: now - ms(2500),
		Migration: &session.Migration{
			State: session.MigrationCopying, Source: "id-one", Target: "id-two", Rounds: 2, BytesSent: 5, BytesReused: 6, StartTime: now - ms(700), Epoch: 0,
		},
	}}
	p := sessionProto(v, s)
	if c := p.GetCheckpoint(); c.GetSequence() != 4 || c.GetTurn() != 7 || c.GetBytesSent() != 30 || c.GetChunks() != 2 || !strings.HasPrefix(c.GetManifest(), "ab00") {
		t.Errorf("checkpoint %v", c)
	}
	if l := p.GetLag(); l.GetTurns() != 2 || l.GetSeconds() < 2.5 {
		t.Errorf("lag %v", l)
	}
	s.UnsavedSince = time.Now().UnixNano() - ms(60_000) // nothing was committed since, and it has grown
	if l := lagProto(v, s, nil); l.GetSeconds() < 60 || l.GetSeconds() > 600 {
		t.Errorf("lag of a minute: %v", l)
	}
	if s.UnsavedSince = now - ms(2500); v.Time() != now {
		t.Fatal("the state has another time")
	}
	m := p.GetMigration()
	if m.GetSource() != "one" || m.GetTarget() != "two" || m.GetMode() != "live" || m.GetState() != apiv1.Session_Migration_COPYING || m.GetBlackoutMs() != 0 || m.GetTotalMs() != 700 {
		t.Errorf("copying: %v", m)
	}
	s.Migration.HeldTime, s.Migration.State, s.Migration.Cold = now-ms(40), session.MigrationMoving, true
	if m := migrationProto(v, s.Migration); m.GetBlackoutMs() != 40 || m.GetTotalMs() != 700 || m.GetMode() != "cold" {
		t.Errorf("moving: %v", m)
	}
	s.Migration.State, s.Migration.EndTime, s.Migration.Epoch = session.MigrationDone, now-ms(15), 4
	if m := migrationProto(v, s.Migration); m.GetBlackoutMs() != 25 || m.GetTotalMs() != 685 || m.GetEpoch() != 4 {
		t.Errorf("done: %v", m)
	}
	// What has ended ages no more, and what is saved has no lag.
	s.Phase, s.EndTime = session.Failed, now-ms(500)
	if l := lagProto(v, s, &session.Mailbox{Queued: 1, Delivered: 2, Kept: 3, Acked: 9}); l.GetSeconds() != 2 || l.GetMessages() != 6 {
		t.Errorf("ended: %v", l)
	}
	s.Turns, s.UnsavedSince = 7, 0
	if l := lagProto(v, s, nil); l.GetTurns() != 0 || l.GetSeconds() != 0 || l.GetMessages() != 0 {
		t.Errorf("saved: %v", l)
	}
	s.Saved = session.Saved{Turns: 9}
	if p := sessionProto(v, s); p.GetCheckpoint() != nil || p.GetMigration() != nil || p.GetLag().GetTurns() != 9 {
		t.Errorf("never saved: %v", p)
	}
}

// asked runs a call that waits, and returns how to get its answer.
func asked(call func() (*apiv1.Session, error)) func(*testing.T) *apiv1.Session {
	type answer struct {
		s   *apiv1.Session
		err error
	}
	done := make(chan answer, 1)
	go func() {
		s, err := call()
		done <- answer{s, err}
	}()
	return func(t *testing.T) *apiv1.Session {
		t.Helper()
		r := <-done
		if r.err != nil {
			t.Fatal(r.err)
		}
		return r.s
	}
}

// of is the session of an answer.
func of[R interface{ GetSession() *apiv1.Session }](r R, err error) (*apiv1.Session, error) {
	return r.GetSession(), err
}

// works is a server with two nodes, on the first of which the session s runs, and a client. Each verb that waits is answered when the nodes have
// told the last of it, and its repetition under the same key, with the effect already there, has none of its own.
func works(t *testing.T) (*alone, apiv1.SessionServiceClient, context.Context) {
	a := startAlone(t)
	a.addNode("one")
	a.addNode("two")
	a.run("s", "one")
	return a, apiv1.NewSessionServiceClient(a.conn), a.as(a.admin)
}

func moving(s *session.Session) bool { return s.Move != 0 }

func TestACheckpointIsWaitedFor(t *testing.T) {
	a, c, ctx := works(t)
	checkpoint := func() (*apiv1.Session, error) {
		return of(c.CheckpointSession(ctx, &apiv1.CheckpointSessionRequest{Id: "s", Wait: true, IdempotencyKey: "c"}))
	}
	got := asked(checkpoint)
	a.until("s", func(s *session.Session) bool { return s.CheckpointRequest == 1 })
	a.checkpointed("one", "s", 0)
	if s := got(t); s.GetCheckpoint().GetSequence() != 1 || s.GetCheckpoint().GetBytesReused() != 990 {
		t.Errorf("checkpoint: %v", s)
	}
	if s := asked(checkpoint)(t); s.GetCheckpoint().GetSequence() != 1 || a.ops.State.View().Session("s").CheckpointRequest != 1 {
		t.Errorf("again: %v", s)
	}
}

func TestAMoveIsWaitedFor(t *testing.T) {
	a, c, ctx := works(t)
	migrate := func() (*apiv1.Session, error) {
		return of(c.MigrateSession(ctx, &apiv1.MigrateSessionRequest{Id: "s", Target: "two", Wait: true, IdempotencyKey: "m"}))
	}
	got := asked(migrate)
	move := a.until("s", moving).Move
	joined := asked(func() (*apiv1.Session, error) { // who asks for what is under way has it
		return of(c.MigrateSession(ctx, &apiv1.MigrateSessionRequest{Id: "s", Wait: true}))
	})
	if _, err := c.MigrateSession(ctx, &apiv1.MigrateSessionRequest{Id: "s", Target: "one"}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "is moving to two") {
		t.Errorf("elsewhere meanwhile: %v", err)
	}
	a.checkpointed("one", "s", move)
	a.started("s")
	for _, s := range []*apiv1.Session{got(t), joined(t)} {
		m := s.GetMigration()
		if s.GetNode() != "two" || s.GetEpoch() != 2 || m.GetState() != apiv1.Session_Migration_DONE || m.GetSource() != "one" || m.GetRounds() != 2 || m.GetBytesReused() != 990 || m.GetTotalMs() < m.GetBlackoutMs() {
			t.Errorf("migrate: %v", s)
		}
	}
	if s := asked(migrate)(t); s.GetEpoch() != 2 || s.GetPhase() != apiv1.Session_RUNNING {
		t.Errorf("again, on its target already: %v", s)
	}
	if _, err := c.CancelMigration(ctx, &apiv1.CancelMigrationRequest{Id: "s"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("cancel what is done: %v", err)
	}
}

func TestAMoveIsCancelled(t *testing.T) {
	_, c, ctx := works(t)
	if _, err := c.MigrateSession(ctx, &apiv1.MigrateSessionRequest{Id: "s"}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds it cancelled
		s, err := of(c.CancelMigration(ctx, &apiv1.CancelMigrationRequest{Id: "s"}))
		if err != nil || s.GetPhase() != apiv1.Session_RUNNING || s.GetMigration().GetState() != apiv1.Session_Migration_CANCELLED {
			t.Errorf("cancel: %v %v", s, err)
		}
	}
}

func TestPauseAndResumeAreWaitedFor(t *testing.T) {
	a, c, ctx := works(t)
	got := asked(func() (*apiv1.Session, error) {
		return of(c.PauseSession(ctx, &apiv1.PauseSessionRequest{Id: "s", Wait: true}))
	})
	a.checkpointed("one", "s", a.until("s", moving).Move)
	if s := got(t); s.GetPhase() != apiv1.Session_PAUSED || s.GetCheckpoint().GetSequence() != 1 {
		t.Errorf("pause: %v", s)
	}
	got = asked(func() (*apiv1.Session, error) {
		return of(c.ResumeSession(ctx, &apiv1.ResumeSessionRequest{Id: "s", Wait: true}))
	})
	a.started("s")
	if s := got(t); s.GetPhase() != apiv1.Session_RUNNING || s.GetEpoch() != 2 {
		t.Errorf("resume: %v", s)
	}
}

func TestAForkIsMadeOnce(t *testing.T) {
	a, c, ctx := works(t)
	a.checkpointed("one", "s", 0)
	fork := &apiv1.ForkSessionRequest{Id: "s", Name: "branch", Sequence: 1, IdempotencyKey: "f"}
	first, err := of(c.ForkSession(ctx, fork))
	if err != nil || first.GetName() != "branch" || first.GetCheckpoint() == nil {
		t.Fatalf("fork: %v %v", first, err)
	}
	if again, err := of(c.ForkSession(ctx, fork)); err != nil || again.GetId() != first.GetId() {
		t.Errorf("the same fork: %v %v", again, err)
	}
	fork.Strategy = "bin-pack"
	if _, err := c.ForkSession(ctx, fork); status.Code(err) != codes.AlreadyExists {
		t.Errorf("another fork under the key of the first: %v", err)
	}
	if s, err := of(c.ForkSession(ctx, &apiv1.ForkSessionRequest{Id: "s", Strategy: "bin-pack"})); err != nil || s.GetSpec().GetStrategy() != "bin-pack" {
		t.Errorf("fork with a strategy: %v %v", s, err)
	}
	if _, err := c.ForkSession(ctx, &apiv1.ForkSessionRequest{Id: "s", Strategy: "darts"}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "use least-connections") {
		t.Errorf("fork with a strategy that is none: %v", err)
	}
}

func TestARewindIsWaitedFor(t *testing.T) {
	a, c, ctx := works(t)
	a.checkpointed("one", "s", 0)
	a.checkpointed("one", "s", 0)
	rewind := func() (*apiv1.Session, error) {
		return of(c.RewindSession(ctx, &apiv1.RewindSessionRequest{Id: "s", Sequence: 1, Wait: true, IdempotencyKey: "r"}))
	}
	got := asked(rewind)
	a.until("s", func(s *session.Session) bool { return s.RewindTo != 0 })
	a.facts("one", &nodev1.Fact{SessionId: "s", Epoch: 1, Kind: &nodev1.Fact_Exited{Exited: &nodev1.Exited{Exit: &apiv1.Session_Exit{Cause: session.CauseFailed}}}})
	a.started("s")
	if s := got(t); s.GetPhase() != apiv1.Session_RUNNING || s.GetEpoch() != 2 {
		t.Errorf("rewind: %v", s)
	}
	if s := asked(rewind)(t); s.GetEpoch() != 2 {
		t.Errorf("the same rewind: %v", s)
	}
	if r, err := c.ListCheckpoints(ctx, &apiv1.ListCheckpointsRequest{Id: "s"}); err != nil || len(r.GetCheckpoints()) != 3 { // the first is the head once more
		t.Errorf("checkpoints: %v %v", r, err)
	}
}
