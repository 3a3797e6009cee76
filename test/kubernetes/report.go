// What was found: on the terminal, and as a page.

package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/neolith/orchestrator/telemetry"
)

// failed reports whether anything is not as it must be.
func (t *test) failed() bool {
	calls := 0
	for _, r := range t.results {
		calls += r.failed
	}
	return calls > 0 || len(t.unexpected()) > 0 || t.audited && !t.verdict.good()
}

// unexpected are objects that stay and should not: all but volumes, and the Secrets without which these are of no use.
func (t *test) unexpected() (out []string) {
	for _, object := range t.left {
		if !strings.HasPrefix(object, "persistentvolumeclaim/") && !strings.HasPrefix(object, "secret/") {
			out = append(out, object)
		}
	}
	return out
}

// print is for the terminal.
func (t *test) print(w io.Writer) {
	if t.load == nil {
		return
	}
	fmt.Fprintln(w)
	fmt.Fprint(w, t.markdown())
	fmt.Fprintln(w)
}

// markdown is the page.
func (t *test) markdown() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# The chart on a real Kubernetes cluster")
	line("")
	line("The last full output of `make kubernetes-test`: %s, %s, %d processors, %s, Kubernetes %s on three nodes of one machine. It took %s, and the machine was busy with %s.",
		t.started.UTC().Format(time.DateOnly), telemetry.ThisBuild().Go, runtime.NumCPU(), runtime.GOOS+"/"+runtime.GOARCH, kubernetesVersion, t.sinceStart(), loadAverage())
	line("")
	line("%d sessions keep a ledger each and take 200 messages a second together, a tenth of which wait for their answers. The client goes through the", sessions)
	line("release's Service, repeats calls that it may repeat, and gives up after %s.", callLimit)
	line("")
	line("| event | took | longest without an accepted message | longest call | longest wait for an answer | failed calls | sessions moved | longest blackout | |")
	line("|---|---|---|---|---|---|---|---|---|")
	for _, r := range t.results {
		if r.silent {
			line("| %s | %s | | | | | | | %s |", r.title, round(r.took), r.note)
			continue
		}
		line("| %s | %s | %s | %s | %s | %d | %d | %s | %s |", r.title, round(r.took), round(r.gap), round(r.call), round(r.answer), r.failed, r.moved, round(r.blackout), r.note)
	}
	line("")
	v := t.verdict
	line("**%d messages accepted, %d in the ledgers; %d lost, %d doubled, %d dead letters, %d wrong sums.**", v.accepted, v.found, v.lost, v.doubled, v.dead, v.wrongSums)
	for _, e := range v.examples {
		line("- %s", e)
	}
	if t.load != nil {
		for _, e := range t.load.meter.failures {
			line("- failed call: %s", e)
		}
	}
	line("")
	line("Blackouts are what the cluster says of the last move of each session. After `helm uninstall` there %s.", t.stays())
	return b.String()
}

// stays says what is left.
func (t *test) stays() string {
	if len(t.left) == 0 {
		return "was nothing left"
	}
	kinds := map[string]int{}
	var order []string
	for _, object := range t.left {
		kind, _, _ := strings.Cut(object, "/")
		if kinds[kind]++; kinds[kind] == 1 {
			order = append(order, kind)
		}
	}
	var parts []string
	for _, k := range order {
		parts = append(parts, fmt.Sprintf("%d %s", kinds[k], k))
	}
	out := "stayed " + strings.Join(parts, ", ")
	if u := t.unexpected(); len(u) > 0 {
		out += "; unexpected: " + strings.Join(u, ", ")
	}
	return out
}

// loadAverage is how many processes wanted a processor at the end, over the last 15 minutes.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(b))
	if err != nil || len(fields) < 3 {
		return "nobody knows what"
	}
	return fields[2] + " processes on average"
}

func (t *test) sinceStart() time.Duration { return time.Since(t.started).Round(time.Second) }
