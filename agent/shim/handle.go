// Requests and their answers; how the end is told.

package shim

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// handle answers one request. Input and close-stdin are answered later, when the process's pipe took them.
func (s *session) handle(r request) {
	c := r.conn
	if r.frame == nil {
		delete(s.conns, c)
		c.finish(0)
		c.f.Close()
		switch {
		case !c.control:
		case s.p.Exec:
			s.kill(CauseTerminated, "the agent let go of it")
		default:
			s.listenOrRetry()
		}
		return
	}
	f := r.frame
	var a args
	if err := each(f.payload, a.field); err != nil {
		c.refuse(f.request, refuse(CodeInvalid, "%v", err))
		return
	}
	switch f.typ {
	case typeStatus:
		c.send(typeOK, f.request, s.describe())
	case typeInput:
		s.stdin.add(s, input{conn: c, request: f.request, sequence: a.sequence, data: a.data})
	case typeCloseStdin:
		s.stdin.add(s, input{conn: c, request: f.request, end: true})
	case typeSignal:
		if s.gone {
			c.refuse(f.request, refuse(CodeEnded, "the process has ended"))
			return
		}
		if err := unix.Kill(-s.child.pid, unix.Signal(a.signal)); err != nil {
			c.refuse(f.request, refuse(CodeInvalid, "send signal %d: %v", a.signal, err))
			return
		}
		c.send(typeOK, f.request, nil)
	case typeStop:
		s.terminate(a.grace, a.cause, a.message)
		c.send(typeOK, f.request, nil)
	case typeKill:
		s.kill(a.cause, a.message)
		c.send(typeOK, f.request, nil)
	case typeResize:
		if s.p.Terminal && !s.p.Exec {
			s.resize(a.columns, a.rows)
		}
		c.send(typeOK, f.request, nil)
	case typeSubscribe:
		c.subscribed = true
		var out fields
		out.num(tagLine, s.lastLine())
		c.send(typeOK, f.request, out)
	case typeListen:
		if err := s.listen(); err != nil {
			c.refuse(f.request, refuse(CodeInternal, "%v", err))
			return
		}
		c.send(typeOK, f.request, nil)
	case typeAttach:
		c.attached = true
		c.send(typeOK, f.request, nil)
	default:
		c.refuse(f.request, refuse(CodeUnsupported, "this shim does not know request %d", f.typ))
	}
}

// listenOrRetry makes the socket by which the next agent finds this shim; without descriptors or disk it tries again.
func (s *session) listenOrRetry() {
	if err := s.listen(); err != nil {
		fmt.Fprintln(os.Stderr, "shim:", err)
		s.relisten.Reset(time.Second)
	}
}

// args are the fields that requests have.
type args struct {
	sequence, signal uint64
	data             []byte
	grace            time.Duration
	cause, message   string
	columns, rows    uint16
}

func (a *args) field(t tag, v []byte) {
	switch t {
	case tagSequence:
		a.sequence = num(v)
	case tagData:
		a.data = v
	case tagSignal:
		a.signal = num(v)
	case tagGrace:
		a.grace = time.Duration(num(v))
	case tagCause:
		a.cause = string(v)
	case tagMessage:
		a.message = string(v)
	case tagColumns:
		a.columns = uint16(num(v))
	case tagRows:
		a.rows = uint16(num(v))
	}
}

func (s *session) resize(columns, rows uint16) {
	rc, err := s.child.stdout.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) { // a size that cannot be set is the terminal's loss only
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows})
	})
}

func (s *session) describe() fields {
	f := s.started()
	f.str(tagSession, s.run0.Session)
	f.num(tagEpoch, uint64(s.run0.Epoch))
	f.num(tagStdinBytes, uint64(s.stdin.bytes))
	s.stdin.describe(&f)
	return f
}

// tellEnd sends the exit to whoever subscribed and reports whether anybody took it.
func (s *session) tellEnd() bool {
	var f fields
	f.bytes(tagExit, s.exit.encode())
	for c := range s.conns {
		if c.subscribed {
			c.send(typeExited, 0, f)
		}
		c.finish(tellPatience)
	}
	timeout := time.NewTimer(tellPatience)
	defer timeout.Stop()
	told := false
	for c := range s.conns {
		select {
		case <-c.ended:
			told = told || (c.subscribed && c.sent)
		case <-timeout.C:
			return told
		}
	}
	return told
}
