// The machine's side: scripts, images, kubectl and helm, processes of pods, and connections from a node's network.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// As the chart's README says.
	namespace = "agents"
	release   = "agents"
	full      = "agents-orchestrator" // what objects of the release begin with
	chart     = "deploy/helm/orchestrator"
	// Where the scripts put what: see env.sh.
	controlNetns = "okube-cp"
	controlIP    = "10.60.0.1"
	machineNetns = "okube-" // and the machine's name
	tagA, tagB   = "test-a", "test-b"
	commandLimit = 15 * time.Minute
	// The default of env.sh.
	kubernetesVersion = "v1.37.2"
)

// cluster is the Kubernetes cluster, and the folder of the source.
type cluster struct {
	tools, state string
	values       []string     // of the release, as arguments of helm
	clientOn     atomic.Value // string: the machine from whose network the client dials; its kube-proxy knows the Services
}

func newCluster() *cluster {
	or := func(v, otherwise string) string {
		if v == "" {
			return otherwise
		}
		return v
	}
	wd, err := os.Getwd()
	if err != nil {
		wd = "."
	}
	c := &cluster{
		tools: or(os.Getenv("KUBERNETES_TOOLS"), filepath.Join(wd, ".tools", "kubernetes")),
		state: or(os.Getenv("KUBERNETES_STATE"), filepath.Join(os.TempDir(), "orchestrator-kubernetes")),
	}
	c.clientOn.Store("n1")
	return c
}

