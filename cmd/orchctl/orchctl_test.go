// The whole program against a cluster in memory: exit codes, errors, and what each command does.

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/client/clienttest"
	"github.com/neolith/orchestrator/internal/exitcode"
)

func TestMain(m *testing.M) {
	// The library of tunnels through a Kubernetes API server lingers for a second over one that has been closed.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/moby/spdystream.(*Connection).shutdown"))
}

// rig is a cluster in memory and the means to run orchctl against it.
type rig struct {
	t   *testing.T
	c   *clienttest.Cluster
	env []string
	now time.Time
}

// newRig is a cluster with a node, whose clock stands still at a round time.
func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, c: clienttest.New(), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	r.c.Now = func() time.Time { return r.now }
	r.c.AddNode("node-1")
	s := r.c.Serve(t, nil)
	r.env = []string{"HOME=" + t.TempDir(), "ORCHCTL_ADDR=" + s.Address}
	return r
}

type result struct {
	code     int
	out, err string
}

// run runs a command line; words with spaces are given in single quotes.
func (r *rig) run(line string) result { return r.runIn(line, strings.NewReader("")) }

func (r *rig) runIn(line string, stdin io.Reader) result {
	r.t.Helper()
	var out, errs bytes.Buffer
	a := newApp(r.env, stdin, &out, &errs)
	a.now = func() time.Time { return r.now.Add(5 * time.Minute) }
	a.refresh, a.patience = 10*time.Millisecond, 50*time.Millisecond
	code := a.execute(words(line))
	return result{code, out.String(), errs.String()}
}

// must runs what has to succeed, and returns what it printed.
func (r *rig) must(line string) string {
	r.t.Helper()
	res := r.run(line)
	if res.code != 0 {
		r.t.Fatalf("%s: exit code %d: %s", line, res.code, res.err)
	}
	return strings.TrimSpace(res.out)
}

func words(line string) (out []string) {
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	return out
}

