// What devices, the kernel and the path show.

package capability

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// probe looks below a root; "/" but for tests.
type probe struct{ root string }

func (p probe) path(name string) string { return filepath.Join(p.root, name) }

func (p probe) exists(name string) bool {
	_, err := os.Stat(p.path(name))
	return err == nil
}

// matches reports whether something has a name of the pattern.
func (p probe) matches(pattern string) bool {
	found, err := filepath.Glob(p.path(pattern))
	return err == nil && len(found) > 0
}

func (p probe) read(name string) string {
	b, err := os.ReadFile(p.path(name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// keys are those found in the file system.
func (p probe) keys() map[string]bool {
	v2, own := p.unified()
	writable := func(dir string) bool { return unix.Access(p.path(dir), unix.W_OK) == nil && p.exists(dir) }
	v1 := p.exists("sys/fs/cgroup/memory") && writable("sys/fs/cgroup/memory")
	usable2 := v2 != "" && writable(filepath.Join(v2, own))
	return map[string]bool{
		GPU:        p.matches("dev/nvidia[0-9]*") || p.matches("dev/dri/renderD*") || p.exists("dev/kfd"),
		PTY:        unix.Access(p.path("dev/ptmx"), unix.R_OK|unix.W_OK) == nil,
		Cgroup:     v1 || usable2,
		CgroupV2:   usable2,
		CgroupKill: usable2 && p.killFile(v2, own),
	}
}

// unified is the mount point of the unified hierarchy and this process's group in it; empty when there is none.
func (p probe) unified() (mount, own string) {
	for _, dir := range []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"} {
		if p.exists(filepath.Join(dir, "cgroup.controllers")) {
			mount = dir
			break
		}
	}
	if mount == "" {
		return "", ""
	}
	for line := range strings.Lines(p.read("proc/self/cgroup")) {
		if group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			own = group
		}
	}
	if !p.exists(filepath.Join(mount, own)) { // of a namespace that is not ours
		own = ""
	}
	return mount, own
}

// killFile reports whether groups have cgroup.kill. The root group has none, so a child is asked there.
func (p probe) killFile(mount, own string) bool {
	return p.exists(filepath.Join(mount, own, "cgroup.kill")) || p.matches(filepath.Join(mount, own, "*", "cgroup.kill"))
}

// memoryLimitBytes is the container's limit; 0 for none.
func (p probe) memoryLimitBytes() int64 {
	mount, own := p.unified()
	for _, name := range []string{filepath.Join(mount, own, "memory.max"), "sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		n, err := strconv.ParseInt(p.read(name), 10, 64)
		if err == nil && n > 0 && n < math.MaxInt64/2 { // version 1 says "none" with a number near the end of the range
			return n
		}
	}
	return 0
}

// cpuLimitMilli is the container's limit in thousandths of a core; 0 for none.
func (p probe) cpuLimitMilli() int64 {
	mount, own := p.unified()
	quota, period, ok := strings.Cut(p.read(filepath.Join(mount, own, "cpu.max")), " ")
	if !ok {
		quota, period = p.read("sys/fs/cgroup/cpu/cpu.cfs_quota_us"), p.read("sys/fs/cgroup/cpu/cpu.cfs_period_us")
	}
	q, errQ := strconv.ParseInt(quota, 10, 64)
	t, errT := strconv.ParseInt(period, 10, 64)
	if errQ != nil || errT != nil || q <= 0 || t <= 0 {
		return 0
	}
	return q * 1000 / t
}

func inPath(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}
