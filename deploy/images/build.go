// Compiling the programs for each platform.

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const (
	module = "github.com/neolith/orchestrator"
	// maxBinaryBytes bounds what is read into memory.
	maxBinaryBytes = 512 << 20
	// tags are those of the Makefile, which says what they are for.
	tags = "grpcnotrace"
)

// compile builds all programs into DIR/OS_ARCH. It is run in the root of the source.
func compile(ctx context.Context, platforms []platform, version, dir string) error {
	for _, p := range platforms {
		if err := compileFor(ctx, p, version, filepath.Join(dir, p.os+"_"+p.arch)); err != nil {
			return fmt.Errorf("compile for %s: %w", p, err)
		}
	}
	return nil
}

// compileFor builds the programs for one platform. The node agent carries a shim of its own platform: an overlay puts it where the
// agent embeds it from, so the source tree, and what others build in it, stays as it is.
func compileFor(ctx context.Context, p platform, version, out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	embedded, err := filepath.Abs(filepath.Join("agent", "shim", "embed", "shim"))
	if err != nil {
		return err
	}
	shim, overlay := filepath.Join(out, "shim"), filepath.Join(out, "overlay.json")
	if err := goBuild(ctx, p, "-buildvcs=false", "-ldflags=-s -w", "-o", shim, "./agent/shim/cmd/shim"); err != nil {
		return err
	}
	b, err := json.Marshal(map[string]any{"Replace": map[string]string{embedded: shim}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(overlay, b, 0o644); err != nil {
		return err
	}
	return goBuild(ctx, p, "-tags", tags, "-overlay", overlay, "-buildvcs=false", "-ldflags=-s -w -X "+module+"/telemetry.version="+version,
		"-o", out+string(filepath.Separator), "./cmd/orchestrator", "./cmd/node-agent", "./cmd/orchctl")
}

func goBuild(ctx context.Context, p platform, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.os, "GOARCH="+p.arch)
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// readBinary reads a program.
func readBinary(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxBinaryBytes {
		return nil, fmt.Errorf("%s is not a program of at most %d bytes", path, maxBinaryBytes)
	}
	return os.ReadFile(path)
}
