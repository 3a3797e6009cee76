// What a story starts: clusters, servers and agents in the background, and their ends.
package stories

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

const (
	// patience is how long a story waits for what must come.
	patience = 45 * time.Second
	// graceful is how long a program may take to end in good order.
	graceful = 15 * time.Second
	// poll is the pause between two looks.
	poll = 30 * time.Millisecond
)

// world is what one story has started.
type world struct {
	dir     string
	base    int // the first of the story's ports; 0 before it asked for some
	running map[string]*process
}

type worldKey struct{}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

// process is a program in the background.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

// needPorts finds the story's ports.
func (w *world) needPorts(ts *testscript.TestScript) {
	if w.base != 0 {
		return
	}
	base, guard, err := takePorts()
	ts.Check(err)
	ts.Defer(func() { _ = guard.Close() })
	w.base = base
	for i, name := range []string{"GOSSIP", "RAFT", "GRPC", "LINK", "CLIENT"} {
		ts.Setenv(name, loopback(base+i))
		ts.Setenv(name+"_PORT", strconv.Itoa(base+i))
	}
}

// start starts a program; what it says goes to $WORK/NAME.log. The story's end ends it.
func (w *world) start(ts *testscript.TestScript, name, program string, args ...string) *process {
	if p := w.running[name]; p != nil && !p.hasEnded() {
		ts.Fatalf("%s runs already", name)
	}
	p := &process{name: name, log: filepath.Join(w.dir, name+".log"), done: make(chan struct{})}
	f, err := os.Create(p.log)
	ts.Check(err)
	defer f.Close()
	p.cmd = exec.Command(filepath.Join(programs, program), args...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = w.dir, f, f
	p.cmd.Env = append(os.Environ(), "HOME="+ts.Getenv("HOME"), "NO_COLOR=1")
	ts.Check(p.cmd.Start())
	go func() { // ends with the process
		_ = p.cmd.Wait() // how it ended is in its state
		close(p.done)
	}()
	w.running[name] = p
	ts.Defer(p.end)
	return p
}

func (p *process) hasEnded() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// end ends it, in good order where it can.
func (p *process) end() {
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(graceful):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// said is what it wrote, the end of it when it is long.
func (p *process) said() []byte {
	b, _ := os.ReadFile(p.log)
	if len(b) > 8000 {
		b = b[len(b)-8000:]
	}
	return b
}

// wait waits for a condition, and fails the story when it does not come, or the process ends before.
func (p *process) wait(ts *testscript.TestScript, what string, yes func() bool) {
	deadline := time.Now().Add(patience)
	for !yes() {
		if p.hasEnded() {
			ts.Fatalf("%s ended before %s:\n%s", p.name, what, p.said())
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: waited in vain until %s:\n%s", p.name, what, p.said())
		}
		time.Sleep(poll)
	}
}

// dev starts a whole cluster.
func dev(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	w := worldOf(ts)
	w.needPorts(ts)
	data := filepath.Join(w.dir, "dev")
	p := w.start(ts, "dev", "orchestrator", append([]string{"dev", "--data", data, "--base-port", strconv.Itoa(w.base), "--no-context"}, args...)...)
	var ready []byte
	p.wait(ts, "it was ready", func() bool {
		for line := range bytes.Lines(p.said()) {
			if bytes.HasPrefix(line, []byte("ready: ")) {
				ready = line
			}
		}
		return ready != nil
	})
	_, address, ok := strings.Cut(strings.TrimSpace(string(ready)), "ORCHCTL_ADDR=")
	if !ok {
		ts.Fatalf("the ready line names no address: %q", ready)
	}
	ts.Setenv("ORCHCTL_ADDR", address)
	ts.Setenv("ORCHCTL_TOKEN_FILE", filepath.Join(data, "admin-token"))
	ts.Setenv("ORCHCTL_TLS_CA", filepath.Join(data, "ca", "ca.pem"))
}

// ports finds the story's ports without starting anything.
func ports(ts *testscript.TestScript, neg bool, _ []string) {
	refuseNot(ts, neg)
	worldOf(ts).needPorts(ts)
}

// server starts one server.
func server(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "server", args, 1)
	w := worldOf(ts)
	w.needPorts(ts)
	data := filepath.Join(w.dir, args[0])
	p := w.start(ts, args[0], "orchestrator", append([]string{
		"serve", "--name=" + args[0], "--data-dir=" + data,
		"--listen-gossip=" + ts.Getenv("GOSSIP"), "--listen-raft=" + ts.Getenv("RAFT"), "--listen-grpc=" + ts.Getenv("GRPC"),
		"--listen-link=" + ts.Getenv("LINK"), "--listen-client=" + ts.Getenv("CLIENT"),
	}, args[1:]...)...)
	scheme, hc := "http://", &http.Client{Timeout: time.Second}
	if strings.Contains(strings.Join(args, " "), "--tls-cert-file") {
		scheme = "https://"
		hc.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // whether it is ready is all that is asked
	}
	defer hc.CloseIdleConnections()
	p.wait(ts, "it was ready", func() bool {
		r, err := hc.Get(scheme + ts.Getenv("CLIENT") + "/ready")
		if err != nil {
			return false
		}
		_ = r.Body.Close()
		_, err = os.Stat(filepath.Join(data, "admin-token"))
		return r.StatusCode == http.StatusOK && err == nil
	})
	ts.Setenv("ORCHCTL_ADDR", ts.Getenv("GRPC"))
	ts.Setenv("ORCHCTL_TOKEN_FILE", filepath.Join(data, "admin-token"))
}

// background starts any program.
func background(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "start", args, 2)
	worldOf(ts).start(ts, args[0], args[1], args[2:]...)
}

