// Attaching a terminal, over a connection of its own: a slow one holds up nobody else.

package process

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/shim"
)

const (
	attachReadBytes  = 32 << 10
	attachChunksMax  = 64 // between the shim's connection and out
	skippedNoticeFmt = "\r\n[%d bytes of output skipped: this terminal is too slow]\r\n"
)

// Attach joins in and out with the process; see driver.Process. A Read of in that blocks when Attach returns is left
// behind, until it returns; nothing that it then reads goes to the process.
func (p *proc) Attach(ctx context.Context, in io.Reader, out io.Writer, resize <-chan driver.Size) error {
	client, err := p.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	chunks := make(chan []byte, attachChunksMax)
	err = client.Attach(ctx, func(b []byte, skipped uint64) {
		if skipped > 0 {
			b = fmt.Appendf(nil, skippedNoticeFmt, skipped)
		}
		select { // when out stands still, so does this connection, and the shim skips
		case chunks <- b:
		case <-ctx.Done():
		}
	})
	if err != nil {
		return kind(err)
	}
	inEnded := make(chan error, 1)
	go func() { inEnded <- pump(ctx, client, in) }()
	lost := client.Done()
	for {
		select {
		case b := <-chunks:
			if _, err := out.Write(b); err != nil {
				return fmt.Errorf("process: attach: write: %w", err)
			}
		case size, ok := <-resize:
			if !ok {
				resize = nil
			} else if err := client.Resize(ctx, size.Columns, size.Rows); err != nil && !errors.Is(err, shim.ErrLost) {
				return kind(err)
			}
		case err := <-inEnded:
			return err
		case <-lost:
			return drainTo(out, chunks)
		case <-p.released:
			return errReleased
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// dial makes one more connection to the shim.
func (p *proc) dial(ctx context.Context) (*shim.Client, error) {
	var first *shim.Client
	if err := p.do(ctx, func() { first = p.client }); err != nil {
		return nil, err
	}
	if first == nil {
		return nil, errSearching
	}
	if err := first.Listen(ctx); err != nil {
		return nil, kind(err)
	}
	client, err := shim.Dial(p.s.Dir)
	if err != nil {
		return nil, kind(err)
	}
	return client, nil
}

// pump gives the process what is read; one chunk at a time, so that a process that does not read holds up its typist.
func pump(ctx context.Context, client *shim.Client, in io.Reader) error {
	buf := make([]byte, attachReadBytes)
	for {
		n, err := in.Read(buf)
		if n > 0 && ctx.Err() == nil {
			if _, err := client.Input(ctx, 0, buf[:n]); err != nil {
				if errors.Is(err, shim.ErrLost) {
					return nil // the session has ended
				}
				return kind(err)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("process: attach: read: %w", err)
		}
	}
}

func drainTo(out io.Writer, chunks <-chan []byte) error {
	for {
		select {
		case b := <-chunks:
			if _, err := out.Write(b); err != nil {
				return fmt.Errorf("process: attach: write: %w", err)
			}
		default:
			return nil
		}
	}
}
