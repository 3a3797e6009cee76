// The program on a terminal: attach, exec, top and colours, on a pty.

package main

import (
	"io"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/neolith/orchestrator/client/clienttest"
	"github.com/neolith/orchestrator/internal/exitcode"
)

// console is a terminal with orchctl on one side and the test on the other.
type console struct {
	t      *testing.T
	master *os.File
	tty    *os.File
	screen *tap
	before *term.State
	ended  chan int
	read   chan struct{}
}

// onTerminal starts a command on a terminal of 80 columns and 24 rows.
func (r *rig) onTerminal(line string) *console {
	r.t.Helper()
	master, tty, err := pty.Open()
	if err != nil {
		r.t.Fatal(err)
	}
	c := &console{t: r.t, master: master, tty: tty, screen: newTap(), ended: make(chan int, 1), read: make(chan struct{})}
	c.resize(80, 24)
	if c.before, err = term.GetState(int(tty.Fd())); err != nil {
		r.t.Fatal(err)
	}
	go func() { defer close(c.read); _, _ = io.Copy(c.screen, master) }() // ends when the other side closes
	go func() {
		a := newApp(append(r.env, "TERM=xterm"), tty, tty, tty)
		a.patience = 10 * time.Millisecond
		c.ended <- a.execute(words(line))
	}()
	return c
}

func (c *console) resize(columns, rows uint16) {
	c.t.Helper()
	if err := pty.Setsize(c.master, &pty.Winsize{Cols: columns, Rows: rows}); err != nil {
		c.t.Fatal(err)
	}
	// The kernel tells the terminal's foreground processes, of which the test is none.
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil {
		c.t.Fatal(err)
	}
}

func (c *console) typed(keys string) {
	c.t.Helper()
	if _, err := c.master.WriteString(keys); err != nil {
		c.t.Fatal(err)
	}
}

// end waits for the command's end and returns its code and what the screen showed. The terminal must be as it was.
func (c *console) end() (int, string) {
	c.t.Helper()
	code := <-c.ended
	after, err := term.GetState(int(c.tty.Fd()))
	if err != nil || !reflect.DeepEqual(after, c.before) {
		c.t.Errorf("the terminal was not given back as it was: %v", err)
	}
	_ = c.tty.Close()
	<-c.read
	_ = c.master.Close()
	return code, c.screen.String()
}

func TestAttachOnATerminal(t *testing.T) {
	r := newRig(t)
	id := r.must("sessions spawn --name shell --protocol raw -o name -- bash")
	c := r.onTerminal("sessions attach shell")
	c.screen.until(t, "size 80x24")
	raw, err := term.GetState(int(c.tty.Fd()))
	if err != nil || reflect.DeepEqual(raw, c.before) {
		t.Error("the terminal is not raw", err)
	}
	c.typed("one\r")
	c.screen.until(t, "one\r")
	c.resize(132, 43)
	c.screen.until(t, "size 132x43")
	c.typed("\x10")    // Ctrl-P alone waits
	c.typed("two\x03") // and goes through with what follows; so does Ctrl-C
	c.screen.until(t, "\x10two\x03")
	c.typed("\x10")
	c.typed("\x11")
	code, screen := c.end()
	if code != 0 || !strings.Contains(screen, "detached from session/"+id+"; it goes on") {
		t.Error(code, screen)
	}
	if got := r.must("sessions list --filter phase=RUNNING -o name"); got != id {
		t.Error("the session did not go on", got)
	}
}

func TestAttachGivesTheTerminalBackHoweverItEnds(t *testing.T) {
	r := newRig(t)
	r.must("sessions spawn --name shell --protocol raw -- bash")
	// The session ends.
	c := r.onTerminal("sessions attach shell")
	c.screen.until(t, "size 80x24")
	c.typed("exit\r")
	if code, screen := c.end(); code != 0 || !strings.Contains(screen, "ended: completed") {
		t.Error(code, screen)
	}
	// It is not there.
	c = r.onTerminal("sessions attach nobody")
	if code, _ := c.end(); code != exitcode.NotFound {
		t.Error(code)
	}
	// The server fails for good.
	r.must("sessions spawn --name shell --protocol raw -- bash")
	r.c.Inject("AttachSession", clienttest.Fault{Err: clienttest.Full(0)})
	c = r.onTerminal("sessions attach shell")
	if code, screen := c.end(); code != exitcode.Refused || !strings.Contains(screen, "orchctl: sessions attach shell: the mailbox is full") {
		t.Error(code, screen)
	}
	// The connection breaks and comes back.
	r.c.Inject("AttachSession", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1})
	c = r.onTerminal("sessions attach shell")
	c.screen.until(t, "size 80x24")
	c.typed("x")
	c.screen.until(t, "orchctl: reconnected")
	c.typed("again")
	c.screen.until(t, "again")
	// A signal ends the program.
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, screen := c.end(); code != exitcode.Failed || !strings.Contains(screen, "interrupted") {
		t.Error(code, screen)
	}
}

