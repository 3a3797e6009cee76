// Stories from testdata, and stories that nobody thought of.
package sim

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// storyMax is how long a story may take in real time.
const storyMax = 2 * time.Minute

// logger prints everything when SIM_LOG is set, with simulated time.
func logger() *slog.Logger {
	if os.Getenv("SIM_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// tell tells a story in a bubble.
func tell(t *testing.T, o Options, story string) (failures []string, stats Stats) {
	t.Helper()
	o.Dir, o.Log = t.TempDir(), logger()
	began := time.Now()
	// Two parts that answer each other at once, for ever, stop simulated time; only a clock outside can tell.
	watchdog := time.AfterFunc(storyMax, func() {
		panic(fmt.Sprintf("simulated time stands still: seed %d\n%s", o.Seed, story))
	})
	defer watchdog.Stop()
	defer forgiveRaft(t)
	synctest.Test(t, func(*testing.T) { failures, stats = Tell(o, story) })
	t.Logf("%s simulated in %s: %+v", stats.Simulated.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), stats)
	return failures, stats
}

func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			story, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if failures, _ := tell(t, Options{Seed: 1}, string(story)); len(failures) > 0 {
				t.Errorf("%s", strings.Join(failures, "\n"))
			}
		})
	}
}

// forgiveRaft takes back the panic of a bubble that ended with goroutines in it when all of them hang in a transfer of the
// leadership inside raft (hashicorp/raft#696), which no caller can end. A real server is started again then.
func forgiveRaft(t *testing.T) {
	p := recover()
	if p == nil {
		return
	}
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for g := range strings.SplitSeq(string(stacks), "\n\n") {
		head, _, _ := strings.Cut(g, "\n")
		transfer := strings.Contains(g, "raft.(*Raft).leadershipTransfer(") ||
			strings.Contains(g, "raft.(*Raft).leaderLoop.func") && strings.Contains(head, "chan receive")
		if strings.Contains(head, "synctest bubble") && !transfer {
			t.Logf("in the way of the bubble's end: %s", g)
			panic(p)
		}
	}
	t.Logf("a transfer of the leadership hung inside raft")
}

// setting reads a number from the environment.
func setting(name string, otherwise uint64) uint64 {
	v, err := strconv.ParseUint(os.Getenv(name), 10, 64)
	if err != nil {
		return otherwise
	}
	return v
}

// TestRandom tells stories made from seeds: SIM_RUNS of them with SIM_STEPS steps each, from SIM_SEED on. A failure prints
// the line that tells the same story again.
func TestRandom(t *testing.T) {
	runs, steps := setting("SIM_RUNS", defaultRuns), int(setting("SIM_STEPS", 60))
	first := setting("SIM_SEED", 1)
	if os.Getenv("SIM_SEED") != "" && os.Getenv("SIM_RUNS") == "" {
		runs = 1
	}
	var simulated time.Duration
	for seed := first; seed < first+runs; seed++ {
		story := Generate(seed, steps)
		failures, stats := tell(t, Options{Seed: seed}, story)
		simulated += stats.Simulated
		if len(failures) == 0 {
			continue
		}
		t.Errorf("%s\n--- replay: SIM_SEED=%d SIM_STEPS=%d go test -count=1 -run 'TestRandom$' ./sim\n%s",
			strings.Join(failures, "\n"), seed, steps, shown(story))
		if len(failures) > 0 && runs > 1 && os.Getenv("SIM_KEEP_GOING") == "" {
			break
		}
	}
	t.Logf("%d stories, %s simulated", runs, simulated.Round(time.Second))
}

// shown is the story itself, when somebody wants to see it.
func shown(story string) string {
	if os.Getenv("SIM_SHOW") == "" {
		return ""
	}
	return story
}
