// Command kubernetes proves the Helm chart on a real Kubernetes cluster, which it brings up on this machine from
// nothing and takes away again: see the scripts beside it.
//
// Twenty ledger sessions take 200 messages a second while the cluster lives through what Kubernetes does to pods:
// restarts, an upgrade and back, drains, deletions, kills, the crash of a machine, more and fewer of everything. Each
// event is timed. In the end every message that was accepted must be in its session's ledger, once.
//
//	go run ./test/kubernetes [-report FILE] [-events install,roll-servers,…] [-keep]
//
// What is where: cluster.go is the machine's side (scripts, kubectl, helm), load.go the sessions and the messages,
// events.go what happens, failures.go what of it is no ordinary day, clients.go and models.go those who use the gateway, verdict.go and report.go what was found.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// timeout bounds the whole.
const timeout = 60 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx)
	stop()
	os.Exit(code)
}

func run(ctx context.Context) int {
	report := flag.String("report", "", "also write the report to this file")
	only := flag.String("events", "", "only these, separated by commas; all when empty")
	keep := flag.Bool("keep", false, "leave the cluster for a look; test/kubernetes/down.sh takes it away")
	flag.Parse()
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "kubernetes: only root can bring up a cluster")
		return 1
	}
	chosen, err := choose(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubernetes:", err)
		return 2
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	t := &test{cluster: newCluster(), started: time.Now()}
	err = t.whole(ctx, chosen, *keep) // events that failed are in the report
	if *report != "" && t.load != nil {
		err = errors.Join(err, os.WriteFile(*report, []byte(t.markdown()), 0o644))
	}
	t.print(os.Stdout)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "kubernetes:", err)
		return 1
	case t.failed():
		fmt.Println("FAILED")
		return 1
	case t.audited:
		fmt.Println("Nothing was lost, nothing happened twice.")
	}
	return 0
}

// test is one run.
type test struct {
	*cluster
	started  time.Time
	load     *load
	results  []result
	testLine []string // what the README says for a test
	verdict  verdict
	audited  bool
	models   *models  // nil until a client asks one
	left     []string // what was there after the release was uninstalled
}

// whole brings the cluster up, runs what was chosen, and takes the cluster away whatever happened.
func (t *test) whole(ctx context.Context, chosen []event, keep bool) (err error) {
	if err := t.prepare(ctx); err != nil {
		return err
	}
	defer func() {
		if t.load != nil {
			t.load.close()
		}
		if t.models != nil {
			t.models.close()
		}
		if keep {
			step("the cluster stays; test/kubernetes/down.sh takes it away")
			return
		}
		step("taking the cluster away")
		// The context may have ended; this must be done all the same.
		err = errors.Join(err, t.script(context.Background(), "down.sh"))
	}()
	if err := t.up(ctx); err != nil {
		return err
	}
	var failed []error
	for _, e := range chosen {
		if err := t.happen(ctx, e); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", e.name, err))
			t.gather(e.name)
			// The others show whether it was this alone; without a release there is nothing to show.
			if e.name == "install" || ctx.Err() != nil {
				break
			}
		}
	}
	return errors.Join(failed...)
}

// choose picks events by name, in their own order; install comes first in any case.
func choose(names string) ([]event, error) {
	all := events()
	if names == "" {
		return all, nil
	}
	want := map[string]bool{"install": true}
	for name := range strings.SplitSeq(names, ",") {
		want[name] = true
	}
	var out []event
	for _, e := range all {
		if want[e.name] {
			out = append(out, e)
			delete(want, e.name)
		}
	}
	for name := range want {
		return nil, fmt.Errorf("-events: there is no event %q", name)
	}
	return out, nil
}

func step(format string, args ...any) {
	fmt.Printf("==> "+format+"\n", args...)
}

func say(format string, args ...any) {
	fmt.Printf("    "+format+"\n", args...)
}
