// Cgroups: what this machine allows, one directory a session, and taking it away again.

package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cgroups is where sessions' groups are made; empty fields are what does not work here.
type cgroups struct {
	unified string // version 2: parent of the sessions' groups
	memory2 bool   // unified has the memory controller
	memory1 string // version 1, memory
}

// group is one session's.
type group struct {
	v2 string
	v1 []string
}

const cgroupName = "orchestrator"

// detectCgroups tries in earnest: it makes a group below its own and looks whether it can be used.
func detectCgroups() cgroups {
	var c cgroups
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return c
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return c
	}
	for line := range strings.Lines(string(own)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		switch {
		case f[0] == "0" && f[1] == "":
			if at := cgroupMount(string(mounts), "cgroup2", ""); at != "" {
				c.detectUnified(filepath.Join(at, f[2]))
			}
		case hasController(f[1], "memory"):
			if at := cgroupMount(string(mounts), "cgroup", "memory"); at != "" {
				parent := filepath.Join(at, f[2], cgroupName)
				if usable(parent, "memory.limit_in_bytes") {
					c.memory1 = parent
				}
			}
		}
	}
	return c
}

func (c *cgroups) detectUnified(own string) {
	parent := filepath.Join(own, cgroupName)
	if !usable(parent, "cgroup.kill") {
		return
	}
	c.unified = parent
	// Controllers reach a group only through all above it; a group that holds processes itself, as the agent's own may,
	// refuses. Then there is no memory limit, and Probe says so.
	for _, dir := range []string{own, parent} {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory"), 0)
	}
	b, err := os.ReadFile(filepath.Join(parent, "cgroup.subtree_control"))
	c.memory2 = err == nil && hasController(strings.ReplaceAll(strings.TrimSpace(string(b)), " ", ","), "memory")
}

// usable makes parent and tries a group below it that must have the file.
func usable(parent, file string) bool {
	if err := os.Mkdir(parent, 0o755); err != nil && !os.IsExist(err) {
		return false
	}
	try := filepath.Join(parent, "probe-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(try, 0o755); err != nil && !os.IsExist(err) {
		return false
	}
	defer os.Remove(try)
	f, err := os.OpenFile(filepath.Join(try, file), os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

func hasController(list, want string) bool {
	for c := range strings.SplitSeq(list, ",") {
		if c == want {
			return true
		}
	}
	return false
}

// cgroupMount finds where a hierarchy is mounted; see proc(5) for the line: …root mountpoint options… - type source super.
func cgroupMount(mountinfo, fstype, controller string) string {
	for line := range strings.Lines(mountinfo) {
		left, right, ok := strings.Cut(line, " - ")
		if !ok {
			continue
		}
		l, r := strings.Fields(left), strings.Fields(right)
		if len(l) < 6 || len(r) < 3 || r[0] != fstype {
			continue
		}
		if controller == "" || hasController(r[2], controller) {
			return l[4]
		}
	}
	return ""
}

// make makes the groups of a session; memory limits only what asks for it.
func (c *cgroups) make(name string, memoryBytes int64) (g group, err error) {
	if c.unified != "" {
		g.v2 = filepath.Join(c.unified, name)
		err = mkdir(g.v2)
		if err == nil && memoryBytes > 0 && c.memory2 {
			err = writeLimit(g.v2, "memory.max", memoryBytes)
		}
	}
	if err == nil && memoryBytes > 0 && !c.memory2 && c.memory1 != "" {
		dir := filepath.Join(c.memory1, name)
		g.v1 = append(g.v1, dir)
		if err = mkdir(dir); err == nil {
			err = writeLimit(dir, "memory.limit_in_bytes", memoryBytes)
		}
	}
	if err != nil {
		g.remove()
		return group{}, fmt.Errorf("process: make a cgroup: %w", err)
	}
	return g, nil
}

func mkdir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if os.IsNotExist(err) { // the parent was taken away since the start
		if err = os.MkdirAll(dir, 0o755); err == nil {
			return nil
		}
	}
	if os.IsExist(err) {
		return nil
	}
	return err
}

func writeLimit(dir, file string, n int64) error {
	return os.WriteFile(filepath.Join(dir, file), []byte(strconv.FormatInt(n, 10)), 0)
}

// remove takes the groups away. They are empty, but the kernel may need a moment to see it; one that stays costs
// little, and the next start of the same session and epoch, which never comes, would use it.
func (g group) remove() {
	for _, dir := range append([]string{g.v2}, g.v1...) {
		if dir == "" {
			continue
		}
		for wait := time.Millisecond; wait < 100*time.Millisecond; wait *= 2 {
			if err := os.Remove(dir); err == nil || os.IsNotExist(err) {
				break
			}
			time.Sleep(wait)
		}
	}
}
