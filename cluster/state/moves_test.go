// Tests of checkpoints and of what is made of them.

package state

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// saving is a machine with the nodes a, b and c, and session s on a, which runs, saves and is started again.
func saving(t *testing.T) *machine {
	m := newMachine(t)
	for _, n := range []string{"a", "b", "c"} {
		m.node(n)
	}
	m.ok(spawn("s", "id-a", func(s *apiv1.SessionSpec) { s.CheckpointEvery, s.Restart = "5m", "on-failure" }))
	m.ok(m.facts("a", started("s", 1)))
	return m
}

// turns sends n messages to s and ends their turns on the node.
func (m *machine) turns(node string, epoch uint32, n int) {
	m.t.Helper()
	for range n {
		seq := m.ok(send("s", "x")).Sequence
		m.ok(m.facts(node, turn("s", epoch, seq, fmt.Sprint("r", seq))))
	}
}

// save commits a checkpoint of s.
func (m *machine) save(node string, epoch uint32, move uint64) {
	m.t.Helper()
	seq := uint64(1)
	if h := m.session("s").Head(); h != nil {
		seq = h.Sequence + 1
	}
	m.ok(m.facts(node, captured("s", epoch, seq, m.session("s").OutputLine), checkpointed("s", epoch, seq, move)))
}

func (m *machine) queued(id string) (seqs []uint64) {
	for x := range m.View().Messages(id) {
		seqs = append(seqs, x.Sequence)
	}
	return seqs
}

func (m *machine) phase(want session.Phase, node string, epoch uint32) *session.Session {
	m.t.Helper()
	s := m.session("s")
	if s.Phase != want || node != "" && s.NodeID != "id-"+node || s.Epoch != epoch {
		m.t.Fatalf("session is %s on %s at epoch %d (%s), want %s on %s at %d", s.Phase, s.NodeID, s.Epoch, s.Reason, want, node, epoch)
	}
	checkInvariants(m.t, m.View())
	return s
}

func TestALostNodeGivesBackWhatNoCheckpointHasSeen(t *testing.T) {
	m := saving(t)
	m.turns("a", 1, 3)
	m.save("a", 1, 0)
	m.turns("a", 1, 2) // 4 and 5 are not in it
	m.ok(send("s", "waits"))
	if s := m.session("s"); s.LagTurns() != 2 || s.UnsavedSince == 0 {
		t.Fatalf("lag %d turns since %d", s.LagTurns(), s.UnsavedSince)
	}
	m.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1, Reason: "test"})
	s := m.phase(session.Pending, "", 1)
	if got := m.queued("s"); !slices.Equal(got, []uint64{4, 5, 6}) {
		t.Errorf("messages %v come again, want 4, 5 and 6", got)
	}
	if s.LagTurns() != 0 || s.Turns != 3 || s.OutputLine != 3 || s.LostLine != 5 || s.LostEpoch != 1 {
		t.Errorf("goes on from turn %d, line %d; lost line %d of epoch %d", s.Turns, s.OutputLine, s.LostLine, s.LostEpoch)
	}
	if m.View().Result("s", 4) != nil || m.View().Result("s", 3) == nil {
		t.Error("the results are not those of the turns that stand")
	}
	m.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: 1, NodeId: "id-b"})
	m.phase(session.Restoring, "b", 2)
	m.ok(m.facts("b", started("s", 2)))
	m.phase(session.Running, "b", 2)
}

func TestACaptureSeesWhatEndedBeforeIt(t *testing.T) {
	m := saving(t)
	m.turns("a", 1, 2)
	m.ok(m.facts("a", captured("s", 1, 1, 2)))
	m.turns("a", 1, 1) // while it is being stored
	m.ok(m.facts("a", checkpointed("s", 1, 1, 0)))
	if s := m.session("s"); s.Head().Turn != 2 || s.LagTurns() != 1 || s.Head().OutputLine != 2 {
		t.Errorf("the head has seen %d turns, the lag is %d", s.Head().Turn, s.LagTurns())
	}
	m.ok(m.facts("a", checkpointed("s", 1, 2, 0))) // of no capture
	if s := m.session("s"); len(s.Checkpoints) != 1 {
		t.Errorf("%d checkpoints", len(s.Checkpoints))
	}
}

