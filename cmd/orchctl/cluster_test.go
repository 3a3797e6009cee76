// The control plane: its snapshots, members and tokens, and dead letters.

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client/clienttest"
	"github.com/neolith/orchestrator/internal/exitcode"
)

func TestSnapshots(t *testing.T) {
	r := newRig(t)
	r.c.SetSnapshot(bytes.Repeat([]byte("s"), 10<<10))
	file := filepath.Join(t.TempDir(), "state.snapshot")
	if got := r.must("cluster snapshot save " + file); got != "saved 10KiB to "+file {
		t.Error(got)
	}
	if st, err := os.Stat(file); err != nil || st.Size() != 10<<10 || st.Mode().Perm() != 0o600 {
		t.Error(st, err)
	}
	if got := r.must("cluster snapshot restore " + file); got != "restored 7 sessions at index 42" || len(r.c.Restored()) != 10<<10 {
		t.Error(got)
	}
	r.c.Inject("SaveSnapshot", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1})
	whole := file + ".2"
	if res := r.run("cluster snapshot save " + whole); res.code != exitcode.Unreachable || !strings.Contains(res.err, "interrupted after") {
		t.Error(res)
	}
	if _, err := os.Stat(whole); err == nil {
		t.Error("half a snapshot was left behind")
	}
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 1 {
		t.Error("something was left behind", entries, err)
	}
}

func TestDeadLettersTokensAndMembers(t *testing.T) {
	r := newRig(t)
	id := r.must("sessions spawn --name web -o name -- run")
	r.must("sessions send web poison")
	r.must("sessions send web poison")
	r.must("sessions send web poison")
	if got := r.must("dlq retry web 1"); got != "session/"+id+": 1 dead letter(s) back in the mailbox" {
		t.Error(got)
	}
	if got := r.must("dlq purge web 2"); got != "1 dead letter(s) deleted" {
		t.Error(got)
	}
	if got := r.must("dlq list -o name"); got != id+"/3" {
		t.Error(got)
	}
	res := r.run("tokens create ci --role client --ttl 24h")
	if res.code != 0 || !strings.HasPrefix(res.out, "secret-") || strings.Count(res.out, "\n") != 1 || !strings.Contains(res.err, "shown this once") {
		t.Errorf("%+v", res)
	}
	r.must("tokens revoke ci")
	if got := r.must("tokens list -o name"); got != "" {
		t.Error(got)
	}
	if got := r.must("cluster transfer-leadership server-3"); got != "member/server-3 leads" {
		t.Error(got)
	}
	if got := r.must("cluster members --filter role=LEADER -o name"); got != "server-3" {
		t.Error(got)
	}
	if res := r.run("cluster remove server"); res.code != exitcode.Usage || !strings.Contains(res.err, "may mean server-1 or server-2 or server-3") {
		t.Error(res)
	}
	if got := r.must("cluster remove server-2"); got != "member/server-2 removed" {
		t.Error(got)
	}
	r.c.SetNodeStatus("node-1", apiv1.Node_OFFLINE, "")
	r.must("sessions terminate web")
	if got := r.must("nodes remove node-1"); got != "node/node-1 removed" {
		t.Error(got)
	}
}

func TestSnapshotInspectNeedsNoServer(t *testing.T) {
	r := newRig(t)
	r.env = nil
	file := filepath.Join("..", "..", "cluster", "state", "testdata", "v1.snapshot")
	table := r.must("cluster snapshot inspect " + file)
	for _, want := range []string{"Cluster:", "Version:  1\n", "TABLE", "sessions", "messages"} {
		if !strings.Contains(table, want) {
			t.Errorf("%s\nlacks %q", table, want)
		}
	}
	if got := r.must("cluster snapshot inspect -o json " + file); !strings.Contains(got, `"version": 1,`) || !strings.Contains(got, `"name": "sessions"`) {
		t.Error(got)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2]++
	if res := r.runIn("cluster snapshot inspect -", bytes.NewReader(b)); res.code != exitcode.Usage || !strings.Contains(res.err, "damaged") || strings.Count(res.err, "\n") != 1 {
		t.Errorf("%+v", res)
	}
}
