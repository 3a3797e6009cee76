// Killing whole trees: by the shim whose tree it is, and by an agent that finds a tree without a shim.

package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// killRounds bounds how often one pass looks for processes that were forked while it went on.
const killRounds = 16

// killDescendants kills everything below the shim that it finds. A process to which SIGKILL was sent cannot fork any
// more, so rounds that find nothing new have found all; who must be sure waits for ECHILD.
func killDescendants() {
	seen := make(map[ProcessID]bool)
	for range killRounds {
		found := false
		for _, p := range descendants(os.Getpid()) {
			if !seen[p] {
				seen[p], found = true, true
				p.Kill()
			}
		}
		if !found {
			return
		}
	}
}

// killCgroups kills everything in the cgroups but the calling process, whose forking thread may be in one.
func killCgroups(v2 string, v1 []string) {
	if v2 != "" {
		if os.WriteFile(filepath.Join(v2, "cgroup.kill"), []byte("1"), 0) != nil {
			killMembers(v2)
		}
	}
	for _, dir := range v1 {
		killMembers(dir)
	}
}

func killMembers(dir string) {
	for _, pid := range members(dir) {
		if id, err := Identify(pid); err == nil && pid != os.Getpid() {
			id.Kill()
		}
	}
}

func members(dir string) []int {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var out []int
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			out = append(out, pid)
		}
	}
	return out
}

// oomKills counts the processes that the kernel killed in the cgroups for want of memory.
func oomKills(v2 string, v1 []string) (n int) {
	files := []string{filepath.Join(v2, "memory.events")}
	for _, dir := range v1 {
		files = append(files, filepath.Join(dir, "memory.oom_control"))
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		f := strings.Fields(string(b))
		for i := 0; i+1 < len(f); i += 2 {
			if f[i] == "oom_kill" {
				k, _ := strconv.Atoi(f[i+1])
				n += k
			}
		}
	}
	return n
}

// Sweep kills what a session left behind when its shim was killed, and returns when all of it is dead and two looks in a row found
// nothing more: the main process, the members of its cgroups, and every process with the session's name and epoch in its
// environment (ORCH_SESSION_ID, ORCH_SESSION_EPOCH). Only a process that cleared its environment, detached itself and has no
// cgroup to be found in can escape it.
func Sweep(ctx context.Context, r *Run) error {
	if r.Session == "" {
		return errors.New("shim: sweep: the run record names no session")
	}
	clean := 0
	found := map[ProcessID]bool{}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		left := remains(r)
		for _, p := range left {
			found[p] = true
		}
		// One that dies gives up its environment before it is dead: a look does not find it, and what it holds is still held.
		for p := range found {
			if !p.Alive() {
				delete(found, p)
			}
		}
		if len(left) == 0 && len(found) == 0 {
			clean++
			if clean == 2 {
				return nil
			}
			continue
		}
		clean = 0
		killCgroups(r.Cgroup2, r.Cgroup1)
		for _, p := range left {
			p.Kill()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("shim: sweep session %s: %d processes are left: %w", r.Session, len(left), ctx.Err())
		case <-time.After(wait):
		}
	}
}

func remains(r *Run) []ProcessID {
	var out []ProcessID
	if r.Process.Alive() {
		out = append(out, r.Process)
	}
	for _, dir := range append([]string{r.Cgroup2}, r.Cgroup1...) {
		if dir == "" {
			continue
		}
		for _, pid := range members(dir) {
			if s, err := stat(pid); err == nil && !s.dead() {
				out = append(out, ProcessID{pid, s.start})
			}
		}
	}
	id := []byte("\x00ORCH_SESSION_ID=" + r.Session + "\x00")
	epoch := fmt.Appendf(nil, "\x00ORCH_SESSION_EPOCH=%d\x00", r.Epoch)
	self := os.Getpid()
	for _, pid := range allPIDs() {
		if pid == self {
			continue
		}
		env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err != nil || len(env) == 0 {
			continue
		}
		env = append(append([]byte{0}, env...), 0)
		if bytes.Contains(env, id) && bytes.Contains(env, epoch) {
			if s, err := stat(pid); err == nil && !s.dead() {
				out = append(out, ProcessID{pid, s.start})
			}
		}
	}
	return out
}

// joinCgroup1 moves the calling thread, which must be locked, into version 1 cgroups, so that what it forks begins
// there, and returns how to move it back.
func joinCgroup1(dirs []string) (leave func(), err error) {
	tid := strconv.Itoa(unix.Gettid())
	var joined []string
	leave = func() {
		for _, dir := range joined {
			_ = os.WriteFile(filepath.Join(filepath.Dir(dir), "tasks"), []byte(tid), 0) // else it stays, which only counts one thread more
		}
	}
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte(tid), 0); err != nil {
			leave()
			return nil, fmt.Errorf("join cgroup %s: %w", dir, err)
		}
		joined = append(joined, dir)
	}
	return leave, nil
}