func TestExitCodes(t *testing.T) {
	r := newRig(t)
	id := r.must("sessions spawn --name web -o name -- run")
	r.must("sessions spawn --name other -- run")
	for _, c := range []struct {
		line, want string // want is a part of the one line on standard error
		code       int
	}{
		{"sessions list", "", 0},
		{"sessions spawn --wait -- true", "", 0},
		{"sessions spawn --wait -- false", "the session failed: failed, exit code 1; see 'orchctl sessions logs", 1},
		{"sessions", "it needs a command", 2},
		{"nothing", `there is no command "nothing"`, 2},
		{"sesions list", "did you mean sessions?", 2},
		{"sessions get", "got 0 arguments", 2},
		{"sessions get a b", "got 2 arguments", 2},
		{"sessions list --nope", "unknown flag: --nope", 2},
		{"sessions list -o xml", "use table, wide, json, yaml or name", 2},
		{"sessions list --timeout -1s", "--timeout", 2},
		{"sessions list --limit -1", "--limit", 2},
		{"sessions spawn", "spec.command: is empty", 2},
		{"sessions spawn --cpu lots -- run", "--cpu:", 2},
		{"sessions spawn --memory 1X -- run", "--memory:", 2},
		{"sessions spawn --env FOO -- run", "--env:", 2},
		{"sessions spawn --priority urgent -- run", "critical, high, normal or low", 2},
		{"sessions spawn --name UPPER -- run", "spec.name", 2},
		{"sessions logs web --since yesterday", "--since", 2},
		{"queue list --filter colour=red", "--filter", 2},
		{"dlq get web x", "not a message's sequence", 2},
		{"dlq purge", "name a session or a call, or give --all", 2},
		{"tokens create a", "--role is missing", 2},
		{"tokens create a --role king", "is not a role", 2},
		{"--context nowhere sessions list", "there is no context", 2},
		{"--addr nonsense sessions list", "host:port", 2},
		{"--addr 10.1.2.3:8077 sessions list", "no TLS is configured", 2},
		{"--token-file /nonexistent sessions list", "read the token file", 2},
		{"cluster snapshot restore /nonexistent", "read the snapshot", 2},
		{"nodes drain node-9", "there is no node", 3},
		{"nodes drain node-1 --deadline -1s", "--deadline: -1s is no time", 2},
		{"nodes drain node-1", "have no place elsewhere", 4},
		{"sessions spawn --pause-after 1ms -- run", "spec.pause_after: 1ms is below 1s", 2},
		{"sessions spawn --pause-after 5m --protocol none -- run", "takes no messages", 2},
		{"sessions import f.tar.zst --dry-run", "read the archive", 2},
		{"sessions get nobody", `there is no session "nobody"`, 3},
		{"sessions send nobody x", `sessions send nobody: there is no session`, 3},
		{"nodes cordon nobody", `there is no node "nobody"`, 3},
		{"tokens revoke nobody", `there is no token "nobody"`, 3},
		{"cluster remove nobody", `there is no member "nobody"`, 3},
		{"conversations get none", `conversation "none": there is none`, 3},
		{"conversations delete plan --owner nobody", `conversation "plan": there is none`, 3},
		{"conversations list --filter colour=red", "--filter", 2},
		{"dlq get web 7", "no dead letter 7", 3},
		{"context use nobody", `there is no context "nobody"`, 3},
		{"sessions spawn --name web -- run", "is taken by session " + id, 4},
		{"nodes remove node-1", "is HEALTHY", 4},
		{"sessions exec web -- unheard", "was not found", 4},
		{"--addr 127.0.0.1:1 --timeout 300ms sessions list", "no server could be reached: 127.0.0.1:1: connect: connection refused", 5},
		{"sessions exec web -- exit 42", "", 42},
		{"sessions exec web -- kill SIGKILL", "", 137},
	} {
		res := r.run(c.line)
		if res.code != c.code {
			t.Errorf("%s: exit code %d, want %d: %s", c.line, res.code, c.code, res.err)
		}
		if !strings.Contains(res.err, c.want) {
			t.Errorf("%s: %q lacks %q", c.line, res.err, c.want)
		}
		if c.want != "" && (!strings.HasPrefix(res.err, "orchctl: ") || strings.Count(res.err, "\n") != 1) {
			t.Errorf("%s: not one line that begins with orchctl: %q", c.line, res.err)
		}
	}
}

