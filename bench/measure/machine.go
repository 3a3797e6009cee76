// The machine that figures come from.

package measure

import (
	"bufio"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine describes where a report was made.
type Machine struct {
	Cores     int    `json:"cores"`
	CPU       string `json:"cpu"`
	MemoryMiB int    `json:"memoryMiB"`
	Kernel    string `json:"kernel"`
	Go        string `json:"go"`
	// Load is the number of processes that wanted to run, averaged over the minute before: above 0 others work here too.
	Load float64 `json:"loadBefore"`
}

// ThisMachine describes this one; what cannot be read stays empty.
func ThisMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version(), Load: LoadAverage(), MemoryMiB: memory()}
	m.CPU = fileValue("/proc/cpuinfo", "model name")
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return m
}

// LoadAverage is the machine's load over the last minute; 0 when it cannot be read.
func LoadAverage() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	v, _ := strconv.ParseFloat(first, 64)
	return v
}

func memory() int {
	kb, _, _ := strings.Cut(fileValue("/proc/meminfo", "MemTotal"), " ")
	n, _ := strconv.Atoi(kb)
	return n / 1024
}

// fileValue reads the first "key: value" of a file.
func fileValue(file, key string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// Commit is the checkout's commit, with a + when files differ from it; empty outside a checkout.
func Commit() string {
	out, err := exec.Command("git", "describe", "--always", "--abbrev=12", "--dirty=+").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
