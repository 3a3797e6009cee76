// Byte streams beside the control frames of one link: logs, attach, exec.
//
// The leader numbers a stream and says what it wants; both sides then send stream_data until one sends stream_close.
// Each side may send while it has credit (InitialWindow at first); what the receiver has consumed it grants again. A
// stream that nobody reads thus holds up nobody else, and holds a bounded amount of memory.

package nodelink

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// The bounds of streams.
const (
	InitialWindow     = 256 << 10        // bytes of credit that each side of a stream begins with
	MaxStreams        = 64               // streams of one link at a time
	maxStreamChunk    = 32 << 10         // bytes that Send puts into one frame, unless a single log line is longer
	streamFrameCost   = 32               // bytes of credit that a stream_data frame costs beside its content
	streamLineCost    = 32               // bytes of credit that a log line costs beside its text
	retrySendFirst    = time.Millisecond // before a full queue is tried again, doubling
	retrySendMax      = 50 * time.Millisecond
	closeStreamWithin = writeTimeout // for a stream_close to find room in the queue
)

// StreamsOptions say how streams use their link.
type StreamsOptions struct {
	// Send queues a frame on the link that the streams belong to, and on no other.
	Send func(*nodev1.Frame) error
	// Accept serves a stream that the other side opened, in a goroutine of its own. ctx ends with the stream; when Accept
	// returns, the stream is closed. nil refuses all streams.
	Accept func(ctx context.Context, s *Stream)
	// FirstID is the number of the first stream that this side opens, 1 when 0. An opener must not use a number twice on
	// one node, across links and leaders; a leader begins at term<<32.
	FirstID uint64
	// Max is MaxStreams when 0.
	Max    int
	Logger *slog.Logger
}

// Streams are the streams of one link: the leader opens them and the node serves them. Its methods may be called from
// several goroutines.
type Streams struct {
	opts   StreamsOptions
	stray  atomic.Uint64
	served sync.WaitGroup

	mu     sync.Mutex
	nextID uint64
	open   map[uint64]*Stream
	failed error
}

// NewStreams returns the streams of a link.
func NewStreams(o StreamsOptions) *Streams {
	if o.Max == 0 {
		o.Max = MaxStreams
	}
	if o.FirstID == 0 {
		o.FirstID = 1
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Streams{opts: o, nextID: o.FirstID, open: make(map[uint64]*Stream)}
}

// Open opens a stream for the request, of which the stream's number and window are set here.
func (m *Streams) Open(request *nodev1.StreamOpen) (*Stream, error) {
	m.mu.Lock()
	if err := m.failed; err != nil {
		m.mu.Unlock()
		return nil, fault.New(fault.Unavailable, "nodelink: open stream: %w", err)
	}
	if len(m.open) >= m.opts.Max {
		m.mu.Unlock()
		return nil, fault.New(fault.Exhausted, "nodelink: open stream: the node's link has %d streams already; close one, or try again later", m.opts.Max).WithRetry(time.Second)
	}
	s := newStream(m, &nodev1.StreamOpen{
		StreamId: m.nextID, SessionId: request.GetSessionId(), Kind: request.GetKind(), Window: InitialWindow,
	}, InitialWindow)
	m.nextID++
	m.open[s.ID()] = s
	m.mu.Unlock()
	if err := m.opts.Send(&nodev1.Frame{Payload: &nodev1.Frame_StreamOpen{StreamOpen: s.request}}); err != nil {
		m.forget(s)
		s.finish(err)
		return nil, fault.New(sendFault(err), "nodelink: open stream: %w", err)
	}
	return s, nil
}

// Handle takes the frame if it is about a stream, and reports whether it was. It does not block.
func (m *Streams) Handle(f *nodev1.Frame) bool {
	switch p := f.GetPayload().(type) {
	case *nodev1.Frame_StreamOpen:
		m.accept(p.StreamOpen)
	case *nodev1.Frame_StreamData:
		if s := m.find(p.StreamData.GetStreamId()); s != nil && !s.take(p.StreamData) {
			m.opts.Logger.Warn("node link: stream ended: the other side sent more than it was granted", "stream", s.ID())
			err := fault.New(fault.Exhausted, "stream %d: more was sent than the window allows", s.ID())
			m.forget(s)
			s.finish(err)
			m.sendSoon(closeFrame(s.ID(), err, nil))
		}
	case *nodev1.Frame_StreamWindow:
		if s := m.find(p.StreamWindow.GetStreamId()); s != nil {
			s.grant(p.StreamWindow.GetBytes())
		}
	case *nodev1.Frame_StreamClose:
		if s := m.find(p.StreamClose.GetStreamId()); s != nil {
			m.forget(s)
			s.closedByPeer(p.StreamClose)
		}
	default:
		return false
	}
	return true
}

// find returns the stream; nil, and counted, when it has ended or never was: its last frames crossed our close.
func (m *Streams) find(id uint64) *Stream {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.open[id]
	if s == nil {
		m.stray.Add(1)
	}
	return s
}

func (m *Streams) forget(s *Stream) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.open[s.ID()] == s {
		delete(m.open, s.ID())
	}
}

