// The same log gives the same bytes, whether replayed from its start or from a snapshot in its middle.

package state

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestTheSameLogGivesTheSameBytes(t *testing.T) {
	commands := 100_000
	if testing.Short() {
		commands = 10_000
	}
	log, kinds := record(t, 7, commands)
	whole, resumed := New(smallLimits()), New(smallLimits())
	for i, entry := range log {
		apply(t, whole, uint64(i+1), entry)
		apply(t, resumed, uint64(i+1), entry)
		if i == len(log)/3 || i == len(log)/2 || i == len(log)-2 {
			snapshot := persisted(t, resumed.View())
			resumed = New(smallLimits())
			if err := resumed.Restore(bytes.NewReader(snapshot)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(snapshot, persisted(t, resumed.View())) {
				t.Fatalf("entry %d: a restored state writes other bytes than it was read from", i+1)
			}
			if a, b := whole.View().Stats(), resumed.View().Stats(); a != b {
				t.Fatalf("entry %d: counts differ after the restore:\n%+v\n%+v", i+1, a, b)
			}
		}
		if i%500 == 0 && !bytes.Equal(persisted(t, whole.View()), persisted(t, resumed.View())) {
			t.Fatalf("entry %d: the states differ", i+1)
		}
	}
	a, b := persisted(t, whole.View()), persisted(t, resumed.View())
	if !bytes.Equal(a, b) {
		t.Fatalf("after %d entries the states differ (%d and %d bytes)", len(log), len(a), len(b))
	}
	checkInvariants(t, whole.View())
	checkInvariants(t, resumed.View())
	t.Logf("%d entries, %d bytes of state, %+v, results by kind %v", len(log), len(a), whole.View().Stats(), kinds)
	for _, k := range []fault.Kind{fault.Invalid, fault.NotFound, fault.AlreadyExists, fault.FailedPrecondition, fault.Exhausted, fault.Aborted, fault.Timeout} {
		if kinds[k.String()] == 0 {
			t.Errorf("the log holds no command that was refused as %q: it does not try enough", k)
		}
	}
}

// record makes a log of entries as bytes.
func record(t *testing.T, seed uint64, commands int) (log [][]byte, kinds map[string]int) {
	t.Helper()
	h, s := newHistory(seed), New(smallLimits())
	kinds = map[string]int{}
	for n := 0; n < commands; {
		b := h.batch(s.View())
		n += len(b.Commands)
		entry, err := proto.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		log = append(log, entry)
		for _, r := range s.Apply(uint64(len(log)), b) {
			if r.Err == nil {
				kinds["done"]++
			} else {
				kinds[fault.KindOf(r.Err).String()]++
			}
		}
	}
	return log, kinds
}

func apply(t *testing.T, s *Store, index uint64, entry []byte) []Result {
	t.Helper()
	var b clusterv1.Batch
	if err := proto.Unmarshal(entry, &b); err != nil {
		t.Fatal(err)
	}
	return s.Apply(index, &b)
}
