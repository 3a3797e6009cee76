// What checkpoints keep, and which of them are kept.

package session

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestKeeps(t *testing.T) {
	for _, c := range []struct {
		spec Spec
		want []string
	}{
		{Spec{}, []string{"messages", "workspace"}},
		{Spec{Protocol: ProtocolNone}, []string{"workspace"}},
		{Spec{Type: TypeClaudeCode}, []string{"messages", "transcript", "workspace"}},
		{Spec{State: StateFiles}, []string{"messages", "workspace"}},
		{Spec{State: StateMemory}, []string{"messages", "workspace", "memory"}},
	} {
		c.spec.Normalize()
		if got := c.spec.Keeps(); !slices.Equal(got, c.want) {
			t.Errorf("%+v keeps %v, want %v", c.spec, got, c.want)
		}
	}
}

// Whatever the chain: the head stays, and the rewind's checkpoint; no more than the count beside it; none that is too old; and
// KeptUntil is the moment at which something goes that stays before.
func TestKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Session{Spec: &Spec{KeepCheckpoints: rapid.Uint32Range(0, 12).Draw(t, "keep")}}
		for i := range rapid.IntRange(0, 20).Draw(t, "chain") {
			s.Checkpoints = append(s.Checkpoints, &Checkpoint{Sequence: uint64(i + 1), CreateTime: rapid.Int64Range(1, 100).Draw(t, "time")})
		}
		n := len(s.Checkpoints)
		if n > 0 && rapid.Bool().Draw(t, "rewinding") {
			s.RewindTo = uint64(rapid.IntRange(1, n).Draw(t, "to"))
		}
		s.Spec.KeepCheckpointsFor = 0
		if rapid.Bool().Draw(t, "aging") {
			s.Spec.KeepCheckpointsFor = 30
		}
		now := rapid.Int64Range(0, 200).Draw(t, "now")
		kept := s.Kept(now)
		if n > 0 && (len(kept) == 0 || kept[len(kept)-1] != s.Head()) {
			t.Fatal("the head went")
		}
		beside := 0
		for _, c := range kept[:max(0, len(kept)-1)] {
			if c.Sequence == s.RewindTo {
				continue
			}
			if beside++; s.Spec.KeepCheckpointsFor > 0 && now-c.CreateTime >= 30 {
				t.Fatalf("checkpoint %d of %d is kept at %d", c.Sequence, c.CreateTime, now)
			}
		}
		if beside > s.Spec.KeepCount()-1 {
			t.Fatalf("%d are kept beside the head", beside)
		}
		if s.RewindTo != 0 && !slices.ContainsFunc(kept, func(c *Checkpoint) bool { return c.Sequence == s.RewindTo }) {
			t.Fatal("what a rewind goes to went")
		}
		if s.Checkpoints = kept; len(s.Kept(now)) != len(kept) {
			t.Fatal("something goes the second time")
		}
		until := s.KeptUntil()
		if until != 0 && (len(s.Kept(until-1)) != len(kept) || len(s.Kept(until)) == len(kept)) {
			t.Fatalf("at %d nothing goes, or something before", until)
		}
		if until == 0 && len(s.Kept(1<<40)) != len(kept) {
			t.Fatal("something goes one day, and KeptUntil knows nothing of it")
		}
	})
}