func TestRefusalsOfTheServer(t *testing.T) {
	r := newRig(t)
	r.c.Tokens = map[string]string{"look": "viewer", "all": "admin"}
	if res := r.run("sessions list"); res.code != exitcode.Refused || !strings.Contains(res.err, "give a token with --token-file") {
		t.Error(res)
	}
	if res := r.run("--token look sessions spawn -- run"); res.code != exitcode.Refused || !strings.Contains(res.err, "role viewer may not call SpawnSession") {
		t.Error(res)
	}
	r.must("--token all sessions spawn --name web -- run")
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("look\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.must("--token-file " + file + " sessions get web")
	r.c.Inject("SendMessage", clienttest.Fault{Err: clienttest.Full(1500 * time.Millisecond)})
	if res := r.run("--token all sessions send web x"); res.code != exitcode.Refused || res.err != "orchctl: sessions send web: the mailbox is full; try again in 1.5s\n" {
		t.Error(res)
	}
}

func TestATerminalIsNotSteeredByWhatOthersWrote(t *testing.T) {
	r := newRig(t)
	res := r.run("sessions get '\x1b[2Jx\ny'")
	if strings.ContainsAny(strings.TrimSuffix(res.err, "\n"), "\x1b\n") {
		t.Errorf("%q", res.err)
	}
}

func TestSpawnSaysWhatThereIs(t *testing.T) {
	r := newRig(t)
	id := clienttest.ID("session", 1)
	if got := r.must("sessions spawn --name web --label a=b,c=d --cpu 500m --memory 1GiB --env A=x,y --require gpu,pty --restart always --ttl 1h -- run --flag"); got != "session/"+id+" spawned on node-1" {
		t.Fatal(got)
	}
	got := r.must("sessions get web -o json")
	for _, want := range []string{`"cpuMilli": "500"`, `"memoryBytes": "1073741824"`, `"A": "x,y"`, `"--flag"`, `"gpu"`, `"pty"`, `"c": "d"`, `"restart": "always"`, `"ttl": "3600s"`, `"migration": null`} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nlacks %s", got, want)
		}
	}
	if got := r.must("sessions spawn -o name --idempotency-key k -- run"); got != clienttest.ID("session", 2) {
		t.Fatal(got)
	}
	if got := r.must("sessions spawn -o name --idempotency-key k -- run"); got != clienttest.ID("session", 2) {
		t.Fatal("the same key is another session", got)
	}
	r.must("sessions terminate " + clienttest.ID("session", 2) + " --wait")
	if res := r.run("sessions spawn --wait --idempotency-key k -- run"); res.code != exitcode.Failed || !strings.Contains(res.err, "the session was ended: terminated") {
		t.Errorf("a spawn of what was ended since: %+v", res)
	}
	r.must("nodes cordon node-1")
	if got := r.must("sessions spawn -- run"); !strings.HasSuffix(got, " spawned, pending: no node fits") {
		t.Fatal(got)
	}
	if res := r.run("sessions spawn --wait --timeout 100ms -- run"); res.code != exitcode.Unreachable || !strings.Contains(res.err, "still PENDING (no node fits)") {
		t.Fatal(res)
	}
}

func TestSend(t *testing.T) {
	r := newRig(t)
	r.must("sessions spawn --name web -- run")
	if got := r.must("sessions send web hello"); got != "1" {
		t.Error(got)
	}
	if got := r.must("sessions send web --wait 'how are you'"); got != "echo: how are you" {
		t.Error(got)
	}
	if res := r.runIn("sessions send web --wait -", strings.NewReader("from a pipe\n")); res.out != "echo: from a pipe\n" {
		t.Error(res)
	}
	if res := r.runIn("sessions send web -", strings.NewReader("two\nlines\n")); res.code != exitcode.Usage || !strings.Contains(res.err, "line break") {
		t.Error(res)
	}
	if res := r.runIn("sessions send web -", strings.NewReader(strings.Repeat("x", 300<<10))); res.code != exitcode.Usage || !strings.Contains(res.err, "262144 bytes") {
		t.Error(res)
	}
	if res := r.run("sessions send web --wait poison"); res.code != exitcode.Failed || !strings.Contains(res.err, "dead letter: its turn failed 3 times") {
		t.Error(res)
	}
	if a, b := r.must("sessions send web x --idempotency-key k"), r.must("sessions send web x --idempotency-key k"); a != b {
		t.Error("the same key is another message", a, b)
	}
	// A lost answer: the repetition goes to the same session by its whole id, and is the same message.
	r.c.Inject("SendMessage", clienttest.Fault{Err: clienttest.Lost(), After: true})
	if got := r.must("sessions send web again"); got != "6" {
		t.Error(got)
	}
}

