// Sessions that are real processes, on nodes that share a chunk store: what was captured here goes on there.

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/agent/driver"
	processes "github.com/neolith/orchestrator/agent/driver/process"
	leasefile "github.com/neolith/orchestrator/agent/lease"
	"github.com/neolith/orchestrator/agent/shim"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/dir"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/session"
)

// ledgerScript books each message in its workspace and answers with how many it has.
const ledgerScript = `while read -r line; do echo "$line" >> ledger; n=$(wc -l < ledger); echo "$n: $line (epoch $ORCH_SESSION_EPOCH)"; done`

const patience = 20 * time.Second

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come about: %s", what)
		}
		time.Sleep(2 * time.Millisecond) // between two looks
	}
}

// brittle is a store that fails, or is slow, when it is told to.
type brittle struct {
	chunks.Store
	mu   sync.Mutex
	down bool
	slow time.Duration
	held int // questions that wait for the slow store
	puts int
}

func (b *brittle) set(f func()) { b.mu.Lock(); defer b.mu.Unlock(); f() }

func (b *brittle) Missing(ctx context.Context, ids []chunk.ID) ([]chunk.ID, error) {
	b.mu.Lock()
	down, slow := b.down, b.slow
	b.mu.Unlock()
	if down {
		return nil, fault.New(fault.Unavailable, "the store is down")
	}
	if slow > 0 {
		b.set(func() { b.held++ })
		defer b.set(func() { b.held-- })
	}
	if err := sleep(ctx, slow); err != nil {
		return nil, err
	}
	return b.Store.Missing(ctx, ids)
}

func (b *brittle) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	b.set(func() { b.puts++ })
	return b.Store.Put(ctx, id, frame)
}

