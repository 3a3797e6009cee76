// What moves sessions besides migrate: what each says, refuses, and completes.

package main

import (
	"strings"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client/clienttest"
	"github.com/neolith/orchestrator/internal/exitcode"
)

func TestVerbs(t *testing.T) {
	r := newRig(t)
	r.c.AddNode("node-2")
	id := r.must("sessions spawn --name ledger --checkpoint-every 5m -o name -- ./ledger")
	if got := r.must("sessions get ledger -o json"); !strings.Contains(got, `"checkpointEvery": "5m"`) {
		t.Error(got)
	}
	for _, c := range []struct{ line, want string }{
		{"sessions checkpoint ledger", "session/" + id + " is asked for a checkpoint"},
		{"sessions checkpoint ledger --wait", "session/" + id + " checkpoint 2: turn 0, 2MiB in 6 chunks, 1MiB sent"},
		{"sessions checkpoints ledger -o name", "1\n2"},
		{"sessions pause ledger --wait --reason lunch", "session/" + id + " is PAUSED: lunch"},
		{"sessions pause ledger", "session/" + id + " is PAUSED"},
		{"sessions resume ledger --wait", "session/" + id + " is RUNNING on node-1"},
		{"sessions resume ledger", "session/" + id + " is RUNNING on node-1"},
		{"sessions rewind ledger --to 1 --wait", "session/" + id + " is RUNNING on node-1"},
		{"sessions checkpoints ledger -o name", "1"},
		{"sessions fork ledger --name what-if", "session/" + clienttest.ID("session", 2) + " is RUNNING on node-1"},
		{"sessions fork ledger --name try --count 2 --wait -o name", clienttest.ID("session", 3) + "\n" + clienttest.ID("session", 4)},
		{"sessions get try-2 -o name", clienttest.ID("session", 4)},
		{"sessions fork ledger --idempotency-key k -o name", clienttest.ID("session", 5)},
		{"sessions fork ledger --idempotency-key k -o name", clienttest.ID("session", 5)},
		{"sessions terminate ledger", "session/" + id + " terminated"},
	} {
		if got := r.must(c.line); got != c.want {
			t.Errorf("%s: %q, want %q", c.line, got, c.want)
		}
	}
	for _, c := range []struct{ line, strategy string }{
		{"sessions fork ledger", ""}, {"sessions fork ledger --strategy bin-pack", "bin-pack"},
		{"sessions fork ledger --count 2", "spread"}, {"sessions fork ledger --count 2 --strategy bin-pack", "bin-pack"},
	} {
		for id := range strings.FieldsSeq(r.must(c.line + " -o name")) {
			if got := r.must("sessions get " + id + " -o json"); !strings.Contains(got, `"strategy": "`+c.strategy+`"`) {
				t.Errorf("%s is not placed by %q:\n%s", c.line, c.strategy, got)
			}
		}
	}
	res := r.run("sessions restore ledger --wait")
	if res.code != 0 || res.out != "session/"+id+" is RUNNING on node-1\n" || res.err != "session/"+id+" was TERMINATED; it is rewound to checkpoint 1 of 5m ago, turn 0\n" {
		t.Errorf("%+v", res)
	}
	if got := r.must("sessions get ledger -o json"); !strings.Contains(got, `"epoch": 4`) {
		t.Error("a resume, a rewind and a restore are an epoch each:", got)
	}
}

// TestVerbsToATime: a checkpoint may be named by when it was.
func TestVerbsToATime(t *testing.T) {
	r := newRig(t)
	r.must("sessions spawn --name ledger -- ./ledger")
	for range 3 { // at 3:04:05, 3:05:05, 3:06:05; orchctl's clock is 5 minutes ahead
		r.must("sessions checkpoint ledger")
		r.now = r.now.Add(time.Minute)
	}
	for to, want := range map[string]string{"2026-01-02T03:05:30Z": "2", "7m": "2", "6m": "3", "2026-01-02T04:04:06+01:00": "1", "5m": "3"} {
		id := r.must("sessions fork ledger -o name --from " + to)
		if got := r.must("sessions get " + id + " -o json"); !strings.Contains(got, `"sequence": "`+want+`"`) {
			t.Errorf("from %s: not checkpoint %s: %s", to, want, got)
		}
	}
	if res := r.run("sessions rewind ledger --to 9h"); res.code != exitcode.NotFound || !strings.Contains(res.err, "no checkpoint is kept from 2026-01-01T18:12:05Z or before; see 'orchctl sessions checkpoints") {
		t.Errorf("%+v", res)
	}
}

