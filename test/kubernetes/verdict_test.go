// The verdict sees what it is for.

package main

import (
	"strings"
	"testing"
	"time"
)

func TestVerdict(t *testing.T) {
	sent := map[string]int{"a": 1, "b": 2, unknown + "c": 4}
	for _, c := range []struct {
		what, ledger string
		want         verdict
	}{
		{"all of it", "b 2\na 1\n", verdict{accepted: 2, found: 2, unknown: 1}},
		{"the open one, too", "a 1\nb 2\nc 4\n", verdict{accepted: 3, found: 3}},
		{"one is missing", "a 1\n", verdict{accepted: 2, found: 1, lost: 1, unknown: 1, wrongSums: 1}},
		{"one is there twice", "a 1\nb 2\na 1\n", verdict{accepted: 2, found: 2, doubled: 1, unknown: 1, wrongSums: 1}},
		{"one was never sent", "a 1\nb 2\nz 0\n", verdict{accepted: 2, found: 2, doubled: 1, unknown: 1}},
		{"another amount", "a 1\nb 3\n", verdict{accepted: 2, found: 2, unknown: 1, wrongSums: 1}},
		{"a torn line", "a 1\nb", verdict{accepted: 2, found: 2, unknown: 1, wrongSums: 1}},
	} {
		var v verdict
		v.compare("ledger", sent, c.ledger)
		good, examples := v.good(), v.examples
		v.examples = nil
		if v.lost != c.want.lost || v.doubled != c.want.doubled || v.accepted != c.want.accepted || v.found != c.want.found || v.unknown != c.want.unknown || v.wrongSums != c.want.wrongSums {
			t.Errorf("%s: %+v, not %+v", c.what, v, c.want)
		}
		if bad := c.want.lost+c.want.doubled+c.want.wrongSums > 0; good == bad || bad != (len(examples) > 0) {
			t.Errorf("%s: good is %t, with %q", c.what, good, examples)
		}
	}
	if new(verdict).good() {
		t.Error("nothing at all is good")
	}
}

// A report is failed by each thing that must not be.
func TestFailed(t *testing.T) {
	fine := func() *test {
		return &test{load: &load{}, audited: true, verdict: verdict{accepted: 1, found: 1}, left: []string{"persistentvolumeclaim/data-0", "secret/ca"}}
	}
	if fine().failed() {
		t.Error("what is fine has failed")
	}
	for what, spoil := range map[string]func(*test){
		"a lost message":  func(t *test) { t.verdict.lost = 1 },
		"a doubled one":   func(t *test) { t.verdict.doubled = 1 },
		"a dead letter":   func(t *test) { t.verdict.dead = 1 },
		"a failed call":   func(t *test) { t.results = []result{{measured: measured{failed: 1}}} },
		"no message":      func(t *test) { t.verdict = verdict{} },
		"something stays": func(t *test) { t.left = append(t.left, "pod/orchestrator-test") },
	} {
		bad := fine()
		spoil(bad)
		if !bad.failed() {
			t.Errorf("%s does not fail it", what)
		}
		if !strings.Contains(bad.markdown(), "| event |") {
			t.Errorf("%s: there is no table", what)
		}
	}
}

func TestMeter(t *testing.T) {
	var m meter
	m.mark()
	m.accept(20 * time.Millisecond)
	m.answered(50 * time.Millisecond)
	m.fail(nil)
	if got := m.mark(); got.call != 20*time.Millisecond || got.answer != 50*time.Millisecond || got.failed != 1 {
		t.Errorf("it measured %+v", got)
	}
	if got := m.mark(); got.call != 0 || got.answer != 0 || got.failed != 0 {
		t.Errorf("the next window begins with %+v", got)
	}
	m.last = time.Now().Add(-time.Minute)
	if got := m.mark(); got.gap < time.Minute {
		t.Errorf("a minute without messages, to the end of the window, is a gap of %s", got.gap)
	}
}
