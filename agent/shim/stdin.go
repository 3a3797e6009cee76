// Input: a bounded queue to a process that may not read, and the memory of which messages it was given.

package shim

import (
	"encoding/binary"
	"errors"
	"os"
	"time"
)

// input is something for the process's stdin.
type input struct {
	conn     *conn
	request  uint32
	sequence uint64 // 0 for keystrokes
	data     []byte
	end      bool // close it
}

// given is a message that was taken: queued, being written, or written.
type given struct {
	sequence uint64
	line     uint64 // the last output line before it
	written  bool
	failed   *Error
	waiting  []input // who asked for the same sequence meanwhile
}

// inputs is owned by the session's goroutine, but for the writer's.
type inputs struct {
	f      *os.File
	todo   chan input // to the writer; has room for the one that it may have
	queue  []input
	bytes  int // of queue and of what is being written
	busy   *input
	given  []*given // oldest first, at most InputsMax
	closed bool
	forgot bool // given was full once
}

// start starts the writer; it ends when its file is closed.
func (in *inputs) start(f *os.File, written chan<- error) {
	in.f = f
	in.todo = make(chan input, 1)
	go func() {
		for i := range in.todo {
			_, err := f.Write(i.data)
			written <- err
		}
	}()
}

func (in *inputs) find(sequence uint64) *given {
	for i := len(in.given) - 1; i >= 0 && sequence != 0; i-- {
		if in.given[i].sequence == sequence {
			return in.given[i]
		}
	}
	return nil
}

// add queues an input, or answers at once when it was given before or cannot be taken.
func (in *inputs) add(s *session, i input) {
	if g := in.find(i.sequence); g != nil {
		switch {
		case g.failed != nil:
			i.conn.refuse(i.request, g.failed)
		case g.written:
			in.answer(i, g.line)
		default:
			g.waiting = append(g.waiting, i)
		}
		return
	}
	switch {
	case s.p.Exec:
		i.conn.refuse(i.request, refuse(CodeUnsupported, "an exec's input does not pass through its shim"))
	case s.gone:
		i.conn.refuse(i.request, refuse(CodeEnded, "the process has ended"))
	case in.closed:
		i.conn.refuse(i.request, refuse(CodeBrokenPipe, "the process's input is closed"))
	case in.bytes+len(i.data) > stdinBytesMax && in.bytes > 0:
		i.conn.refuse(i.request, refuse(CodeFull, "%d bytes wait for the process to read them", in.bytes))
	default:
		in.bytes += len(i.data)
		if i.sequence != 0 {
			in.remember(&given{sequence: i.sequence})
		}
		in.queue = append(in.queue, i)
		in.next(s)
	}
}

func (in *inputs) remember(g *given) {
	if len(in.given) >= InputsMax {
		in.given = append(in.given[:0], in.given[1:]...)
		in.forgot = true
	}
	in.given = append(in.given, g)
}

func (in *inputs) forget(sequence uint64) {
	for i, g := range in.given {
		if g.sequence == sequence {
			in.given = append(in.given[:i], in.given[i+1:]...)
			return
		}
	}
}

// next hands the head of the queue to the writer when it has nothing to do. The marker goes into the log first, and a
// message whose marker cannot be written is not given: the log is the truth about what was.
func (in *inputs) next(s *session) {
	for in.busy == nil && len(in.queue) > 0 && !s.gone {
		i := in.queue[0]
		in.queue = in.queue[1:]
		if i.end {
			in.close(s, i)
			continue
		}
		if i.sequence != 0 {
			if err := s.log.Mark(i.sequence, time.Now().UnixNano()); err != nil {
				g := in.find(i.sequence)
				in.forget(i.sequence)
				in.bytes -= len(i.data)
				for _, w := range append([]input{i}, g.waiting...) {
					w.conn.refuse(w.request, refuse(CodeLog, "%v", err))
				}
				continue
			}
			in.find(i.sequence).line = s.log.Last()
		}
		in.busy = &i
		in.todo <- i
	}
}

// close closes the process's input; a terminal gets its end-of-file character instead.
func (in *inputs) close(s *session, i input) {
	if s.p.Terminal {
		in.busy = &input{conn: i.conn, request: i.request, data: []byte{4}}
		in.bytes++
		in.todo <- *in.busy
		return
	}
	in.closed = true
	in.f.Close()
	i.conn.send(typeOK, i.request, nil)
}

// wrote is the writer's answer for the busy input.
func (in *inputs) wrote(s *session, err error) {
	i := in.busy
	in.busy = nil
	in.bytes -= len(i.data)
	g := in.find(i.sequence)
	asked := []input{*i}
	var line uint64
	var failed *Error
	if err != nil {
		failed = refuse(CodeBrokenPipe, "the process does not take input any more: %v", cause(err))
	}
	if g != nil {
		asked = append(asked, g.waiting...)
		g.waiting = nil
		g.written, g.failed, line = true, failed, g.line
	}
	for _, w := range asked {
		if failed != nil {
			w.conn.refuse(w.request, failed)
		} else {
			in.answer(w, line)
		}
	}
	in.next(s)
}

func cause(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func (in *inputs) answer(i input, line uint64) {
	var f fields
	f.num(tagLine, line)
	i.conn.send(typeOK, i.request, f)
}

// fail answers everybody who still waits when the session has ended, and ends the writer.
func (in *inputs) fail() {
	if in.todo == nil {
		return
	}
	close(in.todo)
	in.f.Close()
	waiting := in.queue
	if in.busy != nil {
		waiting = append(waiting, *in.busy)
	}
	for _, g := range in.given {
		waiting = append(waiting, g.waiting...)
	}
	for _, w := range waiting {
		w.conn.refuse(w.request, refuse(CodeEnded, "the process has ended"))
	}
}

// last is the sequence of the last message whose marker is in the log.
func (in *inputs) last() uint64 {
	for i := len(in.given) - 1; i >= 0; i-- {
		if g := in.given[i]; g.written || (in.busy != nil && in.busy.sequence == g.sequence) {
			return g.sequence
		}
	}
	return 0
}

// from is the last line before the oldest message that is remembered; before the epoch's first when none was forgotten.
func (in *inputs) from(firstLine uint64) uint64 {
	if in.forgot && len(in.given) > 0 {
		return in.given[0].line
	}
	return max(firstLine, 1) - 1
}

func (in *inputs) describe(f *fields) {
	for _, g := range in.given {
		if !g.written && (in.busy == nil || in.busy.sequence != g.sequence) {
			continue // still queued: not given yet
		}
		var b [16]byte
		binary.LittleEndian.PutUint64(b[:], g.sequence)
		binary.LittleEndian.PutUint64(b[8:], g.line)
		f.bytes(tagInput, b[:])
	}
}
