// Bytes to and from a session: its log, a terminal, a further command. They ride on the link beside the supervisor,
// which only says where the session is.

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/neolith/orchestrator/agent/driver"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
)

// stream is a nodelink.Stream, as far as sessions are concerned.
type stream interface {
	Request() *nodev1.StreamOpen
	Send(ctx context.Context, d *nodev1.StreamData) error
	Recv(ctx context.Context) (*nodev1.StreamData, error)
	Close(err error, exit *apiv1.Session_Exit)
}

// where asks the supervisor for a session.
type where struct {
	id    string
	reply chan *run // holds one; nil for a session that is not here
}

// serveStream serves one stream; ctx ends with it.
func (a *Agent) serveStream(ctx context.Context, s *nodelink.Stream) { a.serve(ctx, s) }

func (a *Agent) serve(ctx context.Context, s stream) {
	exit, err := a.dispatch(ctx, s)
	if ctx.Err() != nil {
		return // the other side has left
	}
	s.Close(err, pbconv.ExitToProto(exit))
}

func (a *Agent) dispatch(ctx context.Context, s stream) (*session.Exit, error) {
	open := s.Request()
	r, err := a.find(ctx, open.GetSessionId())
	if err != nil {
		return nil, err
	}
	a.metrics.streams.Inc()
	defer a.metrics.streams.Dec()
	switch kind := open.GetKind().(type) {
	case *nodev1.StreamOpen_ReadLogs:
		return nil, a.readLogs(ctx, s, r, kind.ReadLogs)
	case *nodev1.StreamOpen_Attach:
		return a.attach(ctx, s, r, kind.Attach)
	case *nodev1.StreamOpen_Exec:
		return a.exec(ctx, s, r, kind.Exec)
	}
	return nil, fault.New(fault.Unimplemented, "this node-agent does not know that kind of stream")
}

