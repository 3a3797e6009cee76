// A cluster of real processes, and real clients at it.
package mcp

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cluster is one run of `orchestrator dev`.
type cluster struct {
	t     *testing.T
	base  int
	data  string
	token string
}

// start starts a cluster of three servers, so that clients are at servers that do not lead, too.
func start(t *testing.T) *cluster {
	t.Helper()
	programs := os.Getenv("PROGRAMS")
	if programs == "" {
		t.Skip("PROGRAMS is not set: `make mcp-test` builds the programs, installs the clients, and runs this")
	}
	if _, err := os.Stat("node_modules"); err != nil {
		t.Fatal("the clients are not installed: run `make mcp-test`")
	}
	c := &cluster{t: t, base: freeBase(t), data: filepath.Join(t.TempDir(), "dev")}
	log := filepath.Join(t.TempDir(), "log")
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dev := exec.Command(filepath.Join(programs, "orchestrator"), "dev", "--servers", "3", "--no-context", "--data", c.data, "--base-port", strconv.Itoa(c.base))
	dev.Stdout, dev.Stderr = f, f
	if err := dev.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = dev.Wait() }()
	t.Cleanup(func() {
		_ = dev.Process.Signal(syscall.SIGINT)
		<-ended
		if t.Failed() {
			said, _ := os.ReadFile(log)
			t.Logf("%s", said)
		}
	})
	patience := time.After(2 * time.Minute)
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		if said, _ := os.ReadFile(log); bytes.Contains(said, []byte("ready: ")) {
			break
		}
		select {
		case <-poll.C:
		case <-ended:
			t.Fatal("the cluster ended before it was ready")
		case <-patience:
			t.Fatal("the cluster is not ready")
		}
	}
	token, err := os.ReadFile(filepath.Join(c.data, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	c.token = strings.TrimSpace(string(token))
	return c
}

// freeBase is the first of ports that nobody listens on, below those that are given out by the system.
func freeBase(t *testing.T) int {
	t.Helper()
	for i := range 100 {
		base := 10_000 + (os.Getpid()+i)%400*50
		free := true
		for port := base; port < base+25 && free; port++ {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if free = err == nil; free {
				_ = l.Close()
			}
		}
		if free {
			return base
		}
	}
	t.Fatal("there are no free ports")
	return 0
}

// url is where MCP is at the n-th server, from 0.
func (c *cluster) url(n int) string {
	return "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(c.base+10*n+4)) + "/mcp"
}

// run runs a program of node and returns what it printed.
func (c *cluster) run(command ...string) (stdout, stderr string, err error) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "MCP_URLS="+strings.Join([]string{c.url(0), c.url(1), c.url(2)}, ","), "MCP_TOKEN="+c.token, "NODE_EXTRA_CA_CERTS="+filepath.Join(c.data, "ca", "ca.pem"), "NO_COLOR=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// tools are all that there are.
var tools = []string{"chat", "list_models", "node_list", "session_checkpoint", "session_fork", "session_get", "session_list", "session_migrate", "session_pause",
	"session_resume", "session_send", "session_spawn", "session_terminate"}

// round is what one client saw.
type round struct {
	Way          string
	Server       string
	Capabilities struct {
		Resources struct{ Subscribe bool }
		Tools     map[string]any
	}
	Tools, Templates, Progress, Resources, Directory []string
	Phase, Answer, Slow, Log, Since, File, Bytes     string
	Missing, Elsewhere, Told, Cancelled              string
	Wrong                                            struct {
		IsError bool
		Text    string
	}
	InFlight   int
	Terminated bool
}

func TestClients(t *testing.T) {
	c := start(t)
	t.Run("TypeScript", func(t *testing.T) { testTypeScript(t, c) })
	t.Run("Refused", func(t *testing.T) { testRefused(t, c) })
	t.Run("Inspector", func(t *testing.T) { testInspector(t, c) })
}

// The SDKs: tools, progress, cancelling, resources and news of them, over HTTP with both generations of the protocol and over
// WebSockets with both ways to show a token.
func testTypeScript(t *testing.T, c *cluster) {
	out, errs, err := c.run("node", "client.mjs", "rounds")
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, errs)
	}
	var all []round
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 4 {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, r := range all {
		slices.Sort(r.Tools)
		for what, ok := range map[string]bool{
			"server":       r.Server == "orchestrator" && r.Capabilities.Resources.Subscribe && r.Capabilities.Tools != nil,
			"tools":        slices.Equal(r.Tools, tools),
			"templates":    len(r.Templates) == 2,
			"spawning":     r.Phase == "RUNNING",
			"an answer":    r.Answer == "got hello" && r.Slow == "got slow",
			"progress":     len(r.Progress) > 0 && strings.Contains(r.Progress[0], "session_send has been at it for 8s"),
			"a wrong call": r.Wrong.IsError && strings.Contains(r.Wrong.Text, "id: is a number"),
			"resources":    slices.Equal(r.Resources, []string{"session://ID/log", "session://ID/workspace/"}),
			"the log":      r.Log == "got hello\ngot slow\n" && r.Since == "got slow\n",
			"a directory":  slices.Equal(r.Directory, []string{"file greeting", "directory sub"}),
			"files":        r.File == "kept\n" && r.Bytes == "AAH/",
			"no file":      strings.Contains(r.Missing, `"none": is not in the workspace`),
			"a way out":    strings.Contains(r.Elsewhere, "has a component .."),
			"news":         r.Told == "session://ID/log",
			"cancelling":   strings.HasPrefix(r.Cancelled, "cancelled: ") && r.InFlight == 0,
			"the end":      r.Terminated,
		} {
			if !ok {
				t.Errorf("%s: %s: %+v", r.Way, what, r)
			}
		}
	}
}

