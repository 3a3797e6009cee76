// A process that is killed with -9 while it records: what it had flushed is in the database once, whatever was sent twice.

package recorder_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/recorder/sqlite"
)

const victimDir = "RECORDER_TEST_VICTIM" // set in the process that is killed

// victim records until it is killed, and says after each flush how many are durable.
func victim(t *testing.T, dir string) {
	s, err := sqlite.Open(t.Context(), filepath.Join(dir, "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	r := serve(t, config(filepath.Join(dir, "spool")), s, nil)
	for n := 0; ; n++ {
		if err := r.Record(call(fmt.Sprintf("%s-%07d", os.Getenv(victimDir+"_LIFE"), n))); err != nil {
			t.Fatal(err)
		}
		if n%50 == 49 {
			if err := r.Flush(context.Background()); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(os.Stderr, "%d\n", n+1)
		}
	}
}

func TestKilled(t *testing.T) {
	if dir := os.Getenv(victimDir); dir != "" {
		victim(t, dir)
	}
	dir := t.TempDir()
	const lives = 3
	var flushed [lives]int
	for life := range lives {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), victimDir+"="+dir, fmt.Sprintf("%s_LIFE=%d", victimDir, life))
		out, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if _, err := fmt.Sscan(lines.Text(), &flushed[life]); err != nil {
				t.Fatalf("the process says %q", lines.Text())
			}
			if flushed[life] == 500+life*50 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("it was not killed")
		}
	}
	s, err := sqlite.Open(t.Context(), filepath.Join(dir, "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := serve(t, config(filepath.Join(dir, "spool")), s, nil)
	if err := r.Drain(within(t)); err != nil {
		t.Fatal(err)
	}
	for life, want := range flushed {
		q := recorder.Query{Limit: recorder.PageMax, OldestFirst: true, Session: "s-1"}
		there := map[string]bool{}
		for {
			page, next, err := s.List(t.Context(), q)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range page {
				if there[i.ID] {
					t.Fatalf("%s is there twice", i.ID)
				}
				there[i.ID] = true
			}
			if q.Cursor = next; next == "" {
				break
			}
		}
		for n := range want {
			if id := fmt.Sprintf("%d-%07d", life, n); !there[id] {
				t.Fatalf("life %d flushed %d, and %s is not there", life, want, id)
			}
		}
	}
}