func (m *Streams) accept(request *nodev1.StreamOpen) {
	refuse := func(kind fault.Kind, format string, args ...any) {
		m.mu.Unlock()
		m.sendSoon(closeFrame(request.GetStreamId(), fault.New(kind, format, args...), nil))
	}
	m.mu.Lock()
	switch {
	case m.failed != nil:
		m.mu.Unlock()
		return
	case m.opts.Accept == nil:
		refuse(fault.Unimplemented, "stream %d: this side serves no streams", request.GetStreamId())
		return
	case m.open[request.GetStreamId()] != nil:
		refuse(fault.AlreadyExists, "stream %d: the number is in use", request.GetStreamId())
		return
	case len(m.open) >= m.opts.Max:
		refuse(fault.Exhausted, "stream %d: the link has %d streams already", request.GetStreamId(), m.opts.Max)
		return
	}
	s := newStream(m, request, int64(request.GetWindow()))
	m.open[s.ID()] = s
	m.served.Add(1)
	m.mu.Unlock()
	go func() {
		defer m.served.Done()
		m.opts.Accept(s.ctx, s)
		s.Close(nil, nil)
	}()
}

// sendSoon sends a frame that no caller waits for; when the queue is full, from a goroutine that waits for room.
func (m *Streams) sendSoon(f *nodev1.Frame) {
	if !errors.Is(m.opts.Send(f), ErrQueueFull) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil {
		return
	}
	m.served.Add(1)
	go func() {
		defer m.served.Done()
		ctx, cancel := context.WithTimeout(context.Background(), closeStreamWithin)
		defer cancel()
		_ = m.sendWait(ctx, f) // a queue that stays full ends the link, and the stream with it
	}()
}

// sendWait sends as soon as the link's queue has room.
func (m *Streams) sendWait(ctx context.Context, f *nodev1.Frame) error {
	for delay := retrySendFirst; ; delay = min(2*delay, retrySendMax) {
		err := m.opts.Send(f)
		if !errors.Is(err, ErrQueueFull) {
			return err
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Len is how many streams are open.
func (m *Streams) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.open)
}

// Stray counts frames for streams that are not open any more.
func (m *Streams) Stray() uint64 { return m.stray.Load() }

// Close ends all streams with err, which should say why the link has ended, and refuses further ones. It does not wait
// for the Accepts to return.
func (m *Streams) Close(err error) {
	m.mu.Lock()
	open := m.open
	m.open = make(map[uint64]*Stream)
	if m.failed == nil {
		m.failed = err
	}
	m.mu.Unlock()
	for _, s := range open {
		s.finish(err)
	}
}

// Wait returns when every Accept has returned. Call it after Close.
func (m *Streams) Wait() { m.served.Wait() }

func closeFrame(id uint64, err error, exit *nodev1.StreamClose) *nodev1.Frame {
	c := &nodev1.StreamClose{StreamId: id, Exit: exit.GetExit()}
	if err != nil {
		c.Error = ToError("stream_open", err)
	}
	return &nodev1.Frame{Payload: &nodev1.Frame_StreamClose{StreamClose: c}}
}
