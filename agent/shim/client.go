// The agent's side of a connection.

package shim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// ErrLost is returned when the connection to the shim ended before the answer came; whether the request took effect is
// not known.
var ErrLost = errors.New("shim: the connection to it ended")

// writePatience is how long a shim may leave requests unread, as one that was stopped does.
const writePatience = 10 * time.Second

// GivenInput is a message that the process was given.
type GivenInput struct {
	Sequence uint64
	Line     uint64 // the last output line before it
}

// Status is what a shim says of itself.
type Status struct {
	Run
	LastLine   uint64
	Inputs     []GivenInput // the latest InputsMax, oldest first
	StdinBytes uint64       // that the process has not read
}

func decodeStatus(b []byte) (Status, error) {
	var st Status
	err := each(b, func(t tag, v []byte) {
		switch t {
		case tagLine:
			st.LastLine = num(v)
		case tagInput:
			if len(v) == 16 {
				st.Inputs = append(st.Inputs, GivenInput{binary.LittleEndian.Uint64(v), binary.LittleEndian.Uint64(v[8:])})
			}
		case tagStdinBytes:
			st.StdinBytes = num(v)
		default:
			st.field(t, v)
		}
	})
	return st, err
}

// Client is a connection to a shim. Its methods may be called from several goroutines.
type Client struct {
	f    *os.File
	wmu  sync.Mutex // a frame is written whole
	done chan struct{}
	grew chan struct{}
	line atomic.Uint64

	mu      sync.Mutex
	request uint32
	waiting map[uint32]chan frame
	exit    *Exit
	output  func(b []byte, skipped uint64) // called by the reader
}

// NewClient takes over a connected socket.
func NewClient(f *os.File) *Client {
	c := &Client{f: f, done: make(chan struct{}), grew: make(chan struct{}, 1), waiting: make(map[uint32]chan frame)}
	go c.read()
	return c
}

func (c *Client) read() {
	defer close(c.done)
	for {
		f, err := readFrame(c.f)
		if err != nil {
			return
		}
		switch f.typ {
		case typeGrew:
			c.tellGrew(lookup(f.payload, tagLine))
		case typeExited:
			c.tellExit(f.payload)
		case typeOutput, typeSkipped:
			c.tellOutput(f.payload)
		default:
			c.mu.Lock()
			to := c.waiting[f.request]
			delete(c.waiting, f.request)
			c.mu.Unlock()
			if to != nil {
				to <- f // has room for the one
			}
		}
	}
}

func (c *Client) tellGrew(line uint64) {
	c.line.Store(line)
	select {
	case c.grew <- struct{}{}:
	default:
	}
}

func (c *Client) tellExit(payload []byte) {
	_ = each(payload, func(t tag, v []byte) {
		if t != tagExit {
			return
		}
		if e, err := decodeExit(v); err == nil {
			c.mu.Lock()
			c.exit = e
			c.mu.Unlock()
		}
	})
}

func (c *Client) tellOutput(payload []byte) {
	c.mu.Lock()
	output := c.output
	c.mu.Unlock()
	_ = each(payload, func(t tag, v []byte) {
		switch {
		case output == nil:
		case t == tagData:
			output(v, 0)
		case t == tagSkipped:
			output(nil, num(v))
		}
	})
}

// Grew has a value whenever the log grew since the last one was taken; Line says how far.
func (c *Client) Grew() <-chan struct{} { return c.grew }

// Line is the last line that the shim told of.
func (c *Client) Line() uint64 { return c.line.Load() }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Exit is how the session ended, once the shim has said so; nil before.
func (c *Client) Exit() *Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exit
}

// Close ends the connection, not the session (but an exec ends with it), and waits for its goroutine.
func (c *Client) Close() {
	c.f.Close()
	<-c.done
}