func TestWithoutACheckpointEverythingComesAgain(t *testing.T) {
	m := saving(t)
	m.turns("a", 1, 2)
	m.ok(m.facts("a", exited("s", 1, 1, 0)))
	if got := m.queued("s"); !slices.Equal(got, []uint64{1, 2}) {
		t.Errorf("messages %v come again", got)
	}
	m.phase(session.Pending, "", 1)
}

// TestTheFirstCheckpointGivesBackWhatItHasNotSeen: without a policy nothing is kept, but for what ends while the first checkpoint is
// on its way to the store.
func TestTheFirstCheckpointGivesBackWhatItHasNotSeen(t *testing.T) {
	for name, c := range map[string]struct {
		then   []*nodev1.Fact
		queued []uint64
	}{
		"stored":           {[]*nodev1.Fact{checkpointed("s", 1, 1, 0)}, []uint64{3, 4}},
		"stored, and more": {[]*nodev1.Fact{checkpointed("s", 1, 1, 0), turn("s", 1, 4, "r4")}, []uint64{3, 4}},
		"failed": {[]*nodev1.Fact{{SessionId: "s", Epoch: 1, Kind: &nodev1.Fact_CheckpointFailed{
			CheckpointFailed: &nodev1.CheckpointFailed{Cause: "the store is full"}}}}, []uint64{4}},
		"neither": {nil, []uint64{4}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.node("a")
			m.node("b")
			m.ok(spawn("s", "id-a", func(s *apiv1.SessionSpec) { s.Restart = "on-failure" }))
			m.ok(m.facts("a", started("s", 1)))
			m.turns("a", 1, 2)
			m.ok(m.facts("a", captured("s", 1, 1, 2)))
			m.turns("a", 1, 1)
			m.ok(send("s", "waits"))
			for _, f := range c.then {
				m.ok(m.facts("a", f))
			}
			m.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1, Reason: "test"})
			s := m.phase(session.Pending, "", 1)
			if got := m.queued("s"); !slices.Equal(got, c.queued) {
				t.Errorf("messages %v come again, want %v", got, c.queued)
			}
			if box := m.View().Mailbox("s"); box.Kept != 0 || s.UnsavedSince != 0 {
				t.Errorf("%d messages are kept, since %d", box.Kept, s.UnsavedSince)
			}
		})
	}
}

// TestTurnsThatWereUndoneAreNoAttempts: a message whose turns ended, each undone with its epoch, is none that no process could take.
func TestTurnsThatWereUndoneAreNoAttempts(t *testing.T) {
	m := saving(t)
	m.ok(send("s", "x"))
	for epoch := uint32(1); epoch <= 5; epoch++ {
		m.ok(m.facts("a", turn("s", epoch, 1, "r")))
		m.ok(m.facts("a", exited("s", epoch, 1, 0)))
		m.now += 60 * second
		m.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: epoch, NodeId: "id-a"})
		m.ok(m.facts("a", started("s", epoch+1)))
	}
	if x := m.View().Message("s", 1); x == nil || x.Attempts != 0 {
		t.Errorf("the message is %+v", x)
	}
}

func TestAFullMailboxAsksForACheckpoint(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.MailboxMessages = 10 })
	m.node("a")
	m.ok(spawn("s", "id-a", func(s *apiv1.SessionSpec) { s.CheckpointEvery = "5m" }))
	m.ok(m.facts("a", started("s", 1)))
	m.turns("a", 1, 10)
	if s := m.session("s"); s.CheckpointRequest != 1 {
		t.Errorf("checkpoint %d was asked for", s.CheckpointRequest)
	}
	m.refused(fault.Exhausted, send("s", "x"))
	m.save("a", 1, 0)
	m.ok(send("s", "x"))
}

// migrating is a session with two turns behind it that is on its way from a to b.
func migrating(t *testing.T) (m *machine, move uint64) {
	m = saving(t)
	m.turns("a", 1, 2)
	return m, m.ok(&clusterv1.MigrateSession{SessionId: "s", Epoch: 1, NodeId: "id-b", Actor: "ann"}).Session.Move
}

