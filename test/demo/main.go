// Command demo runs the product's main job for real and measures it: a cluster of three servers and three node agents as
// processes of their own, thirty stateful sessions that are moved from node to node while they work, three thousand messages,
// and in the middle of them the leader, a node agent, and a whole node with its sessions killed with SIGKILL. It ends with a
// table, and with exit code 1 if a message was lost or took effect twice.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/test/ledger"
)

// The size of the demo.
const (
	servers           = 3
	agents            = 3
	sessions          = 30
	messagesPerSender = 100
	demoTimeout       = 3 * time.Minute
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "ledger" {
		if err := ledger.Keep(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "ledger:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	code, err := demo(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	return code
}

// demo starts the cluster, runs the story, and ends everything.
func demo(ctx context.Context) (code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	data, err := os.MkdirTemp("", "orchestrator-demo-")
	if err != nil {
		return 1, err
	}
	defer func() {
		if code == 0 && err == nil {
			_ = os.RemoveAll(data)
		} else {
			fmt.Fprintln(os.Stderr, "demo: the data and logs are kept in", data)
		}
	}()
	base, err := freePorts(servers)
	if err != nil {
		return 1, err
	}
	c, err := startCluster(ctx, filepath.Join(filepath.Dir(self), "orchestrator"), data, base)
	if err != nil {
		return 1, err
	}
	defer c.stop()
	cl, err := c.connect()
	if err != nil {
		return 1, err
	}
	defer cl.Close()
	s := newStory(cl, self, data)
	if err := s.run(ctx); err != nil {
		return 1, err
	}
	return s.report(os.Stdout), nil
}

// cluster is a running `orchestrator dev`.
type cluster struct {
	cmd  *exec.Cmd
	data string
	addr []string
	done chan error
}

// startCluster runs the dev cluster and waits for its ready line.
func startCluster(ctx context.Context, program, data string, base int) (*cluster, error) {
	step("starting %d servers and %d node agents", servers, agents)
	cmd := exec.Command(program, "dev", "--servers", strconv.Itoa(servers), "--agents", strconv.Itoa(agents),
		"--data", data, "--base-port", strconv.Itoa(base), "--restart", "--no-context")
	// A group of its own, and gone with this process whatever happens to it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = prefixed{"  cluster: "}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the cluster: %w; build all programs with `make build`", err)
	}
	c := &cluster{cmd: cmd, data: data, done: make(chan error, 1)}
	ready := make(chan []string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if _, addr, ok := strings.Cut(lines.Text(), "ORCHCTL_ADDR="); ok && strings.HasPrefix(lines.Text(), "ready:") {
				ready <- strings.Split(addr, ",")
			}
		}
		c.done <- cmd.Wait()
	}()
	select {
	case c.addr = <-ready:
		return c, nil
	case err := <-c.done:
		return nil, fmt.Errorf("the cluster ended before it was ready: %w", err)
	case <-ctx.Done():
		c.stop()
		return nil, errors.New("the cluster did not become ready")
	}
}

// stop ends the cluster, and with it every process that it started.
func (c *cluster) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	var err error
	select {
	case err = <-c.done:
	case <-time.After(30 * time.Second):
		_ = c.cmd.Process.Kill()
		err = <-c.done
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo: the cluster ended badly:", err)
	}
}

// connect makes a client with the cluster's own token and authority.
func (c *cluster) connect() (*client.Client, error) {
	token, err := os.ReadFile(filepath.Join(c.data, "admin-token"))
	if err != nil {
		return nil, err
	}
	tlsConfig, err := client.TLSFiles{CA: filepath.Join(c.data, "ca", "ca.pem")}.Load()
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{
		Addresses: c.addr, Token: strings.TrimSpace(string(token)), TLS: tlsConfig, Timeout: time.Minute,
		RetryExhausted: true, UserAgent: "demo",
	})
}

// prefixed writes lines to standard error with something before them.
type prefixed struct{ prefix string }

func (p prefixed) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		fmt.Fprint(os.Stderr, p.prefix, line)
	}
	return len(b), nil
}

func step(format string, args ...any) {
	fmt.Printf("==> "+format+"\n", args...)
}
