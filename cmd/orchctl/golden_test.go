// What every command that shows something prints, in every form, held in testdata.

package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden holds what every command that shows something prints, in every form. People's eyes and programs rely on it:
// a change of a file is a change for users.
func TestGolden(t *testing.T) {
	r := newRig(t)
	r.c.AddNode("node-2")
	r.c.SetNodeStatus("node-2", apiv1.Node_OFFLINE, "silent for 60 s")
	web := r.must("sessions spawn --name web --label tier=front --priority high --cpu 500m --memory 512Mi -o name -- ./server --port 80")
	r.must("sessions spawn --name job -- false")
	r.must("sessions send web hello")
	r.must("sessions send web poison")
	r.must("nodes cordon node-1")
	r.must("sessions spawn --name waiting --env A=true --restart always -- run")
	r.must("sessions send waiting --priority critical 'first: \"quoted\"'")
	addCalls(r)
	r.must("tokens create ci --role client --ttl 24h -n team")
	r.must("tokens create root --role admin")
	r.must("context set dev --addr 10.0.0.1:8077,10.0.0.2:8077 --token-file /etc/token --tls-ca /etc/ca.pem -n team")
	r.must("context set lab --addr 127.0.0.1:8077")
	for name, line := range map[string]string{
		"sessions-list": "sessions list", "sessions-list-filter": "sessions list --filter phase=RUNNING --limit 1", "sessions-get": "sessions get web",
		"sessions-get-failed": "sessions get " + r.must("sessions list --filter phase=FAILED -o name"), "sessions-history": "sessions history " + web,
		"sessions-logs": "sessions logs web", "nodes-list": "nodes list", "nodes-get": "nodes get node-2", "cluster-status": "cluster status",
		"cluster-members": "cluster members", "daemons-list": "daemons list", "interactions-list": "interactions list", "interactions-list-filter": "interactions list --kind model-call --filter status=failed",
		"providers-list": "providers list", "providers-models": "providers models", "conversations-list": "conversations list", "conversations-get": "conversations get plan", "queue-stats": "queue stats", "queue-list": "queue list", "dlq-list": "dlq list", "dlq-get": "dlq get web 2",
		"queue-calls": "queue calls", "queue-calls-filter": "queue calls --filter status=ended,tool=chat", "queue-get": "queue get 5ca1ab1e0002", "dlq-get-call": "dlq get 5ca1ab1e0003",
		"tokens-list": "tokens list", "events": "events", "context-list": "context list", "sessions-list-empty": "sessions list -n nobody",
	} {
		t.Run(name, func(t *testing.T) { goldenForms(t, r, name, line) })
	}
}

// addCalls adds a call of each kind.
func addCalls(r *rig) {
	now := r.c.Now()
	call := func(id string, status apiv1.Call_Status, change func(*apiv1.Call)) {
		c := &apiv1.Call{
			Id: id, Owner: "token 4f2a", Session: "ann", RequestId: "r-" + id[10:], Namespace: "default", Caller: "ci", Tool: "session_send", Priority: apiv1.Priority_NORMAL,
			Status: status, Server: "server-1", Attempts: 1, Repeatable: true, CreateTime: timestamppb.New(now.Add(-time.Minute)), Deadline: timestamppb.New(now.Add(time.Hour)),
			ArgumentsBytes: 13, Arguments: []byte(`{"id":"web"}`),
		}
		change(c)
		r.c.AddCall(c)
	}
	call("5ca1ab1e0000", apiv1.Call_QUEUED, func(c *apiv1.Call) {
		c.Attempts, c.OrderKey, c.Priority = 0, "session web", apiv1.Priority_CRITICAL
	})
	call("5ca1ab1e0001", apiv1.Call_RUNNING, func(c *apiv1.Call) { c.Cancelling, c.BeginTime = true, timestamppb.New(now) })
	call("5ca1ab1e0002", apiv1.Call_ENDED, func(c *apiv1.Call) {
		c.Tool, c.Repeatable, c.Arguments, c.EndTime, c.Delivered = "chat", false, nil, timestamppb.New(now), true
		c.Outcome = &apiv1.Call_Outcome{Outputs: []byte(`[{"type":"text","text":"hello"}]`), OutputsBytes: 32}
	})
	call("5ca1ab1e0003", apiv1.Call_DEAD, func(c *apiv1.Call) {
		c.Tool, c.Repeatable, c.Attempts, c.EndTime, c.LastError = "chat", false, 4, timestamppb.New(now), "PROVIDER_ERROR: moonshot: 503 four times"
		c.Outcome = &apiv1.Call_Outcome{Code: "PROVIDER_ERROR", Message: "moonshot: 503 four times"}
	})
	call("5ca1ab1e0004", apiv1.Call_ENDED, func(c *apiv1.Call) {
		c.Outcome, c.LastError, c.Arguments = &apiv1.Call_Outcome{Code: "TIMEOUT", Message: "its deadline passed while it waited"}, "TIMEOUT: its deadline passed while it waited", nil
	})
}