// find returns the session's run.
func (a *Agent) find(ctx context.Context, id string) (*run, error) {
	w := where{id: id, reply: make(chan *run, 1)}
	select {
	case a.notes <- w:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case r := <-w.reply:
		if r == nil {
			return nil, fault.New(fault.NotFound, "session %s is not on node %s", clip(id), a.opts.Name)
		}
		return r, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// locate answers find.
func (s *supervisor) locate(w where) {
	e := s.entries[w.id]
	if e == nil || e.removing {
		w.reply <- nil
		return
	}
	w.reply <- e.run
}

// running returns the run's process, or says why there is none.
func (r *run) running() (driver.Process, error) {
	st := r.status()
	switch {
	case st.ended != nil:
		return nil, fault.New(fault.FailedPrecondition, "session %s has ended: %s", r.id, st.ended.Exit.Cause)
	case st.proc == nil:
		return nil, fault.New(fault.Unavailable, "session %s is being started; try again", r.id).WithRetry(time.Second)
	}
	return st.proc, nil
}

func (a *Agent) readLogs(ctx context.Context, s stream, r *run, req *nodev1.ReadLogs) error {
	since := req.GetSince()
	emit := func(lines []*apiv1.LogLine) error {
		if since != nil { // the log is ordered by number, and nearly so by time
			for len(lines) > 0 && lines[0].GetTime().AsTime().Before(since.AsTime()) && lines[0].GetStream() != apiv1.LogLine_NOTICE {
				lines = lines[1:]
			}
			if len(lines) == 0 {
				return nil
			}
			since = nil
		}
		return s.Send(ctx, &nodev1.StreamData{Lines: lines})
	}
	if proc := r.status().proc; proc != nil {
		return proc.ReadLogs(ctx, req.GetFromLine(), req.GetFollow(), emit)
	}
	if !r.live() && a.opts.PastLogs != nil {
		return a.opts.PastLogs(ctx, r.store.dir(r.id), req.GetFromLine(), emit)
	}
	_, err := r.running()
	return err
}

func (a *Agent) attach(ctx context.Context, s stream, r *run, req *nodev1.Attach) (*session.Exit, error) {
	proc, err := r.running()
	if err != nil {
		return nil, err
	}
	in := pump(ctx, s, driver.Size{Columns: uint16(req.GetColumns()), Rows: uint16(req.GetRows())})
	defer in.stop()
	if err := proc.Attach(in.ctx, in, stdout{ctx, s}, in.resize); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("attach to session %s: %w", r.id, err)
	}
	return in.endOf(proc)
}

// endPatience is how long the end of a process is waited for whose terminal has hung up: the whole tree must be gone.
const endPatience = 5 * time.Second

// endOf says how a process ended that was attached to; nothing when it goes on because the other side has said all it
// had to. A terminal hangs up before the end of its process is known.
func (in *input) endOf(proc driver.Process) (*session.Exit, error) {
	give := time.NewTimer(endPatience)
	defer give.Stop()
	select {
	case <-proc.Done():
	case <-in.over:
	case <-give.C:
		return nil, fault.New(fault.Unavailable, "the terminal has hung up, and the session has not ended; attach again").WithRetry(time.Second)
	}
	select {
	case <-proc.Done():
		exit := proc.Exit()
		return &exit, nil
	default:
		return nil, nil
	}
}

func (a *Agent) exec(ctx context.Context, s stream, r *run, req *nodev1.Exec) (*session.Exit, error) {
	proc, err := r.running()
	if err != nil {
		return nil, err
	}
	x, ok := proc.(driver.Execer)
	if !ok {
		return nil, fault.New(fault.Unimplemented, "sessions of type %s run no further commands", r.spec.Type)
	}
	if len(req.GetCommand()) == 0 {
		return nil, fault.New(fault.Invalid, "exec: the command is empty; give the program to run after --")
	}
	size := driver.Size{Columns: uint16(req.GetColumns()), Rows: uint16(req.GetRows())}
	in := pump(ctx, s, driver.Size{})
	defer in.stop()
	exit, err := x.Exec(in.ctx, driver.Exec{Command: req.GetCommand(), TTY: req.GetTty(), Size: size,
		Stdin: in, Stdout: stdout{ctx, s}, Stderr: stderr{ctx, s}, Resize: in.resize})
	if err != nil {
		return nil, fmt.Errorf("exec in session %s: %w", r.id, err)
	}
	return &exit, nil
}

// stdout and stderr write to a stream.
type (
	stdout struct {
		ctx context.Context
		s   stream
	}
	stderr stdout
)

func (w stdout) Write(b []byte) (int, error) {
	return len(b), w.s.Send(w.ctx, &nodev1.StreamData{Stdout: append([]byte(nil), b...)})
}

func (w stderr) Write(b []byte) (int, error) {
	return len(b), w.s.Send(w.ctx, &nodev1.StreamData{Stderr: append([]byte(nil), b...)})
}

// input is what the other side of a stream types, and how large its window is.
type input struct {
	*io.PipeReader
	ctx    context.Context
	cancel context.CancelFunc
	resize chan driver.Size // the latest
	over   chan struct{}    // closed when there will be no more input
	done   chan struct{}
}

// pump reads a stream until it ends. A reader of the input sees its end; ctx of the input ends when the stream does.
func pump(ctx context.Context, s stream, size driver.Size) *input {
	pr, pw := io.Pipe()
	in := &input{PipeReader: pr, resize: make(chan driver.Size, 1), over: make(chan struct{}), done: make(chan struct{})}
	in.ctx, in.cancel = context.WithCancel(ctx)
	in.resized(size)
	over := sync.OnceFunc(func() {
		close(in.over)
		pw.CloseWithError(io.EOF)
	})
	go func() {
		defer close(in.done)
		defer over()
		for {
			d, err := s.Recv(in.ctx)
			if err != nil {
				over()
				if in.ctx.Err() == nil {
					in.cancel() // the other side has left
				}
				return
			}
			in.resized(driver.Size{Columns: uint16(d.GetColumns()), Rows: uint16(d.GetRows())})
			if len(d.GetStdin()) > 0 {
				if _, err := pw.Write(d.GetStdin()); err != nil {
					continue // nobody reads input any more; windows and the end still count
				}
			}
			if d.GetEndOfInput() {
				over()
			}
		}
	}()
	return in
}

func (in *input) resized(size driver.Size) {
	if size.Columns == 0 || size.Rows == 0 {
		return
	}
	select {
	case <-in.resize:
	default:
	}
	in.resize <- size
}

// stop ends the pump and waits for it.
func (in *input) stop() {
	in.cancel()
	in.PipeReader.CloseWithError(io.ErrClosedPipe)
	<-in.done
}