// departs has the session go from a, checkpointed.
func (m *machine) departs(move uint64) {
	m.save("a", 1, move)
	end := exited("s", 1, 1, 0)
	end.GetExited().OutputLine = m.session("s").OutputLine
	m.ok(m.facts("a", end))
}

// copied has a tell of a round of copying, and returns its manifest.
func (m *machine) copied(move uint64, round byte) []byte {
	manifest := make([]byte, 32)
	manifest[0] = round
	m.ok(m.facts("a", &nodev1.Fact{SessionId: "s", Epoch: 1, Kind: &nodev1.Fact_Copied{Copied: &nodev1.Copied{Move: move, Round: uint32(round), Manifest: manifest, BytesSent: 5}}}))
	return manifest
}

// prepared has a node tell that it has a copy ready, or why not.
func (m *machine) prepared(node string, manifest []byte, why string) {
	m.ok(m.facts(node, &nodev1.Fact{SessionId: "s", Epoch: 2, Kind: &nodev1.Fact_Prepared{Prepared: &nodev1.Prepared{Manifest: manifest, Error: why}}}))
}

func TestAMigrationArrives(t *testing.T) {
	m, move := migrating(t)
	m.phase(session.Migrating, "a", 1)
	manifest := m.copied(move, 1)
	if m.prepared("c", manifest, ""); m.session("s").Migration.Prepared {
		t.Error("another node than the target is ready")
	}
	if m.prepared("b", manifest, ""); !m.session("s").Migration.Prepared || m.session("s").Migration.Copied[0] != 1 || m.session("s").Migration.BytesSent != 5 {
		t.Errorf("the move is %+v", m.session("s").Migration)
	}
	if n := m.View().Node("id-b"); n.Sessions != 1 {
		t.Errorf("the target reserves %d places", n.Sessions)
	}
	m.ok(send("s", "meanwhile"))
	m.departs(move)
	s := m.phase(session.Restoring, "b", 2)
	if s.Exit != nil || s.LostLine != 0 || m.View().Node("id-a").Sessions != 0 {
		t.Errorf("exit %v, lost line %d", s.Exit, s.LostLine)
	}
	m.ok(m.facts("b", started("s", 2)))
	s = m.phase(session.Running, "b", 2)
	if g := s.Migration; g.State != session.MigrationDone || g.Epoch != 2 || g.Rounds != 2 || g.EndTime == 0 {
		t.Errorf("the move is %+v", g)
	}
	if got := m.queued("s"); !slices.Equal(got, []uint64{3}) {
		t.Errorf("messages %v wait", got)
	}
}

func TestAMigrationWhoseTargetCannotMakeItReady(t *testing.T) {
	m, move := migrating(t)
	first := m.copied(move, 1)
	if m.prepared("b", first, ""); !m.session("s").Migration.Prepared {
		t.Error("what is ready is not the newest copy")
	}
	second := m.copied(move, 2)
	if m.session("s").Migration.Prepared {
		t.Error("a newer copy is ready before its target says so")
	}
	m.prepared("b", first, "no space left on device") // of a copy that nobody wants any more
	m.phase(session.Migrating, "a", 1)
	m.prepared("b", second, "no space left on device")
	s := m.phase(session.Running, "a", 1)
	if s.Migration.State != session.MigrationFailed || !strings.Contains(s.Migration.Error, "could not make it ready: no space left") {
		t.Errorf("the move is %+v", s.Migration)
	}
	if n := m.View().Node("id-b"); n.Sessions != 0 {
		t.Errorf("its place there is held by %d", n.Sessions)
	}
}