func TestLogs(t *testing.T) {
	r := newRig(t)
	id := r.must("sessions spawn --name web -o name -- run")
	r.c.Log(id, apiv1.LogLine_STDOUT, "one", "two")
	r.c.Log(id, apiv1.LogLine_STDERR, "oops")
	r.c.Notice(id, "lines 1-0 were dropped")
	r.c.Log(id, apiv1.LogLine_STDOUT, "three")
	if res := r.run("sessions logs web"); res.out != "one\ntwo\nthree\n" || !strings.Contains(res.err, "oops\n") {
		t.Errorf("%+v", res)
	}
	if res := r.run("sessions logs web --since 2 --timestamps"); res.out != "2026-01-02T03:04:05.000Z 2 two\n2026-01-02T03:04:05.000Z 4 three\n" {
		t.Errorf("%+v", res)
	}
	if got := r.must("sessions logs web --since 4 -o json"); !strings.HasPrefix(got, `{"number":"4","stream":"STDOUT"`) {
		t.Error(got)
	}
	r.c.Inject("ReadLogs", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1})
	r.c.End(id)
	if res := r.run("sessions logs -f " + id); res.out != "one\ntwo\nthree\n" || strings.Count(res.err, "oops") != 1 {
		t.Errorf("%+v", res)
	}
}

func TestTerminateAsksForTheWholeIDFirst(t *testing.T) {
	r := newRig(t)
	id := r.must("sessions spawn --name web -o name -- run")
	other := r.must("sessions spawn --name other -o name -- run")
	// The cluster in memory refuses a termination by name or prefix.
	if got := r.must("sessions terminate web " + other[:6] + " --wait --reason test"); got != "session/"+id+" terminated\nsession/"+other+" terminated" {
		t.Error(got)
	}
	if res := r.run("sessions terminate nobody " + id); res.code != exitcode.NotFound || !strings.Contains(res.out, id) {
		t.Error("the first failure must not keep the others from being ended", res)
	}
}

func TestPagesAndLimits(t *testing.T) {
	r := newRig(t)
	cl, err := client.New(client.Config{Addresses: []string{strings.TrimPrefix(r.env[1], "ORCHCTL_ADDR=")}})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for range 1005 {
		if _, err := cl.Sessions.SpawnSession(t.Context(), &apiv1.SpawnSessionRequest{Spec: &apiv1.SessionSpec{Command: []string{"run"}}}); err != nil {
			t.Fatal(err)
		}
	}
	for line, want := range map[string]int{"": 1000, "--limit 0": 1005, "--limit 7": 7, "--limit 1003": 1003, "-n elsewhere": 0, "-n elsewhere -A --limit 0": 1005} {
		res := r.run("sessions list -o name " + line)
		if n := strings.Count(res.out, "\n"); n != want {
			t.Errorf("%q: %d lines, want %d", line, n, want)
		}
		if cut := strings.Contains(res.err, "of 1005 shown; --limit 0 shows all"); cut != (want > 0 && want < 1005) {
			t.Errorf("%q: %q", line, res.err)
		}
	}
}

// tap is an output that a test follows while the program runs.
type tap struct {
	mu   sync.Mutex
	text string
	grew chan struct{}
}

func newTap() *tap { return &tap{grew: make(chan struct{}, 1000)} }

func (w *tap) Write(p []byte) (int, error) {
	w.mu.Lock()
	w.text += string(p)
	w.mu.Unlock()
	w.grew <- struct{}{}
	return len(p), nil
}

func (w *tap) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text
}

// until waits for a text.
func (w *tap) until(t *testing.T, text string) {
	t.Helper()
	w.wait(t, text, func(all string) bool { return strings.Contains(all, text) })
}

// untilGone waits until a text is not in what was drawn last.
func (w *tap) untilGone(t *testing.T, text string) {
	t.Helper()
	w.wait(t, "an end of "+text, func(all string) bool {
		frame, drawn := strings.CutSuffix(all, "\x1b[J") // a frame ends with erasing what the one before had below it
		return drawn && !strings.Contains(frame[max(0, strings.LastIndex(frame, "\x1b[J")):], text)
	})
}

func (w *tap) wait(t *testing.T, what string, came func(all string) bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for !came(w.String()) {
		select {
		case <-w.grew:
		case <-limit:
			t.Fatalf("%q did not come in %q", what, w.String())
		}
	}
}

