// Calls and dead calls from the command line.

package main

import (
	"strings"
	"testing"
)

func TestCallsAreCancelled(t *testing.T) {
	r := newRig(t)
	addCalls(r)
	if got := r.must("queue cancel 5ca1ab1e0000"); got != "call/5ca1ab1e0000: ENDED (cancelled)" {
		t.Errorf("%q", got)
	}
	if got := r.must("queue cancel 5ca1ab1e0001 --idempotency-key k"); got != "call/5ca1ab1e0001: RUNNING (cancelling)" {
		t.Errorf("%q", got)
	}
	for line, code := range map[string]int{
		"queue cancel none-such": 3, "queue get none-such": 3, "queue get": 2, "queue calls --filter status=odd": 2, "queue calls --filter server!=a": 2,
		"queue calls --filter color=red": 2, "queue calls extra": 2, "dlq get 5ca1ab1e0001": 3, "dlq get call/5ca1ab1e0003 1": 3, "dlq retry call/5ca1ab1e0003 1": 2,
		"dlq purge call/none-such": 3,
	} {
		if res := r.run(line); res.code != code {
			t.Errorf("%s: %v, want exit code %d", line, res, code)
		}
	}
	if got := r.must("queue calls --filter status=running -o name"); got != "5ca1ab1e0001" {
		t.Errorf("%q", got)
	}
}

func TestDeadCallsFromTheCommandLine(t *testing.T) {
	r := newRig(t)
	addCalls(r)
	r.must("sessions spawn --name web -- ./server")
	r.must("sessions send web poison")
	names := strings.Fields(r.must("dlq list -o name"))
	if len(names) != 2 || !strings.HasSuffix(names[0], "/1") || names[1] != "call/5ca1ab1e0003" {
		t.Fatalf("%q", names)
	}
	if got := r.must("dlq list --filter kind=call -o name"); got != names[1] {
		t.Errorf("%q", got)
	}
	if got := r.must("dlq list web -o name"); got != names[0] {
		t.Errorf("of a session: %q", got)
	}
	if got := r.must("dlq retry " + names[1]); got != "call/5ca1ab1e0003: waits again" {
		t.Errorf("%q", got)
	}
	if got := r.must("queue get 5ca1ab1e0003 -o json"); !strings.Contains(got, `"status": "QUEUED"`) {
		t.Errorf("%s", got)
	}
	if res := r.run("dlq retry " + names[1]); res.code != 3 {
		t.Error(res)
	}
	// By its id alone, where no session is called so; a session's name comes first.
	r = newRig(t)
	addCalls(r)
	if got := r.must("dlq purge 5ca1ab1e0003"); got != "1 dead letter(s) deleted" {
		t.Errorf("%q", got)
	}
	if got := r.must("dlq list -o name"); got != "" {
		t.Errorf("%q", got)
	}
	r.must("sessions spawn --name 5ca1ab1e0004 -- ./server")
	if got := r.must("dlq purge 5ca1ab1e0004"); got != "0 dead letter(s) deleted" {
		t.Errorf("the session of this name: %q", got)
	}
}
