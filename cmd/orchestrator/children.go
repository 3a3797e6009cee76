// The processes of a dev cluster: started, watched, and ended together.

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// childGrace is how long a process may take to end after SIGTERM.
	childGrace = 10 * time.Second
	// childRestart is the pause before a process that died is started again.
	childRestart = time.Second
	// lastWordsBytes bounds how much of a log is looked at for its last line.
	lastWordsBytes = 1024
)

// children starts processes and ends them all. The kernel kills them too should this process die: they are started from
// one thread that lives as long as it does.
type children struct {
	out     io.Writer
	restart bool
	// died tells of processes that ended by themselves; allGone is closed over when none is left.
	died    chan error
	allGone chan error

	launch chan func()
	wait   sync.WaitGroup
	mu     sync.Mutex
	live   map[string]*exec.Cmd
	ending bool
	quit   chan struct{}
}

func newChildren(out io.Writer, restart bool) *children {
	c := &children{
		out: out, restart: restart, died: make(chan error, 64), allGone: make(chan error, 1),
		launch: make(chan func()), live: map[string]*exec.Cmd{}, quit: make(chan struct{}),
	}
	go func() { // ends with stop
		runtime.LockOSThread() // Pdeathsig is about the thread that starts a process
		for {
			select {
			case f := <-c.launch:
				f()
			case <-c.quit:
				return
			}
		}
	}()
	return c
}

// start starts a process whose output goes to a file.
func (c *children) start(name, logFile, program string, args ...string) error {
	f, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", name, err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = f, f
	// A group of its own: Ctrl-C at the terminal is for this process, which ends the others in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	select {
	case c.launch <- func() { started <- cmd.Start() }:
	case <-c.quit:
		return errors.New("stopping")
	}
	if err := <-started; err != nil {
		_ = f.Close()
		return fmt.Errorf("start %s: %w", name, err)
	}
	c.mu.Lock()
	c.live[name] = cmd
	c.mu.Unlock()
	c.wait.Go(func() {
		err := cmd.Wait()
		_ = f.Close()
		c.gone(name, logFile, cmd, err, func() error { return c.start(name, logFile, program, args...) })
	})
	return nil
}

func (c *children) gone(name, logFile string, cmd *exec.Cmd, err error, again func() error) {
	c.mu.Lock()
	delete(c.live, name)
	ending, left := c.ending, len(c.live)
	c.mu.Unlock()
	if ending {
		return
	}
	how := "exit status 0"
	if err != nil {
		how = err.Error()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Exited() { // and said why
			if words := lastWords(logFile); words != "" {
				how += ": " + words
			}
		}
	}
	fmt.Fprintf(c.out, "%s (pid %d) died: %s\n", name, cmd.Process.Pid, how)
	select {
	case c.died <- fmt.Errorf("%s died: %s", name, how):
	default:
	}
	if !c.restart {
		if left == 0 {
			c.allGone <- errors.New("every process of the cluster has died")
		}
		return
	}
	select {
	case <-time.After(childRestart):
	case <-c.quit:
		return
	}
	fmt.Fprintf(c.out, "starting %s again\n", name)
	if err := again(); err != nil {
		fmt.Fprintf(c.out, "%v\n", err)
	}
}

// lastWords is the last line of a log, shortened; empty when there is none.
func lastWords(logFile string) string {
	f, err := os.Open(logFile)
	if err != nil {
		return ""
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil && end > lastWordsBytes {
		_, err = f.Seek(-lastWordsBytes, io.SeekEnd)
		if err != nil {
			return ""
		}
	} else if _, err := f.Seek(0, io.SeekStart); err != nil {
		return ""
	}
	b, err := io.ReadAll(io.LimitReader(f, lastWordsBytes))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.ToValidUTF8(lines[len(lines)-1], "")
}

// stop ends all processes, a group after the other: SIGTERM, then after a grace SIGKILL. It returns when none is left.
func (c *children) stop(groups ...[]string) {
	c.mu.Lock()
	c.ending = true

	c.mu.Unlock()
	for _, names := range groups {
		c.end(names)
	}
	c.wait.Wait()
	close(c.quit)
}

// end ends the processes of a group and waits for them.
func (c *children) end(names []string) {
	deadline := time.After(childGrace)
	c.signal(names, syscall.SIGTERM)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for c.signal(names, 0) > 0 {
		select {
		case <-tick.C:
		case <-deadline:
			fmt.Fprintf(c.out, "%d processes do not stop; killing them\n", c.signal(names, syscall.SIGKILL))
		}
	}
}

// signal sends a signal to those that live, and returns how many they are.
func (c *children) signal(names []string, s syscall.Signal) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, name := range names {
		if cmd, ok := c.live[name]; ok {
			n++
			_ = cmd.Process.Signal(s)
		}
	}
	return n
}
