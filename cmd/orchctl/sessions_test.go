// Sessions as orchctl starts, tells, shows and ends them.

package main

import (
	"strings"
	"testing"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client/clienttest"
	"github.com/neolith/orchestrator/internal/exitcode"
)

func TestATerminalIsNotSteeredByWhatOthersWrote(t *testing.T) {
	r := newRig(t)
	res := r.run("sessions get '\x1b[2Jx\ny'")
	if strings.ContainsAny(strings.TrimSuffix(res.err, "\n"), "\x1b\n") {
		t.Errorf("%q", res.err)
	}
}

func TestSpawnSaysWhatThereIs(t *testing.T) {
	r := newRig(t)
	id := clienttest.ID("session", 1)
	if got := r.must("sessions spawn --name web --label a=b,c=d --cpu 500m --memory 1GiB --env A=x,y --require gpu,pty --restart always --ttl 1h -- run --flag"); got != "session/"+id+" spawned on node-1" {
		t.Fatal(got)
	}
	got := r.must("sessions get web -o json")
	for _, want := range []string{`"cpuMilli": "500"`, `"memoryBytes": "1073741824"`, `"A": "x,y"`, `"--flag"`, `"gpu"`, `"pty"`, `"c": "d"`, `"restart": "always"`, `"ttl": "3600s"`, `"migration": null`} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nlacks %s", got, want)
		}
	}
	if got := r.must("sessions spawn -o name --idempotency-key k -- run"); got != clienttest.ID("session", 2) {
		t.Fatal(got)
	}
	if got := r.must("sessions spawn -o name --idempotency-key k -- run"); got != clienttest.ID("session", 2) {
		t.Fatal("the same key is another session", got)
	}
	r.must("sessions terminate " + clienttest.ID("session", 2) + " --wait")
	if res := r.run("sessions spawn --wait --idempotency-key k -- run"); res.code != exitcode.Failed || !strings.Contains(res.err, "the session was ended: terminated") {
		t.Errorf("a spawn of what was ended since: %+v", res)
	}
	r.must("nodes cordon node-1")
	if got := r.must("sessions spawn -- run"); !strings.HasSuffix(got, " spawned, pending: no node fits") {
		t.Fatal(got)
	}
	if res := r.run("sessions spawn --wait --timeout 100ms -- run"); res.code != exitcode.Unreachable || !strings.Contains(res.err, "still PENDING (no node fits)") {
		t.Fatal(res)
	}
}

func TestSend(t *testing.T) {
	r := newRig(t)
	r.must("sessions spawn --name web -- run")
	if got := r.must("sessions send web hello"); got != "1" {
		t.Error(got)
	}
	if got := r.must("sessions send web --wait 'how are you'"); got != "echo: how are you" {
		t.Error(got)
	}
	if res := r.runIn("sessions send web --wait -", strings.NewReader("from a pipe\n")); res.out != "echo: from a pipe\n" {
		t.Error(res)
	}
	if res := r.runIn("sessions send web -", strings.NewReader("two\nlines\n")); res.code != exitcode.Usage || !strings.Contains(res.err, "line break") {
		t.Error(res)
	}
	if res := r.runIn("sessions send web -", strings.NewReader(strings.Repeat("x", 300<<10))); res.code != exitcode.Usage || !strings.Contains(res.err, "262144 bytes") {
		t.Error(res)
	}
	if res := r.run("sessions send web --wait poison"); res.code != exitcode.Failed || !strings.Contains(res.err, "dead letter: its turn failed 3 times") {
		t.Error(res)
	}
	if a, b := r.must("sessions send web x --idempotency-key k"), r.must("sessions send web x --idempotency-key k"); a != b {
		t.Error("the same key is another message", a, b)
	}
	// A lost answer: the repetition goes to the same session by its whole id, and is the same message.
	r.c.Inject("SendMessage", clienttest.Fault{Err: clienttest.Lost(), After: true})
	if got := r.must("sessions send web again"); got != "6" {
		t.Error(got)
	}
}

func TestLogs(t *testing.T) {
	r := newRig(t)
	id := r.must("sessions spawn --name web -o name -- run")
	r.c.Log(id, apiv1.LogLine_STDOUT, "one", "two")
	r.c.Log(id, apiv1.LogLine_STDERR, "oops")
	r.c.Notice(id, "lines 1-0 were dropped")
	r.c.Log(id, apiv1.LogLine_STDOUT, "three")
	if res := r.run("sessions logs web"); res.out != "one\ntwo\nthree\n" || !strings.Contains(res.err, "oops\n") {
		t.Errorf("%+v", res)
	}
	if res := r.run("sessions logs web --since 2 --timestamps"); res.out != "2026-01-02T03:04:05.000Z 2 two\n2026-01-02T03:04:05.000Z 4 three\n" {
		t.Errorf("%+v", res)
	}
	if got := r.must("sessions logs web --since 4 -o json"); !strings.HasPrefix(got, `{"number":"4","stream":"STDOUT"`) {
		t.Error(got)
	}
	r.c.Inject("ReadLogs", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1})
	r.c.End(id)
	if res := r.run("sessions logs -f " + id); res.out != "one\ntwo\nthree\n" || strings.Count(res.err, "oops") != 1 {
		t.Errorf("%+v", res)
	}
}

func TestTerminateAsksForTheWholeIDFirst(t *testing.T) {
	r := newRig(t)
	id := r.must("sessions spawn --name web -o name -- run")
	other := r.must("sessions spawn --name other -o name -- run")
	// The cluster in memory refuses a termination by name or prefix.
	if got := r.must("sessions terminate web " + other[:6] + " --wait --reason test"); got != "session/"+id+" terminated\nsession/"+other+" terminated" {
		t.Error(got)
	}
	if res := r.run("sessions terminate nobody " + id); res.code != exitcode.NotFound || !strings.Contains(res.out, id) {
		t.Error("the first failure must not keep the others from being ended", res)
	}
}
