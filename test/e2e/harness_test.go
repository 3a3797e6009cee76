// The harness: programs built once, clusters of real processes, a network that can be cut, and an observer.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
)

// programs is the directory of the built programs.
var programs string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "observed" {
		observed(os.Args[2])
		return
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "orchestrator-e2e-")
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
		return m.Run()
	}())
}

// observed is the program of an observed session. It takes a lock that only one living process tree can have, and a
// descendant that has left its process group and ignores SIGTERM shares it: whoever finds the lock taken has found two
// owners. Then it answers each line with a count.
func observed(dir string) {
	name := os.Getenv("ORCH_SESSION_NAME")
	note := func(file string) {
		f, err := os.OpenFile(filepath.Join(dir, file), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err == nil {
			fmt.Fprintf(f, "%s epoch=%s node=%s pid=%d\n", name, os.Getenv("ORCH_SESSION_EPOCH"), os.Getenv("ORCH_NODE"), os.Getpid())
			_ = f.Close()
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil || syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		note("violations")
		os.Exit(3)
	}
	orphan := exec.Command("/bin/sh", "-c", "trap '' TERM; while :; do sleep 1000; done")
	orphan.ExtraFiles = []*os.File{lock}
	orphan.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := orphan.Start(); err != nil {
		note("violations")
		os.Exit(3)
	}
	note("starts")
	// In its workspace it keeps how far it has counted: what is restored counts on from there.
	kept, _ := os.ReadFile("count")
	n, _ := strconv.Atoi(string(kept))
	keep := len(os.Args) > 3 && os.Args[3] == "keeping"
	again := time.NewTicker(10 * time.Millisecond)
	buf := make([]byte, 4096)
	for {
		got, err := os.Stdin.Read(buf)
		for range bytes.Count(buf[:got], []byte("\n")) {
			n++
			for keep && (os.WriteFile("count.new", []byte(strconv.Itoa(n)), 0o600) != nil || os.Rename("count.new", "count") != nil) {
				<-again.C // the disk may be full: it answers when it has kept its count
			}
			fmt.Println(n)
		}
		if err != nil {
			select {}
		}
	}
}

// observer is the directory that observed sessions write to.
type observer struct{ dir string }

func newObserver(t *testing.T) observer { return observer{t.TempDir()} }

func (o observer) command() []string {
	self, _ := os.Executable()
	return []string{self, "observed", o.dir}
}

// keeping is the command of one that keeps its count in its workspace.
func (o observer) keeping() []string { return append(o.command(), "keeping") }

func (o observer) check(t *testing.T) {
	t.Helper()
	if b, err := os.ReadFile(filepath.Join(o.dir, "violations")); err == nil {
		t.Errorf("two owners at one time:\n%s", b)
	}
}

func (o observer) starts() int {
	b, _ := os.ReadFile(filepath.Join(o.dir, "starts"))
	return bytes.Count(b, []byte("\n"))
}

// free reports whether nothing of the session lives.
func (o observer) free(session string) bool {
	f, err := os.OpenFile(filepath.Join(o.dir, session+".lock"), os.O_RDWR, 0o600)
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

// process is a program that a test started.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  string
	args []string
}

// start starts a program; the test ends it.
func start(t *testing.T, name, program string, args ...string) *process {
	t.Helper()
	p := &process{t: t, log: filepath.Join(t.TempDir(), name+".log"), args: append([]string{filepath.Join(programs, program)}, args...)}
	p.run()
	t.Cleanup(func() {
		p.signal(syscall.SIGCONT)
		if t.Failed() && os.Getenv("TEST_LOGS") != "" {
			p.signal(syscall.SIGQUIT) // where its goroutines are, into its log
			_ = p.cmd.Wait()
		}
		p.kill()
		if t.Failed() {
			b, _ := os.ReadFile(p.log)
			if dir := os.Getenv("TEST_LOGS"); dir != "" { // all of it, for whoever looks for the cause
				_ = os.WriteFile(filepath.Join(dir, name+".log"), b, 0o600)
			}
			if len(b) > 6000 {
				b = b[len(b)-6000:]
			}
			t.Logf("%s:\n%s", name, b)
		}
	})
	return p
}

func (p *process) run() {
	p.t.Helper()
	f, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = f, f
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// kill is kill -9, and waits for the end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// cutter forwards connections until it is told to cut them, as a network would: silently, both ways.
type cutter struct {
	listener net.Listener
	to       string
	mu       sync.Mutex
	isCut    bool
	conns    []net.Conn
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{listener: l, to: to}
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", c.to)
			if err != nil {
				_ = in.Close()
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, in, out)
			c.mu.Unlock()
			wait.Go(func() { c.copy(out, in) })
			wait.Go(func() { c.copy(in, out) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		c.mu.Lock()
		for _, conn := range c.conns {
			_ = conn.Close()
		}
		c.mu.Unlock()
		wait.Wait()
	})
	return c
}

func (c *cutter) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		c.mu.Lock()
		drop := c.isCut
		c.mu.Unlock()
		if !drop && n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				_ = from.Close()
				return
			}
		}
		if err != nil {
			if !drop {
				_ = to.Close()
			}
			return
		}
	}
}

