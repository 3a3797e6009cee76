// What a move costs while nobody is answered, with a real process and a workspace of 100 MB.

package agent

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

// lastRound is the manifest of the newest round of a move.
func (l *leader) lastRound(id string) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range slices.Backward(l.facts) {
		if f.GetSessionId() == id && f.GetCopied() != nil {
			return f.GetCopied().GetManifest()
		}
	}
	return nil
}

// BenchmarkMove moves a session of 2,000 files and 100 MB to and fro between two nodes that share a directory of chunks.
// Beside it nothing writes to the workspace: what is told is the least.
func BenchmarkMove(b *testing.B) {
	store := newStoreDir(b)
	nodes := []*realNode{newRealNode(b, "a", store), newRealNode(b, "b", store)}
	nodes[0].desire(true, ledgerSession("s", 1, "turn"))
	eventually(b, "it runs", func() bool { return nodes[0].has("s", "1:started") })
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		content := make([]byte, 50_000)
		for j := range content {
			content[j] = byte(r.Uint32() & 63)
		}
		name := filepath.Join(nodes[0].dir, "sessions", "s", "workspace", fmt.Sprint("d", i%20), fmt.Sprint("f", i))
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(name, content, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	nodes[0].lead.deliver("s", 1, msg(1, normal))
	eventually(b, "its first checkpoint", func() bool { return nodes[0].lead.lastCheckpoint("s") != nil })
	var left, back time.Duration
	b.ResetTimer()
	for i := range b.N {
		epoch := uint32(i + 1)
		from, to := nodes[i%2], nodes[(i+1)%2]
		leave := toLeave("s", epoch, uint64(i+1))
		leave.HoldOff = true
		from.desire(false, leave)
		eventually(b, "a round", func() bool { return from.lead.lastRound("s") != nil })
		to.desire(false, &nodev1.DesiredSession{SessionId: "s", Epoch: epoch + 1, Action: nodev1.DesiredSession_PREPARE, Restore: &nodev1.Restore{Manifest: from.lead.lastRound("s")}})
		eventually(b, "the target is ready", func() bool {
			return slices.ContainsFunc(to.lead.told("s"), func(f string) bool { return strings.HasPrefix(f, fmt.Sprintf("%d:prepared", epoch+1)) })
		})
		from.desire(false, toLeave("s", epoch, uint64(i+1)))
		eventually(b, "it left", func() bool { return from.has("s", fmt.Sprintf("%d:exited evicted", epoch)) })
		exited := time.Now()
		c := from.lead.lastCheckpoint("s")
		held := c.GetHeldTime().AsTime()
		to.desire(false, restoring(ledgerSession("s", epoch+1, "turn"), from.lead, c))
		eventually(b, "it runs there", func() bool { return to.has("s", fmt.Sprintf("%d:started", epoch+1)) })
		left += exited.Sub(held)
		back += time.Since(exited)
	}
	b.ReportMetric(float64(left.Milliseconds())/float64(b.N), "ms-held-to-exited")
	b.ReportMetric(float64(back.Milliseconds())/float64(b.N), "ms-exited-to-started")
}
