// The near end of a terminal: raw mode and back, keys, window sizes.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/neolith/orchestrator/client"
)

const (
	keyCtrlC     = 0x03
	keyCtrlD     = 0x04
	keyCtrlP     = 0x10
	keyCtrlQ     = 0x11
	keyBackspace = 0x7f
	// inputChunkBytes is how much is read from the terminal at once.
	inputChunkBytes = 4096
)

// terminal is standard input while somebody else's process has it.
type terminal struct {
	a      *app
	ctx    context.Context
	cancel context.CancelFunc
	keys   *keys // nil when every byte is meant for the process
	input  chan []byte
	resize chan client.Size
	size   client.Size

	fd    int
	state *term.State // before raw mode; nil when it is not raw
	wake  [2]*os.File // a byte in it ends the reading
	wg    sync.WaitGroup
	once  sync.Once
}

// openTerminal makes standard input raw, when it is a terminal and that is wanted, and follows its size. close undoes it.
func (a *app) openTerminal(ctx context.Context, k *keys, raw bool) (*terminal, error) {
	t := &terminal{a: a, keys: k, input: make(chan []byte), resize: make(chan client.Size), fd: -1}
	t.ctx, t.cancel = context.WithCancel(ctx)
	if !isTerminal(a.stdin) {
		return t, nil
	}
	t.fd = int(a.stdin.(*os.File).Fd())
	t.size = t.measure()
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	t.wg.Go(func() {
		defer signal.Stop(changed)
		for {
			select {
			case <-changed:
			case <-t.ctx.Done():
				return
			}
			select {
			case t.resize <- t.measure():
			case <-t.ctx.Done():
				return
			}
		}
	})
	if raw {
		state, err := term.MakeRaw(t.fd)
		if err != nil {
			t.close()
			return nil, fmt.Errorf("put the terminal into raw mode: %w", err)
		}
		t.state = state
	}
	return t, nil
}

func (t *terminal) raw() bool { return t.state != nil }

func (t *terminal) measure() client.Size {
	w, h, err := term.GetSize(t.fd)
	if err != nil {
		return client.Size{}
	}
	return client.Size{Columns: uint32(w), Rows: uint32(h)}
}

// close gives the terminal back as it was. It may be called again.
func (t *terminal) close() {
	t.once.Do(func() {
		t.cancel()
		if t.wake[1] != nil {
			_, _ = t.wake[1].Write([]byte{0}) // a full pipe wakes as well
		}
		t.wg.Wait()
		for _, f := range t.wake {
			if f != nil {
				_ = f.Close()
			}
		}
		if t.state != nil {
			_ = term.Restore(t.fd, t.state) // the terminal is gone when this fails
		}
	})
}

// say tells the user something between the process's lines.
func (t *terminal) say(text string) {
	if t.a.flags.quiet {
		return
	}
	end := "\n"
	if t.raw() {
		end = "\r\n"
	}
	_, _ = io.WriteString(t.a.stderr, end+"orchctl: "+text+end) // there is nowhere left to say that it failed
}

// start begins to read r into input. What is not a file cannot be woken, and must come to an end by itself.
func (t *terminal) start(r io.Reader) {
	if f, ok := r.(*os.File); ok {
		var err error
		if t.wake[0], t.wake[1], err = os.Pipe(); err == nil {
			r = &wakeable{f: f, wake: t.wake[0]}
		}
		t.wg.Go(func() { t.read(r) })
		return
	}
	go t.read(r)
}

func (t *terminal) read(r io.Reader) {
	defer close(t.input)
	buf := make([]byte, inputChunkBytes)
	for {
		n, err := r.Read(buf)
		b, ended := bytes.Clone(buf[:n]), false
		if t.keys != nil {
			b, ended = t.keys.take(b)
		}
		if len(b) > 0 {
			select {
			case t.input <- b:
			case <-t.ctx.Done():
				return
			}
		}
		if err != nil || ended {
			return
		}
	}
}

// wakeable reads a file until something can be read from another one.
type wakeable struct{ f, wake *os.File }

var errWoken = errors.New("woken")

func (w *wakeable) Read(p []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(w.f.Fd()), Events: unix.POLLIN}, {Fd: int32(w.wake.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case fds[1].Revents != 0:
			return 0, errWoken
		}
		return w.f.Read(p)
	}
}

// keys looks for Ctrl-P Ctrl-Q in what is typed.
type keys struct {
	detach func()
	line   *lineEditor // nil when keys go to the process one by one
	held   bool        // a Ctrl-P waits for what follows
}

// take returns what is for the process, and whether there is to be no more.
func (k *keys) take(in []byte) (out []byte, ended bool) {
	for _, c := range in {
		switch {
		case k.held && c == keyCtrlQ, k.line != nil && c == keyCtrlC:
			k.detach()
			return out, true
		case k.held:
			k.held = false
			out = append(out, keyCtrlP)
		}
		if c == keyCtrlP {
			k.held = true
			continue
		}
		out = append(out, c)
	}
	if k.line != nil {
		return k.line.take(out)
	}
	return out, false
}

// lineEditor is the little that a terminal does by itself when it is not raw: echo, backspace, Enter, Ctrl-D.
type lineEditor struct {
	echo io.Writer
	line []byte
}

func (e *lineEditor) take(in []byte) (out []byte, ended bool) {
	for _, c := range in {
		switch {
		case c == '\r' || c == '\n':
			e.show("\n")
			out = append(append(out, e.line...), '\n')
			e.line = nil
		case c == keyBackspace || c == '\b':
			if len(e.line) > 0 {
				_, n := utf8.DecodeLastRune(e.line)
				e.line = e.line[:len(e.line)-n]
				e.show("\b \b")
			}
		case c == keyCtrlD && len(e.line) == 0:
			return out, true
		case c < ' ' && c != '\t', len(e.line) >= inputChunkBytes:
		default:
			e.line = append(e.line, c)
			e.show(string([]byte{c}))
		}
	}
	return out, false
}

func (e *lineEditor) show(s string) { _, _ = io.WriteString(e.echo, s) } // an echo that fails is seen

// screen writes to a raw terminal what was meant for one that is not: a line break begins at the left.
type screen struct {
	mu sync.Mutex // the process's output and the echo meet here
	w  io.Writer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}
