// Lists: their pages and limits, and watching them.

package main

import (
	"strings"
	"testing"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
)

func TestPagesAndLimits(t *testing.T) {
	r := newRig(t)
	cl, err := client.New(client.Config{Addresses: []string{strings.TrimPrefix(r.env[1], "ORCHCTL_ADDR=")}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for range 1005 {
		if _, err := cl.Sessions.SpawnSession(t.Context(), &apiv1.SpawnSessionRequest{Spec: &apiv1.SessionSpec{Command: []string{"run"}}}); err != nil {
			t.Fatal(err)
		}
	}
	for line, want := range map[string]int{"": 1000, "--limit 0": 1005, "--limit 7": 7, "--limit 1003": 1003, "-n elsewhere": 0, "-n elsewhere -A --limit 0": 1005} {
		res := r.run("sessions list -o name " + line)
		if n := strings.Count(res.out, "\n"); n != want {
			t.Errorf("%q: %d lines, want %d", line, n, want)
		}
		if cut := strings.Contains(res.err, "of 1005 shown; --limit 0 shows all"); cut != (want > 0 && want < 1005) {
			t.Errorf("%q: %q", line, res.err)
		}
	}
}

func TestWatches(t *testing.T) {
	r := newRig(t)
	id := r.must("sessions spawn --name web -o name -- run")
	res := r.watch("sessions list --watch", func(out *tap) {
		out.until(t, "RUNNING")
		r.c.End(id)
		out.until(t, "COMPLETED")
	})
	if res.code != 0 || strings.Count(res.out, "PHASE") != 1 || res.err != "" {
		t.Errorf("%+v", res)
	}
	// Rows that come later stand under the same headings, though COMPLETED is wider than RUNNING.
	column := -1
	for line := range strings.Lines(res.out) {
		at := strings.Index(line, "node-1")
		if strings.Contains(line, "NODE") {
			at = strings.Index(line, "NODE")
		}
		if column >= 0 && at >= 0 && at != column {
			t.Errorf("the node is at %d, and was at %d:\n%s", at, column, res.out)
		}
		column = max(column, at)
	}
	res = r.watch("nodes list --watch -o json", func(out *tap) {
		out.until(t, `"status":"HEALTHY"`)
		r.c.SetNodeStatus("node-1", apiv1.Node_OFFLINE, "silent for 60 s")
		out.until(t, `"status":"OFFLINE"`)
	})
	if n := strings.Count(res.out, "\n"); res.code != 0 || n != 2 {
		t.Errorf("%d lines: %+v", n, res)
	}
	res = r.watch("events --watch -o json --after 1", func(out *tap) { out.until(t, "session.completed") })
	if res.code != 0 || !strings.HasPrefix(res.out, `{"index":`) {
		t.Errorf("%+v", res)
	}
	res = r.watch("sessions watch "+id+" -o json", func(out *tap) { out.until(t, `"synced":true`) })
	if n := strings.Count(res.out, "\n"); res.code != 0 || n != 2 {
		t.Errorf("%d lines: %+v", n, res)
	}
}
