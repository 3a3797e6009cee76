// Nodes together, over raft's transport in memory and in simulated time: commits, elections, restarts, snapshots, a leader
// that does not know that it is none, and a disk that hangs.

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
)

// trio is three servers.
type trio struct {
	t       *testing.T
	servers [3]*member
	started func(*member)
}

// member is one server, with its disk.
type member struct {
	id    string
	log   raft.LogStore
	disk  *raft.InmemStore
	snaps *raft.InmemSnapshotStore
	trans *heldTransport
	tune  func(*Options)
	node  *Node
	store *state.Store
	stop  func()
	fatal atomic.Value
	led   atomic.Int32 // Lead calls under way
}

// heldTransport can hold back answers to AppendEntries, as the socket of a stopped process does, and refuse new requests.
type heldTransport struct {
	*raft.InmemTransport
	mu   sync.Mutex
	held chan struct{} // closed to let go; nil when nothing is held
	down bool
}

func (h *heldTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	h.mu.Lock()
	down := h.down
	h.mu.Unlock()
	if down {
		return fmt.Errorf("%s: unreachable", target)
	}
	own := *args
	err := h.InmemTransport.AppendEntries(id, target, &own, resp)
	h.mu.Lock()
	held := h.held
	h.mu.Unlock()
	if held != nil {
		<-held
	}
	return err
}

func (h *heldTransport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// newTrio starts three servers; each function in started is told of a server whenever it has started.
func newTrio(t *testing.T, tune func(*Options), started ...func(*member)) *trio {
	c := &trio{t: t, started: func(m *member) {
		for _, f := range started {
			f(m)
		}
	}}
	for i := range c.servers {
		disk := raft.NewInmemStore()
		c.servers[i] = &member{id: fmt.Sprint("s", i+1), disk: disk, log: disk, snaps: raft.NewInmemSnapshotStore(), tune: tune}
	}
	for _, m := range c.servers {
		c.start(m)
	}
	return c
}

func (c *trio) start(m *member) {
	c.t.Helper()
	_, inmem := raft.NewInmemTransport(raft.ServerAddress(m.id))
	m.trans, m.store = &heldTransport{InmemTransport: inmem}, state.New(state.DefaultLimits())
	var all []raft.Server
	for _, o := range c.servers {
		all = append(all, raft.Server{ID: raft.ServerID(o.id), Address: raft.ServerAddress(o.id)})
		if o != m && o.trans != nil {
			inmem.Connect(raft.ServerAddress(o.id), o.trans.InmemTransport)
			o.trans.Connect(raft.ServerAddress(m.id), inmem)
		}
	}
	o := Options{
		ID: m.id, DataDir: "memory", GRPCAddress: m.id, Servers: all, Timings: DefaultTimings(), SnapshotEvery: 1 << 20, TrailingLogs: 4,
		State: m.store, Now: time.Now, Logger: slog.New(slog.DiscardHandler), HCLog: hclog.NewNullLogger(),
		Transport: m.trans, Log: m.log, Stable: m.disk, Snapshots: m.snaps,
		Fatal: func(err error) { m.fatal.Store(err) },
		Lead: func(ctx context.Context, _ uint64) {
			if m.led.Add(1) > 1 {
				c.t.Errorf("%s leads twice at once", m.id)
			}
			<-ctx.Done()
			m.led.Add(-1)
		},
	}
	if m.tune != nil {
		m.tune(&o)
	}
	n, err := Open(o)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = n.Run(ctx) }()
	m.node = n
	c.started(m)
	m.stop = func() {
		m.node = nil
		for _, o := range c.servers {
			if o != m {
				o.trans.Disconnect(raft.ServerAddress(m.id))
			}
		}
		cancel()
		<-done
		if err := n.Close(); err != nil {
			c.t.Errorf("close %s: %v", m.id, err)
		}
	}
}

func (c *trio) close() {
	for _, m := range c.servers {
		if m.node != nil {
			m.stop()
		}
	}
}