func TestMigrationsThatEndBefore(t *testing.T) {
	t.Run("cancelled", func(t *testing.T) {
		m, move := migrating(t)
		m.ok(&clusterv1.CancelMigration{SessionId: "s", Actor: "bob"})
		s := m.phase(session.Running, "a", 1)
		if s.Migration.State != session.MigrationCancelled || m.View().Node("id-b").Sessions != 0 {
			t.Errorf("%+v", s.Migration)
		}
		m.departs(move) // the node had done it before it heard: the session's process has ended without an order
		m.phase(session.Pending, "", 1)
		if got := m.queued("s"); len(got) != 0 {
			t.Errorf("messages %v come again", got)
		}
	})
	t.Run("no checkpoint", func(t *testing.T) {
		m, move := migrating(t)
		m.ok(m.facts("a", &nodev1.Fact{SessionId: "s", Epoch: 1, Kind: &nodev1.Fact_CheckpointFailed{CheckpointFailed: &nodev1.CheckpointFailed{Cause: "the store is full", Move: move}}}))
		if s := m.phase(session.Running, "a", 1); s.Migration.State != session.MigrationFailed || s.Migration.Error == "" {
			t.Errorf("%+v", s.Migration)
		}
	})
	t.Run("the target is lost", func(t *testing.T) {
		m, _ := migrating(t)
		m.ok(&clusterv1.LoseNode{NodeId: "id-b", Incarnation: 1})
		m.phase(session.Running, "a", 1)
	})
	t.Run("the target is lost late", func(t *testing.T) {
		m, move := migrating(t)
		m.save("a", 1, move)
		m.ok(&clusterv1.LoseNode{NodeId: "id-b", Incarnation: 1})
		m.phase(session.Migrating, "a", 1)
		m.ok(m.facts("a", exited("s", 1, 1, 0)))
		m.phase(session.Pending, "", 1)
		m.refused(fault.FailedPrecondition, &clusterv1.PlaceSession{SessionId: "s", Epoch: 1, NodeId: "id-b"})
		m.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: 1, NodeId: "id-c"})
		m.ok(m.facts("c", started("s", 2)))
		m.phase(session.Running, "c", 2)
	})
	t.Run("the source is lost", func(t *testing.T) {
		m, move := migrating(t)
		m.save("a", 1, move)
		m.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1})
		m.phase(session.Restoring, "b", 2)
	})
}

func TestMigrationsRefused(t *testing.T) {
	m := saving(t)
	m.refused(fault.FailedPrecondition, &clusterv1.MigrateSession{SessionId: "s", Epoch: 1, NodeId: "id-a"})
	m.refused(fault.Aborted, &clusterv1.MigrateSession{SessionId: "s", Epoch: 2, NodeId: "id-b"})
	m.refused(fault.NotFound, &clusterv1.MigrateSession{SessionId: "z", Epoch: 1, NodeId: "id-b"})
	m.refused(fault.FailedPrecondition, &clusterv1.CancelMigration{SessionId: "s"})
}

func TestARestoreThatFailsIsTriedElsewhere(t *testing.T) {
	m := saving(t)
	m.save("a", 1, m.ok(&clusterv1.MigrateSession{SessionId: "s", Epoch: 1, NodeId: "id-b"}).Session.Move)
	m.ok(m.facts("a", exited("s", 1, 1, 0)))
	failed := exited("s", 2, 1, 0)
	failed.GetExited().Exit.Cause = session.CauseStartFailed
	node := "b"
	for epoch := uint32(2); ; epoch++ {
		failed.Epoch = epoch
		m.ok(m.facts(node, failed))
		if epoch == 1+restoreAttempts {
			break
		}
		m.phase(session.Pending, "", epoch)
		m.now += 3600 * second
		node = "c"
		m.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: epoch, NodeId: "id-c"})
	}
	if s := m.session("s"); s.Phase != session.Pending || s.Restarts != 1 { // from here on its restart policy counts
		t.Errorf("is %s after %d restarts: %s", s.Phase, s.Restarts, s.Reason)
	}
}