// call sends a request and waits for its answer.
func (c *Client) call(ctx context.Context, typ frameType, payload fields) (frame, error) {
	if len(payload) > MaxFrameBytes {
		return frame{}, refuse(CodeInvalid, "the request is %d bytes, more than %d", len(payload), MaxFrameBytes)
	}
	answer := make(chan frame, 1)
	c.mu.Lock()
	c.request++
	id := c.request
	c.waiting[id] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()
	if err := c.write(encodeFrame(typ, id, payload)); err != nil {
		return frame{}, err
	}
	var f frame
	select {
	case f = <-answer:
	case <-ctx.Done():
		return frame{}, fmt.Errorf("shim: no answer: %w", ctx.Err())
	case <-c.done:
		select {
		case f = <-answer:
		default:
			return frame{}, ErrLost
		}
	}
	if f.typ == typeOK {
		return f, nil
	}
	e := &Error{Code: CodeInternal, Message: "the answer was not understood"}
	err := each(f.payload, func(t tag, v []byte) {
		switch t {
		case tagErrorCode:
			e.Code = ErrorCode(num(v))
		case tagMessage:
			e.Message = string(v)
		}
	})
	if err != nil {
		return frame{}, err
	}
	return frame{}, e
}

func (c *Client) write(b []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := c.f.SetWriteDeadline(time.Now().Add(writePatience)); err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	if _, err := c.f.Write(b); err != nil {
		c.f.Close() // half a frame may be written: nothing can follow it
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return nil
}

func (c *Client) start(ctx context.Context, p *Params) (Status, error) {
	f, err := c.call(ctx, typeStart, p.encode())
	if err != nil {
		return Status{}, err
	}
	st, err := decodeStatus(f.payload)
	st.Session, st.Epoch, st.Cgroup2, st.Cgroup1 = p.Session, p.Epoch, p.Cgroup2, p.Cgroup1
	c.line.CompareAndSwap(0, st.LastLine)
	return st, err
}

// Status asks what the shim runs.
func (c *Client) Status(ctx context.Context) (Status, error) {
	f, err := c.call(ctx, typeStatus, nil)
	if err != nil {
		return Status{}, err
	}
	return decodeStatus(f.payload)
}

// Input gives the process bytes and returns when its pipe took them, with the number of the last line before. With a
// sequence other than 0 it is a message: marked in the log, and not written again when it was given before.
func (c *Client) Input(ctx context.Context, sequence uint64, data []byte) (line uint64, err error) {
	var f fields
	f.num(tagSequence, sequence)
	f.bytes(tagData, data)
	a, err := c.call(ctx, typeInput, f)
	return lookup(a.payload, tagLine), err
}

// CloseStdin closes the process's input, after all that waits for it.
func (c *Client) CloseStdin(ctx context.Context) error {
	_, err := c.call(ctx, typeCloseStdin, nil)
	return err
}

// Signal sends a signal to the main process's group.
func (c *Client) Signal(ctx context.Context, signal int) error {
	var f fields
	f.num(tagSignal, uint64(signal))
	_, err := c.call(ctx, typeSignal, f)
	return err
}

// Stop asks the process to end, and has the tree killed after the grace.
func (c *Client) Stop(ctx context.Context, grace time.Duration, cause, message string) error {
	var f fields
	f.num(tagGrace, uint64(max(grace, 0)))
	f.str(tagCause, cause)
	f.str(tagMessage, message)
	_, err := c.call(ctx, typeStop, f)
	return err
}

// Kill has the tree killed.
func (c *Client) Kill(ctx context.Context, cause, message string) error {
	var f fields
	f.str(tagCause, cause)
	f.str(tagMessage, message)
	_, err := c.call(ctx, typeKill, f)
	return err
}

// Resize sets the terminal's size, if there is one.
func (c *Client) Resize(ctx context.Context, columns, rows uint16) error {
	var f fields
	f.num(tagColumns, uint64(columns))
	f.num(tagRows, uint64(rows))
	_, err := c.call(ctx, typeResize, f)
	return err
}

// Subscribe asks to be told when the log grows (Grew) and when the session ends (Exit, then Done).
func (c *Client) Subscribe(ctx context.Context) error {
	f, err := c.call(ctx, typeSubscribe, nil)
	if err == nil {
		c.line.CompareAndSwap(0, lookup(f.payload, tagLine))
	}
	return err
}

// Listen asks for the socket, so that the directory can be dialled.
func (c *Client) Listen(ctx context.Context) error {
	_, err := c.call(ctx, typeListen, nil)
	return err
}

// Attach asks for a copy of the output from now on. The function is called from one goroutine, with bytes or with how
// many were skipped because it was too slow.
func (c *Client) Attach(ctx context.Context, output func(b []byte, skipped uint64)) error {
	c.mu.Lock()
	c.output = output
	c.mu.Unlock()
	_, err := c.call(ctx, typeAttach, nil)
	return err
}
