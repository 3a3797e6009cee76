// The queue of idempotency keys: copies of it stand still, and may be read while it grows.

package state

import (
	"fmt"
	"io"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/internal/fault"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
)

func TestCopiesOfTheKeyQueueStandStill(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q keyQueue
		type past struct {
			q           keyQueue
			first, next uint64
		}
		var history []past
		var first, next uint64
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			for range rapid.IntRange(0, 2*keysPerSegment).Draw(t, "pushed") {
				if n := q.push(idempotencyRow{sequence: next}); n != next {
					t.Fatalf("key %d got number %d", next, n)
				}
				next++
			}
			for range rapid.Uint64Range(0, next-first).Draw(t, "popped") {
				q.pop()
				first++
			}
			history = append(history, past{q, first, next})
		}
		for _, p := range history {
			want := p.first
			for r := range p.q.all() {
				if r.sequence != want {
					t.Fatalf("a copy of [%d, %d) yields %d for %d", p.first, p.next, r.sequence, want)
				}
				want++
			}
			if want != p.next || p.q.len() != p.next-p.first {
				t.Fatalf("a copy of [%d, %d) ends before %d and has a length of %d", p.first, p.next, want, p.q.len())
			}
		}
		if held := uint64(len(q.segments)); held > (next-first)/keysPerSegment+2 {
			t.Fatalf("%d keys are held in %d segments", next-first, held)
		}
	})
}

// TestSnapshotsAreTakenWhileKeysAndMessagesCome is for the race detector: a view is written while entries are applied.
func TestSnapshotsAreTakenWhileKeysAndMessagesCome(t *testing.T) {
	m := newMachine(t, func(l *Limits) { l.IdempotencyKeys, l.IdempotencyMinKeep = 1000, 0 })
	m.node("a")
	m.ok(spawn("s", "id-a"))
	m.ok(m.facts("a", started("s", 1)))
	var wait sync.WaitGroup
	for i := range uint64(2000) {
		c := send("s", "text")
		c.IdempotencyKey = fmt.Sprint("k", i)
		m.ok(c)
		if i%2 == 1 {
			m.ok(m.facts("a", turn("s", 1, i/2+1, "")))
		}
		if i%50 == 0 {
			v := m.View()
			wait.Go(func() {
				if err := v.Persist(io.Discard); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wait.Wait()
	checkInvariants(t, m.View())
}

// TestRestoreRefusesAnUnknownScope: a key that stands for something this release does not know must not be lost quietly.
func TestRestoreRefusesAnUnknownScope(t *testing.T) {
	if _, _, err := parseScope("fork/s"); err == nil {
		t.Error("the scope fork/s was taken")
	}
	for _, k := range []idempotencyKey{{keySend, "s", "k"}, {keySpawn, "default", "k"}} {
		kind, owner, err := parseScope(k.scope())
		if err != nil || kind != k.kind || owner != k.owner {
			t.Errorf("scope %q read back as %v %q, %v", k.scope(), kind, owner, err)
		}
	}
	l := &loader{intern: newInterner(), keys: keyIndex{}}
	row := &clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Idempotency{Idempotency: &clusterv1.IdempotencyRow{Scope: "fork/s", Key: "k"}}}
	if err := l.row(row, 0); err == nil || fault.Is(err, fault.NotFound) {
		t.Errorf("the row gave %v", err)
	}
}
