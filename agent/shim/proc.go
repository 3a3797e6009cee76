// Processes as /proc shows them: who lives, since when, below whom.

package shim

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// procStat is what matters of /proc/PID/stat.
type procStat struct {
	state byte
	ppid  int
	start uint64
}

func (s procStat) dead() bool { return s.state == 'Z' || s.state == 'X' }

// stat reads /proc/PID/stat. The name in it may hold anything, also brackets, so fields are counted from the last one.
func stat(pid int) (procStat, error) {
	var buf [1024]byte
	b, err := readSmall("/proc/"+strconv.Itoa(pid)+"/stat", buf[:])
	if err != nil {
		return procStat{}, err
	}
	i := bytes.LastIndexByte(b, ')')
	if i < 0 || i+2 >= len(b) {
		return procStat{}, errMalformed
	}
	f := bytes.Fields(b[i+2:]) // f[0] is field 3 of proc(5)
	if len(f) < 20 {
		return procStat{}, errMalformed
	}
	s := procStat{state: f[0][0]}
	s.ppid, _ = strconv.Atoi(string(f[1]))
	s.start, err = strconv.ParseUint(string(f[19]), 10, 64)
	return s, err
}

// Identify returns the process that has the pid now.
func Identify(pid int) (ProcessID, error) {
	s, err := stat(pid)
	if err != nil {
		return ProcessID{}, fmt.Errorf("shim: identify process %d: %w", pid, err)
	}
	return ProcessID{PID: pid, Start: s.start}, nil
}

// Alive reports whether this very process still runs; a zombie does not.
func (p ProcessID) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	s, err := stat(p.PID)
	return err == nil && s.start == p.Start && !s.dead()
}

// Kill sends SIGKILL to this very process, and to no other that got its pid.
func (p ProcessID) Kill() {
	if p.PID <= 0 {
		return
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		if err == unix.ENOSYS && p.Alive() { // before Linux 5.3
			_ = unix.Kill(p.PID, unix.SIGKILL)
		}
		return
	}
	defer unix.Close(fd)
	// The descriptor holds on to one process: if that one is ours, the signal cannot hit another.
	if s, err := stat(p.PID); err == nil && s.start == p.Start {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // it fails only when it is gone
	}
}

// descendants returns the live processes below root, without root.
func descendants(root int) []ProcessID {
	var out []ProcessID
	queue := []int{root}
	for len(queue) > 0 {
		parent := queue[0]
		queue = queue[1:]
		kids, ok := children(parent)
		if !ok {
			if parent != root {
				continue // it has just died: its children are the shim's now
			}
			return descendantsByScan(root)
		}
		for _, pid := range kids {
			s, err := stat(pid)
			if err != nil {
				continue
			}
			if !s.dead() {
				out = append(out, ProcessID{pid, s.start})
			}
			queue = append(queue, pid)
		}
	}
	return out
}

// children reads what each thread of a process forked; false when the kernel does not tell.
func children(pid int) ([]int, bool) {
	base := "/proc/" + strconv.Itoa(pid) + "/task/"
	tasks, err := readNames(base)
	if err != nil {
		return nil, false
	}
	var out []int
	for _, t := range tasks {
		b, err := os.ReadFile(base + t + "/children")
		if err != nil {
			if pid == os.Getpid() {
				return nil, false // CONFIG_PROC_CHILDREN is missing
			}
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				out = append(out, n)
			}
		}
	}
	return out, true
}

// descendantsByScan looks at every process of the machine.
func descendantsByScan(root int) []ProcessID {
	kids := make(map[int][]int)
	procs := make(map[int]procStat)
	for _, pid := range allPIDs() {
		if s, err := stat(pid); err == nil {
			procs[pid] = s
			kids[s.ppid] = append(kids[s.ppid], pid)
		}
	}
	var out []ProcessID
	queue := append([]int(nil), kids[root]...)
	for len(queue) > 0 {
		pid := queue[0]
		queue = append(queue[1:], kids[pid]...)
		if s := procs[pid]; !s.dead() {
			out = append(out, ProcessID{pid, s.start})
		}
	}
	return out
}

func allPIDs() []int {
	names, err := readNames("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// readSmall reads the head of a file: three system calls, where package os makes nine for a file of /proc.
func readSmall(path string, buf []byte) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: path, Err: err}
	}
	return buf[:n], nil
}