func TestVerbsRefuse(t *testing.T) {
	r := newRig(t)
	r.must("sessions spawn --name web -- run")
	r.must("sessions spawn --name bare -- run")
	r.must("sessions spawn --name done -- true")
	r.must("sessions spawn --name idle -- run")
	r.must("sessions pause idle")
	r.must("sessions checkpoint web")
	for _, c := range []struct {
		line, want string // want is a part of the one line on standard error
		code       int
	}{
		{"sessions spawn --checkpoint-every soon -- run", `"soon" is neither a duration nor "turn"; use for example 5m`, 2},
		{"sessions spawn --checkpoint-every 1ms -- run", "is below 1s", 2},
		{"sessions migrate web", "no other node fits; add a node", 4},
		{"sessions migrate web --mode warm", "use live or cold", 2},
		{"sessions migrate web --cancel --to node-2", "leave out --to and --mode", 2},
		{"sessions migrate web --cancel", "is not moving; there is nothing to cancel", 4},
		{"sessions migrate idle", "is PAUSED", 4},
		{"sessions migrate nobody", `there is no session "nobody"`, 3},
		{"sessions migrate web web", "got 2 arguments", 2},
		{"sessions checkpoint done", "only what runs can be checkpointed", 4},
		{"sessions checkpoint", "got 0 arguments", 2},
		{"sessions checkpoints nobody", `there is no session "nobody"`, 3},
		{"sessions pause done", "nothing to pause", 4},
		{"sessions pause web idle --idempotency-key k", "is for one session, not 2", 2},
		{"sessions resume done", "see `orchctl sessions restore`", 4},
		{"sessions fork bare", "has no checkpoint yet; make one with", 4},
		{"sessions fork web --from 9", "keeps no checkpoint 9; see", 3},
		{"sessions fork web --from yesterday", "neither a checkpoint's sequence nor a time; use for example 12, 10m,", 2},
		{"sessions fork web --count 0", "--count: 0 is outside 1–1000", 2},
		{"sessions fork web --name bare", "is taken by session", 4},
		{"sessions rewind bare", "has no checkpoint yet", 4},
		{"sessions rewind web --to -1", "neither a checkpoint's sequence nor a time", 2},
		{"sessions restore web", "has not ended; 'orchctl sessions rewind", 4},
		{"sessions restore idle", "is paused; 'orchctl sessions resume", 4},
		{"sessions restore done", "has no checkpoint to go on from; spawn it again, with --checkpoint-every", 4},
		{"sessions export bare", "has no checkpoint yet; make one with", 4},
		{"sessions export web --checkpoint 9", "keeps no checkpoint 9", 3},
		{"sessions import file", "read the archive", 2},
	} {
		res := r.run(c.line)
		if res.code != c.code || !strings.Contains(res.err, c.want) {
			t.Errorf("%s: exit code %d, want %d: %q lacks %q", c.line, res.code, c.code, res.err, c.want)
		}
		if !strings.HasPrefix(res.err, "orchctl: ") || strings.Count(res.err, "\n") != 1 {
			t.Errorf("%s: not one line that begins with orchctl: %q", c.line, res.err)
		}
	}
	// Of several forks those that can be made are, and the code tells of the rest.
	res := r.run("sessions fork web --name bare --count 2 -o name")
	if res.code != 0 || strings.Count(res.out, "\n") != 2 {
		t.Errorf("%+v", res)
	}
	if res := r.run("sessions fork web --name bare --count 3 -o name"); res.code != exitcode.Refused || strings.Count(res.out, "\n") != 1 || !strings.Contains(res.err, "fork web (1 of 3): the name") {
		t.Errorf("%+v", res)
	}
	r.c.Tokens = map[string]string{"look": "viewer"}
	r.must("--token look sessions checkpoints web")
	for _, verb := range []string{"migrate", "checkpoint", "pause", "resume", "fork", "rewind"} {
		if res := r.run("--token look sessions " + verb + " web"); res.code != exitcode.Refused || !strings.Contains(res.err, "role viewer may not call") {
			t.Errorf("%s: %+v", verb, res)
		}
	}
}