// TestARestoreWaitsForTheStore: a session that cannot be restored because its chunks are out of reach is none the worse for it,
// however long that takes, whatever its restart policy.
func TestARestoreWaitsForTheStore(t *testing.T) {
	m := newMachine(t)
	m.node("a")
	m.ok(spawn("s", "id-a", func(s *apiv1.SessionSpec) { s.CheckpointEvery, s.Restart = "5m", "never" }))
	m.ok(m.facts("a", started("s", 1)))
	m.save("a", 1, m.ok(&clusterv1.PauseSession{SessionId: "s"}).Session.Move)
	m.ok(m.facts("a", exited("s", 1, 137, 0)))
	m.phase(session.Paused, "", 1)
	m.ok(&clusterv1.ResumeSession{SessionId: "s"})
	failed := exited("s", 2, 1, 0)
	failed.GetExited().Exit.Cause = session.CauseStartFailed
	again := func(epoch uint32) {
		t.Helper()
		m.now += 60 * second
		m.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: epoch - 1, NodeId: "id-a"})
		m.phase(session.Restoring, "a", epoch)
		failed.Epoch = epoch
		m.ok(m.facts("a", failed))
	}
	epoch := uint32(2)
	failed.GetExited().Unreachable = true
	for range 3 * restoreAttempts {
		again(epoch)
		if s := m.phase(session.Pending, "", epoch); s.Restarts != 0 || s.NotBefore <= m.now || s.NotBefore > m.now+60*second {
			t.Fatalf("after %d restarts it waits for %d s: %s", s.Restarts, (s.NotBefore-m.now)/second, s.Reason)
		}
		epoch++
	}
	failed.GetExited().Unreachable = false // the store is back, and the checkpoint is not in it
	for range restoreAttempts - 1 {
		again(epoch)
		m.phase(session.Pending, "", epoch)
		epoch++
	}
	again(epoch)
	if s := m.phase(session.Failed, "a", epoch); s.Exit.Cause != session.CauseStartFailed {
		t.Errorf("ended with %+v", s.Exit)
	}
}

func TestPauseAndResume(t *testing.T) {
	m := saving(t)
	m.turns("a", 1, 1)
	move := m.ok(&clusterv1.PauseSession{SessionId: "s", Reason: "idle"}).Session.Move
	m.phase(session.Pausing, "a", 1)
	m.save("a", 1, move)
	m.ok(m.facts("a", exited("s", 1, 1, 0)))
	m.phase(session.Paused, "", 1)
	if m.View().Node("id-a").Sessions != 0 {
		t.Error("a paused session holds its node")
	}
	m.ok(&clusterv1.PauseSession{SessionId: "s"}) // again
	m.ok(&clusterv1.ResumeSession{SessionId: "s"})
	m.refused(fault.FailedPrecondition, &clusterv1.ResumeSession{SessionId: "s"})
	m.ok(&clusterv1.PlaceSession{SessionId: "s", Epoch: 1, NodeId: "id-c"})
	m.ok(m.facts("c", started("s", 2)))
	m.phase(session.Running, "c", 2)

	move = m.ok(&clusterv1.PauseSession{SessionId: "s"}).Session.Move
	m.save("c", 2, move)
	m.ok(m.facts("c", exited("s", 2, 1, 0)))
	m.ok(send("s", "wake up"))
	m.phase(session.Pending, "", 2)
}

// TestAMessageWakesWhatIsBeingPaused: one that comes while the last checkpoint is made, as one that comes a moment later; what waited
// before somebody wanted the pause waits on.
func TestAMessageWakesWhatIsBeingPaused(t *testing.T) {
	for _, during := range []bool{false, true} {
		m := saving(t)
		m.ok(send("s", "before"))
		m.now += second
		move := m.ok(&clusterv1.PauseSession{SessionId: "s"}).Session.Move
		m.now += second
		if during {
			m.ok(send("s", "during"))
			m.now += second
		}
		m.save("a", 1, move)
		m.ok(m.facts("a", exited("s", 1, 1, 0)))
		if want := map[bool]session.Phase{false: session.Paused, true: session.Pending}[during]; m.session("s").Phase != want {
			t.Errorf("with a message meanwhile %t: it is %s: %s", during, m.session("s").Phase, m.session("s").Reason)
		}
		if got := m.queued("s"); got[0] != 1 {
			t.Errorf("messages %v wait", got)
		}
	}
}

