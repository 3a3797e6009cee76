// The goroutine that owns a session: output, input, requests, the lease, and the end.

package shim

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/agent/lease"
	"github.com/neolith/orchestrator/agent/outputlog"
)

const (
	stdinBytesMax = 1 << 20 // that wait for the process to read them
	readBytes     = 32 << 10
	drainPatience = time.Second            // for output that something outside the tree holds open
	tellPatience  = time.Second            // for peers to take the news of the end
	exitRetry     = time.Second            // between attempts to write the exit record to a full disk
	relogEvery    = 250 * time.Millisecond // while the log cannot be written
	killWaitMin   = 2 * time.Millisecond
	killWaitMax   = 100 * time.Millisecond
)

// The causes that a shim decides itself.
const (
	CauseCompleted  = "completed"
	CauseFailed     = "failed"
	CauseOOMKilled  = "oom-killed"
	CauseLost       = "lost"
	CauseTerminated = "terminated"
)

type chunk struct {
	kind outputlog.Kind
	data []byte // nil at the stream's end
	done chan<- struct{}
}

type session struct {
	p        *Params
	run0     Run // what runs, as it is on disk
	child    *child
	log      *outputlog.Writer // nil in an exec
	watch    *lease.Watch
	listener *os.File

	output    chan chunk
	requests  chan request
	peers     chan *conn
	lapsed    chan error
	written   chan error // the stdin writer's answers, one for each item
	mainEnded chan unix.WaitStatus
	none      chan struct{} // closed when nothing lives below the shim
	stop      chan struct{} // closed when the session's goroutine is done

	// Owned by run.
	conns     map[*conn]bool
	out, err  outputlog.Splitter
	open      int // output streams that have not ended
	stdin     inputs
	flush     *time.Timer // a terminal's open line
	grace     *time.Timer
	killTimer *time.Timer
	relisten  *time.Timer
	relog     *time.Timer // output waits for the log's disk
	killWait  time.Duration
	killing   bool
	gone      bool // the main process has ended
	status    unix.WaitStatus
	cause     string // of a stop, a kill or the lease, whichever came first
	message   string
	exit      *Exit
}

func newSession(p *Params, control *conn, watch *lease.Watch) *session {
	return &session{
		p: p, watch: watch, conns: map[*conn]bool{control: true},
		output: make(chan chunk), requests: make(chan request), peers: make(chan *conn), lapsed: make(chan error, 1),
		written: make(chan error, 1), mainEnded: make(chan unix.WaitStatus, 1),
		none: make(chan struct{}), stop: make(chan struct{}),
		flush: stopped(), grace: stopped(), killTimer: stopped(), relisten: stopped(), relog: stopped(), killWait: killWaitMin,
	}
}

func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// run owns the session until its tree is gone and its end is told.
func (s *session) run() {
	defer close(s.stop)
	s.startGoroutines()
	none := s.none
	var drained <-chan time.Time
	for none != nil || s.open > 0 {
		select {
		case c := <-s.output:
			s.take(c)
		case r := <-s.requests:
			s.handle(r)
		case c := <-s.peers:
			s.join(c)
		case err := <-s.written:
			s.stdin.wrote(s, err)
		case <-s.flush.C:
			s.flushOpenLine()
		case why := <-s.lapsed:
			if why != nil {
				fmt.Fprintln(os.Stderr, "shim:", why)
				s.kill(CauseLost, "lease lapsed")
			}
		case <-s.grace.C:
			s.kill(s.cause, s.message)
		case <-s.relog.C:
			s.flushLog(0)
		case <-s.relisten.C:
			s.listenOrRetry()
		case <-s.killTimer.C:
			s.killPass()
		case s.status = <-s.mainEnded:
			s.gone = true
			s.kill("", "")
		case <-none:
			none = nil
			if !s.gone {
				s.status, s.gone = <-s.mainEnded, true
			}
			s.killCgroups() // what joined them from outside, such as an exec
			t := time.NewTimer(drainPatience)
			defer t.Stop()
			drained = t.C
		case <-drained:
			s.open = 0
		}
	}
	s.finish()
}

// startGoroutines starts what blocks. They end with the session; the process ends after them.
func (s *session) startGoroutines() {
	for c := range s.conns {
		s.serve(c)
	}
	go func() {
		s.lapsed <- s.watch.Wait()
	}()
	if s.p.Exec {
		return
	}
	s.open = 1
	go s.read(s.child.stdout, outputlog.Stdout)
	if s.child.stderr != nil {
		s.open++
		go s.read(s.child.stderr, outputlog.Stderr)
	}
	s.stdin.start(s.child.stdin, s.written)
}

// listen makes the socket, unless it is there. Most sessions end before anybody but their first agent wants to talk.
func (s *session) listen() error {
	if s.listener != nil || s.p.Exec {
		return nil
	}
	l, err := listen()
	if err != nil {
		return err
	}
	s.listener = l
	go accept(l, s.peers, s.stop)
	return nil
}

func (s *session) serve(c *conn) {
	go c.read(s.requests, s.stop)
	go c.write()
}

func (s *session) join(c *conn) {
	if len(s.conns) >= connsMax {
		c.f.Close()
		return
	}
	s.conns[c] = true
	s.serve(c)
}

