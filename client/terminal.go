// Attach and Exec: bytes both ways, and how the other side ended.

package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// MaxInputBytes is the largest piece of input that is sent as one message.
const MaxInputBytes = 64 << 10

// Size is a terminal's, in characters.
type Size struct{ Columns, Rows uint32 }

// Terminal is the near end of an Attach or Exec. The channels belong to the caller, who sends from goroutines of its
// own; nothing is taken from them any more once the call has returned.
type Terminal struct {
	// Input carries what is typed; closing it says that there will be no more. Nil is for none: an Exec is told that
	// its input ended, an Attach only looks on.
	Input <-chan []byte
	// Resize carries new window sizes. Nil for none.
	Resize <-chan Size
	Size   Size // at the start
	Stdout io.Writer
	Stderr io.Writer // of Exec without a terminal; Stdout when nil
	// Reconnected, when set, is called when an Attach was joined again after an interruption.
	Reconnected func()
}

// Attach joins a running session's terminal, until the session ends (it returns its exit), ctx ends, or the input is
// closed and the server ends the stream. It joins again after an interruption; what was typed or shown in between is
// not repeated. The session goes on when Attach returns.
func (c *Client) Attach(ctx context.Context, open *apiv1.AttachSessionRequest_Open, t Terminal) (*apiv1.Session_Exit, error) {
	open = proto.CloneOf(open)
	var exit *apiv1.Session_Exit
	size, again, ended := t.Size, false, false
	err := c.resume(ctx, apiv1.SessionService_AttachSession_FullMethodName, func(progress func()) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		s, err := c.Sessions.AttachSession(ctx)
		if err != nil {
			return err
		}
		open.Columns, open.Rows = size.Columns, size.Rows
		if err := s.Send(&apiv1.AttachSessionRequest{Open: open}); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if again && t.Reconnected != nil {
			t.Reconnected()
		}
		again = true
		p := pump{ctx: ctx, t: t, size: &size, ended: &ended,
			input:  func(b []byte) error { return s.Send(&apiv1.AttachSessionRequest{Input: b}) },
			resize: func(z Size) error { return s.Send(&apiv1.AttachSessionRequest{Columns: z.Columns, Rows: z.Rows}) },
			end:    s.CloseSend,
		}
		defer p.start(cancel)()
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			progress()
			if _, err := t.Stdout.Write(m.GetOutput()); err != nil {
				return &stop{fmt.Errorf("write the session's output: %w", err)}
			}
			if m.GetExit() != nil {
				exit = m.GetExit()
				return nil
			}
		}
	})
	return exit, err
}

// Exec runs a command beside a running session and returns how it ended. It is never repeated: the command may have
// run.
func (c *Client) Exec(ctx context.Context, open *apiv1.ExecSessionRequest_Open, t Terminal) (*apiv1.Session_Exit, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	open = proto.CloneOf(open)
	open.Columns, open.Rows = t.Size.Columns, t.Size.Rows
	s, err := c.Sessions.ExecSession(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.Send(&apiv1.ExecSessionRequest{Open: open}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var size Size
	var ended bool
	p := pump{ctx: ctx, t: t, size: &size, ended: &ended,
		input:  func(b []byte) error { return s.Send(&apiv1.ExecSessionRequest{Input: b}) },
		resize: func(z Size) error { return s.Send(&apiv1.ExecSessionRequest{Columns: z.Columns, Rows: z.Rows}) },
		end:    func() error { return s.Send(&apiv1.ExecSessionRequest{EndOfInput: true}) },
	}
	ended = t.Input == nil
	defer p.start(cancel)()
	return receiveExec(s, t)
}

func receiveExec(s grpc.BidiStreamingClient[apiv1.ExecSessionRequest, apiv1.ExecSessionResponse], t Terminal) (*apiv1.Session_Exit, error) {
	stderr := t.Stderr
	if stderr == nil {
		stderr = t.Stdout
	}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil, fault.New(fault.Unavailable, "the command's end was not reported; it may still run")
		}
		if err != nil {
			return nil, err
		}
		if _, err := t.Stdout.Write(m.GetStdout()); err != nil {
			return nil, fmt.Errorf("write the command's output: %w", err)
		}
		if _, err := stderr.Write(m.GetStderr()); err != nil {
			return nil, fmt.Errorf("write the command's errors: %w", err)
		}
		if m.GetExit() != nil {
			return m.GetExit(), nil
		}
	}
}

// pump moves input and window sizes into a stream, from one goroutine.
type pump struct {
	ctx    context.Context
	t      Terminal
	size   *Size // the last size known, for the next opening
	ended  *bool // the input was closed
	input  func([]byte) error
	resize func(Size) error
	end    func() error
}

// start begins to pump; the function that it returns ends that, and waits.
func (p *pump) start(cancel context.CancelFunc) (wait func()) {
	var wg sync.WaitGroup
	wg.Go(p.run)
	return func() { cancel(); wg.Wait() }
}

// run ends when the stream's context does, or when the stream takes no more: its receiver learns why.
func (p *pump) run() {
	input := p.t.Input
	if *p.ended {
		input = nil
		if p.end() != nil {
			return
		}
	}
	for {
		select {
		case b, ok := <-input:
			if !ok {
				*p.ended, input = true, nil
				if p.end() != nil {
					return
				}
				continue
			}
			for len(b) > 0 {
				n := min(len(b), MaxInputBytes)
				if p.input(b[:n]) != nil {
					return
				}
				b = b[n:]
			}
		case z := <-p.t.Resize:
			*p.size = z
			if p.resize(z) != nil {
				return
			}
		case <-p.ctx.Done():
			return
		}
	}
}