func TestForkAndRewind(t *testing.T) {
	m := saving(t)
	m.refused(fault.FailedPrecondition, &clusterv1.ForkSession{SessionId: "s", NewSessionId: "f"})
	m.turns("a", 1, 2)
	m.save("a", 1, 0)
	m.turns("a", 1, 1)
	m.save("a", 1, 0)
	m.turns("a", 1, 1)

	m.ok(&clusterv1.ForkSession{SessionId: "s", NewSessionId: "f", Name: "branch", Sequence: 1, Actor: "ann"})
	m.refused(fault.AlreadyExists, &clusterv1.ForkSession{SessionId: "s", NewSessionId: "g", Name: "branch"})
	m.refused(fault.NotFound, &clusterv1.ForkSession{SessionId: "s", NewSessionId: "g", Sequence: 9})
	m.ok(&clusterv1.ForkSession{SessionId: "s", NewSessionId: "h", Strategy: "spread"})
	if h := m.session("h"); h.Spec.Strategy != "spread" || m.session("f").Spec.Strategy != "" || m.session("s").Spec.Strategy != "" {
		t.Errorf("the forks are placed by %q and %q", h.Spec.Strategy, m.session("f").Spec.Strategy)
	}
	m.refused(fault.Invalid, &clusterv1.ForkSession{SessionId: "s", NewSessionId: "i", Strategy: strings.Repeat("x", session.MaxSpecBytes+1)})
	if f := m.session("f"); f.Head().Manifest != m.session("s").Checkpoint(1).Manifest || f.Turns != 2 || f.OutputLine != 2 || f.Phase != session.Pending {
		t.Errorf("the fork is %+v", f)
	}

	m.ok(&clusterv1.RewindSession{SessionId: "s", Sequence: 1})
	m.phase(session.Pausing, "a", 1)
	m.ok(m.facts("a", exited("s", 1, 1, 0)))
	s := m.phase(session.Pending, "", 1)
	if s.Head().Manifest != s.Checkpoint(1).Manifest || s.Head().Sequence != 3 || s.OutputLine != 2 {
		t.Errorf("the head is %+v", s.Head())
	}
	if got := m.queued("s"); len(got) != 0 {
		t.Errorf("messages %v come again after a rewind", got)
	}
	m.ok(&clusterv1.TerminateSession{SessionId: "s"})
	m.ok(&clusterv1.RewindSession{SessionId: "s"})
	if s = m.phase(session.Pending, "", 1); s.EndTime != 0 || s.Exit != nil {
		t.Errorf("goes on with the end %d, %v", s.EndTime, s.Exit)
	}
}

// TestSavedSurvivesASnapshot compares what is kept with what a snapshot gives back.
func TestSavedSurvivesASnapshot(t *testing.T) {
	m := saving(t)
	m.turns("a", 1, 2)
	m.save("a", 1, 0)
	m.turns("a", 1, 3)
	m.ok(&clusterv1.MigrateSession{SessionId: "s", Epoch: 1, NodeId: "id-b"})
	before := m.content()
	if err := m.Restore(bytes.NewReader(persisted(t, m.View()))); err != nil {
		t.Fatal(err)
	}
	checkInvariants(t, m.View())
	if string(before) != string(m.content()) {
		t.Error("the state is another one")
	}
	m.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1})
	if got := m.queued("s"); !slices.Equal(got, []uint64{3, 4, 5}) {
		t.Errorf("messages %v come again", got)
	}
}

