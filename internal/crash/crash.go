// Package crash makes a node of this machine end as if its machine had lost power: its agent, its sessions and their shims, all at
// once and without a word. It is for demonstrations, measurements and tests.
package crash

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Node kills an agent, the processes of its sessions, and the shims that are their parents. Processes that have ended are no
// error; a pid of 0 is none.
func Node(agent int, sessions []int) error {
	var pids []int
	for _, pid := range append([]int{agent}, sessions...) {
		pids = append(pids, shimOf(pid)...)
	}
	var errs []error
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("kill process %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// shimOf returns the process behind its shim, where its parent is one.
func shimOf(pid int) []int {
	if pid == 0 {
		return nil
	}
	if parent := parentOf(pid); parent > 1 && strings.Contains(commandOf(parent), "shim") {
		return []int{parent, pid} // the shim first: it would report the end
	}
	return []int{pid}
}

// parentOf reads /proc/PID/stat; the name in it may hold anything, so fields are counted from its last bracket.
func parentOf(pid int) int {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(fields[1]) // 0 is nobody's parent
	return ppid
}

func commandOf(pid int) string {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm") // one that has ended has no name
	return string(b)
}
