// The agent's side: launching a shim, and finding one that an earlier agent launched.

package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLives is returned by TryLock while a shim of the directory lives.
var ErrLives = errors.New("shim: one lives in this directory")

// Program is what to execute as a shim.
type Program struct {
	Path string
	Args []string // after the name
}

// Self is the calling program as a shim; its main must call MainIfRequested first.
func Self() Program { return Program{Path: "/proc/self/exe", Args: []string{HiddenArg}} }

// shimEnv is the whole environment of a shim: nothing of the agent's. It has little to do and shall take little memory.
// What people set to look into Go programs reaches it.
func shimEnv() []string {
	env := []string{"GOMAXPROCS=1", "GOGC=50", "GOMEMLIMIT=48MiB", "GOTRACEBACK=single"}
	for _, k := range []string{"GOCOVERDIR", "GORACE"} {
		if v := os.Getenv(k); v != "" {
			env = append(env, k+"="+v)
		}
	}
	// GOMAXPROCS is given: nobody needs to read the cgroup's share of processors, at the start and ever after.
	debug := "containermaxprocs=0,updatemaxprocs=0"
	if v := os.Getenv("GODEBUG"); v != "" {
		debug += "," + v
	}
	return append(env, "GODEBUG="+debug)
}

// TryLock takes the lock of a shim's directory, which proves that no shim lives there, or returns ErrLives.
func TryLock(dir string) (*os.File, error) {
	fd, err := unix.Open(filepath.Join(dir, StateName), unix.O_RDWR|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("shim: open the lock in %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), StateName)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, ErrLives
		}
		return nil, fmt.Errorf("shim: lock %s: %w", dir, err)
	}
	return f, nil
}

// Unlock gives back what TryLock or WaitLock took. Closing alone would leave it to a process that is being forked in this
// moment, until that one executes its program.
func Unlock(lock *os.File) {
	_ = unix.Flock(int(lock.Fd()), unix.LOCK_UN) // closing unlocks too, only later
	lock.Close()
}

// WaitLock waits until no shim lives in the directory and takes its lock.
func WaitLock(ctx context.Context, dir string) (*os.File, error) {
	for wait := 200 * time.Microsecond; ; wait = min(2*wait, 50*time.Millisecond) {
		f, err := TryLock(dir)
		if !errors.Is(err, ErrLives) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrLives, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// Launched is a shim that was just launched.
type Launched struct {
	Client  *Client
	Process *os.Process // the shim; who launched it must wait for it
	Status  Status
}

// Launch starts a shim in dir and the session in it; the shim takes over the lock, which is closed here. It returns once
// the session's process runs; after an error nothing of it is left. With p.Exec, stdio become the command's and lock is nil.
func Launch(ctx context.Context, prog Program, dir string, lock *os.File, p *Params, stdio [3]*os.File) (*Launched, error) {
	if lock != nil {
		defer lock.Close()
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	pid, err := fork(prog, dir, theirs, lock, stdio)
	unix.Close(theirs)
	if err != nil {
		ours.Close()
		return nil, err
	}
	proc, err := os.FindProcess(pid)
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("shim: launch: %w", err)
	}
	client := NewClient(ours)
	st, err := client.start(ctx, p)
	if err == nil {
		return &Launched{Client: client, Process: proc, Status: st}, nil
	}
	var refusal *Error
	if !errors.As(err, &refusal) { // it did not say that nothing runs
		_ = proc.Kill() // its process dies with it
	}
	client.Close()
	_, werr := proc.Wait()
	return nil, errors.Join(err, werr, lastWords(dir, err))
}

// lastWords adds what a shim that just died wrote to its standard error.
func lastWords(dir string, err error) error {
	var refusal *Error
	if errors.As(err, &refusal) {
		return nil
	}
	if said := LastWords(dir); said != "" {
		return errors.New("shim: it said: " + said)
	}
	return nil
}

func socketPair() (*os.File, int, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("shim: launch: make a socket pair: %w", err)
	}
	return os.NewFile(uintptr(p[0]), "shim"), p[1], nil
}

// fork starts the shim in a session of its own: what ends the agent's session does not reach it.
func fork(prog Program, dir string, control int, lock *os.File, stdio [3]*os.File) (int, error) {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("shim: launch: %w", err)
	}
	defer unix.Close(null)
	files := []uintptr{uintptr(null), uintptr(null), uintptr(null), uintptr(control)}
	for i, f := range stdio {
		if f != nil {
			files[i] = f.Fd()
		}
	}
	if lock != nil {
		if err := clearState(lock); err != nil {
			return 0, err
		}
		files[2] = lock.Fd() // and of the shim alone: what it starts gets a standard error of its own
	}
	pid, err := syscall.ForkExec(prog.Path, append([]string{"orchestrator-shim"}, prog.Args...), &syscall.ProcAttr{
		Dir: dir, Env: shimEnv(), Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("shim: launch %s: %w", prog.Path, err)
	}
	return pid, nil
}

// Dial connects to the shim that lives in dir. The path is spelled through the directory's descriptor: a socket's path
// may have 107 bytes, a data directory's any number.
func Dial(dir string) (*Client, error) {
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("shim: dial %s: %w", dir, err)
	}
	defer unix.Close(d)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("shim: dial: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: "/proc/self/fd/" + strconv.Itoa(d) + "/" + SockName}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("shim: dial %s: %w", dir, err)
	}
	return NewClient(os.NewFile(uintptr(fd), "shim")), nil
}