// TestASessionMayBeginWithACheckpoint: one that was imported goes on from what it brought.
func TestASessionMayBeginWithACheckpoint(t *testing.T) {
	m := newMachine(t)
	m.node("a")
	first := func(change ...func(*apiv1.Session_Checkpoint)) *clusterv1.SpawnSession {
		c := spawn("s", "id-a", func(p *apiv1.SessionSpec) { p.Name, p.Restart = "brought", "on-failure" })
		c.Checkpoint = &apiv1.Session_Checkpoint{Sequence: 7, Manifest: strings.Repeat("ab", 32), Turn: 3, OutputLine: 9, Epoch: 4, Bytes: 100, Chunks: 2,
			Keeps: []string{"messages", "workspace"}}
		for _, f := range change {
			f(c.Checkpoint)
		}
		return c
	}
	for _, bad := range []func(*apiv1.Session_Checkpoint){
		func(c *apiv1.Session_Checkpoint) { c.Manifest = "ab" },
		func(c *apiv1.Session_Checkpoint) { c.Manifest = strings.Repeat("x", 64) },
		func(c *apiv1.Session_Checkpoint) { c.Sequence = 0 },
		func(c *apiv1.Session_Checkpoint) { c.Turn = 1 << 60 },
		func(c *apiv1.Session_Checkpoint) { c.Bytes = -1 },
	} {
		m.refused(fault.Invalid, first(bad))
	}
	m.ok(first())
	s := m.phase(session.Restoring, "a", 1)
	if h := s.Head(); h.Epoch != 0 || h.Sequence != 7 || h.Manifest[0] != 0xab || len(h.Keeps) != 2 {
		t.Errorf("the head is %+v", h)
	}
	if s.Turns != 3 || s.OutputLine != 9 || s.LagTurns() != 0 {
		t.Errorf("goes on from turn %d, line %d, and lags by %d", s.Turns, s.OutputLine, s.LagTurns())
	}
	if h := s.History[0]; !strings.HasPrefix(h.Reason, "imported by ann") {
		t.Errorf("the history says %q", h.Reason)
	}
	m.ok(m.facts("a", started("s", 1)))
	m.turns("a", 1, 2)
	m.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1})
	if s = m.session("s"); s.Turns != 3 {
		t.Errorf("after the loss of its node it goes on from turn %d", s.Turns)
	}
	if got := m.queued("s"); !slices.Equal(got, []uint64{1, 2}) {
		t.Errorf("messages %v come again", got)
	}
}

// TestDeleteCheckpoint: any but the newest.
func TestDeleteCheckpoint(t *testing.T) {
	m := saving(t)
	m.refused(fault.NotFound, &clusterv1.DeleteCheckpoint{SessionId: "s", Sequence: 1})
	for range 3 {
		m.turns("a", 1, 1)
		m.save("a", 1, 0)
	}
	m.refused(fault.NotFound, &clusterv1.DeleteCheckpoint{SessionId: "nobody", Sequence: 1})
	m.refused(fault.FailedPrecondition, &clusterv1.DeleteCheckpoint{SessionId: "s", Sequence: 3})
	m.ok(&clusterv1.DeleteCheckpoint{SessionId: "s", Sequence: 2, Actor: "ann"})
	if s := m.session("s"); len(s.Checkpoints) != 2 || s.Checkpoint(2) != nil || s.Head().Sequence != 3 {
		t.Errorf("it keeps %s", sequences(s.Checkpoints))
	}
	if err := m.refusal(fault.NotFound, &clusterv1.DeleteCheckpoint{SessionId: "s", Sequence: 2}); !strings.Contains(err.Error(), "it keeps 1, 3") {
		t.Error(err)
	}
}

// A checkpoint that leaves something out counts, and says so until one is made that does not.
func TestACheckpointThatLeavesSomethingOutSaysSo(t *testing.T) {
	m := saving(t)
	f := checkpointed("s", 1, 1, 0)
	f.GetCheckpointed().LeftOut = "1 file (a: it may not be read)"
	m.ok(m.facts("a", captured("s", 1, 1, 0), f))
	s := m.session("s")
	if s.Head().Sequence != 1 || s.CheckpointError != "checkpoint 1 leaves out 1 file (a: it may not be read)" {
		t.Errorf("head %d, %q", s.Head().Sequence, s.CheckpointError)
	}
	said := false
	for _, e := range m.View().Events(0, 1000) {
		said = said || e.Type == "session.checkpointed" && bytes.HasSuffix([]byte(e.Message), []byte("; it leaves out 1 file (a: it may not be read)"))
	}
	if !said {
		t.Error("no event tells it")
	}
	m.save("a", 1, 0)
	if e := m.session("s").CheckpointError; e != "" {
		t.Errorf("after one that leaves out nothing: %q", e)
	}
}
