// Starting the session's main process.

package shim

import (
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// child is the main process and this side of its pipes.
type child struct {
	pid    int
	stdin  *os.File // nil in an exec
	stdout *os.File // the terminal too
	stderr *os.File // nil with a terminal
}

// start forks the main process on the calling thread, which must be locked and must live as long as the shim: the
// process is killed when it ends (PR_SET_PDEATHSIG).
func startChild(p *Params) (*child, error) {
	c := new(child)
	var theirs []int // descriptors that become 0, 1 and 2
	closeTheirs := func() {
		for _, fd := range theirs {
			unix.Close(fd)
		}
	}
	attr := &syscall.ProcAttr{Dir: p.Dir, Env: p.Env, Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}}
	var err error
	switch {
	case p.Exec:
		attr.Files = []uintptr{0, 1, 2}
		if p.Terminal {
			attr.Sys.Setctty = true
		}
	case p.Terminal:
		var slave int
		if c.stdout, slave, err = openTerminal(p.Columns, p.Rows); err != nil {
			return nil, err
		}
		c.stdin = c.stdout
		theirs = []int{slave}
		attr.Files = []uintptr{uintptr(slave), uintptr(slave), uintptr(slave)}
		attr.Sys.Setctty = true
	default:
		if theirs, err = c.openPipes(); err != nil {
			return nil, err
		}
		attr.Files = []uintptr{uintptr(theirs[0]), uintptr(theirs[1]), uintptr(theirs[2])}
	}
	defer closeTheirs()
	if p.Cgroup2 != "" {
		fd, err := unix.Open(p.Cgroup2, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("open cgroup %s: %w", p.Cgroup2, err)
		}
		defer unix.Close(fd)
		// Begun in the cgroup, not moved there: a move waits for all of the machine's threads, for milliseconds.
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, fd
	}
	if len(p.Cgroup1) > 0 {
		leave, err := joinCgroup1(p.Cgroup1)
		if err != nil {
			c.close()
			return nil, err
		}
		defer leave()
	}
	c.pid, err = syscall.ForkExec(p.Args[0], p.Args, attr)
	if err != nil {
		c.close()
		return nil, fmt.Errorf("run %s in %s: %w", p.Args[0], p.Dir, err)
	}
	return c, nil
}

func (c *child) close() {
	for _, f := range []*os.File{c.stdin, c.stdout, c.stderr} {
		if f != nil {
			f.Close()
		}
	}
}

// openPipes makes three pipes and returns the process's ends.
func (c *child) openPipes() ([]int, error) {
	var fds [3][2]int
	for i := range fds {
		if err := unix.Pipe2(fds[i][:], unix.O_CLOEXEC); err != nil {
			for _, f := range fds[:i] {
				unix.Close(f[0])
				unix.Close(f[1])
			}
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
	}
	ours := func(fd int, name string) *os.File {
		_ = unix.SetNonblock(fd, true) // it fails only for a bad descriptor; the file then blocks a thread, not the shim
		return os.NewFile(uintptr(fd), name)
	}
	c.stdin, c.stdout, c.stderr = ours(fds[0][1], "stdin"), ours(fds[1][0], "stdout"), ours(fds[2][0], "stderr")
	return []int{fds[0][0], fds[1][1], fds[2][1]}, nil
}

// openTerminal makes a pseudo-terminal and returns its master, and the slave as a descriptor.
func openTerminal(columns, rows uint16) (*os.File, int, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("open a terminal: %w", err)
	}
	fail := func(err error) (*os.File, int, error) {
		unix.Close(fd)
		return nil, -1, fmt.Errorf("open a terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return fail(err)
	}
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		return fail(err)
	}
	slave, err := unix.Open("/dev/pts/"+strconv.FormatUint(uint64(n), 10), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	if columns == 0 || rows == 0 {
		columns, rows = 80, 24
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		unix.Close(slave)
		return fail(err)
	}
	return os.NewFile(uintptr(fd), "terminal"), slave, nil
}
