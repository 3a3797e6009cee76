// The Go client of the client gateway at a real cluster: calls go on while the servers are killed one after the other.

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/client/toolclient"
)

func TestCallsGoOnWhileServersAreKilled(t *testing.T) {
	d := startDev(t, 1, "--restart")
	api := d.api
	c, err := toolclient.New(toolclient.Config{
		Addresses: d.all(4), Token: toolclient.StaticToken(d.token), TLS: d.trust,
		Backoff: toolclient.Backoff{Min: 100 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	o := newObserver(t)
	r, err := c.Call(t.Context(), "session_spawn", map[string]any{"name": "counts", "command": o.keeping(), "wait": true})
	if err != nil {
		t.Fatal(err)
	}
	var session struct{ ID, Phase string }
	if err := r.Decode(&session); err != nil || session.Phase != "RUNNING" {
		t.Fatalf("spawned: %s %v", r.Text(), err)
	}

	// Each message is answered with how many the session has had: no number may be missing, and none may come twice.
	var mu sync.Mutex
	var counted []int
	var stop atomic.Bool
	var senders sync.WaitGroup
	defer func() { stop.Store(true); senders.Wait() }()
	for range 4 {
		senders.Go(func() {
			for !stop.Load() {
				r, err := c.Call(t.Context(), "session_send", map[string]any{"id": session.ID, "message": "x"})
				if err != nil {
					t.Errorf("a call failed: %v", err)
					return
				}
				var turn struct{ Status, Result string }
				if err := r.Decode(&turn); err != nil || turn.Status != "ACKED" {
					t.Errorf("answered: %s %v", r.Text(), err)
					return
				}
				n, err := strconv.Atoi(turn.Result)
				if err != nil {
					t.Errorf("answered: %s", r.Text())
				}
				mu.Lock()
				counted = append(counted, n)
				mu.Unlock()
			}
		})
	}
	answers := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(counted)
	}
	further := func(what string) {
		t.Helper()
		before := answers()
		until(t, what, func(context.Context) bool { return answers() >= before+10 || t.Failed() })
	}
	further("the session answers")
	for kill := range 3 {
		h, err := c.Health(t.Context()) // of the server that it is connected to
		if err != nil {
			t.Fatal(err)
		}
		pid := memberPID(t, api, h.Server)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		further(fmt.Sprintf("calls go on after kill %d, of %s", kill+1, h.Server))
		until(t, "the server is back", func(ctx context.Context) bool {
			r, err := api.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
			return err == nil && !slices.ContainsFunc(r.GetMembers(), func(m *apiv1.Member) bool {
				return m.GetPid() == 0 || int(m.GetPid()) == pid || m.GetRole() == apiv1.Member_NON_VOTER
			})
		})
	}
	stop.Store(true)
	senders.Wait()
	slices.Sort(counted)
	for i, n := range counted {
		if n != i+1 {
			t.Fatalf("the session counted %d messages as %d: %v", i+1, n, counted)
		}
	}
	if s := c.Stats(); s.Connections < 4 || s.InFlight != 0 {
		t.Errorf("the client tells of %+v", s)
	}
	t.Logf("%d calls, %+v", len(counted), c.Stats())
	// A person finds the gateway beside the API's address.
	byHand := exec.Command(filepath.Join(programs, "orchctl"), "tools", "call", "session_send", "--arg", "id=counts", "--arg", "message=x", "-o", "json")
	byHand.Env = []string{
		"HOME=" + t.TempDir(), "ORCHCTL_ADDR=" + strings.Join(d.all(2), ","),
		"ORCHCTL_TOKEN_FILE=" + filepath.Join(d.data, "admin-token"), "ORCHCTL_TLS_CA=" + filepath.Join(d.data, "ca", "ca.pem"),
	}
	if out, err := byHand.CombinedOutput(); err != nil || !strings.Contains(string(out), fmt.Sprintf(`"result": "%d"`, len(counted)+1)) {
		t.Errorf("by hand: %v\n%s", err, out)
	}
	o.check(t)
}

// memberPID is the process of a server.
func memberPID(t *testing.T, api *client.Client, name string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := api.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.GetMembers(), func(m *apiv1.Member) bool { return m.GetId() == name })
	if i < 0 || r.GetMembers()[i].GetPid() == 0 {
		t.Fatalf("server %s is not among %v", name, r.GetMembers())
	}
	return int(r.GetMembers()[i].GetPid())
}