func newStoreDir(t testing.TB) *brittle {
	t.Helper()
	s, err := dir.Open(t.TempDir(), dir.Options{Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &brittle{Store: s}
}

// realNode is a node whose sessions are processes, in real time, with a leader of its own.
type realNode struct {
	*node
	index uint64
}

func newRealNode(t testing.TB, name string, store chunks.Store) *realNode {
	t.Helper()
	n := &node{t: t, dir: t.TempDir(), lead: newLeader()}
	n.lead.settle = func() {}
	w, err := leasefile.OpenWriter(filepath.Join(n.dir, "lease"))
	if err != nil {
		t.Fatal(err)
	}
	n.opts = func(o *Options) {
		o.Checkpoints = func() (checkpoint.Keeper, error) {
			return checkpoint.New(checkpoint.Options{Store: store, SpoolDir: filepath.Join(n.dir, "spool"), Release: "test", Logger: o.Logger})
		}
		o.Name, o.Lease, o.LeasePath, o.Boottime = name, w, filepath.Join(n.dir, "lease"), leasefile.Now
		o.Drivers = map[string]driver.Driver{session.TypeProcess: processes.New(processes.Options{Shim: shim.Self(), NoCgroups: true})}
		o.EndOnStop = false
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	r := &realNode{node: n}
	t.Cleanup(func() {
		if n.cancel != nil {
			r.desire(true) // nothing
			eventually(t, "nothing runs", func() bool { return n.agent.Status().Sessions == 0 })
			r.end()
		}
		n.lead.wg.Wait()
		w.Close()
	})
	r.begin()
	return r
}

func (n *realNode) begin() {
	n.t.Helper()
	a, err := New(n.options())
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.agent, n.cancel, n.done = a, cancel, make(chan error, 1)
	go func() { n.done <- a.Run(ctx) }()
	eventually(n.t, "the node has a lease", func() bool { st := a.Status(); return st.Linked && st.LeaseLeft > 0 })
}

func (n *realNode) end() {
	n.cancel()
	n.cancel = nil
	if err := <-n.done; err != nil {
		n.t.Error(err)
	}
}

func (n *realNode) desire(full bool, ds ...*nodev1.DesiredSession) {
	n.index++
	n.lead.desired(n.index, full, ds...)
}

func ledgerSession(id string, epoch uint32, every string) *nodev1.DesiredSession {
	d := saved(id, epoch, every)
	d.Spec.Command = []string{"/bin/sh", "-c", ledgerScript}
	return d
}

// has reports whether a fact was told.
func (n *realNode) has(id, fact string) bool { return slices.Contains(n.lead.told(id), fact) }

func (n *realNode) turn(id string, epoch uint32, seq uint64) bool {
	return n.has(id, fmt.Sprintf("%d:turn %d", epoch, seq))
}

// logs returns what the log of a session's directory says, as "number text", and "notice text".
func (n *realNode) logs(id string) (lines []string) {
	n.t.Helper()
	err := processes.ReadLogs(n.t.Context(), filepath.Join(n.dir, "sessions", id), 1, func(ls []*apiv1.LogLine) error {
		for _, l := range ls {
			if l.GetStream() == apiv1.LogLine_NOTICE {
				lines = append(lines, "notice "+string(l.GetText()))
				continue
			}
			lines = append(lines, fmt.Sprintf("%d %s", l.GetNumber(), l.GetText()))
		}
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return lines
}

// restoring is the order to go on from a checkpoint.
func restoring(d *nodev1.DesiredSession, l *leader, c *nodev1.Checkpointed) *nodev1.DesiredSession {
	r := &nodev1.Restore{Manifest: c.GetManifest(), Sequence: c.GetSequence()}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.facts {
		if f.GetSessionId() != d.GetSessionId() {
			continue
		}
		if k := f.GetCaptured(); k != nil && k.GetSequence() == c.GetSequence() {
			r.OutputLine = k.GetOutputLine()
		}
		if k := f.GetExited(); k != nil && k.GetOutputLine() > r.GetOutputLine() {
			r.LostLine, r.LostEpoch = k.GetOutputLine(), f.GetEpoch()
		}
	}
	d.Restore = r
	return d
}

func TestProcessMovesUnderMessages(t *testing.T) {
	store := newStoreDir(t)
	a, b := newRealNode(t, "a", store), newRealNode(t, "b", store)
	a.desire(true, ledgerSession("s", 1, "turn"))
	a.lead.deliver("s", 1, msgs(1, 200)...)
	eventually(t, "some turns", func() bool { return a.turn("s", 1, 20) })
	a.desire(false, toLeave("s", 1, 5))
	eventually(t, "its end", func() bool { return a.has("s", "1:exited evicted") })
	c := a.lead.lastCheckpoint("s")
	if c.GetMove() != 5 {
		t.Fatalf("the last checkpoint is not of the move: %v", c)
	}
	done := 0
	for _, f := range a.lead.told("s") {
		if strings.HasPrefix(f, "1:turn") {
			done++
		}
	}
	want := ledgerOf(filepath.Join(a.dir, "sessions", "s"))
	b.desire(true, restoring(ledgerSession("s", 2, "turn"), a.lead, c))
	b.lead.deliver("s", 2, msgs(uint64(done+1), 200)...)
	eventually(t, "it was restored", func() bool { return b.has("s", "2:started") })
	blackout := time.Since(c.GetHeldTime().AsTime())
	if got := ledgerOf(filepath.Join(b.dir, "sessions", "s")); !strings.HasPrefix(got, want) {
		t.Fatalf("its ledger there is %q, here it was %q", got, want)
	}
	eventually(t, "the last turn", func() bool { return b.turn("s", 2, 200) })
	lines := b.logs("s")
	same(t, "lines", len(lines), 200)
	for i, l := range lines {
		epoch := 1
		if i >= done {
			epoch = 2
		}
		same(t, "a line", l, fmt.Sprintf("%d %d: m%d (epoch %d)", i+1, i+1, i+1, epoch))
	}
	t.Logf("%d turns here, %d there; blackout %s; %d bytes sent", done, 200-done, blackout, c.GetBytesSent())
}

func TestProcessFailsOverFromItsLastCheckpoint(t *testing.T) {
	store := newStoreDir(t)
	a, b := newRealNode(t, "a", store), newRealNode(t, "b", store)
	d := ledgerSession("s", 1, "")
	a.desire(true, d)
	a.lead.deliver("s", 1, msgs(1, 7)...)
	eventually(t, "its turns", func() bool { return a.turn("s", 1, 7) })
	d.CheckpointRequest = 1
	a.desire(false, d)
	eventually(t, "a checkpoint", func() bool { return a.has("s", "1:checkpointed 1") })
	c := a.lead.lastCheckpoint("s")
	a.lead.deliver("s", 1, msgs(8, 10)...)
	eventually(t, "more turns", func() bool { return a.turn("s", 1, 10) })
	if err := os.WriteFile(filepath.Join(a.dir, "sessions", "s", "workspace", "later"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.desire(false, want("s", 1, kill))
	eventually(t, "its end", func() bool { return a.has("s", "1:exited lost") })

	b.desire(true, restoring(ledgerSession("s", 2, "turn"), a.lead, c))
	b.lead.deliver("s", 2, msgs(8, 12)...)
	eventually(t, "its turns", func() bool { return b.turn("s", 2, 12) })
	same(t, "ledger", ledgerOf(filepath.Join(b.dir, "sessions", "s")), "m1 m2 m3 m4 m5 m6 m7 m8 m9 m10 m11 m12")
	exists(t, b.dir, "sessions/s/workspace/later", false)
	lines := b.logs("s")
	same(t, "the log, where it was cut", lines[6:9], []string{"7 7: m7 (epoch 1)", "notice restored from checkpoint 1; lines 8–10 of epoch 1 were not kept", "8 8: m8 (epoch 2)"})
	same(t, "lines", len(lines), 13)
	eventually(t, "its next checkpoint", func() bool { return b.lead.lastCheckpoint("s") != nil })

	// And on the same node again: what is there gives way.
	d = ledgerSession("s", 3, "turn")
	d.Restore = &nodev1.Restore{Manifest: c.GetManifest(), Sequence: c.GetSequence(), OutputLine: 7}
	b.desire(false, d)
	eventually(t, "the next epoch", func() bool { return b.has("s", "3:started") })
	same(t, "ledger", ledgerOf(filepath.Join(b.dir, "sessions", "s")), "m1 m2 m3 m4 m5 m6 m7")
	exists(t, b.dir, "restoring/s", false)
}

func TestProcessStaysWhereItCannotLeave(t *testing.T) {
	store := newStoreDir(t)
	a := newRealNode(t, "a", store)
	a.desire(true, ledgerSession("s", 1, "turn"))
	a.lead.deliver("s", 1, msgs(1, 3)...)
	eventually(t, "a checkpoint", func() bool { return a.lead.lastCheckpoint("s") != nil })
	store.set(func() { store.down = true })
	a.desire(false, toLeave("s", 1, 5))
	eventually(t, "it stays", func() bool { return a.has("s", "1:failed request 0 move 5") })
	a.lead.deliver("s", 1, msgs(4, 6)...)
	eventually(t, "it works on", func() bool { return a.turn("s", 1, 6) })
	store.set(func() { store.down = false })
	a.desire(false, toLeave("s", 1, 6))
	eventually(t, "it leaves", func() bool { return a.has("s", "1:exited evicted") })
	same(t, "ledger", ledgerOf(filepath.Join(a.dir, "sessions", "s")), "m1 m2 m3 m4 m5 m6")
	if left, err := os.ReadDir(filepath.Join(a.dir, "spool")); err != nil || len(left) != 0 {
		t.Errorf("the spool holds %v, %v", left, err)
	}
}

func TestProcessLeavesThoughItsAgentChanges(t *testing.T) {
	store := newStoreDir(t)
	a, b := newRealNode(t, "a", store), newRealNode(t, "b", store)
	a.desire(true, ledgerSession("s", 1, "turn"))
	a.lead.deliver("s", 1, msgs(1, 5)...)
	eventually(t, "its turns", func() bool { return a.turn("s", 1, 5) })
	store.set(func() { store.slow = time.Hour })
	a.desire(false, toLeave("s", 1, 5))
	a.lead.deliver("s", 1, msg(6, normal))
	eventually(t, "the leave waits for the store", func() (waits bool) {
		store.set(func() { waits = store.held > 0 })
		return waits
	})
	a.end()
	store.set(func() { store.slow = 0 })
	a.begin()
	a.desire(true, toLeave("s", 1, 5))
	eventually(t, "it left", func() bool { return a.has("s", "1:exited evicted") })
	c := a.lead.lastCheckpoint("s")
	same(t, "move", c.GetMove(), uint64(5))
	b.desire(true, restoring(ledgerSession("s", 2, "turn"), a.lead, c))
	from := uint64(6)
	if a.turn("s", 1, 6) {
		from = 7
	}
	b.lead.deliver("s", 2, msgs(from, 8)...)
	eventually(t, "its turns there", func() bool { return b.turn("s", 2, 8) })
	same(t, "ledger", ledgerOf(filepath.Join(b.dir, "sessions", "s")), "m1 m2 m3 m4 m5 m6 m7 m8")
}