// TestVerbsWait: what is waited for may come to something else.
func TestVerbsWait(t *testing.T) {
	r := newRig(t)
	id := r.must("sessions spawn --name web -o name -- run")
	r.must("sessions checkpoint web")
	r.must("sessions pause web")
	r.must("nodes cordon node-1")
	if res := r.run("sessions resume web --wait --timeout 2s"); res.code != exitcode.Unreachable || !strings.Contains(res.err, "is still PENDING (no node fits)") {
		t.Errorf("%+v", res)
	}
	done := make(chan result, 1)
	go func() { done <- r.run("sessions resume web --wait") }()
	r.c.Change(id, func(s *apiv1.Session) {
		s.Phase, s.Exit = apiv1.Session_FAILED, &apiv1.Session_Exit{Cause: "start-failed", Message: "no such file"}
	})
	if res := <-done; res.code != exitcode.Failed && res.code != exitcode.Refused || !strings.Contains(res.err, "FAILED") {
		t.Errorf("%+v", res)
	}
}

// TestVerbsSurviveALostAnswer: a repetition under the same key does nothing twice.
func TestVerbsSurviveALostAnswer(t *testing.T) {
	r := newRig(t)
	r.c.AddNode("node-2")
	r.must("sessions spawn --name web -- run")
	for _, c := range []struct{ method, line string }{
		{"CheckpointSession", "sessions checkpoint web"}, {"MigrateSession", "sessions migrate web --wait"}, {"PauseSession", "sessions pause web"},
		{"ResumeSession", "sessions resume web"}, {"ForkSession", "sessions fork web"}, {"RewindSession", "sessions rewind web --wait"},
	} {
		r.c.Inject(c.method, clienttest.Fault{Err: clienttest.Lost(), After: true})
		r.must(c.line)
		if got := r.c.Calls(c.method); got != 2 {
			t.Errorf("%s: %d calls", c.method, got)
		}
	}
	if got := r.must("sessions get web -o json"); !strings.Contains(got, `"epoch": 4`) { // spawned, moved, resumed, rewound
		t.Error(got)
	}
	if got := r.must("sessions checkpoints web -o name"); got != "1\n2" { // asked for, paused
		t.Error(got)
	}
	if got := r.c.Sessions(); got != 2 {
		t.Error(got, "sessions")
	}
}

func TestVerbsComplete(t *testing.T) {
	r := newRig(t)
	r.c.AddNode("node-2")
	r.must("sessions spawn --name web -- run")
	r.must("sessions checkpoint web")
	r.must("sessions checkpoint web")
	for line, want := range map[string]string{
		"sessions migrate w":                   "web\tRUNNING on node-1\n",
		"sessions migrate web ''":              ":4\n",
		"sessions migrate web --to ''":         "node-1\tHEALTHY, 1 sessions\nnode-2\tHEALTHY, 0 sessions\n:4\n",
		"sessions migrate web --mode ''":       "live\tcopied while it works\ncold\tit stands still meanwhile\n:4\n",
		"sessions rewind web --to ''":          "2\t5m ago, turn 0\n1\t5m ago, turn 0\n:36\n",
		"sessions fork web --from ''":          "2\t5m ago, turn 0\n1\t5m ago, turn 0\n:36\n",
		"sessions pause web w":                 "web\tRUNNING on node-1\n",
		"sessions spawn --checkpoint-every ''": "turn\n30s\n5m\n1h\n:4\n",
	} {
		if res := r.run("__complete " + line); res.code != 0 || !strings.Contains(res.out, want) {
			t.Errorf("%s: %q lacks %q", line, res.out, want)
		}
	}
}
