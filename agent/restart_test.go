// Agents come and go; sessions, the node's identity and its directory stay.

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neolith/orchestrator/agent/driver"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

func TestNextAgentTakesUpSessions(t *testing.T) {
	inBubble(t, func(n *node) {
		n.world.think = -1
		n.start()
		n.lead.desired(1, true, toRun("busy", 1), toRun("ends", 1), toRun("idle", 1))
		n.lead.deliver("busy", 1, msg(1, normal), msg(2, normal))
		wait(time.Second)
		n.stop()
		n.world.tree("busy").endTurn(1, "while nobody watched")
		n.world.tree("ends").die(session.Exit{Cause: session.CauseFailed, Code: 7})
		n.lead.locked(func() { n.lead.facts = nil })
		n.start()
		same(t, "incarnation", n.lead.hellos[1].GetIncarnation(), uint64(2))
		same(t, "node id", n.lead.hellos[1].GetNodeId(), n.lead.hellos[0].GetNodeId())
		same(t, "cluster", n.lead.hellos[1].GetClusterId(), "c1")
		same(t, "busy", n.lead.told("busy"), []string{"1:started", "1:turn 1"})
		same(t, "ends", n.lead.told("ends"), []string{"1:exited failed"})
		same(t, "idle", n.lead.told("idle"), []string{"1:started"})
		n.lead.desired(2, true, toRun("busy", 1), toRun("ends", 1), toRun("idle", 1))
		n.lead.deliver("busy", 1, msg(1, normal), msg(2, normal))
		wait(time.Second)
		same(t, "given, with redelivery to the next agent", n.world.given("busy"), []uint64{1, 2})
		same(t, "starts", n.world.started(), []string{"busy/1", "ends/1", "idle/1"})
		same(t, "inventory", len(n.lead.inventory()), 3)
	})
}

func TestTurnUnderWayIsNotGivenAgain(t *testing.T) {
	inBubble(t, func(n *node) {
		n.world.think = -1
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lead.deliver("s", 1, msg(1, normal))
		wait(time.Second)
		n.stop()
		n.lead.locked(func() { n.lead.facts = nil })
		n.start()
		n.lead.deliver("s", 1, msg(1, normal), msg(2, normal))
		wait(time.Second)
		same(t, "given", n.world.given("s"), []uint64{1})
		same(t, "facts", n.lead.told("s"), []string{"1:started", "1:delivered 1"})
		n.world.tree("s").endTurn(1, "r")
		wait(time.Second)
		same(t, "given after the turn", n.world.given("s"), []uint64{1, 2})
	})
}

func TestEndIsReportedAgainByTheNextAgent(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lead.locked(func() { n.lead.holdFacts, n.lead.facts = true, nil })
		n.world.tree("s").die(session.Exit{Cause: session.CauseCompleted})
		wait(0)
		n.stop()
		delete(n.world.trees, "s") // its shim has cleaned up: only the record knows
		n.lead.locked(func() { n.lead.facts = nil })
		n.start()
		same(t, "facts", n.lead.told("s"), []string{"1:exited completed"})
	})
}

func TestWhatWasNeverStartedIsStartedWhenToldAgain(t *testing.T) {
	inBubble(t, func(n *node) {
		n.lead.holdLease = true
		n.start()
		st := n.agent.host.store
		if err := st.prepare(&record{Version: 1, SessionID: "s", Epoch: 1, Spec: []byte("{}")}, false); err != nil { // and then the agent was killed
			t.Fatal(err)
		}
		n.stop()
		n.world.absent = true
		n.lead.locked(func() { n.lead.holdLease = false })
		n.start()
		same(t, "inventory", len(n.lead.inventory()), 0)
		same(t, "facts", len(n.lead.told("s")), 0)
		n.lead.desired(1, false, toRun("s", 1))
		same(t, "starts", n.world.started(), []string{"s/1"})
	})
}

// flaky is a driver whose adoption fails for a while.
type flaky struct {
	*world
	until time.Time
}

func (f *flaky) Adopt(ctx context.Context, s driver.Start) (driver.Process, error) {
	if time.Now().Before(f.until) {
		return nil, errors.New("the shim does not answer")
	}
	return f.world.Adopt(ctx, s)
}

func TestAdoptionIsTriedAgain(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.stop()
		f := &flaky{n.world, time.Now().Add(3 * time.Second)}
		n.opts = func(o *Options) { o.Drivers = map[string]driver.Driver{session.TypeProcess: f} }
		n.start()
		same(t, "presumed alive", n.lead.inventory()["s"].GetPhase(), apiv1.Session_RUNNING)
		same(t, "facts", n.lead.told("s"), []string{"1:started"})
		wait(10 * time.Second)
		same(t, "facts once it answers", n.lead.told("s"), []string{"1:started", "1:started"})
	})
}