// leader waits until somebody leads.
func (c *trio) leader(not *member) *member {
	c.t.Helper()
	for range 1000 {
		for _, m := range c.servers {
			if m.node == nil || m == not {
				continue
			}
			if l, _ := m.node.Leader(); l.Self && l.Ready {
				return m
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.t.Fatal("nobody leads")
	return nil
}

func spawnCommand(id string) *clusterv1.Command {
	return &clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{
		SessionId: id, Spec: &apiv1.SessionSpec{Command: []string{"true"}},
	}}}
}

func (c *trio) spawn(m *member, ids ...string) {
	c.t.Helper()
	for _, id := range ids {
		results, err := m.node.Propose(context.Background(), spawnCommand(id))
		if err != nil || results[0].Err != nil {
			c.t.Fatalf("spawn %s: %v, %v", id, err, results)
		}
	}
}

// send sends messages and returns the number of the last.
func (c *trio) send(m *member, id string, count int) (sequence uint64) {
	c.t.Helper()
	for range count {
		results, err := m.node.Propose(context.Background(), &clusterv1.Command{Kind: &clusterv1.Command_SendMessage{
			SendMessage: &clusterv1.SendMessage{SessionId: id, Text: []byte("text")},
		}})
		if err != nil || results[0].Err != nil {
			c.t.Fatalf("send to %s: %v, %v", id, err, results)
		}
		sequence = results[0].Sequence
	}
	return sequence
}

// agree waits until all servers have applied the same, and compares their states byte by byte.
func (c *trio) agree(sessions uint64) {
	c.t.Helper()
	time.Sleep(30 * time.Second) // raft is slow to try again a server that was long away
	var want []byte
	for _, m := range c.servers {
		var b bytes.Buffer
		if err := m.store.View().Persist(&b); err != nil {
			c.t.Fatal(err)
		}
		if want == nil {
			want = b.Bytes()
		}
		if n := m.store.View().PhaseCounts().Total(); n != sessions || !bytes.Equal(want, b.Bytes()) {
			c.t.Errorf("%s holds %d sessions, want %d; its state is that of %s: %t", m.id, n, sessions, c.servers[0].id, bytes.Equal(want, b.Bytes()))
		}
	}
}

func TestThreeServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTrio(t, nil)
		defer c.close()
		first := c.leader(nil)
		c.spawn(first, "a", "b")
		if err := first.node.VerifyLeader(context.Background()); err != nil {
			t.Errorf("the leader is not confirmed: %v", err)
		}
		for _, m := range c.servers {
			if m == first {
				continue
			}
			if _, err := m.node.Propose(context.Background(), spawnCommand("x")); !fault.Is(err, fault.Unavailable) {
				t.Errorf("a follower took a proposal: %v", err)
			}
			if err := m.node.VerifyLeader(context.Background()); !fault.Is(err, fault.Unavailable) {
				t.Errorf("a follower was confirmed: %v", err)
			}
			time.Sleep(leaderRefresh)
			if l, _ := m.node.Leader(); l.ID != first.id || l.Address != first.id || l.Self {
				t.Errorf("%s follows %+v", m.id, l)
			}
		}
		c.agree(2)

		first.stop()
		second := c.leader(nil)
		c.spawn(second, "c")
		c.start(first)
		c.agree(3)

		if err := second.node.TransferLeadership(context.Background(), ""); err != nil {
			t.Errorf("transfer: %v", err)
		}
		third := c.leader(second)
		c.spawn(third, "d")
		c.agree(4)
	})
}

// A server that missed more than the log keeps is given a snapshot; one that starts again begins with its own.
func TestSnapshotsBringServersUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTrio(t, func(o *Options) { o.SnapshotEvery = 8 })
		defer c.close()
		l := c.leader(nil)
		var away *member
		for _, m := range c.servers {
			if m != l {
				away = m
			}
		}
		away.stop()
		for i := range 50 {
			c.spawn(l, fmt.Sprint("s", i))
		}
		time.Sleep(2 * time.Minute) // raft looks at its threshold now and then
		if first, _ := l.disk.FirstIndex(); first < 10 {
			t.Fatalf("the log still begins at %d: nothing was snapshotted", first)
		}
		c.start(away)
		c.agree(50)
		for _, m := range c.servers {
			m.stop()
		}
		for _, m := range c.servers {
			c.start(m)
		}
		c.spawn(c.leader(nil), "last")
		c.agree(51)
	})
}

func TestWriteAndRestoreSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTrio(t, nil)
		defer c.close()
		l := c.leader(nil)
		c.spawn(l, "kept")
		c.send(l, "kept", 1)
		var file bytes.Buffer
		if _, err := l.node.WriteSnapshot(&file); err != nil {
			t.Fatal(err)
		}
		c.spawn(l, "later")
		c.agree(2)
		summary, err := state.InspectSnapshot(bytes.NewReader(file.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		c.send(l, "kept", 3)
		if err := l.node.RestoreSnapshot(summary, bytes.NewReader(file.Bytes())); err != nil {
			t.Fatal(err)
		}
		c.spawn(c.leader(nil), "after")
		c.agree(2)
		if got := c.send(c.leader(nil), "kept", 1); got != 5 {
			t.Errorf("the first message after the restore has number %d, and 4 were given out", got)
		}
		c.agree(2)
		if v := l.store.View(); v.Session("kept") == nil || v.Session("later") != nil {
			t.Error("the state is not that of the snapshot")
		}
	})
}

