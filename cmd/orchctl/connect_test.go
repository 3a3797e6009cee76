// Which cluster is spoken to, and what doctor finds on the way there.

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client/clienttest"
	"github.com/neolith/orchestrator/internal/exitcode"
)

func TestContextsDecideWhereToGo(t *testing.T) {
	r := newRig(t)
	address := strings.TrimPrefix(r.env[1], "ORCHCTL_ADDR=")
	r.c.Tokens = map[string]string{"good": "admin"}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("good\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.env = r.env[:1] // no ORCHCTL_ADDR
	r.must("context set dev --addr " + address + " --token-file " + token + " -n team")
	r.must("sessions spawn --name web -- run") // the first context is the current one
	if got := r.must("sessions list -A -o json"); !strings.Contains(got, `"namespace": "team"`) {
		t.Error("the context's namespace was not used:", got)
	}
	r.must("context set other --addr 127.0.0.1:1 --use")
	if res := r.run("--timeout 200ms sessions list"); res.code != exitcode.Unreachable {
		t.Error("the current context was not used", res)
	}
	r.must("--context dev sessions list")
	// An address that a context lists is reached with that context's token, however it was given.
	r.must("--addr " + address + " sessions list -A")
	r.env = append(r.env, "ORCHCTL_ADDR="+address)
	r.must("sessions list -A")
	// But not one among addresses that it does not list, and not when another token is given.
	if res := r.run("--addr " + address + ",127.0.0.1:1 sessions list"); res.code != exitcode.Refused {
		t.Error("a context's token went to addresses that are not its own", res)
	}
	if res := r.run("--token bad sessions list"); res.code != exitcode.Refused {
		t.Error(res)
	}
	if got := r.must("context use dev"); got != "context dev is the current one" {
		t.Error(got)
	}
	if got := r.must("context list"); !strings.Contains(got, "*") || strings.Contains(got, "good") {
		t.Error(got)
	}
}

func TestDoctor(t *testing.T) {
	r := newRig(t)
	r.c.Now = func() time.Time { return r.now.Add(5 * time.Minute) } // as orchctl's here
	r.must("sessions spawn --name web -- run")
	good := r.run("doctor")
	if good.code != 0 || strings.Count(good.out, "ok   ") != strings.Count(good.out, "\n") {
		t.Errorf("%+v", good)
	}
	for _, check := range []string{"config", "address", "tls", "token", "leader", "members", "clock", "nodes", "memory", "pending", "lag"} {
		if !strings.Contains(good.out, "ok   "+check) {
			t.Errorf("no check of %s in\n%s", check, good.out)
		}
	}
	r.c.Now = func() time.Time { return r.now }
	r.c.SetNodeStatus("node-1", apiv1.Node_UNHEALTHY, "memory at 99 %")
	r.must("sessions spawn -- run")
	r.c.Change(clienttest.ID("session", 1), func(s *apiv1.Session) {
		s.CheckpointError, s.Lag = "no room in the store", &apiv1.Session_Lag{Turns: 3, Seconds: 65}
	})
	bad := r.run("doctor")
	for _, want := range []string{
		"fail clock    server-1 and this machine are 5m0s apart; set the clocks",
		"fail nodes    none of 1 takes sessions: node-1 is UNHEALTHY (memory at 99 %); start node-agents",
		"warn lag      1 sessions could not be checkpointed the last time; session/" + clienttest.ID("session", 1) + ": no room in the store; at stake: 3 turns, 65s; see 'orchctl",
		"warn pending  1 sessions have waited for a node for more than 1m0s: no node fits; add nodes",
	} {
		if !strings.Contains(bad.out, want) {
			t.Errorf("%s\nlacks %q", bad.out, want)
		}
	}
	if bad.code != exitcode.Failed || !strings.Contains(bad.err, "2 of 11 checks failed") {
		t.Errorf("%d %s", bad.code, bad.err)
	}
	r.c.Tokens = map[string]string{"x": "admin"}
	if res := r.run("doctor"); res.code != exitcode.Failed || !strings.Contains(res.out, "fail token") {
		t.Errorf("%+v", res)
	}
	if res := r.run("doctor --addr 127.0.0.1:1,127.0.0.1:2 -o json"); res.code != exitcode.Failed || strings.Count(res.out, `"result": "warn"`) != 2 || !strings.Contains(res.out, "none of 2 addresses answers") {
		t.Errorf("%+v", res)
	}
}
