// Stories from testdata, and stories that nobody thought of.
package sim

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

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