// watch runs a command that follows, until enough has been seen.
func (r *rig) watch(line string, seen func(out *tap)) result {
	r.t.Helper()
	out, errs := newTap(), newTap()
	a := newApp(r.env, strings.NewReader(""), out, errs)
	a.now = func() time.Time { return r.now }
	a.refresh = 5 * time.Millisecond
	root := a.root()
	root.SetArgs(words(line))
	root.SetOut(out)
	root.SetErr(errs)
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan int)
	go func() {
		cmd, err := root.ExecuteContextC(ctx)
		if a.client != nil {
			_ = a.client.Close()
		}
		ended <- a.report(cmd, err)
	}()
	seen(out)
	cancel()
	return result{<-ended, out.String(), errs.String()}
}

func TestWatches(t *testing.T) {
	r := newRig(t)
	id := r.must("sessions spawn --name web -o name -- run")
	res := r.watch("sessions list --watch", func(out *tap) {
		out.until(t, "RUNNING")
		r.c.End(id)
		out.until(t, "COMPLETED")
	})
	if res.code != 0 || strings.Count(res.out, "PHASE") != 1 || res.err != "" {
		t.Errorf("%+v", res)
	}
	// Rows that come later stand under the same headings, though COMPLETED is wider than RUNNING.
	column := -1
	for line := range strings.Lines(res.out) {
		at := strings.Index(line, "node-1")
		if strings.Contains(line, "NODE") {
			at = strings.Index(line, "NODE")
		}
		if column >= 0 && at >= 0 && at != column {
			t.Errorf("the node is at %d, and was at %d:\n%s", at, column, res.out)
		}
		column = max(column, at)
	}
	res = r.watch("nodes list --watch -o json", func(out *tap) {
		out.until(t, `"status":"HEALTHY"`)
		r.c.SetNodeStatus("node-1", apiv1.Node_OFFLINE, "silent for 60 s")
		out.until(t, `"status":"OFFLINE"`)
	})
	if n := strings.Count(res.out, "\n"); res.code != 0 || n != 2 {
		t.Errorf("%d lines: %+v", n, res)
	}
	res = r.watch("events --watch -o json --after 1", func(out *tap) { out.until(t, "session.completed") })
	if res.code != 0 || !strings.HasPrefix(res.out, `{"index":`) {
		t.Errorf("%+v", res)
	}
	res = r.watch("sessions watch "+id+" -o json", func(out *tap) { out.until(t, `"synced":true`) })
	if n := strings.Count(res.out, "\n"); res.code != 0 || n != 2 {
		t.Errorf("%d lines: %+v", n, res)
	}
}

func TestSnapshots(t *testing.T) {
	r := newRig(t)
	r.c.SetSnapshot(bytes.Repeat([]byte("s"), 10<<10))
	file := filepath.Join(t.TempDir(), "state.snapshot")
	if got := r.must("cluster snapshot save " + file); got != "saved 10KiB to "+file {
		t.Error(got)
	}
	if st, err := os.Stat(file); err != nil || st.Size() != 10<<10 || st.Mode().Perm() != 0o600 {
		t.Error(st, err)
	}
	if got := r.must("cluster snapshot restore " + file); got != "restored 7 sessions at index 42" || len(r.c.Restored()) != 10<<10 {
		t.Error(got)
	}
	r.c.Inject("SaveSnapshot", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1})
	whole := file + ".2"
	if res := r.run("cluster snapshot save " + whole); res.code != exitcode.Unreachable || !strings.Contains(res.err, "interrupted after") {
		t.Error(res)
	}
	if _, err := os.Stat(whole); err == nil {
		t.Error("half a snapshot was left behind")
	}
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 1 {
		t.Error("something was left behind", entries, err)
	}
}