// Who has no token, or a wrong one, gets no further than that.
func testRefused(t *testing.T, c *cluster) {
	out, errs, err := c.run("node", "client.mjs", "refused")
	var got map[string]string
	if err != nil || json.Unmarshal([]byte(out), &got) != nil || len(got) != 8 {
		t.Fatalf("%v\n%s%s", err, out, errs)
	}
	for way, said := range got {
		if !strings.Contains(said, "401") && !strings.Contains(said, "no token was given") && !strings.Contains(said, "is unknown here") {
			t.Errorf("%s: %s", way, said)
		}
	}
}

// inspect runs the inspector's command line.
func (c *cluster) inspect(n int, token string, args ...string) (string, error) {
	c.t.Helper()
	command := append([]string{"node_modules/.bin/mcp-inspector", "--cli", c.url(n), "--transport", "http", "--header", "Authorization: Bearer " + token}, args...)
	out, errs, err := c.run(command...)
	if err != nil {
		out += errs
	}
	return out, err
}

func testInspector(t *testing.T, c *cluster) {
	for i, step := range []struct {
		args []string
		want []string
	}{
		{[]string{"--method", "tools/list"}, append(quoted(tools), `"inputSchema"`)},
		{[]string{"--method", "tools/call", "--tool-name", "session_spawn", "--tool-arg", "name=inspected", "--tool-arg", `command=["sh","-c","echo looked at > note; cat"]`, "--tool-arg", "wait=true"}, []string{`"phase": "RUNNING"`}},
		{[]string{"--method", "tools/call", "--tool-name", "session_send", "--tool-arg", "id=inspected", "--tool-arg", "message=ping"}, []string{`"result": "ping"`}},
		{[]string{"--method", "tools/call", "--tool-name", "session_checkpoint", "--tool-arg", "id=inspected"}, []string{`"checkpoint"`}},
		{[]string{"--method", "resources/list"}, []string{`"name": "inspected/log"`, `"name": "inspected/workspace"`}},
		{[]string{"--method", "resources/templates/list"}, []string{"session://{id}/log{?since,tail,namespace}"}},
		{[]string{"--method", "resources/read", "--uri", "session://inspected/log"}, []string{`"text": "ping\n"`}},
		{[]string{"--method", "resources/read", "--uri", "session://inspected/workspace/"}, []string{`\"name\":\"note\"`}},
		{[]string{"--method", "resources/read", "--uri", "session://inspected/workspace/note"}, []string{`"text": "looked at\n"`}},
		{[]string{"--method", "tools/call", "--tool-name", "session_terminate", "--tool-arg", "id=inspected"}, []string{`"structuredContent"`}},
	} {
		out, err := c.inspect(i%3, c.token, step.args...)
		if err != nil {
			t.Fatalf("%q: %v\n%s", step.args, err, out)
		}
		for _, want := range step.want {
			if !strings.Contains(out, want) {
				t.Errorf("%q: there is no %s in\n%s", step.args, want, out)
			}
		}
	}
	if out, err := c.inspect(0, "orch_nobody", "--method", "tools/list"); err == nil || !strings.Contains(out, "token") {
		t.Errorf("a wrong token: %v\n%s", err, out)
	}
}

func quoted(words []string) (out []string) {
	for _, w := range words {
		out = append(out, strconv.Quote(w))
	}
	return out
}
