// What moves sessions: what is refused and why, what a session shows, and repetitions.
package gateway

import (
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

// run makes a session that runs on a node.
func (a *alone) run(id, node string) {
	a.t.Helper()
	spec := &session.Spec{Name: id, Command: []string{"cat"}}
	spec.Normalize()
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{SessionId: id, Spec: pbconv.SpecToProto(spec), NodeId: "id-" + node}}})
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_ApplyFacts{ApplyFacts: &clusterv1.ApplyFacts{NodeId: "id-" + node, Incarnation: 1, Facts: []*nodev1.Fact{
		{Index: 1, SessionId: id, Epoch: 1, Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: 7}}},
	}}}})
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
		_, err := c.MigrateSession(ctx, &apiv1.MigrateSessionRequest{Id: id, Target: target, Mode: mode})
		return err
	}
	checkpoint := func(id string) error {
		_, err := c.CheckpointSession(ctx, &apiv1.CheckpointSessionRequest{Id: id})
		return err
	}
	cancel := func(id string) error {
		_, err := c.CancelMigration(ctx, &apiv1.CancelMigrationRequest{Id: id})
		return err
	}
	pause := func(id string) error {
		_, err := c.PauseSession(ctx, &apiv1.PauseSessionRequest{Id: id})
		return err
	}
	resume := func(id string) error {
		_, err := c.ResumeSession(ctx, &apiv1.ResumeSessionRequest{Id: id})
		return err
	}
	fork := func(id, name string, sequence uint64) error {
		_, err := c.ForkSession(ctx, &apiv1.ForkSessionRequest{Id: id, Name: name, Sequence: sequence})
		return err
	}
	rewind := func(id string) error {
		_, err := c.RewindSession(ctx, &apiv1.RewindSessionRequest{Id: id, Wait: true})
		return err
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
		{cancel("works"), codes.FailedPrecondition, "is not moving; there is nothing to cancel"},
		{checkpoint("ended"), codes.FailedPrecondition, "only what runs can be checkpointed"},
		{pause("ended"), codes.FailedPrecondition, "nothing to pause"},
		{resume("ended"), codes.FailedPrecondition, "not paused"},
		{resume("works"), codes.OK, ""}, // it runs, as is wanted
		{fork("works", "", 0), codes.FailedPrecondition, "has no checkpoint yet; make one with"},
		{fork("ended", "", 0), codes.FailedPrecondition, "has no checkpoint to go on from; spawn it again"},
		{rewind("works"), codes.FailedPrecondition, "has no checkpoint yet"},
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
	if l := p.GetLag(); l.GetTurns() != 2 || l.GetSeconds() != 2.5 {
		t.Errorf("lag %v", l)
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

// TestRepeats: a repetition is recognised by its key, the same key for something else is refused, and what is remembered is bounded.
func TestRepeats(t *testing.T) {
	var r repeats
	k := func(key string) repeatKey { return repeatKey{"migrate", "x", key} }
	r.remember(k(""), "a", 1)
	if _, ok, _ := r.seen(k(""), "a"); ok {
		t.Error("two requests without keys are the same")
	}
	r.remember(k("first"), "a", 7)
	r.remember(k("first"), "a", 8)
	if n, ok, err := r.seen(k("first"), "a"); n != 7 || !ok || err != nil {
		t.Error(n, ok, err)
	}
	if _, _, err := r.seen(k("first"), "b"); !fault.Is(err, fault.AlreadyExists) {
		t.Error(err)
	}
	if _, ok, err := r.seen(repeatKey{"migrate", "y", "first"}, "b"); ok || err != nil {
		t.Error("a key of another session is another key", ok, err)
	}
	for i := range repeatsMax {
		r.remember(repeatKey{"rewind", strings.Repeat("s", i%7), time.Duration(i).String()}, "", uint64(i))
	}
	if _, ok, _ := r.seen(k("first"), "a"); ok || len(r.byKey) != repeatsMax || len(r.ring) != repeatsMax {
		t.Error("it is not bounded", len(r.byKey), len(r.ring))
	}
}
