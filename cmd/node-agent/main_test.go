// The program from outside: its settings, its refusals and exit codes, and what it links.

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/agent/lease"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/config/configtest"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/session"
	"github.com/neolith/orchestrator/telemetry/metricstest"
)

func TestMain(m *testing.M) {
	shim.MainIfRequested()
	goleak.VerifyTestMain(m)
}

func TestSampleIsTrue(t *testing.T) {
	configtest.Sample(t, "node-agent.yaml", defaults(), "labels", "capabilities.custom")
}

// The agent is on every machine; a node that links raft could form a cluster by accident.
func TestLinksNoRaft(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(out)) {
		for _, no := range []string{"hashicorp/raft", "hashicorp/memberlist", "neolith/orchestrator/cluster", "neolith/orchestrator/leader"} {
			if strings.Contains(dep, no) && !strings.Contains(dep, "api/proto") {
				t.Errorf("node-agent links %s", strings.TrimSpace(dep))
			}
		}
	}
}

// program runs the program to its end.
func program(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	code = run(ctx, args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	data := "--data-dir=" + filepath.Join(dir, "data")
	for name, tc := range map[string]struct {
		args []string
		code int
		says string
	}{
		"unknown key":         {[]string{"run", "-c", file("a.yaml", "name: n\nserver: [x]\n")}, exitcode.Usage, "a.yaml:2: server: unknown key; did you mean servers"},
		"bad value":           {[]string{"run", "-c", file("b.yaml", "sessions:\n  max_starts: many\n")}, exitcode.Usage, "b.yaml:2: sessions.max_starts"},
		"no file":             {[]string{"run", "-c", filepath.Join(dir, "none.yaml")}, exitcode.Usage, "none.yaml"},
		"bad name":            {[]string{"run", "--name", "Node 1"}, exitcode.Usage, "name: \"Node 1\" is not a name"},
		"no servers":          {[]string{"run", "-c", file("c.yaml", "servers: []\n")}, exitcode.Usage, "c.yaml:1: servers: is empty"},
		"server without port": {[]string{"run", "--servers", "10.0.0.1"}, exitcode.Usage, "is not host:port"},
		"in the clear":        {[]string{"run", data, "--servers", "10.0.0.1:8078"}, exitcode.Usage, "give tls.ca_file"},
		"codec":               {[]string{"run", "--link-codec", "xml"}, exitcode.Usage, "use binary or json"},
		"capability":          {[]string{"run", "--capabilities-custom", "gpu=maybe"}, exitcode.Usage, "is not KEY, KEY=true or KEY=false"},
		"tiny log":            {[]string{"run", "--sessions-output-log-bytes", "1KiB"}, exitcode.Usage, "is below 64KiB"},
		"a drain for ever":    {[]string{"run", "--sessions-drain-on-stop", "169h"}, exitcode.Usage, "sessions.drain_on_stop: 169h0m0s is not between 1s and 168h0m0s"},
		"metrics for all":     {[]string{"run", "--metrics-listen", "0.0.0.0:9078"}, exitcode.Usage, "metrics.public: true"},
		"metrics port taken":  {[]string{"run", data, "--metrics-listen", taken.Addr().String()}, exitcode.Usage, "choose another port"},
		"token file":          {[]string{"run", data, "--token-file", filepath.Join(dir, "none")}, exitcode.Usage, "token_file"},
		"token":               {[]string{"run", data, "--token-file", file("token", "hunter2")}, exitcode.Usage, "orch_<id>_<secret>"},
		"half a certificate":  {[]string{"run", data, "--tls-cert-file", file("cert", "x")}, exitcode.Usage, "belong together"},
		"flag":                {[]string{"run", "--nonsense"}, exitcode.Usage, "unknown flag"},
		"command":             {[]string{"dance"}, exitcode.Usage, "unknown command"},
		"subcommand":          {[]string{"config", "dance"}, exitcode.Usage, "unknown command"},
		"newer data":          {[]string{"run", "--data-dir", newer(t)}, exitcode.Usage, "newer release"},
		"data_dir is a file":  {[]string{"run", "--data-dir", file("plain", "")}, exitcode.Usage, "data_dir"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := program(t, tc.args...)
			lines := strings.Split(strings.TrimSpace(stderr), "\n")
			last := lines[len(lines)-1]
			if code != tc.code || !strings.Contains(last, tc.says) || !strings.HasPrefix(last, "node-agent: ") {
				t.Errorf("exit code %d, want %d; said %q, want %q", code, tc.code, stderr, tc.says)
			}
			if strings.Contains(stderr, "hunter2") {
				t.Error("the token is repeated")
			}
		})
	}
}

