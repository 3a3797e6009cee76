// Detecting, and merging with what is declared.

package capability

import (
	"context"
	"fmt"
	"maps"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/mem"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// HighMemoryBytes is the memory from which on a node has high-memory.
const HighMemoryBytes = 32 << 30

// The keys that are found out.
const (
	GPU        = "gpu"
	HighMemory = "high-memory"
	PTY        = "pty"
	Cgroup     = "cgroup"
	CgroupV2   = "cgroup-v2"
	CgroupKill = "cgroup-kill"
	Bubblewrap = "bubblewrap"
	CRIU       = "criu"
)

// Declared is what an operator says of a node.
type Declared struct {
	// Custom are keys that are so because the operator says so, also against what is found.
	Custom map[string]bool
	// MaxSessions bounds concurrent sessions; 0 for no bound of the node's own.
	MaxSessions uint32
	// SessionTypes are those to offer; all that the agent has drivers for when empty.
	SessionTypes []string
	// CPUMilli and MemoryBytes are what sessions may reserve; what the machine has when 0.
	CPUMilli    int64
	MemoryBytes int64
}

// Machine is what was found.
type Machine struct {
	CPUMilli    int64 // thousandths of a core
	MemoryBytes int64
	Keys        map[string]bool
	Absent      map[string]string // why, of keys that could be had: criu
}

// Detect looks at this machine.
func Detect(ctx context.Context) (*Machine, error) {
	cores, err := cpu.CountsWithContext(ctx, true)
	if err != nil {
		return nil, fmt.Errorf("capability: count the CPUs: %w", err)
	}
	vm, err := mem.VirtualMemoryWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("capability: read the memory's size: %w", err)
	}
	p := probe{root: "/"}
	m := &Machine{CPUMilli: int64(cores) * 1000, MemoryBytes: int64(vm.Total), Keys: p.keys()}
	if limit := p.cpuLimitMilli(); limit > 0 {
		m.CPUMilli = min(m.CPUMilli, limit)
	}
	if limit := p.memoryLimitBytes(); limit > 0 {
		m.MemoryBytes = min(m.MemoryBytes, limit)
	}
	ctx, cancel := context.WithTimeout(ctx, criuTimeout)
	defer cancel()
	m.Keys[Bubblewrap] = inPath("bwrap")
	why := criu(ctx)
	if m.Keys[CRIU] = why == ""; why != "" {
		m.Absent = map[string]string{CRIU: why}
	}
	return m, nil
}

// Merge makes the node's capabilities of what was declared and found.
func Merge(d Declared, m *Machine) *apiv1.Capabilities {
	c := &apiv1.Capabilities{
		CanSpawnSessions: true, MaxConcurrentSessions: d.MaxSessions, SupportedSessionTypes: d.SessionTypes,
		CpuMilli: m.CPUMilli, MemoryBytes: m.MemoryBytes, CustomCapabilities: map[string]bool{},
	}
	if d.CPUMilli > 0 {
		c.CpuMilli = d.CPUMilli
	}
	if d.MemoryBytes > 0 {
		c.MemoryBytes = d.MemoryBytes
	}
	maps.Copy(c.CustomCapabilities, m.Keys)
	c.CustomCapabilities[HighMemory] = c.MemoryBytes >= HighMemoryBytes
	maps.Copy(c.CustomCapabilities, d.Custom)
	for key, why := range m.Absent {
		if declared, ok := d.Custom[key]; ok && declared {
			continue
		} else if ok {
			why = "the node's configuration says so"
		}
		if c.Absent == nil {
			c.Absent = map[string]string{}
		}
		c.Absent[key] = why
	}
	c.HasGpuAccess, c.HasHighMemory = c.CustomCapabilities[GPU], c.CustomCapabilities[HighMemory]
	return c
}