func TestDeadLettersTokensAndMembers(t *testing.T) {
	r := newRig(t)
	id := r.must("sessions spawn --name web -o name -- run")
	r.must("sessions send web poison")
	r.must("sessions send web poison")
	r.must("sessions send web poison")
	if got := r.must("dlq retry web 1"); got != "session/"+id+": 1 dead letter(s) back in the mailbox" {
		t.Error(got)
	}
	if got := r.must("dlq purge web 2"); got != "1 dead letter(s) deleted" {
		t.Error(got)
	}
	if got := r.must("dlq list -o name"); got != id+"/3" {
		t.Error(got)
	}
	res := r.run("tokens create ci --role client --ttl 24h")
	if res.code != 0 || !strings.HasPrefix(res.out, "secret-") || strings.Count(res.out, "\n") != 1 || !strings.Contains(res.err, "shown this once") {
		t.Errorf("%+v", res)
	}
	r.must("tokens revoke ci")
	if got := r.must("tokens list -o name"); got != "" {
		t.Error(got)
	}
	if got := r.must("cluster transfer-leadership server-3"); got != "member/server-3 leads" {
		t.Error(got)
	}
	if got := r.must("cluster members --filter role=LEADER -o name"); got != "server-3" {
		t.Error(got)
	}
	if res := r.run("cluster remove server"); res.code != exitcode.Usage || !strings.Contains(res.err, "may mean server-1 or server-2 or server-3") {
		t.Error(res)
	}
	if got := r.must("cluster remove server-2"); got != "member/server-2 removed" {
		t.Error(got)
	}
	r.c.SetNodeStatus("node-1", apiv1.Node_OFFLINE, "")
	r.must("sessions terminate web")
	if got := r.must("nodes remove node-1"); got != "node/node-1 removed" {
		t.Error(got)
	}
}

