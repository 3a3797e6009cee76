// Measuring the machine.
package health

import (
	"context"
	"fmt"
	"sync"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/mem"
	"golang.org/x/sys/unix"
)

// Sampler measures. Sample may block for as long as the kernel takes.
type Sampler interface {
	Sample(ctx context.Context) Sample
}

// Machine measures the machine it runs on. Its methods may be called from several goroutines.
type Machine struct {
	dataDir string

	mu     sync.Mutex
	before cpu.TimesStat
	seen   bool
}

// NewMachine makes a sampler that watches the disk of a directory. CPU use is counted from here on.
func NewMachine(ctx context.Context, dataDir string) (*Machine, error) {
	m := &Machine{dataDir: dataDir}
	if _, err := m.cpu(ctx); err != nil {
		return nil, fmt.Errorf("health: %w", err)
	}
	return m, nil
}

// Sample measures now; CPU use is that since the call before. What cannot be measured is in Missing.
func (m *Machine) Sample(ctx context.Context) Sample {
	s := Sample{Missing: map[Measure]bool{}}
	var err error
	if s.CPUPercent, err = m.cpu(ctx); err != nil {
		s.Missing[CPU] = true
	}
	if vm, err := mem.VirtualMemoryWithContext(ctx); err != nil {
		s.Missing[Memory] = true
	} else {
		s.MemoryPercent = vm.UsedPercent
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(m.dataDir, &fs); err != nil || fs.Blocks == 0 {
		s.Missing[DiskPercent], s.Missing[DiskBytes] = true, true
	} else {
		s.DiskFreeBytes = fs.Bavail * uint64(fs.Bsize)
		s.DiskFreePercent = 100 * float64(fs.Bavail) / float64(fs.Blocks)
	}
	return s
}

// cpu returns the share of all cores' time that was not idle since the call before. gopsutil's own Percent keeps that
// state in a global, where several callers would shorten each other's interval.
func (m *Machine) cpu(ctx context.Context) (float64, error) {
	times, err := cpu.TimesWithContext(ctx, false)
	if err != nil || len(times) == 0 {
		return 0, fmt.Errorf("read the CPU's times: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now, before, seen := times[0], m.before, m.seen
	m.before, m.seen = now, true
	if !seen {
		return 0, nil
	}
	total := allTime(now) - allTime(before)
	idle := now.Idle + now.Iowait - before.Idle - before.Iowait
	if total <= 0 {
		return 0, nil
	}
	return min(100, max(0, 100*(total-idle)/total)), nil
}

// allTime is the sum of where a CPU's time went. Guests' time is in User and Nice already.
func allTime(t cpu.TimesStat) float64 {
	return t.User + t.System + t.Idle + t.Nice + t.Iowait + t.Irq + t.Softirq + t.Steal
}
