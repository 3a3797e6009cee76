// An agent's hold on a tree.

package fake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

type proc struct {
	t        *tree
	turns    chan driver.Turn
	done     chan struct{}
	released chan struct{}
	free     bool         // released; under the Machine's lock
	exit     session.Exit // set before done is closed
}

var (
	errEnded    = fault.New(fault.FailedPrecondition, "fake: the session's process has ended")
	errReleased = fault.New(fault.Unavailable, "fake: the agent let go of the session")
)

func (p *proc) letGo() {
	if !p.free {
		p.free = true
		close(p.released)
	}
}

// usable says whether this hold still has the tree; the Machine's lock is held.
func (p *proc) usable() error {
	switch {
	case p.free:
		return errReleased
	case p.t.exit != nil:
		return errEnded
	}
	return nil
}

// PID is a count of the Machine's.
func (p *proc) PID() int { return p.t.pid }

// Send gives the tree a message.
func (p *proc) Send(ctx context.Context, in driver.Input) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t := p.t
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	if err := p.usable(); err != nil {
		return err
	}
	switch {
	case in.Sequence == 0:
		return fault.New(fault.Invalid, "fake: a message needs a sequence")
	case t.given[in.Sequence]:
		return nil
	case t.outstanding != 0 || len(p.turns) == cap(p.turns):
		return driver.ErrBusy
	}
	t.remember(in.Sequence)
	if why := refusal(t.s.Spec.Protocol, in.Text); why != "" {
		t.endTurn(driver.Turn{Sequence: in.Sequence, OutputLine: t.last, Refused: why})
		return nil
	}
	t.outstanding = in.Sequence
	if t.m.opt.Given != nil {
		t.m.opt.Given(Given{Node: t.m.node, SessionID: t.s.SessionID, Epoch: t.s.Epoch, Sequence: in.Sequence, Text: string(in.Text), Time: time.Now()})
	}
	t.take(in.Sequence, string(in.Text))
	return nil
}

func refusal(protocol string, text []byte) string {
	switch {
	case protocol == session.ProtocolNone:
		return "the session's protocol is none: it takes no messages"
	case protocol == session.ProtocolLines && bytes.ContainsAny(text, "\n\r"):
		return "it holds a line break, and the session's protocol is lines"
	}
	return ""
}

// Turns delivers the ends of turns.
func (p *proc) Turns() <-chan driver.Turn { return p.turns }

// Outstanding is the message whose turn is under way.
func (p *proc) Outstanding() uint64 {
	p.t.m.mu.Lock()
	defer p.t.m.mu.Unlock()
	return p.t.outstanding
}

// Backlog is how many ended turns nobody has taken.
func (p *proc) Backlog() int { return len(p.turns) }

// OutputLine is the number of the last line.
func (p *proc) OutputLine() uint64 {
	p.t.m.mu.Lock()
	defer p.t.m.mu.Unlock()
	return p.t.last
}

// Done is closed when the tree has ended.
func (p *proc) Done() <-chan struct{} { return p.done }

// Exit says how, after Done.
func (p *proc) Exit() session.Exit {
	select {
	case <-p.done:
		return p.exit
	default:
		return session.Exit{}
	}
}

// Stop is SIGTERM, and SIGKILL after grace.
func (p *proc) Stop(grace time.Duration, exit session.Exit) {
	p.t.m.mu.Lock()
	defer p.t.m.mu.Unlock()
	if p.usable() == nil {
		p.t.stop(grace, exit)
	}
}

// Kill is SIGKILL.
func (p *proc) Kill(exit session.Exit) {
	p.t.m.mu.Lock()
	defer p.t.m.mu.Unlock()
	if p.usable() == nil {
		p.t.kill(exit, "SIGKILL")
	}
}

// Release lets go of the tree, which goes on.
func (p *proc) Release() {
	p.t.m.mu.Lock()
	defer p.t.m.mu.Unlock()
	if p.t.handle == p {
		p.t.handle = nil
	}
	p.letGo()
}

