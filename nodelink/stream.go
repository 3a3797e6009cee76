// One stream: bytes of a session (logs, attach, exec) with credit.

package nodelink

import (
	"context"
	"io"
	"sync"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// Stream is one byte stream. One goroutine may Send while another receives.
type Stream struct {
	m       *Streams
	request *nodev1.StreamOpen
	ctx     context.Context // ends with the stream; its cause is the error
	cancel  context.CancelCauseFunc

	readable chan struct{} // holds a token when inbox or end changed
	writable chan struct{} // holds a token when credit changed

	mu       sync.Mutex
	credit   int64 // what this side may still send
	window   int64 // what the other side may still send
	consumed int64 // received, and not granted again yet
	inbox    []*nodev1.StreamData
	ended    bool
	end      error // what Recv returns once the inbox is empty
	exit     *apiv1.Session_Exit
}

func newStream(m *Streams, request *nodev1.StreamOpen, credit int64) *Stream {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Stream{
		m: m, request: request, ctx: ctx, cancel: cancel, credit: credit, window: InitialWindow,
		readable: make(chan struct{}, 1), writable: make(chan struct{}, 1),
	}
}

// ID is the stream's number.
func (s *Stream) ID() uint64 { return s.request.GetStreamId() }

// Request is what it was opened with.
func (s *Stream) Request() *nodev1.StreamOpen { return s.request }

// Done is closed when the stream has ended; what was received before can still be read.
func (s *Stream) Done() <-chan struct{} { return s.ctx.Done() }

// Exit is how the command of an exec, or the session of an attach, ended, when the other side said so with its close.
func (s *Stream) Exit() *apiv1.Session_Exit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exit
}

// Send sends data, in several frames when it is much. It waits for credit and for room in the link's queue; d must not
// be changed any more. A stream that has ended gives the error it ended with, io.ErrClosedPipe when it ended well.
func (s *Stream) Send(ctx context.Context, d *nodev1.StreamData) error {
	for _, part := range split(d) {
		part.StreamId = s.ID()
		if err := s.spend(ctx, cost(part)); err != nil {
			return err
		}
		if err := s.m.sendWait(ctx, &nodev1.Frame{Payload: &nodev1.Frame_StreamData{StreamData: part}}); err != nil {
			return err
		}
	}
	return nil
}

