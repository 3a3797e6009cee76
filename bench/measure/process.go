// What the kernel says of a process: processor time and memory.

package measure

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clockTick is the unit of times in /proc; it is 100 Hz on every platform that Go runs on.
const clockTick = 10 * time.Millisecond

// ErrNoProcess is returned for a process that has ended.
var ErrNoProcess = errors.New("measure: there is no such process")

// CPUTime is the processor time, user and system, that a process has used so far.
func CPUTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("%w: %d: %w", ErrNoProcess, pid, err)
	}
	// The second field is the name in parentheses and may hold anything; fields 14 and 15 are counted after it.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("measure: /proc/%d/stat has %d fields", pid, len(fields))
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * clockTick, errors.Join(err1, err2)
}

// RSS is a process's resident memory in bytes.
func RSS(pid int) (int64, error) {
	kb, _, _ := strings.Cut(fileValue(fmt.Sprintf("/proc/%d/status", pid), "VmRSS"), " ")
	n, err := strconv.ParseInt(kb, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %d", ErrNoProcess, pid)
	}
	return n * 1024, nil
}

// OwnCPUTime is the processor time that this process has used so far.
func OwnCPUTime() time.Duration {
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}
