// The stories: programs built once, each script in a directory of its own, side by side.
package stories

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// programs is the directory of the built programs.
var programs string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "orchestrator-stories-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-o", dir, "../../cmd/...")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
			return 1
		}
		programs = dir
		if err := os.Chmod(dir, 0o755); err != nil { // stories run them as somebody else
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", programs+string(filepath.ListSeparator)+os.Getenv("PATH"))
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("NO_COLOR", "1")
			e.Values[worldKey{}] = &world{dir: e.WorkDir, running: map[string]*process{}}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"dev": dev, "ports": ports, "server": server, "agent": agent, "start": background, "signal": signal, "ended": ended,
			"exits": exits, "until": until, "json": inJSON, "get": get, "often": often, "post": post, "good-metrics": goodMetrics(t), "rpc": rpc, "call": call, "link": link, "nobody": nobody, "strangers": strangers, "save": save, "free": free, "letters": letters,
		},
	})
}