// spend takes credit. Whoever has some left may spend more than that: the debt is bounded by one frame, and a line that
// is longer than the window needs no splitting.
func (s *Stream) spend(ctx context.Context, n int64) error {
	for {
		s.mu.Lock()
		if s.ended {
			err := s.end
			s.mu.Unlock()
			if err == io.EOF { //nolint:errorlint // set bare
				err = io.ErrClosedPipe
			}
			return err
		}
		if s.credit > 0 {
			s.credit -= n
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-s.writable:
		case <-s.ctx.Done():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Recv returns the next data. It returns io.EOF when the other side closed the stream in good order, the other side's
// error when it said one, and an error that matches ErrClosed when the link ended.
func (s *Stream) Recv(ctx context.Context) (*nodev1.StreamData, error) {
	for {
		s.mu.Lock()
		if len(s.inbox) > 0 {
			d := s.inbox[0]
			s.inbox[0] = nil
			s.inbox = s.inbox[1:]
			s.consumed += cost(d)
			var grant int64
			if s.consumed >= InitialWindow/2 && !s.ended {
				grant, s.consumed = s.consumed, 0
				s.window += grant
			}
			s.mu.Unlock()
			if grant > 0 {
				if err := s.m.sendWait(ctx, &nodev1.Frame{Payload: &nodev1.Frame_StreamWindow{StreamWindow: &nodev1.StreamWindow{
					StreamId: s.ID(), Bytes: uint32(grant),
				}}}); err != nil && ctx.Err() != nil {
					s.Close(fault.New(fault.Aborted, "stream %d: its reader left", s.ID()), nil) // the grant is lost, and the stream with it
				}
			}
			return d, nil
		}
		ended, end := s.ended, s.end
		s.mu.Unlock()
		if ended {
			return nil, end
		}
		select {
		case <-s.readable:
		case <-s.ctx.Done():
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Close ends the stream for both sides; what was sent before still arrives. err goes to the other side as its error,
// and exit, which may be nil, as how the process ended. It is idempotent, and may wait for room in the link's queue.
func (s *Stream) Close(err error, exit *apiv1.Session_Exit) {
	s.mu.Lock()
	ended := s.ended
	s.mu.Unlock()
	if ended {
		return
	}
	s.m.forget(s)
	end := err
	if end == nil {
		end = io.EOF
	}
	if !s.finish(end) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeStreamWithin)
	defer cancel()
	_ = s.m.sendWait(ctx, closeFrame(s.ID(), err, &nodev1.StreamClose{Exit: exit})) // a full queue ends the link, and the stream with it
}

// finish ends this side; it reports whether it was the first to.
func (s *Stream) finish(end error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.ended, s.end = true, end
	s.cancel(end)
	return true
}

func (s *Stream) closedByPeer(c *nodev1.StreamClose) {
	s.mu.Lock()
	s.exit = c.GetExit()
	s.mu.Unlock()
	end := FromError(c.GetError())
	if end == nil {
		end = io.EOF
	}
	s.finish(end)
}

// take puts data into the inbox; false when the other side had no credit for it.
func (s *Stream) take(d *nodev1.StreamData) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.window <= 0 {
		return false
	}
	s.window -= cost(d)
	s.inbox = append(s.inbox, d)
	signal(s.readable)
	return true
}

func (s *Stream) grant(n uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credit += int64(n)
	signal(s.writable)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// cost is the credit that a stream_data frame takes.
func cost(d *nodev1.StreamData) int64 {
	n := streamFrameCost + len(d.GetStdin()) + len(d.GetStdout()) + len(d.GetStderr())
	for _, l := range d.GetLines() {
		n += streamLineCost + len(l.GetText())
	}
	return int64(n)
}

// split divides data into frames of about maxStreamChunk. Small data comes back as it is.
func split(d *nodev1.StreamData) []*nodev1.StreamData {
	if cost(d) <= maxStreamChunk+streamFrameCost {
		return []*nodev1.StreamData{{
			Lines: d.GetLines(), Stdin: d.GetStdin(), EndOfInput: d.GetEndOfInput(), Stdout: d.GetStdout(), Stderr: d.GetStderr(),
			Columns: d.GetColumns(), Rows: d.GetRows(),
		}}
	}
	var out []*nodev1.StreamData
	for rest := d.GetLines(); len(rest) > 0; {
		n, size := 0, 0
		for n < len(rest) && (n == 0 || size+len(rest[n].GetText())+streamLineCost <= maxStreamChunk) {
			size += len(rest[n].GetText()) + streamLineCost
			n++
		}
		out, rest = append(out, &nodev1.StreamData{Lines: rest[:n]}), rest[n:]
	}
	chunks := func(b []byte, set func(*nodev1.StreamData, []byte)) {
		for len(b) > 0 {
			n := min(len(b), maxStreamChunk)
			part := new(nodev1.StreamData)
			set(part, b[:n])
			out, b = append(out, part), b[n:]
		}
	}
	chunks(d.GetStdin(), func(p *nodev1.StreamData, b []byte) { p.Stdin = b })
	chunks(d.GetStdout(), func(p *nodev1.StreamData, b []byte) { p.Stdout = b })
	chunks(d.GetStderr(), func(p *nodev1.StreamData, b []byte) { p.Stderr = b })
	last := out[len(out)-1]
	last.EndOfInput, last.Columns, last.Rows = d.GetEndOfInput(), d.GetColumns(), d.GetRows()
	return out
}