// agent starts a node agent with a token of its own.
func agent(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "agent", args, 1)
	w := worldOf(ts)
	token := filepath.Join(w.dir, args[0]+".token")
	if _, err := os.Stat(token); err != nil {
		out, err := w.orchctl(ts, "tokens", "create", args[0], "--role", "node", "-o", "json")
		if err != nil {
			ts.Fatalf("make a token for %s: %v: %s", args[0], err, out)
		}
		secret, err := lookup([]byte(out), "secret")
		ts.Check(err)
		ts.Check(os.WriteFile(token, []byte(secret+"\n"), 0o600))
	}
	p := w.start(ts, args[0], "node-agent", append([]string{
		"run", "--name=" + args[0], "--data-dir=" + filepath.Join(w.dir, args[0]), "--servers=" + ts.Getenv("LINK"), "--token-file=" + token,
	}, args[1:]...)...)
	p.wait(ts, "it was linked", func() bool {
		out, err := w.orchctl(ts, "nodes", "get", args[0], "-o", "json")
		if err != nil {
			return false
		}
		connection, _ := lookup([]byte(out), "connection")
		pid, _ := lookup([]byte(out), "pid")
		return connection == "connected" && pid == strconv.Itoa(p.cmd.Process.Pid)
	})
}

// orchctl runs it without touching what the story sees as the last output.
func (w *world) orchctl(ts *testscript.TestScript, args ...string) (string, error) {
	c := exec.Command(filepath.Join(programs, "orchctl"), args...)
	c.Env = []string{"HOME=" + ts.Getenv("HOME"), "NO_COLOR=1"}
	for _, k := range []string{"ORCHCTL_ADDR", "ORCHCTL_TOKEN_FILE", "ORCHCTL_TLS_CA"} {
		c.Env = append(c.Env, k+"="+ts.Getenv(k))
	}
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, errs.Bytes())
	}
	return string(out), err
}

var signals = map[string]syscall.Signal{
	"INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT,
}

// signal sends a signal to a process of the story, by its name, or to one with a number that the story has learned.
func signal(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "signal", args, 2)
	s, ok := signals[args[1]]
	if !ok {
		ts.Fatalf("there is no signal %s", args[1])
	}
	if p := worldOf(ts).running[args[0]]; p != nil {
		ts.Check(p.cmd.Process.Signal(s))
		return
	}
	pid, err := strconv.Atoi(args[0])
	if err != nil || pid < 2 {
		ts.Fatalf("nothing was started as %s", args[0])
	}
	ts.Check(syscall.Kill(pid, s))
}

// ended waits for the end of a process.
func ended(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "ended", args, 2)
	p := worldOf(ts).running[args[0]]
	if p == nil {
		ts.Fatalf("nothing was started as %s", args[0])
	}
	select {
	case <-p.done:
	case <-time.After(graceful):
		ts.Fatalf("%s does not end:\n%s", args[0], p.said())
	}
	if code := p.cmd.ProcessState.ExitCode(); strconv.Itoa(code) != args[1] {
		ts.Fatalf("%s ended with code %d, not %s:\n%s", args[0], code, args[1], p.said())
	}
}

// free waits until no process works in a directory, or was started with it in its arguments or environment.
func free(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "free", args, 1)
	dir := ts.MkAbs(args[0])
	deadline := time.Now().Add(graceful)
	for {
		left := processesOf(dir)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("processes that are left of %s:\n%s", dir, strings.Join(left, "\n"))
		}
		time.Sleep(poll)
	}
}

// processesOf are the processes that have to do with a directory.
func processesOf(dir string) (found []string) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		if p == "/proc/"+strconv.Itoa(os.Getpid()) {
			continue
		}
		cwd, _ := os.Readlink(filepath.Join(p, "cwd"))
		args, err := os.ReadFile(filepath.Join(p, "cmdline"))
		env, _ := os.ReadFile(filepath.Join(p, "environ"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if cwd == dir || strings.HasPrefix(cwd, dir+"/") || bytes.Contains(args, []byte(dir+"/")) || bytes.Contains(env, []byte(dir+"/")) {
			found = append(found, filepath.Base(p)+" "+strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	return found
}

func refuseNot(ts *testscript.TestScript, neg bool) {
	if neg {
		ts.Fatalf("there is no ! for this command")
	}
}

func needArgs(ts *testscript.TestScript, name string, args []string, n int) {
	if len(args) < n {
		ts.Fatalf("%s needs %d arguments", name, n)
	}
}
