// Every step of a move and every fault: which stories there are.
package sim

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// act is something that goes through steps, each of which is a place for a fault.
type act struct {
	name  string
	begin []string // before the step is armed
	do    []string // what leads to it; in the background where it takes long
	arms  string   // whose step; "a" when empty
	steps []step
	roles map[string]string // who a fault means by SOURCE and TARGET
}

// The sessions of these stories work on something all the time.
var busy = []string{"send a 6", "send a 14 &"}

var acts = []act{
	{name: "migrate", begin: busy, do: []string{"migrate a &"}, steps: allSteps, roles: map[string]string{"SOURCE": "source:a", "TARGET": "target:a"}},
	{
		name: "migrate-cold", begin: busy, do: []string{"migrate a cold &"},
		steps: []step{stepCommitted, stepCapturing, stepStoring, stepStored, stepStopping, stepOrdered, stepRestoring, stepStarted},
		roles: map[string]string{"SOURCE": "source:a", "TARGET": "target:a"},
	},
	{
		name: "pause", begin: busy, do: []string{"pause a &"},
		steps: []step{stepCommitted, stepCopying, stepHolding, stepCapturing, stepStoring, stepStored, stepStopping},
		roles: map[string]string{"SOURCE": "holder:a", "TARGET": ""},
	},
	{
		name: "resume", begin: []string{"send a 6", "wait quiet", "pause a", "wait a PAUSED", "wait quiet"}, do: []string{"send a 5 &"},
		steps: []step{stepOrdered, stepRestoring, stepStarted},
		roles: map[string]string{"SOURCE": "", "TARGET": "holder:a"},
	},
	{
		name: "fork", begin: busy, do: []string{"checkpoint a", "sleep 3s", "fork a b &"}, arms: "*",
		steps: []step{stepRestoring},
		roles: map[string]string{"SOURCE": "holder:a", "TARGET": "holder:b?"},
	},
	{
		name: "rewind", begin: append(busy[:len(busy):len(busy)], "checkpoint a", "sleep 3s"), do: []string{"rewind a 1 &"},
		steps: []step{stepCommitted, stepStopping, stepOrdered, stepRestoring, stepStarted},
		roles: map[string]string{"SOURCE": "", "TARGET": "holder:a"},
	},
	{
		name: "failover", begin: append(busy[:len(busy):len(busy)], "checkpoint a", "sleep 3s"), do: []string{"destroy holder:a"},
		steps: []step{stepOrdered, stepRestoring, stepStarted},
		roles: map[string]string{"SOURCE": "", "TARGET": "holder:a"},
	},
}

// harm is a fault, and what makes it pass. SOURCE and TARGET stand for the nodes; it is not done where there is none.
type harm struct {
	name  string
	lines []string
}

func killed(who string) []string      { return []string{"kill " + who, "sleep 1s", "start " + who} }
func destroyed(who string) []string   { return []string{"destroy " + who} }
func blinks(who string) []string      { return []string{"partition " + who, "sleep 3s", "heal"} }
func partitioned(who string) []string { return []string{"partition " + who, "sleep 40s", "heal"} }

var harms = []harm{
	{"nothing", nil},
	{"source-killed", killed("SOURCE")},
	{"source-lost", destroyed("SOURCE")},
	{"source-cut", partitioned("SOURCE")},
	{"source-blinks", blinks("SOURCE")},
	{"source-stopped", []string{"stop SOURCE 30s", "sleep 31s"}},
	{"source-slow", []string{"delay SOURCE 1500ms", "sleep 30s", "heal"}},
	{"target-killed", killed("TARGET")},
	{"target-lost", destroyed("TARGET")},
	{"target-cut", partitioned("TARGET")},
	{"target-blinks", blinks("TARGET")},
	{"target-stopped", []string{"stop TARGET 30s", "sleep 31s"}},
	{"target-slow", []string{"delay TARGET 1500ms", "sleep 30s", "heal"}},
	{"leader-killed", []string{"kill leader", "sleep 5s", "start all"}},
	{"leader-cut", []string{"partition leader", "sleep 20s", "heal"}},
	{"leader-changes", []string{"transfer"}},
	{"store-hiccup", []string{"store down", "sleep 700ms", "store up"}},
	{"store-down", []string{"store down", "sleep 20s", "store up"}},
	{"store-lost", []string{"store down"}},
	{"session-killed", []string{"die a"}},
	{"user-cancels", []string{"cancel a"}},
	{"user-migrates", []string{"migrate a"}},
	{"user-pauses", []string{"pause a"}},
	{"user-resumes", []string{"resume a"}},
	{"user-rewinds", []string{"rewind a 1"}},
	{"user-checkpoints", []string{"checkpoint a"}},
	{"user-terminates", []string{"terminate a"}},
	{"both-killed", append(killed("SOURCE"), killed("TARGET")...)},
	{"source-and-leader-killed", []string{"kill SOURCE", "kill leader", "sleep 4s", "start all"}},
}

// story is one cell of the table; empty where there is none.
func (a act) story(at step, h harm, every string) string {
	harmed := strings.Join(h.lines, "\n")
	for role, who := range a.roles {
		if who == "" && strings.Contains(harmed, role) {
			return ""
		}
		harmed = strings.ReplaceAll(harmed, role, who)
	}
	if strings.Contains(harmed, "?") { // no role of a table is optional but a fork's, whose client may not have its answer yet
		harmed = strings.ReplaceAll(harmed, "??", "?")
	}
	lines := []string{"cluster servers=3 nodes=4 turn=300ms", "wait leader", "spawn a restart=on-failure every=" + every, "wait a RUNNING"}
	lines = append(lines, a.begin...)
	arms := a.arms
	if arms == "" {
		arms = "a"
	}
	lines = append(lines, "sleep 700ms", fmt.Sprintf("arm %s %s", arms, at))
	lines = append(lines, a.do...)
	lines = append(lines, "await")
	if at == stepStopping {
		lines = append(lines, "sleep 100ms") // its last checkpoint is committed meanwhile
	}
	lines = append(lines, harmed,
		"wait quiet 20m", "check quiet", // with what is lost for good
		"heal", "store up", "start all", "send a 3", "wait quiet 20m", "check quiet", "wait clean 11m")
	return strings.Join(lines, "\n") + "\n"
}

// TestTable tells the stories of the table: all of them with SIM_TABLE=all, those whose name SIM_TABLE is part of, or else a
// sample that has every step and every fault.
func TestTable(t *testing.T) {
	want := os.Getenv("SIM_TABLE")
	number, told := 0, 0
	for _, a := range acts {
		for i, at := range a.steps {
			for j, h := range harms {
				for k, every := range []string{"turn", "7s"} {
					story := a.story(at, h, every)
					name := fmt.Sprintf("%s/%s/%s/%s", a.name, at, h.name, every)
					number++
					switch {
					case story == "":
						continue
					case want == "" && (i+j+k*7)%tableSample != 0:
						continue
					case want != "" && want != "all" && !strings.Contains(name, want):
						continue
					}
					told++
					if failures, _ := tell(t, Options{Seed: uint64(number)}, story); len(failures) > 0 {
						t.Errorf("%s\n%s\n--- replay: SIM_TABLE=%s go test -count=1 -run 'TestTable$' ./sim\n%s",
							name, strings.Join(failures, "\n"), name, shown(story))
					}
				}
			}
		}
	}
	t.Logf("%d stories", told)
}