// The connection breaks, and the session has ended when it is back.
func TestAttachHearsOfAnEndThatItMissed(t *testing.T) {
	r := newRig(t)
	id := r.must("sessions spawn --name shell --protocol raw -o name -- bash")
	r.c.Inject("AttachSession", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1},
		clienttest.Fault{Err: status.Error(codes.FailedPrecondition, "attach: the session is COMPLETED")})
	c := r.onTerminal("sessions attach shell")
	c.screen.until(t, "size 80x24")
	c.typed("x")
	r.c.End(id)
	if code, screen := c.end(); code != 0 || !strings.Contains(screen, "session/"+id+" ended: completed") {
		t.Error(code, screen)
	}
	// Who comes after its end is refused.
	c = r.onTerminal("sessions attach " + id)
	if code, screen := c.end(); code != exitcode.Refused {
		t.Error(code, screen)
	}
}

func TestAttachToASessionThatReadsLines(t *testing.T) {
	r := newRig(t)
	r.must("sessions spawn --name web -- run")
	c := r.onTerminal("sessions attach web")
	c.screen.until(t, "size 80x24")
	c.typed("hellö\x7fo") // corrected before it is sent
	c.screen.until(t, "hellö\b \bo")
	c.typed("\r")
	c.screen.until(t, "hello\r\n") // the session's echo, which begins at the left
	c.typed("\x03")
	if code, screen := c.end(); code != 0 || !strings.Contains(screen, "detached") {
		t.Error(code, screen)
	}
}

func TestExecOnATerminal(t *testing.T) {
	r := newRig(t)
	r.must("sessions spawn --name web -- run")
	c := r.onTerminal("sessions exec -t -i web -- size")
	if code, screen := c.end(); code != 0 || !strings.Contains(screen, "80x24 tty=true") {
		t.Error(code, screen)
	}
	if res := r.runIn("sessions exec -i web -- cat", strings.NewReader("from a pipe")); res.out != "from a pipe" || res.code != 0 {
		t.Error(res)
	}
	if res := r.runIn("sessions exec web -- cat", strings.NewReader("not passed")); res.out != "" || res.code != 0 {
		t.Error(res)
	}
	if res := r.run("sessions exec web -- err oh"); res.err != "oh\n" || res.out != "" {
		t.Error(res)
	}
}

func TestSpawnAndAttach(t *testing.T) {
	r := newRig(t)
	c := r.onTerminal("sessions spawn --protocol raw --attach -- bash")
	c.screen.until(t, "size 80x24")
	c.typed("\x10\x11")
	if code, screen := c.end(); code != 0 || !strings.Contains(screen, "detached") {
		t.Error(code, screen)
	}
}

func TestTopOnATerminal(t *testing.T) {
	r := newRig(t)
	r.must("sessions spawn --name web -- run")
	c := r.onTerminal("top")
	c.screen.until(t, "q leaves")
	c.resize(60, 10)
	c.screen.until(t, homeScreen)
	c.typed("q")
	code, screen := c.end()
	if code != 0 || !strings.HasPrefix(screen, enterScreen) || !strings.HasSuffix(screen, leaveScreen) {
		t.Errorf("%d %q", code, screen)
	}
}

func TestColours(t *testing.T) {
	r := newRig(t)
	r.must("sessions spawn --name web -- run")
	const green = "\x1b[32mRUNNING\x1b[0m"
	if _, screen := r.onTerminal("sessions list").end(); !strings.Contains(screen, green) {
		t.Errorf("no colour on a terminal: %q", screen)
	}
	r.env = append(r.env, "NO_COLOR=1")
	if _, screen := r.onTerminal("sessions list").end(); strings.Contains(screen, "\x1b[") {
		t.Errorf("colour in spite of NO_COLOR: %q", screen)
	}
}

func TestProgressIsShownOnATerminalAndLeavesNoTrace(t *testing.T) {
	r := newRig(t)
	r.must("nodes cordon node-1")
	const line = "sessions spawn --wait --timeout 400ms -- run"
	c := r.onTerminal(line)
	c.screen.until(t, "is PENDING: no node fits")
	code, screen := c.end()
	last := screen[strings.LastIndex(strings.TrimSuffix(screen, "\r\n"), "\r")+1:]
	if code != exitcode.Unreachable || !strings.HasPrefix(strings.TrimLeft(last, " \x1b[K2"), "orchctl: ") {
		t.Errorf("%d %q", code, last)
	}
	if _, screen := r.onTerminal("--quiet " + line).end(); strings.Contains(screen, "is PENDING") {
		t.Errorf("progress in spite of --quiet: %q", screen)
	}
	// Lines elsewhere, each of them once.
	if res := r.run(line); strings.Count(res.err, "is PENDING: no node fits …\n") != 1 {
		t.Errorf("%q", res.err)
	}
}