// A leader that was stopped, while a successor was elected, finds the answers to its last heartbeats waiting when it goes on. Raft
// takes them for a confirmation; whoever holds a lease by it would hold it beside the successor's.
// TestPresences: the leader knows who answers, and since when somebody does not.
func TestPresences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTrio(t, nil)
		defer c.close()
		leader := c.leader(nil)
		time.Sleep(10 * time.Second)
		check := func(silent *member, since time.Time) {
			t.Helper()
			all := leader.node.Presences()
			if len(all) != 3 || all[0].ID != "s1" || all[2].ID != "s3" {
				t.Fatalf("%+v", all)
			}
			for _, p := range all {
				switch quiet := time.Since(p.Heard); {
				case p.Left:
					t.Errorf("%s has left", p.ID)
				case silent != nil && p.ID == silent.id:
					if d := p.Heard.Sub(since); d > 0 || d < -2*time.Second {
						t.Errorf("%s was heard of last %s after it fell silent", p.ID, d)
					}
				case quiet > 2*time.Second || quiet < 0:
					t.Errorf("%s was heard of %s ago", p.ID, quiet)
				}
			}
		}
		check(nil, time.Time{})
		var other *member
		for _, m := range c.servers {
			if m != leader {
				other = m
			}
		}
		since := time.Now()
		other.stop()
		time.Sleep(30 * time.Second)
		check(other, since)
		c.start(other)
		time.Sleep(10 * time.Second)
		check(nil, time.Time{})
	})
}

func TestOldAnswersDoNotConfirm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The first leader's clocks stand still, so to speak: it alone does not step down by itself.
		c := newTrio(t, func(o *Options) {
			if o.ID == "s1" {
				o.Timings.Heartbeat, o.Timings.Election, o.Timings.Lease = time.Hour, time.Hour, time.Hour
			}
		})
		defer c.close()
		old := c.servers[0]
		if l := c.leader(nil); l != old {
			if err := l.node.raft.LeadershipTransferToServer("s1", "s1").Error(); err != nil {
				t.Fatal(err)
			}
		}
		for {
			if l, _ := old.node.Leader(); l.Self && l.Ready {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		// Heartbeats go out, are answered, and the answers stay where they are.
		held := make(chan struct{})
		old.trans.mu.Lock()
		old.trans.held = held
		old.trans.mu.Unlock()
		old.node.raft.VerifyLeader()
		synctest.Wait()
		old.trans.mu.Lock()
		old.trans.held, old.trans.down = nil, true
		old.trans.mu.Unlock()
		for _, m := range c.servers[1:] {
			m.trans.Disconnect("s1")
		}
		successor := c.leader(old)
		c.spawn(successor, "by the successor")

		verified := make(chan error, 1)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		go func() { verified <- old.node.VerifyLeader(ctx) }()
		synctest.Wait()
		close(held)
		if err := <-verified; err == nil {
			t.Error("a leader was confirmed by what it was told before its successor was elected")
		}
		old.trans.mu.Lock()
		old.trans.down = false
		old.trans.mu.Unlock()
		for _, m := range c.servers[1:] {
			m.trans.Connect("s1", old.trans.InmemTransport)
		}
		c.agree(1)
	})
}

// hangingLog is a disk on which a write hangs.
type hangingLog struct {
	raft.LogStore
	mu   sync.Mutex
	hang chan struct{} // nil when it works
}

func (h *hangingLog) StoreLogs(ls []*raft.Log) error {
	h.mu.Lock()
	hang := h.hang
	h.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return h.LogStore.StoreLogs(ls)
}

func (h *hangingLog) StoreLog(l *raft.Log) error { return h.StoreLogs([]*raft.Log{l}) }

func TestAHangingDiskEndsTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTrio(t, nil)
		defer c.close()
		l := c.leader(nil)
		// It starts again on a disk that works for a while.
		l.stop()
		disk := &hangingLog{LogStore: l.disk}
		l.log = disk
		c.start(l)
		for {
			if now := c.leader(nil); now == l {
				break
			} else if err := now.node.raft.LeadershipTransferToServer(raft.ServerID(l.id), raft.ServerAddress(l.id)).Error(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		c.spawn(l, "works")
		if d := l.node.stall.stalled(time.Now()); d != 0 {
			t.Errorf("a disk that works is said to hang for %s", d)
		}
		hang := make(chan struct{})
		disk.mu.Lock()
		disk.hang = hang
		disk.mu.Unlock()
		if err := l.node.ProposeAsync(func([]state.Result, error) {}, spawnCommand("hangs")); err != nil {
			t.Fatal(err)
		}
		limit := DefaultTimings().Stall
		time.Sleep(2 * limit)
		if d := l.node.stall.stalled(time.Now()); d < limit {
			t.Errorf("a write has hung for %s, and %s is noticed", 2*limit, d)
		}
		if l.fatal.Load() != nil {
			t.Error("the server gave up too soon")
		}
		time.Sleep((stallFatalFactor + 1) * limit)
		if l.fatal.Load() == nil {
			t.Error("the server goes on with a disk that hangs")
		}
		disk.mu.Lock()
		disk.hang = nil
		disk.mu.Unlock()
		close(hang)
		time.Sleep(10 * time.Second)
		if writes, took := l.node.LogStats(); writes == 0 || took < stallFatalFactor*limit {
			t.Errorf("%d writes took %s", writes, took)
		}
	})
}