// read hands one output stream over, chunk by chunk.
func (s *session) read(f *os.File, kind outputlog.Kind) {
	buf := make([]byte, readBytes)
	done := make(chan struct{})
	for {
		n, err := f.Read(buf)
		for _, c := range []chunk{{kind, buf[:n], done}, {kind, nil, done}} {
			if (c.data != nil && n == 0) || (c.data == nil && err == nil) {
				continue
			}
			select {
			case s.output <- c:
				<-done
			case <-s.stop:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// take logs one chunk at once and tells who wants to know.
func (s *session) take(c chunk) {
	defer func() { c.done <- struct{}{} }()
	if c.data == nil {
		s.open--
		return
	}
	now := time.Now().UnixNano()
	lines := &s.out
	if c.kind == outputlog.Stderr {
		lines = &s.err
	}
	before := s.log.Last()
	lines.Write(c.data, func(text []byte, partial bool) { s.log.Line(c.kind, text, partial, now) })
	s.flushLog(before)
	for peer := range s.conns {
		if peer.attached {
			peer.output(c.data)
		}
	}
	if s.p.Terminal {
		s.flush.Stop()
		if s.out.Pending() > 0 {
			s.flush.Reset(max(s.p.FlushIdle, time.Millisecond))
		}
	}
}

// flushOpenLine logs what a terminal shows without a newline, such as a prompt.
func (s *session) flushOpenLine() {
	before := s.log.Last()
	now := time.Now().UnixNano()
	s.out.Flush(true, func(text []byte, partial bool) { s.log.Line(outputlog.Stdout, text, partial, now) })
	s.flushLog(before)
}

// flushLog writes the log, and tells of lines after before. What cannot be written waits, for a turn may end with it; what is lost is told
// in the log itself, by a notice and a hole.
func (s *session) flushLog(before uint64) {
	if s.log.Flush() != nil {
		s.relog.Reset(relogEvery)
	}
	if last := s.log.Last(); last > before {
		for peer := range s.conns {
			if peer.subscribed {
				peer.tellGrew(last)
			}
		}
	}
}

func (s *session) lastLine() uint64 {
	if s.log == nil {
		return 0
	}
	return s.log.Last()
}

// terminate asks the main process to end, and kills the tree after the grace.
func (s *session) terminate(grace time.Duration, cause, message string) {
	s.because(cause, message)
	if s.gone {
		return
	}
	// Its whole group, as a terminal would; a stopped process must run to hear it.
	_ = unix.Kill(-s.child.pid, unix.SIGTERM)
	_ = unix.Kill(-s.child.pid, unix.SIGCONT)
	s.grace.Reset(grace)
}

func (s *session) because(cause, message string) {
	if s.cause == "" && !s.gone && cause != "" {
		s.cause, s.message = cause, message
	}
}

// kill kills the tree, and goes on until wait says that nothing is left.
func (s *session) kill(cause, message string) {
	s.because(cause, message)
	if s.killing {
		return
	}
	s.killing = true
	s.killPass()
}

func (s *session) killPass() {
	select {
	case <-s.none:
		return
	default:
	}
	s.killCgroups()
	s.run0.Process.Kill()
	killDescendants()
	s.killTimer.Reset(s.killWait)
	s.killWait = min(2*s.killWait, killWaitMax)
}

// killCgroups kills what is in the session's cgroups; an exec is only a guest there.
func (s *session) killCgroups() {
	if !s.p.Exec {
		killCgroups(s.p.Cgroup2, s.p.Cgroup1)
	}
}

// finish writes the end down, tells it, and lets the goroutines go.
func (s *session) finish() {
	s.watch.Close()
	if s.listener != nil {
		s.listener.Close() // the next shim in this directory removes its file
	}
	if s.log != nil {
		now := time.Now().UnixNano()
		s.out.Flush(false, func(text []byte, partial bool) { s.log.Line(outputlog.Stdout, text, partial, now) })
		s.err.Flush(false, func(text []byte, partial bool) { s.log.Line(outputlog.Stderr, text, partial, now) })
		_ = s.log.Close() // what is lost shows as a hole
	}
	if s.stdin.busy != nil { // with its readers gone, the write has ended, well or not; unless one is outside the tree
		select {
		case err := <-s.written:
			s.stdin.wrote(s, err)
		case <-time.After(drainPatience):
		}
	}
	s.exit = s.verdict()
	s.stdin.fail()
	if s.p.Exec {
		s.tellEnd()
		return
	}
	err := WriteExit(".", s.exit)
	told := s.tellEnd()
	for err != nil && !told { // an agent that knows writes it down itself
		fmt.Fprintln(os.Stderr, "shim:", err)
		time.Sleep(exitRetry)
		err = WriteExit(".", s.exit)
	}
}

// verdict says how the session ended.
func (s *session) verdict() *Exit {
	r := &s.run0
	e := &Exit{
		Session: r.Session, Epoch: r.Epoch, Cause: s.cause, Message: s.message, LastLine: s.lastLine(), FirstLine: r.FirstLine,
		InputsFrom: s.stdin.from(r.FirstLine), LastInput: s.stdin.last(), Ended: time.Now().UnixNano(), Boot: r.Boot,
	}
	natural, message := CauseCompleted, "exit code 0"
	switch ws := s.status; {
	case ws.Signaled():
		e.Code, e.Signal = 128+int32(ws.Signal()), unix.SignalName(ws.Signal())
		natural, message = CauseFailed, "killed by "+e.Signal
		if ws.Signal() == unix.SIGKILL && oomKills(s.p.Cgroup2, s.p.Cgroup1) > 0 {
			natural, message = CauseOOMKilled, "killed by the kernel: its memory limit was reached"
		}
	case ws.ExitStatus() != 0:
		e.Code = int32(ws.ExitStatus())
		natural, message = CauseFailed, fmt.Sprintf("exit code %d", e.Code)
	}
	if e.Cause == "" {
		e.Cause, e.Message = natural, message
	}
	return e
}