// goldenForms compares what a command prints, in every form, with its golden file.
func goldenForms(t *testing.T, r *rig, name, line string) {
	t.Helper()
	r.patience = time.Hour // how busy the machine is does not show
	var got bytes.Buffer
	for _, form := range []string{"table", "wide", "json", "yaml", "name"} {
		res := r.run(line + " -o " + form)
		if res.code != 0 {
			t.Fatal(res)
		}
		fmt.Fprintf(&got, "-- %s --\n%s", form, res.out)
		if res.err != "" {
			fmt.Fprintf(&got, "-- %s: standard error --\n%s", form, res.err)
		}
	}
	golden(t, name, got.Bytes())
}

// TestGoldenMoves holds the same of what moves sessions.
func TestGoldenMoves(t *testing.T) {
	r := newRig(t)
	r.c.AddNode("node-2")
	id := r.must("sessions spawn --name ledger --checkpoint-every turn -o name -- ./ledger")
	r.must("sessions send ledger one")
	r.must("sessions checkpoint ledger")
	r.must("sessions send ledger two")
	r.must("sessions checkpoint ledger")
	r.c.Change(id, func(s *apiv1.Session) {
		s.Lag, s.CheckpointError = &apiv1.Session_Lag{Turns: 1, Messages: 3, Seconds: 12.5}, "no room in the store"
	})
	goldenForms(t, r, "sessions-checkpoints", "sessions checkpoints ledger")
	r.must("sessions migrate ledger --to node-2 --wait")
	goldenForms(t, r, "sessions-get-moved", "sessions get ledger")
	goldenForms(t, r, "sessions-list-lag", "sessions list")
	var got bytes.Buffer
	for i, form := range []string{"table", "wide", "json", "yaml", "name"} { // there and back
		res := r.run(fmt.Sprintf("sessions migrate ledger --wait --quiet --to node-%d -o %s", i%2+1, form))
		fmt.Fprintf(&got, "-- %s: exit code %d --\n%s%s", form, res.code, res.out, res.err)
	}
	golden(t, "sessions-migrate", got.Bytes())
}

// TestGoldenDrain holds the same of draining a node.
func TestGoldenDrain(t *testing.T) {
	r := newRig(t)
	r.must("sessions spawn --name web -- run")
	r.must("sessions spawn --name urgent --priority critical -- run")
	goldenForms(t, r, "nodes-drain-short", "nodes drain node-1 --dry-run")
	goldenForms(t, r, "nodes-drain-force", "nodes drain node-1 --dry-run --force")
	r.c.AddNode("node-2")
	goldenForms(t, r, "nodes-drain-plan", "nodes drain node-1 --dry-run")
	goldenForms(t, r, "nodes-drain", "nodes drain node-1 --wait --quiet")
	r.c.ChangeNode("node-1", func(n *apiv1.Node) {
		n.Drain.State, n.Drain.Reason, n.Drain.Remaining, n.Drain.Moved = apiv1.Drain_DRAINING, "web: no other node fits: node-2 full", 1, 1
	})
	goldenForms(t, r, "nodes-get-draining", "nodes get node-1")
	goldenForms(t, r, "nodes-list-draining", "nodes list")
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		return
	}
	g, w := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(g), len(w)) {
		if i >= len(g) || i >= len(w) || g[i] != w[i] {
			t.Fatalf("%s differs in line %d; if that is meant, run go test -update\ngot\n%s", path, i+1, got)
		}
	}
}