func (c *cutter) addr() string { return c.listener.Addr().String() }

func (c *cutter) cut(yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isCut = yes
}

// small is a cluster of one server and some agents, each behind a network of its own that can be cut.
type small struct {
	t        *testing.T
	server   *process
	agents   []*process
	networks []*cutter
	c        *client.Client
	addr     string
	dir      string // below which everything keeps what it keeps
}

// startSmall starts it. Everything is on loopback and open to all.
func startSmall(t *testing.T, agents int, lease time.Duration) *small {
	t.Helper()
	return startSmallWith(t, agents, lease, nil, nil)
}

// startSmallWith starts it with further settings of the server, and with the agents' data in those directories, where there are any.
func startSmallWith(t *testing.T, agents int, lease time.Duration, settings map[string]any, disks []string) *small {
	t.Helper()
	s := &small{t: t}
	base := ports(t, 5)
	at := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(base+i)) }
	dir := t.TempDir()
	for range agents {
		s.networks = append(s.networks, newCutter(t, at(3)))
	}
	server := map[string]any{
		"name": "server-1", "data_dir": filepath.Join(dir, "server"), "auth": map[string]any{"tokens": false},
		"listen": map[string]string{"gossip": at(0), "raft": at(1), "grpc": at(2), "link": at(3), "client": at(4)},
		// Nodes learn this address, and nobody is there: each has only the way through its own network.
		"advertise": map[string]string{"link": "127.0.0.1:9"},
		"link":      map[string]string{"lease": lease.String(), "renew": (lease / 4).String(), "margin": "500ms", "heartbeat": lease.String(), "offline": (3 * lease).String()},
		"log":       map[string]string{"level": "debug"},
	}
	maps.Copy(server, settings)
	s.dir = dir
	s.server = start(t, "server", "orchestrator", "serve", "--config", writeYAML(t, dir, "server.yaml", server))
	s.addr = at(2)
	for i := range agents {
		name := fmt.Sprintf("node-%d", i+1)
		data := filepath.Join(dir, name)
		if disks != nil {
			data = filepath.Join(disks[i], name)
		}
		s.agents = append(s.agents, start(t, name, "node-agent", "run", "--config", writeYAML(t, dir, name+".yaml", map[string]any{
			"name": name, "data_dir": data, "servers": []string{s.networks[i].addr()}, "insecure": true,
			"log": map[string]string{"level": "debug"}, "checkpoints": map[string]string{"serve": "127.0.0.1:0"},
		})))
	}
	c, err := client.New(client.Config{Addresses: []string{s.addr}, Timeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	s.c = c
	s.until("all nodes are linked", func(ctx context.Context) bool { return s.linked(ctx) == agents })
	return s
}

// linked is how many nodes are linked and not lost, however busy they are.
func (s *small) linked(ctx context.Context) int { return linked(ctx, s.c) }

func linked(ctx context.Context, c *client.Client) int {
	r, err := c.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{})
	if err != nil {
		return -1
	}
	n := 0
	for _, node := range r.GetNodes() {
		if node.GetConnection() == "connected" && (node.GetStatus() == apiv1.Node_HEALTHY || node.GetStatus() == apiv1.Node_DEGRADED) {
			n++
		}
	}
	return n
}

// until waits for a condition.
func (s *small) until(what string, yes func(ctx context.Context) bool) {
	s.t.Helper()
	until(s.t, what, yes)
}

func until(t *testing.T, what string, yes func(ctx context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if yes(ctx) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func (s *small) session(id string) *apiv1.Session {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := s.c.Sessions.GetSession(ctx, &apiv1.GetSessionRequest{Id: id})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.GetSession()
}

func (s *small) spawn(spec *apiv1.SessionSpec) *apiv1.Session {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := s.c.Sessions.SpawnSession(ctx, &apiv1.SpawnSessionRequest{Spec: spec, Wait: true})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.GetSession()
}

func (s *small) agentOf(row *apiv1.Session) int {
	s.t.Helper()
	i, err := strconv.Atoi(strings.TrimPrefix(row.GetNode(), "node-"))
	if err != nil {
		s.t.Fatalf("session on node %q", row.GetNode())
	}
	return i - 1
}

// lastPorts is where the last search ended: tests that run side by side must not find the same ports.
var lastPorts struct {
	sync.Mutex
	next int
}

// ports finds n free ports in a row.
func ports(t *testing.T, n int) int {
	t.Helper()
	lastPorts.Lock()
	defer lastPorts.Unlock()
	if lastPorts.next == 0 {
		lastPorts.next = 12000 + os.Getpid()%15000
	}
	for ; lastPorts.next < 32000; lastPorts.next += n {
		base := lastPorts.next
		var held []io.Closer
		for i := range n {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(base+i)))
			if err != nil {
				break
			}
			held = append(held, l)
		}
		for _, l := range held {
			_ = l.Close()
		}
		if len(held) == n {
			lastPorts.next += n
			return base
		}
	}
	t.Fatal("found no free ports")
	return 0
}

func writeYAML(t *testing.T, dir, name string, v any) string {
	t.Helper()
	b, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
