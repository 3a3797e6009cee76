// The programs of images that were built, run with nothing around them but what the images hold.

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// root is an image on disk, and how to run something in it: as its user and seeing nothing else where this test may do that, and plainly
// where not.
type root struct {
	dir   string
	alone bool
}

// unpack writes an image's files for this machine to a folder, as an engine would.
func unpack(t *testing.T, archive string) root {
	t.Helper()
	images, _ := readBack(t, archive)
	u, ok := images["linux/"+runtime.GOARCH]
	if !ok {
		t.Skipf("%s has no image for %s", archive, runtime.GOARCH)
	}
	// Not t.TempDir: its parents are closed to the image's user.
	dir, err := os.MkdirTemp("", "image-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fsys, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fsys.Close()
	for path, h := range u.heads {
		name := strings.TrimSuffix(path, "/")
		if err := fsys.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, "/") {
			if err := fsys.MkdirAll(name, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := fsys.WriteFile(name, u.files[path], os.FileMode(h.Mode)); err != nil {
			t.Fatal(err)
		}
	}
	for path, h := range u.heads {
		mode := os.FileMode(h.Mode & 0o777)
		if h.Mode&0o1000 != 0 {
			mode |= os.ModeSticky
		}
		if err := os.Chmod(filepath.Join(dir, path), mode); err != nil {
			t.Fatal(err)
		}
		if os.Getuid() == 0 {
			if err := os.Chown(filepath.Join(dir, path), h.Uid, h.Gid); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := root{dir: dir}
	if os.Getuid() == 0 {
		out, err := r.mounted(t.Context(), "exit").CombinedOutput() // a container's root may mount nothing
		if r.alone = err == nil; !r.alone {
			t.Logf("%s runs beside all that is here: %v: %s", archive, err, out)
		}
	}
	return r
}

// mounted runs a script with what programs expect of an engine mounted below its $0. The mounts are the child's own, and go with it.
func (r root) mounted(ctx context.Context, script string, args ...string) *exec.Cmd {
	script = `mkdir -p "$0/proc" "$0/dev" && mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && ` + script
	return exec.CommandContext(ctx, "unshare", append([]string{"--mount", "--pid", "--fork", "--kill-child=KILL", "--propagation", "private", "sh", "-c", script, r.dir}, args...)...)
}

// command runs a program of the image.
func (r root) command(ctx context.Context, args ...string) *exec.Cmd {
	if !r.alone {
		return exec.CommandContext(ctx, r.path(args[0]), args[1:]...)
	}
	cmd := r.mounted(ctx, `exec chroot --userspec=65532:65532 "$0" "$@"`, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/home/nonroot"}
	return cmd
}

// path is where a program of the image finds what the image has.
func (r root) path(name string) string {
	if r.alone {
		return name
	}
	return filepath.Join(r.dir, name)
}

// data are the flags with which a program keeps its data inside the image, as it does by itself where that is all it sees.
func (r root) data(name string) []string {
	if r.alone {
		return nil
	}
	return []string{"--data-dir", r.path(name)}
}

func (r root) output(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := r.command(ctx, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%q: %v: %s", args, err, out)
	}
	return string(out)
}

// start runs a program until the test ends.
func (r root) start(t *testing.T, args ...string) {
	t.Helper()
	cmd := r.command(context.Background(), args...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%q said:\n%s", args, &log)
		}
	})
}

func TestProgramsRun(t *testing.T) {
	dir := os.Getenv("IMAGES")
	if dir == "" {
		t.Skip("IMAGES names no folder with images; `make image-test` builds them and runs this")
	}
	server, node := unpack(t, filepath.Join(dir, "orchestrator.tar")), unpack(t, filepath.Join(dir, "node-agent.tar"))
	for _, c := range []struct {
		root    root
		program string
	}{{server, "/orchestrator"}, {server, "/orchctl"}, {node, "/node-agent"}, {node, "/orchctl"}} {
		if out := c.root.output(t, c.program, "--version"); !strings.HasPrefix(out, c.program[1:]+" ") {
			t.Errorf("%s --version says %q", c.program, out)
		}
	}

	// A whole cluster of the two: the agent's image is one where sessions can run.
	base := freePort(t)
	port := func(n int) string { return fmt.Sprintf("127.0.0.1:%d", base+n) }
	server.start(t, append([]string{
		"/orchestrator", "serve", "--listen-gossip", port(0), "--listen-raft", port(1), "--listen-grpc", port(2), "--listen-link", port(3), "--listen-client", port(4), "--auth-tokens=false",
	}, server.data("/var/lib/orchestrator")...)...)
	node.start(t, append([]string{"/node-agent", "run", "--servers", port(3), "--name", "node-1"}, node.data("/var/lib/node-agent")...)...)
	await(t, "http://"+port(4)+"/ready")
	out := node.output(t, "/orchctl", "--addr", port(2), "--timeout", "30s", "sessions", "spawn", "--name", "version", "--wait", "--", node.path("/orchctl"), "--version")
	if !strings.Contains(out, "spawned on node-1") {
		t.Errorf("spawn says %q", out)
	}
	if out := node.output(t, "/orchctl", "--addr", port(2), "sessions", "logs", "version"); !strings.Contains(out, "orchctl ") {
		t.Errorf("the session's output is %q", out)
	}
}

// freePort finds the first of five.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return min(l.Addr().(*net.TCPAddr).Port, 65000)
}

// await waits until a URL answers well.
func await(t *testing.T, url string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s does not answer: %v", url, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