func TestCompletion(t *testing.T) {
	r := newRig(t)
	id := r.must("sessions spawn --name web -o name -- run")
	for line, want := range map[string]string{
		"sessions get ''":                 "web\tRUNNING on node-1\n" + id + "\tRUNNING on node-1\n:4\n",
		"sessions logs we":                "web\tRUNNING on node-1\n",
		"nodes cordon ''":                 "node-1\tHEALTHY\n:4\n",
		"cluster remove ''":               "server-1\tLEADER\n",
		"sessions list -o ''":             "table\nwide\njson\nyaml\nname\n:4\n",
		"sessions spawn --restart ''":     "never\non-failure\nalways\n:4\n",
		"tokens create --role ''":         "admin\noperator\n",
		"sessions get web ''":             ":4\n",
		"--addr 127.0.0.1:1 nodes get ''": ":4\n",
	} {
		if res := r.run("__complete " + line); res.code != 0 || !strings.Contains(res.out, want) {
			t.Errorf("%s: %q lacks %q", line, res.out, want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if res := r.run("completion " + shell); res.code != 0 || !strings.Contains(res.out, "orchctl") {
			t.Error(shell, res.code, res.err)
		}
	}
}

func TestContextsDecideWhereToGo(t *testing.T) {
	r := newRig(t)
	address := strings.TrimPrefix(r.env[1], "ORCHCTL_ADDR=")
	r.c.Tokens = map[string]string{"good": "admin"}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("good\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.env = r.env[:1] // no ORCHCTL_ADDR
	r.must("context set dev --addr " + address + " --token-file " + token + " -n team")
	r.must("sessions spawn --name web -- run") // the first context is the current one
	if got := r.must("sessions list -A -o json"); !strings.Contains(got, `"namespace": "team"`) {
		t.Error("the context's namespace was not used:", got)
	}
	r.must("context set other --addr 127.0.0.1:1 --use")
	if res := r.run("--timeout 200ms sessions list"); res.code != exitcode.Unreachable {
		t.Error("the current context was not used", res)
	}
	r.must("--context dev sessions list")
	// An address that a context lists is reached with that context's token, however it was given.
	r.must("--addr " + address + " sessions list -A")
	r.env = append(r.env, "ORCHCTL_ADDR="+address)
	r.must("sessions list -A")
	// But not one among addresses that it does not list, and not when another token is given.
	if res := r.run("--addr " + address + ",127.0.0.1:1 sessions list"); res.code != exitcode.Refused {
		t.Error("a context's token went to addresses that are not its own", res)
	}
	if res := r.run("--token bad sessions list"); res.code != exitcode.Refused {
		t.Error(res)
	}
	if got := r.must("context use dev"); got != "context dev is the current one" {
		t.Error(got)
	}
	if got := r.must("context list"); !strings.Contains(got, "*") || strings.Contains(got, "good") {
		t.Error(got)
	}
}

func TestVersionAndTop(t *testing.T) {
	r := newRig(t)
	r.must("sessions spawn --name web -- run")
	if got := r.must("version"); got != "client: "+version()+"\nserver: 1.0.0" {
		t.Error(got)
	}
	if got := r.must("--version"); got != "orchctl version "+version() {
		t.Error(got)
	}
	if res := r.run("version --addr 127.0.0.1:1 --timeout 100ms -o json"); res.code != exitcode.Unreachable || !strings.Contains(res.out, `"server": ""`) {
		t.Error(res)
	}
	top := r.must("top")
	for _, want := range []string{"leader server-1", "nodes    HEALTHY=1", "sessions RUNNING=1", "node-1", "web", "LAG"} {
		if !strings.Contains(top, want) {
			t.Errorf("%s\nlacks %q", top, want)
		}
	}
}

func TestDoctor(t *testing.T) {
	r := newRig(t)
	r.c.Now = func() time.Time { return r.now.Add(5 * time.Minute) } // as orchctl's here
	r.must("sessions spawn --name web -- run")
	good := r.run("doctor")
	if good.code != 0 || strings.Count(good.out, "ok   ") != strings.Count(good.out, "\n") {
		t.Errorf("%+v", good)
	}
	for _, check := range []string{"config", "address", "tls", "token", "leader", "members", "clock", "nodes", "memory", "pending", "lag"} {
		if !strings.Contains(good.out, "ok   "+check) {
			t.Errorf("no check of %s in\n%s", check, good.out)
		}
	}
	r.c.Now = func() time.Time { return r.now }
	r.c.SetNodeStatus("node-1", apiv1.Node_UNHEALTHY, "memory at 99 %")
	r.must("sessions spawn -- run")
	r.c.Change(clienttest.ID("session", 1), func(s *apiv1.Session) {
		s.CheckpointError, s.Lag = "no room in the store", &apiv1.Session_Lag{Turns: 3, Seconds: 65}
	})
	bad := r.run("doctor")
	for _, want := range []string{
		"fail clock    server-1 and this machine are 5m0s apart; set the clocks",
		"fail nodes    none of 1 takes sessions: node-1 is UNHEALTHY (memory at 99 %); start node-agents",
		"warn lag      1 sessions could not be checkpointed the last time; session/" + clienttest.ID("session", 1) + ": no room in the store; at stake: 3 turns, 65s; see 'orchctl",
		"warn pending  1 sessions have waited for a node for more than 1m0s: no node fits; add nodes",
	} {
		if !strings.Contains(bad.out, want) {
			t.Errorf("%s\nlacks %q", bad.out, want)
		}
	}
	if bad.code != exitcode.Failed || !strings.Contains(bad.err, "2 of 11 checks failed") {
		t.Errorf("%d %s", bad.code, bad.err)
	}
	r.c.Tokens = map[string]string{"x": "admin"}
	if res := r.run("doctor"); res.code != exitcode.Failed || !strings.Contains(res.out, "fail token") {
		t.Errorf("%+v", res)
	}
	if res := r.run("doctor --addr 127.0.0.1:1,127.0.0.1:2 -o json"); res.code != exitcode.Failed || strings.Count(res.out, `"result": "warn"`) != 2 || !strings.Contains(res.out, "none of 2 addresses answers") {
		t.Errorf("%+v", res)
	}
}

func TestQuantities(t *testing.T) {
	for in, want := range map[string]int64{"500": 500, "500m": 500, "0.5": 500, "2.0": 2000, "1.2345": 1235, "0": 0, "-1": -1, "x": -1, "1.5m": -1, "": -1} {
		if got, err := parseCPU(in); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("CPU %q: %d, %v", in, got, err)
		}
	}
	for in, want := range map[string]int64{"1024": 1024, "512Mi": 512 << 20, "512MiB": 512 << 20, "1GiB": 1 << 30, "1.5g": 1500000000, "2KB": 2000, "1Ti": 1 << 40, "7b": 7,
		"-1": -1, "1X": -1, "": -1, "9999999999Ti": -1, "Mi": -1} {
		if got, err := parseBytes(in); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("memory %q: %d, %v", in, got, err)
		}
	}
	for in, want := range map[time.Duration]string{-1: "0s", 5 * time.Second: "5s", 119 * time.Second: "119s", 190 * time.Second: "3m10s", 300 * time.Second: "5m",
		45 * time.Minute: "45m", 150 * time.Minute: "2h30m", 20 * time.Hour: "20h", 50 * time.Hour: "2d2h", 240 * time.Hour: "10d"} {
		if got := ageText(in); got != want {
			t.Errorf("age %s: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1KiB", 1536: "1.5KiB", 8 << 30: "8GiB"} {
		if got := bytesText(in); got != want {
			t.Errorf("bytes %d: %s, want %s", in, got, want)
		}
	}
}

func TestEveryCommandHelpsItself(t *testing.T) {
	var walk func(path string, a *app)
	r := newRig(t)
	n := 0
	walk = func(path string, a *app) {
		root := a.root()
		cmd, _, err := root.Find(strings.Fields(path))
		if err != nil {
			t.Fatal(path, err)
		}
		for _, c := range cmd.Commands() {
			sub := strings.TrimSpace(path + " " + c.Name())
			n++
			if c.Short == "" {
				t.Errorf("%s does not say what it does", sub)
			}
			if res := r.run(sub + " --help"); res.code != 0 || !strings.Contains(res.out, "Usage:") || res.err != "" {
				t.Errorf("%s --help: %+v", sub, res)
			}
			walk(sub, a)
		}
	}
	walk("", newApp(nil, nil, io.Discard, io.Discard))
	if n < 40 {
		t.Error("only", n, "commands")
	}
}

func TestSnapshotInspectNeedsNoServer(t *testing.T) {
	r := newRig(t)
	r.env = nil
	file := filepath.Join("..", "..", "cluster", "state", "testdata", "v1.snapshot")
	table := r.must("cluster snapshot inspect " + file)
	for _, want := range []string{"Cluster:", "Version:  1\n", "TABLE", "sessions", "messages"} {
		if !strings.Contains(table, want) {
			t.Errorf("%s\nlacks %q", table, want)
		}
	}
	if got := r.must("cluster snapshot inspect -o json " + file); !strings.Contains(got, `"version": 1,`) || !strings.Contains(got, `"name": "sessions"`) {
		t.Error(got)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2]++
	if res := r.runIn("cluster snapshot inspect -", bytes.NewReader(b)); res.code != exitcode.Usage || !strings.Contains(res.err, "damaged") || strings.Count(res.err, "\n") != 1 {
		t.Errorf("%+v", res)
	}
}

func TestConversations(t *testing.T) {
	r := newRig(t)
	if got := r.must("conversations list -o name --filter provider=zhipuai"); got != "conversation/support:17" {
		t.Error(got)
	}
	if got := r.must("conversations list -o name --owner 'token 4f2a'"); got != "conversation/plan" {
		t.Error(got)
	}
	if got := r.must("conversations delete plan"); got != "conversation/plan deleted" {
		t.Error(got)
	}
	if got := r.must("conversations list -A -o name"); got != "conversation/support:17" {
		t.Error(got)
	}
}