// prepare builds what is missing: the tools, the images under two tags, and the ledger that they carry.
func (c *cluster) prepare(ctx context.Context) error {
	step("building the tools that are missing, and the images")
	if err := c.script(ctx, "tools.sh"); err != nil {
		return err
	}
	if err := run1(ctx, "make", "dist/ca-certificates.pem"); err != nil {
		return err
	}
	ledger := filepath.Join("dist", "kubernetes", "ledger")
	if err := run1(ctx, "env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-ldflags=-s -w", "-o", ledger, "./test/kubernetes/ledger"); err != nil {
		return err
	}
	for _, tag := range []string{tagA, tagB} {
		if err := run1(ctx, "go", "run", "./deploy/images", "-out", c.images(tag), "-platforms", "linux/"+runtime.GOARCH, "-version", tag,
			"-add", "node-agent="+ledger+":/ledger"); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) images(tag string) string { return filepath.Join("dist", "kubernetes", tag) }

// up brings the cluster up.
func (c *cluster) up(ctx context.Context) error {
	step("bringing up a control plane and three nodes")
	var tars []string
	for _, tag := range []string{tagA, tagB} {
		for _, name := range []string{"orchestrator.tar", "node-agent.tar"} {
			// The nodes copy all of them into one folder.
			tar := filepath.Join(c.images(tag), tag+"-"+name)
			_ = os.Remove(tar) // it may be there from before
			if err := os.Link(filepath.Join(c.images(tag), name), tar); err != nil {
				return err
			}
			tars = append(tars, tar)
		}
	}
	return c.script(ctx, "up.sh", tars...)
}

// gather keeps what explains a failure: the state of the pods, and their logs.
func (c *cluster) gather(event string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := filepath.Join("dist", "kubernetes", "failed-"+event)
	_ = os.RemoveAll(dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return
	}
	keep := func(name string, args ...string) {
		out, err := c.kubectl(ctx, args...)
		if err != nil {
			out += "\n" + err.Error()
		}
		_ = os.WriteFile(filepath.Join(dir, name), []byte(out), 0o644)
	}
	keep("objects.txt", "-n", namespace, "get", "all,pvc,pdb,events", "-o", "wide")
	members, err := c.orchctl(ctx, "cluster", "members", "-o", "yaml")
	more, err2 := c.orchctl(ctx, "sessions", "list", "-o", "yaml")
	_ = os.WriteFile(filepath.Join(dir, "cluster.txt"), []byte(fmt.Sprint(members, err, more, err2)), 0o644)
	keep("describe.txt", "-n", namespace, "describe", "pods")
	pods, _ := c.kubectl(ctx, "-n", namespace, "get", "pods", "-o", "name")
	for _, pod := range strings.Fields(pods) {
		keep(strings.ReplaceAll(pod, "/", "-")+".log", "-n", namespace, "logs", pod, "--all-containers")
		keep(strings.ReplaceAll(pod, "/", "-")+".previous.log", "-n", namespace, "logs", pod, "--all-containers", "--previous")
	}
	say("what explains it is in %s", dir)
}

// script runs one of the scripts beside this file.
func (c *cluster) script(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join("test", "kubernetes", name), args...)
	cmd.Env = append(os.Environ(), "KUBERNETES_TOOLS="+c.tools, "KUBERNETES_STATE="+c.state)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// run1 runs a command whose output is for people.
func run1(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return nil
}

// tool runs kubectl, helm or orchctl in the control plane's network.
func (c *cluster) tool(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", controlNetns}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(c.state, "admin.kubeconfig"), "HELM_CACHE_HOME="+filepath.Join(c.state, "helm"))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(args[0]), strings.Join(args[1:], " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

func (c *cluster) kubectl(ctx context.Context, args ...string) (string, error) {
	return c.tool(ctx, append([]string{filepath.Join(c.tools, "bin", "kubectl")}, args...)...)
}

func (c *cluster) helm(ctx context.Context, args ...string) (string, error) {
	return c.tool(ctx, append([]string{filepath.Join(c.tools, "bin", "helm"), "-n", namespace}, args...)...)
}

// orchctl runs the program as a person beside the cluster would: with a kubeconfig, and nothing else.
func (c *cluster) orchctl(ctx context.Context, args ...string) (string, error) {
	return c.tool(ctx, append([]string{filepath.Join(c.images(tagA), "bin", "linux_"+runtime.GOARCH, "orchctl"), "--kube-namespace", namespace, "--kube-release", release}, args...)...)
}

// read gets an object's field by a JSONPath.
func (c *cluster) read(ctx context.Context, what, path string) (string, error) {
	return c.kubectl(ctx, "-n", namespace, "get", what, "-o", "jsonpath="+path)
}

// readme is what the chart's README says to type for an installation.
func readme() (lines [][]string, err error) {
	b, err := os.ReadFile(filepath.Join(chart, "README.md"))
	if err != nil {
		return nil, err
	}
	_, text, _ := strings.Cut(string(b), "\n## Install\n")
	text, _, _ = strings.Cut(text, "\n## ")
	for line := range strings.Lines(text) {
		if command, ok := strings.CutPrefix(line, "    "); ok {
			lines = append(lines, strings.Fields(command))
		}
	}
	return lines, nil
}

// typed runs a line of the README.
func (c *cluster) typed(ctx context.Context, words []string, more ...string) (string, error) {
	return c.tool(ctx, append(append([]string{filepath.Join(c.tools, "bin", words[0])}, words[1:]...), more...)...)
}

// object decodes an object, or a list of them.
func (c *cluster) object(ctx context.Context, into any, args ...string) error {
	out, err := c.kubectl(ctx, append([]string{"-n", namespace, "get", "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

// podList is what is read of pods.
type podList struct {
	Items []struct {
		Metadata struct{ Name, UID, DeletionTimestamp string }
		Spec     struct{ NodeName string }
		Status   struct {
			Conditions []struct{ Type, Status string }
		}
	}
}

// pods are those of a component that are ready, by name, with the nodes that they are on.
func (c *cluster) pods(ctx context.Context, component string) (map[string]string, error) {
	var l podList
	if err := c.object(ctx, &l, "pods", "-l", "app.kubernetes.io/instance="+release+",app.kubernetes.io/component="+component); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, p := range l.Items {
		for _, cond := range p.Status.Conditions {
			if cond.Type == "Ready" && cond.Status == "True" && p.Metadata.DeletionTimestamp == "" {
				out[p.Metadata.Name] = p.Spec.NodeName
			}
		}
	}
	return out, nil
}

// awaitPods waits until a component has so many pods, all of them ready.
func (c *cluster) awaitPods(ctx context.Context, component string, n int) error {
	return poll(ctx, 5*time.Minute, fmt.Sprintf("%d %s pods are ready", n, component), func(ctx context.Context) (bool, error) {
		have, err := c.pods(ctx, component)
		return len(have) == n, err
	})
}

// processOf finds the process of a pod's container on this machine, by its command and the host name that it was given.
func processOf(pod, program string) (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		command, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !bytes.HasPrefix(command, []byte(program+"\x00run\x00")) {
			continue // it may have ended
		}
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err == nil && slices.Contains(strings.Split(string(env), "\x00"), "HOSTNAME="+pod) {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, fmt.Errorf("no process %s of pod %s is on this machine", program, pod)
}

func kill(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }

// dial makes a connection from a machine's network. The thread that entered it is given up with its goroutine.
func (c *cluster) dial(ctx context.Context, address string) (net.Conn, error) {
	type made struct {
		conn net.Conn
		err  error
	}
	done := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		conn, err := dialFrom(ctx, machineNetns+c.clientOn.Load().(string), address)
		done <- made{conn, err}
	}()
	m := <-done
	return m.conn, m.err
}

// enter takes the thread of the goroutine, which must be locked to it, into a network.
func enter(netns string) error {
	f, err := os.Open(filepath.Join("/run/netns", netns))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the network of %s: %w", netns, err)
	}
	return nil
}

func dialFrom(ctx context.Context, netns, address string) (net.Conn, error) {
	if err := enter(netns); err != nil {
		return nil, err
	}
	// An address of one family is dialled by this very goroutine.
	var d net.Dialer
	return d.DialContext(ctx, "tcp4", address)
}

// poll asks until the answer is yes; errors of single questions are asked again.
func poll(ctx context.Context, limit time.Duration, what string, yes func(ctx context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		ok, err := yes(ctx)
		if err == nil && ok {
			return nil
		}
		if err != nil {
			last = err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waited until %s: %w", what, ctx.Err()), last)
		}
	}
}
