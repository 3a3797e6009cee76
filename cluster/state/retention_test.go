// Tests of how long checkpoints are kept: by count, by age, and what stays whatever its age.

package state

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// keeping is a machine with node a, and session s that runs there and keeps its checkpoints so.
func keeping(t *testing.T, count uint32, age time.Duration) *machine {
	m := newMachine(t)
	m.node("a")
	m.ok(spawn("s", "id-a", func(s *apiv1.SessionSpec) {
		s.CheckpointEvery, s.Restart, s.KeepCheckpoints = "turn", "on-failure", count
		if age != 0 {
			s.KeepCheckpointsFor = durationpb.New(age)
		}
	}))
	m.ok(m.facts("a", started("s", 1)))
	return m
}

func (m *machine) checkpoints(want ...uint64) {
	m.t.Helper()
	var got []uint64
	for _, c := range m.session("s").Checkpoints {
		got = append(got, c.Sequence)
	}
	if !slices.Equal(got, want) {
		m.t.Errorf("checkpoints %v are kept, want %v", got, want)
	}
	checkInvariants(m.t, m.View())
}

// later moves the clock on.
func (m *machine) later(d time.Duration) { m.now += int64(d) }

func TestCheckpointsAreKeptByCount(t *testing.T) {
	for _, c := range []struct {
		keep uint32
		made int
		kept int
	}{{0, 12, session.CheckpointsDefault}, {1, 3, 1}, {3, 2, 2}, {3, 7, 3}, {100, 105, 100}} {
		m := keeping(t, c.keep, 0)
		for range c.made {
			m.save("a", 1, 0)
		}
		if got := m.session("s").Checkpoints; len(got) != c.kept || got[len(got)-1].Sequence != uint64(c.made) {
			t.Errorf("of %d checkpoints %d are kept, want %d", c.made, len(got), c.kept)
		}
	}
	m := newMachine(t)
	m.refused(fault.Invalid, spawn("x", "", func(s *apiv1.SessionSpec) { s.KeepCheckpoints = 101 }))
	m.refused(fault.Invalid, spawn("x", "", func(s *apiv1.SessionSpec) { s.KeepCheckpointsFor = durationpb.New(-1) }))
}

func TestCheckpointsAreKeptByAge(t *testing.T) {
	m := keeping(t, 0, time.Hour)
	m.save("a", 1, 0)
	m.later(30 * time.Minute)
	m.save("a", 1, 0)
	m.later(40 * time.Minute)
	m.checkpoints(1, 2) // nobody has looked
	m.save("a", 1, 0)
	m.checkpoints(2, 3) // a commit does

	// And so does the collection, of a session that does nothing; also from a snapshot.
	if err := m.Restore(bytes.NewReader(persisted(t, m.View()))); err != nil {
		t.Fatal(err)
	}
	collect := func() uint32 { return m.ok(&clusterv1.CollectGarbage{}).Count }
	if n := collect(); n != 0 {
		t.Errorf("%d rows were collected too early", n)
	}
	m.later(20 * time.Minute)
	if n := collect(); n != 1 {
		t.Errorf("%d rows were collected, want 1", n)
	}
	m.checkpoints(3)
	m.later(1000 * time.Hour)
	if n := collect(); n != 0 {
		t.Errorf("%d rows were collected with nothing but a head", n)
	}
	m.checkpoints(3) // the head, whatever its age
}

func TestTheCollectionOfCheckpointsIsBounded(t *testing.T) {
	m := newMachine(t)
	m.node("a")
	for _, id := range []string{"s", "t", "u"} {
		m.ok(spawn(id, "id-a", func(s *apiv1.SessionSpec) { s.KeepCheckpointsFor = durationpb.New(time.Minute) }))
		m.ok(m.facts("a", started(id, 1)))
		for seq := range uint64(3) {
			m.ok(m.facts("a", captured(id, 1, seq+1, 0), checkpointed(id, 1, seq+1, 0)))
		}
	}
	m.later(time.Hour)
	for _, want := range []uint32{4, 2, 0} { // two sessions of two each, then the last one
		if got := m.ok(&clusterv1.CollectGarbage{Limit: 3}).Count; got != want {
			t.Errorf("%d were collected, want %d", got, want)
		}
		checkInvariants(t, m.View())
	}
}

func TestWhatARewindGoesToStays(t *testing.T) {
	m := keeping(t, 2, time.Hour)
	m.save("a", 1, 0)
	m.save("a", 1, 0)
	m.ok(&clusterv1.RewindSession{SessionId: "s", Sequence: 1})
	m.later(2 * time.Hour)
	m.save("a", 1, 0) // one that was under way
	m.checkpoints(1, 3)
	m.ok(&clusterv1.CollectGarbage{})
	m.checkpoints(1, 3)
	first := m.session("s").Checkpoint(1).Manifest
	m.ok(m.facts("a", exited("s", 1, 1, 0)))
	if s := m.session("s"); s.Head().Manifest != first || s.Head().Sequence != 4 {
		t.Errorf("goes on from %+v", s.Head())
	}
	m.checkpoints(3, 4)
}

// An ended session that is removed and has old checkpoints is collected once.
func TestARemovedSessionHasNoCheckpointsToCollect(t *testing.T) {
	m := keeping(t, 0, time.Minute)
	m.save("a", 1, 0)
	m.save("a", 1, 0)
	m.ok(m.facts("a", exited("s", 1, 0, 0)))
	m.later(time.Hour)
	if got := m.ok(&clusterv1.CollectGarbage{Before: m.now}).Count; got != 1 {
		t.Errorf("%d were collected, want the session", got)
	}
	if m.View().Session("s") != nil {
		t.Error("the session is still there")
	}
	checkInvariants(t, m.View())
}

// The lag of a session without any checkpoint grows from its first turn on; one that has seen everything ends it.
func TestTheLagBeginsWithTheFirstTurn(t *testing.T) {
	m := newMachine(t)
	m.node("a")
	m.ok(spawn("s", "id-a"))
	m.ok(m.facts("a", started("s", 1)))
	m.later(time.Hour)
	if s := m.session("s"); s.UnsavedSince != 0 {
		t.Errorf("a lag since %d without a turn", s.UnsavedSince)
	}
	m.turns("a", 1, 1)
	first := m.now
	m.later(time.Hour)
	m.turns("a", 1, 1)
	if s := m.session("s"); s.UnsavedSince != first || s.LagTurns() != 2 {
		t.Errorf("a lag of %d turns since %d, want 2 since %d", s.LagTurns(), s.UnsavedSince, first)
	}
	m.save("a", 1, 0)
	if s := m.session("s"); s.UnsavedSince != 0 || s.LagTurns() != 0 {
		t.Errorf("a lag of %d turns since %d after a checkpoint", s.LagTurns(), s.UnsavedSince)
	}
}
