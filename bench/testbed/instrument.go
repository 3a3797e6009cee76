// An instrumented server: the same source, built with one more file that opens a debug port on a Unix socket. The
// product has no such port, and a figure that needs none is measured without.

package testbed

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

//go:embed debugport.go.txt
var debugPort []byte

// debugSocketEnv names the socket to a server.
const debugSocketEnv = "BENCH_DEBUG_SOCKET"

// BuildInstrumented builds the server of the checkout at root into dir, with the debug port, and returns its path.
func BuildInstrumented(ctx context.Context, root, dir string) (string, error) {
	extra := filepath.Join(dir, "debugport.go")
	if err := os.WriteFile(extra, debugPort, 0o600); err != nil {
		return "", err
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, "cmd/orchestrator/debugport.go"): extra}})
	if err != nil {
		return "", err
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		return "", err
	}
	program := filepath.Join(dir, "orchestrator-debug")
	cmd := exec.CommandContext(ctx, "go", "build", "-overlay", overlayFile, "-o", program, "./cmd/orchestrator")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build an instrumented server: %w: %s", err, out)
	}
	return program, nil
}

// DebugEnv is the environment of an instrumented cluster in dir.
func DebugEnv(dir string) []string { return []string{debugSocketEnv + "=" + dir + "/debug-%d.sock"} }

// debug asks the debug port of an instrumented server.
func (s *Server) debug(ctx context.Context, path string, to io.Writer) error {
	socket := s.c.path(fmt.Sprintf("debug-%d.sock", s.number))
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://debug"+path, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return fmt.Errorf("ask %s for %s: %w", s.Name, path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask %s for %s: %s", s.Name, path, resp.Status)
	}
	_, err = io.Copy(to, resp.Body)
	return err
}

// FreeMemory makes an instrumented server collect its garbage and give free memory back to the system.
func (s *Server) FreeMemory(ctx context.Context) error { return s.debug(ctx, "/free", io.Discard) }

// Profile writes a profile of an instrumented server: of its processor time for a while, or with 0 of its heap.
func (s *Server) Profile(ctx context.Context, file string, length time.Duration) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	path := fmt.Sprintf("/debug/pprof/profile?seconds=%d", int(length.Seconds()))
	if length == 0 {
		path = "/debug/pprof/heap?gc=1"
	}
	if err := s.debug(ctx, path, f); err != nil {
		return err
	}
	return f.Close()
}