// What answers each line with itself is a session of the default protocol.
func TestEcho(t *testing.T) {
	cmd, out := echoCommand(), new(bytes.Buffer)
	long := strings.Repeat("x", session.MaxMessageBytes)
	cmd.SetArgs(nil)
	cmd.SetIn(strings.NewReader("hello\n\n" + long + "\n"))
	cmd.SetOut(out)
	if err := cmd.ExecuteContext(t.Context()); err != nil || out.String() != "hello\n\n"+long+"\n" {
		t.Errorf("%v, and %d bytes", err, out.Len())
	}
	cmd.SetIn(strings.NewReader(strings.Repeat("x", maxEchoBytes+1)))
	if err := cmd.ExecuteContext(t.Context()); err == nil {
		t.Error("a line without end is no error")
	}
}

// newer is a data directory of a later release.
func newer(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "node.json"), []byte(`{"version":99,"nodeId":"n"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestAddress: what is shown as the node's address is what was said, or else the machine's own towards its servers.
func TestAddress(t *testing.T) {
	for _, tc := range []struct {
		said    string
		servers []string
		want    string
	}{
		{"", []string{"127.0.0.1:8078"}, "127.0.0.1"},
		{"", []string{"[::1]:1:2", "127.0.0.1:8078"}, "127.0.0.1"},
		{"", nil, ""},
		{"rack-7.example.org", []string{"127.0.0.1:8078"}, "rack-7.example.org"},
	} {
		c := Config{Address: tc.said, Servers: tc.servers}
		if got := c.address(); got != tc.want {
			t.Errorf("said %q, servers %v: %q, want %q", tc.said, tc.servers, got, tc.want)
		}
	}
}

func TestConfigPrint(t *testing.T) {
	t.Setenv("ORCH_LINK_CODEC", "json")
	code, out, stderr := program(t, "config", "print", "--name", "n1", "-c", "node-agent.yaml")
	if code != exitcode.Done {
		t.Fatal(stderr)
	}
	for _, line := range []string{"name: n1 # --name", "codec: json # ORCH_LINK_CODEC", `servers: ["127.0.0.1:8078"] # node-agent.yaml:10`, "cgroups: true # default"} {
		if !strings.Contains(out, line) {
			t.Errorf("%q is missing in:\n%s", line, out)
		}
	}
	for _, args := range [][]string{{"--version"}, {"--help"}, {"run", "--help"}, {"completion", "bash"}} {
		if code, out, _ := program(t, args...); code != exitcode.Done || out == "" {
			t.Errorf("%v: exit code %d", args, code)
		}
	}
}

// An agent without a server is alive and not ready, serves its metrics, keeps its directory to itself, and ends at once.
func TestLife(t *testing.T) {
	cfg := defaults()
	cfg.Name, cfg.DataDir, cfg.Servers = "n1", t.TempDir(), []string{"127.0.0.1:1"}
	cfg.Metrics.Listen = "127.0.0.1:0"
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(auth.Generate().Reveal()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.TokenFile = token
	n, err := newNode(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := client.Get("http://" + n.listener.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if code, body := get("/health"); code != http.StatusOK || !strings.Contains(body, `"linked":false`) {
		t.Errorf("/health: %d %s", code, body)
	}
	if code, body := get("/ready"); code != http.StatusServiceUnavailable || !strings.Contains(body, "no server is linked") {
		t.Errorf("/ready: %d %s", code, body)
	}
	if code, body := get("/metrics"); code != http.StatusOK || !strings.Contains(body, "node_agent_sessions 0") {
		t.Errorf("/metrics: %d", code)
	}
	metricstest.Lint(t, n.registry)
	if code, _, stderr := program(t, "run", "--data-dir", cfg.DataDir); code != exitcode.Refused || !strings.Contains(stderr, fmt.Sprintf("in use by the node-agent with pid %d", os.Getpid())) {
		t.Errorf("a second agent: exit code %d, %s", code, stderr)
	}
	began := time.Now()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the end took %s", d)
	}
}

// What a damaged record leaves alive is found through the shim's own record.
func TestSweepKillsWhatCannotBeAdopted(t *testing.T) {
	dir := t.TempDir()
	if err := sweep(t.Context(), dir); err != nil {
		t.Errorf("of a session that was never started: %v", err)
	}
	leasePath := filepath.Join(dir, "lease")
	w, err := lease.OpenWriter(leasePath)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Renew(lease.Now() + int64(time.Minute)); err != nil {
		t.Fatal(err)
	}
	pid := startSession(t, dir, leasePath)
	if err := sweep(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err == nil {
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); !strings.Contains(string(b), ") Z ") {
			t.Errorf("process %d lives: %s", pid, b)
		}
	}
}
