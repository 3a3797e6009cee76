// Tests of the refusal of process memory, which depends on nothing but the nodes.

package state

import (
	"fmt"
	"strings"
	"testing"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestProcessMemoryIsRefused(t *testing.T) {
	memory := func(s *apiv1.SessionSpec) { s.State = "memory" }
	able := func(name string, is bool, why string) *clusterv1.RegisterNode {
		c := register(name, 1)
		c.Capabilities.CustomCapabilities = map[string]bool{CRIU: is}
		if why != "" {
			c.Capabilities.Absent = map[string]string{CRIU: why}
		}
		return c
	}
	m := newMachine(t)
	says := func(want string) {
		t.Helper()
		if err := m.refusal(fault.FailedPrecondition, spawn("s", "", memory)); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "leave --state away") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	says("no node has the capability criu;")
	m.ok(able("a", false, "criu is not in the PATH"))
	says("no node has the capability criu (a: criu is not in the PATH);")
	m.ok(able("b", true, ""))
	says("1 of 2 nodes have the capability criu (b);")
	for i := range 4 {
		m.ok(able(fmt.Sprint("c", i), true, ""))
	}
	says("5 of 6 nodes have the capability criu (b, c0, c1 and 2 more);")
	m.ok(spawn("s", "", func(s *apiv1.SessionSpec) { s.State = "files" }))
	m.refused(fault.Invalid, spawn("t", "", func(s *apiv1.SessionSpec) { s.State = "brain" }))

	// In one entry with the registration.
	batch := m.do(able("d", true, ""), spawn("u", "", memory))
	if err := batch[1].Err; err == nil || !strings.Contains(err.Error(), "6 of 7 nodes") {
		t.Errorf("%v", err)
	}
	long := able("e", false, strings.Repeat("ä", 1000))
	for i := range 2 * absentMax {
		long.Capabilities.Absent[fmt.Sprintf("key-%02d", i)] = "x"
	}
	m.ok(long)
	if got := m.View().NodeByName("e").Capabilities.Absent; len(got) != absentMax || len(got[0].Value) > absentBytes {
		t.Errorf("%d reasons are kept, the first in %d bytes", len(got), len(got[0].Value))
	}
}
