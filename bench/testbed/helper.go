// Helpers: this program again, in a role, answering questions.

package testbed

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
)

// maxLineBytes bounds one question or answer.
const maxLineBytes = 64 << 20

// RoleCommand is the hidden subcommand that runs a role.
const RoleCommand = "role"

// Handlers are the questions that a role answers, by name. One is asked at a time; ctx ends with the helper.
type Handlers map[string]func(ctx context.Context, args json.RawMessage) (any, error)

// Handle makes a handler of a function with typed arguments.
func Handle[A, R any](f func(ctx context.Context, args A) (R, error)) func(context.Context, json.RawMessage) (any, error) {
	return func(ctx context.Context, raw json.RawMessage) (any, error) {
		var args A
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &args); err != nil {
				return nil, fmt.Errorf("read the arguments: %w", err)
			}
		}
		return f(ctx, args)
	}
}

type question struct {
	Ask  string          `json:"ask"`
	Args json.RawMessage `json:"args,omitempty"`
}

type reply struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
}

// Serve answers questions until in ends.
func Serve(ctx context.Context, in io.Reader, out io.Writer, handlers Handlers) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxLineBytes)
	for lines.Scan() {
		var q question
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return fmt.Errorf("read a question: %w", err)
		}
		b, err := json.Marshal(answer(ctx, handlers, q))
		if err != nil {
			return fmt.Errorf("encode the answer to %s: %w", q.Ask, err)
		}
		if _, err := out.Write(append(b, '\n')); err != nil {
			return fmt.Errorf("answer %s: %w", q.Ask, err)
		}
	}
	return lines.Err()
}

func answer(ctx context.Context, handlers Handlers, q question) reply {
	h, ok := handlers[q.Ask]
	if !ok {
		return reply{Error: fmt.Sprintf("this role does not know %q", q.Ask)}
	}
	v, err := h(ctx, q.Args)
	if err != nil {
		return reply{Error: err.Error()}
	}
	b, err := json.Marshal(v)
	if err != nil {
		return reply{Error: fmt.Sprintf("encode the answer: %v", err)}
	}
	return reply{Result: b}
}

// Helper is a process in a role.
type Helper struct {
	role string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Scanner

	mu    sync.Mutex // one question at a time
	ended error
}

// StartHelper starts this program in a role. Its standard error is this program's.
func StartHelper(role string, env ...string) (*Helper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	h := &Helper{role: role, cmd: exec.Command(self, RoleCommand, role)}
	h.cmd.Stderr = os.Stderr
	h.cmd.Env = append(os.Environ(), env...)
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	h.out = bufio.NewScanner(out)
	h.out.Buffer(nil, maxLineBytes)
	if err := launch(h.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	return h, nil
}

// PID is its process id.
func (h *Helper) PID() int { return h.cmd.Process.Pid }

// Ask asks a question and reads the answer into result, which may be nil. When ctx ends first the helper is killed.
func (h *Helper) Ask(ctx context.Context, what string, args, result any) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended != nil {
		return h.ended
	}
	stop := context.AfterFunc(ctx, func() { _ = h.cmd.Process.Kill() })
	defer stop()
	r, err := h.exchange(what, args)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		h.ended = fmt.Errorf("%s: %s: %w", h.role, what, err)
		return h.ended
	}
	if r.Error != "" {
		return fmt.Errorf("%s: %s: %s", h.role, what, r.Error)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(r.Result, result); err != nil {
		return fmt.Errorf("%s: %s: read the answer: %w", h.role, what, err)
	}
	return nil
}

func (h *Helper) exchange(what string, args any) (r reply, err error) {
	q := question{Ask: what}
	if q.Args, err = json.Marshal(args); err != nil {
		return r, err
	}
	b, err := json.Marshal(q)
	if err != nil {
		return r, err
	}
	if _, err := h.in.Write(append(b, '\n')); err != nil {
		return r, err
	}
	if !h.out.Scan() {
		return r, errors.Join(errors.New("it ended without an answer"), h.out.Err())
	}
	return r, json.Unmarshal(h.out.Bytes(), &r)
}

// Kill ends it as a power cut would.
func (h *Helper) Kill() {
	_ = h.cmd.Process.Kill() // it may have ended
	_ = h.cmd.Wait()         // killed, as was wanted
}

// Close lets it end by itself, and waits for it.
func (h *Helper) Close() error {
	_ = h.in.Close() // it may have ended
	if err := h.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w", h.role, err)
	}
	return nil
}
