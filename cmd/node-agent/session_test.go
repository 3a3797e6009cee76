// A real session, for tests.

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/driver/process"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/session"
)

// startSession starts a session in a directory and lets go of it, as an agent does that ends; it returns its pid.
func startSession(t *testing.T, dir, leasePath string) int {
	t.Helper()
	for _, d := range []string{"workspace", "log"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	spec := &session.Spec{Command: []string{"/bin/sh", "-c", "sleep 1000 & wait"}}
	spec.Normalize()
	p, err := process.New(process.Options{Shim: shim.Self(), NoCgroups: true}).Start(t.Context(), driver.Start{
		SessionID: "s", Epoch: 1, Spec: spec, Dir: dir, LeaseFile: leasePath,
		Env: []string{"PATH=/usr/bin:/bin", "ORCH_SESSION_ID=s", "ORCH_SESSION_EPOCH=1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.Release()
	return p.PID()
}
