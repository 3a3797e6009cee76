// Measuring the machine.

package health

import (
	"context"
	"fmt"
	"sync"
	"time"

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
	before []reading // of the last SustainedFor, oldest first
}

// reading is where the CPUs' time had gone at an instant.
type reading struct {
	at          time.Time
	total, idle float64 // seconds of all cores
}

// busy is the share of all cores' time that was not idle between two readings, in percent.
func (r reading) busy(since reading) float64 {
	total, idle := r.total-since.total, r.idle-since.idle
	if total <= 0 {
		return 0
	}
	return min(100, max(0, 100*(total-idle)/total))
}

const (
	// minInterval is the shortest time over which a share of it means something: clock ticks are 10 ms.
	minInterval = time.Second
	// maxReadings bounds what is remembered when somebody samples too often.
	maxReadings = 64
)

// NewMachine makes a sampler that watches the disk of a directory. CPU use is counted from here on.
func NewMachine(ctx context.Context, dataDir string) (*Machine, error) {
	m := &Machine{dataDir: dataDir}
	r, err := read(ctx)
	if err != nil {
		return nil, fmt.Errorf("health: %w", err)
	}
	m.before = []reading{r}
	return m, nil
}

// Sample measures now; CPU use is that since the call before. What cannot be measured is in Missing.
func (m *Machine) Sample(ctx context.Context) Sample {
	s := Sample{Missing: map[Measure]bool{}}
	if r, err := read(ctx); err != nil || !m.cpu(r, &s) {
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

// read asks the kernel. gopsutil's own Percent keeps its state in a global, where several callers would shorten each
// other's interval.
func read(ctx context.Context) (reading, error) {
	times, err := cpu.TimesWithContext(ctx, false)
	if err != nil || len(times) == 0 {
		return reading{}, fmt.Errorf("read the CPU's times: %w", err)
	}
	return reading{at: time.Now(), total: allTime(times[0]), idle: times[0].Idle + times[0].Iowait}, nil
}

// cpu fills in CPU use; false when the reading before is too recent.
func (m *Machine) cpu(r reading, s *Sample) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := m.before[len(m.before)-1]
	if r.at.Sub(last.at) < minInterval {
		return false
	}
	for len(m.before) >= maxReadings || len(m.before) > 1 && r.at.Sub(m.before[1].at) >= SustainedFor {
		m.before = m.before[1:]
	}
	s.CPUPercent, s.CPUSustained = r.busy(last), r.busy(m.before[0])
	m.before = append(m.before, r)
	return true
}

// allTime is the sum of where a CPU's time went. Guests' time is in User and Nice already.
func allTime(t cpu.TimesStat) float64 {
	return t.User + t.System + t.Idle + t.Nice + t.Iowait + t.Irq + t.Softirq + t.Steal
}