func TestDamagedRecordIsSetAside(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(1, true, toRun("good", 1), toRun("torn", 1))
		n.stop()
		if err := os.WriteFile(filepath.Join(n.dir, "sessions", "torn", "session.json"), []byte(`{"version":1,"sess`), 0o600); err != nil {
			t.Fatal(err)
		}
		n.world.tree("torn").die(session.Exit{Cause: session.CauseLost})
		n.start()
		exists(t, n.dir, "sessions/torn", false)
		kept, err := filepath.Glob(filepath.Join(n.dir, "damaged", "*-torn", "session.json"))
		if err != nil || len(kept) != 1 {
			t.Errorf("kept aside: %v, %v", kept, err)
		}
		inv := n.lead.inventory()
		if inv["good"] == nil || inv["torn"] != nil {
			t.Errorf("inventory: %v", inv)
		}
		d := toRun("torn", 1)
		d.Started = true
		n.lead.desired(2, false, d)
		same(t, "facts", n.lead.told("torn"), []string{"1:started", "1:exited lost"})
	})
}

func TestDataDirectoryIsRefused(t *testing.T) {
	set := func(t *testing.T, dir, file, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, dir string)
		says    []string
	}{
		"newer identity": {func(t *testing.T, dir string) {
			set(t, dir, "node.json", `{"version":2,"nodeId":"n","incarnation":4}`)
		}, []string{"version 2", "newer release"}},
		"damaged identity": {func(t *testing.T, dir string) { set(t, dir, "node.json", `{"vers`) }, []string{"damaged", "restore it"}},
		"newer session": {func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "sessions", "s", "session.json"))
			set(t, dir, "sessions/s/session.json", `{"version":9,"sessionId":"s","epoch":1,"spec":{}}`)
		}, []string{"version 9", "newer release"}},
		"in use": {func(t *testing.T, dir string) {
			d, err := openDataDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(d.close)
		}, []string{"in use", fmt.Sprintf("pid %d", os.Getpid())}},
	} {
		t.Run(name, func(t *testing.T) {
			n := &node{t: t, dir: t.TempDir(), world: newWorld(t), lease: &memLease{}, lead: newLeader()}
			tc.prepare(t, n.dir)
			_, err := New(n.options())
			kind := fault.Invalid // bad configuration
			if name == "in use" {
				kind = fault.FailedPrecondition
			}
			if !fault.Is(err, kind) {
				t.Fatalf("got %v, want a refusal", err)
			}
			for _, s := range append(tc.says, n.dir) {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
		})
	}
}

func TestIdentityLasts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "here")
	var ids []string
	for i := range 3 {
		d, err := openDataDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, d.id.NodeID)
		same(t, "incarnation", d.id.Incarnation, uint64(i+1))
		d.close()
	}
	if ids[0] == "" || ids[0] != ids[1] || ids[1] != ids[2] {
		t.Errorf("node ids: %v", ids)
	}
	st, err := os.Stat(filepath.Join(dir, "node.json"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("node.json: %v, %v", st.Mode(), err)
	}
}

func TestAnotherClusterIsRefused(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		// While it runs, a wrong server among good ones is passed by.
		n.lead.locked(func() {
			n.lead.cluster = "c2"
			n.lead.greeting = &nodev1.Frame{Index: 99, Payload: &nodev1.Frame_Desired{Desired: &nodev1.Desired{Full: true}}}
		})
		n.cut()
		wait(2 * time.Second)
		if !n.world.alive("s") {
			t.Error("another cluster's leader ended a session")
		}
		n.lead.locked(func() { n.lead.cluster, n.lead.greeting = "c1", nil })
		wait(5 * time.Second)
		n.stop()
		// At the start it is a mistake, and said so.
		n.lead.locked(func() { n.lead.cluster = "c2" })
		a, err := New(n.options())
		if err != nil {
			t.Fatal(err)
		}
		err = a.Run(context.Background())
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "belongs to cluster c1") {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
	})
}

func TestACopiedDataDirectoryNumbersItsFactsAnew(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.stop()
		n.lead.locked(func() { n.lead.last[2], n.lead.facts = 5, nil })
		n.start()
		same(t, "facts", n.lead.told("s"), []string{"1:started"})
	})
}