// ReadLogs reads what is kept.
func (p *proc) ReadLogs(ctx context.Context, from uint64, follow bool, emit func([]*apiv1.LogLine) error) error {
	from = max(from, 1)
	for {
		p.t.m.mu.Lock()
		batch := p.t.from(&from)
		more, ended := p.t.wait(), p.t.exit != nil
		p.t.m.mu.Unlock()
		if len(batch) > 0 {
			if err := emit(batch); err != nil {
				return err
			}
		}
		if !follow || ended {
			return ctx.Err()
		}
		select {
		case <-more:
		case <-p.released:
			return errReleased
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// from returns the kept lines from a number on, and moves the number on.
func (t *tree) from(n *uint64) []*apiv1.LogLine {
	i, _ := slices.BinarySearchFunc(t.lines, *n, func(l *apiv1.LogLine, n uint64) int {
		switch {
		case l.Number < n:
			return -1
		case l.Number > n:
			return 1
		}
		return 0
	})
	var out []*apiv1.LogLine
	for _, l := range t.lines[i:] {
		if t.notice != nil && *n <= t.noticeAt+1 && l.GetNumber() > t.noticeAt {
			out = append(out, t.notice)
		}
		if l.Number > *n {
			text := fmt.Appendf(nil, "lines %d–%d are not kept on this node", *n, l.Number-1)
			out = append(out, &apiv1.LogLine{Stream: apiv1.LogLine_NOTICE, Epoch: l.Epoch, Text: text})
		}
		out = append(out, l)
		*n = l.Number + 1
	}
	return out
}

// Attach copies lines out, and takes lines in as if typed. A Read of in that blocks when it returns is left behind.
func (p *proc) Attach(ctx context.Context, in io.Reader, out io.Writer, resize <-chan driver.Size) error {
	tap := make(chan []byte, 256)
	p.t.m.mu.Lock()
	if err := p.usable(); err != nil {
		p.t.m.mu.Unlock()
		return err
	}
	if p.t.taps == nil {
		p.t.taps = make(map[chan []byte]bool)
	}
	p.t.taps[tap] = true
	p.t.m.mu.Unlock()
	defer func() {
		p.t.m.mu.Lock()
		delete(p.t.taps, tap)
		p.t.m.mu.Unlock()
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- p.pump(ctx, in) }()
	for {
		select {
		case b := <-tap:
			if _, err := out.Write(b); err != nil {
				return fmt.Errorf("fake: attach: write: %w", err)
			}
		case _, ok := <-resize:
			if !ok {
				resize = nil
			}
		case err := <-ended:
			return err
		case <-p.done:
			for {
				select {
				case b := <-tap:
					if _, err := out.Write(b); err != nil {
						return fmt.Errorf("fake: attach: write: %w", err)
					}
				default:
					return nil
				}
			}
		case <-p.released:
			return errReleased
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *proc) pump(ctx context.Context, in io.Reader) error {
	buf := make([]byte, 4096)
	var line []byte
	for {
		n, err := in.Read(buf)
		for _, b := range buf[:n] {
			if b != '\n' {
				line = append(line, b)
				continue
			}
			if ctx.Err() != nil {
				return nil
			}
			p.t.m.mu.Lock()
			if p.usable() == nil {
				p.t.take(0, strings.TrimSuffix(string(line), "\r"))
			}
			p.t.m.mu.Unlock()
			line = line[:0]
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("fake: attach: read: %w", err)
		}
	}
}

// Exec writes the command's words to stdout and ends with 0; the command "exit N" ends with N, "hang" with ctx.
func (p *proc) Exec(ctx context.Context, e driver.Exec) (session.Exit, error) {
	p.t.m.mu.Lock()
	err := p.usable()
	p.t.m.mu.Unlock()
	if err != nil {
		return session.Exit{}, err
	}
	if len(e.Command) == 0 {
		return session.Exit{}, fault.New(fault.Invalid, "fake: exec: no command is given")
	}
	if e.Command[0] == "hang" {
		select {
		case <-ctx.Done():
			return session.Exit{}, fault.New(fault.Timeout, "fake: exec: the command was killed: %w", ctx.Err())
		case <-p.done:
			return session.Exit{}, errEnded
		case <-p.released:
			return session.Exit{}, errReleased
		}
	}
	if e.Stdout != nil {
		if _, err := fmt.Fprintln(e.Stdout, strings.Join(e.Command, " ")); err != nil {
			return session.Exit{}, fmt.Errorf("fake: exec: write: %w", err)
		}
	}
	if e.Command[0] == "exit" && len(e.Command) > 1 {
		if n, err := strconv.Atoi(e.Command[1]); err == nil && n != 0 {
			return session.Exit{Code: int32(n), Cause: session.CauseFailed, Message: fmt.Sprintf("exit code %d", n)}, nil
		}
	}
	return session.Exit{Cause: session.CauseCompleted, Message: "exit code 0"}, nil
}
