// The whole program against a cluster in memory: exit codes, refusals, help and completion.

package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/client/clienttest"
	"github.com/neolith/orchestrator/internal/exitcode"
)

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
