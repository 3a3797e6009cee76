// Verdicts: how the work of a call came out, the same for calls that this server keeps and for those that the cluster does.

package socket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue/dispatch"
)

// verdict is how a call came out.
type verdict struct {
	outputs   json.RawMessage // where there is no failure and it was not cancelled
	cancelled bool
	failure   *failure
}

// kept reports whether asking again gets the same verdict, and does not make the call anew.
func (v *verdict) kept() bool {
	return !v.cancelled && (v.failure == nil || !transient[v.failure.Code])
}

// message is the verdict as it is told.
func (v *verdict) message(id string) message {
	m := message{Op: "call_tool_res", RequestID: id, Outputs: v.outputs, Error: v.failure}
	if v.cancelled {
		m.Op = "cancelled"
	}
	return m
}

// worker has tools do their work.
type worker struct {
	tools       Tools
	resultBytes int
	log         *slog.Logger
}

// do runs a tool until it ends or ctx does. since is when its client began to wait.
func (w *worker) do(ctx context.Context, tool *tools.Tool, c tools.Call, since time.Time) verdict {
	outputs, err := w.protected(ctx, tool, c)
	return w.judge(ctx, tool, outputs, err, since)
}

// try is do for a call that is to be made at once; begun is false when it would have to wait, and nothing was done.
func (w *worker) try(ctx context.Context, tool *tools.Tool, c tools.Call, since time.Time) (v verdict, begun bool) {
	outputs, err := w.protected(ctx, tool, c)
	if errors.Is(err, tools.ErrWouldWait) {
		return v, false
	}
	return w.judge(ctx, tool, outputs, err, since), true
}

// judge says how the work of a tool came out.
func (w *worker) judge(ctx context.Context, tool *tools.Tool, outputs []tools.Output, err error, since time.Time) verdict {
	size := 0
	for _, o := range outputs {
		size += len(o.Text)
	}
	switch cause := context.Cause(ctx); {
	case err == nil && size > w.resultBytes:
		return verdict{failure: failed(codeToolExecution, fmt.Sprintf("%s: the answer is %d bytes, more than %d; ask for less at a time", tool.Name, size, w.resultBytes))}
	case err == nil:
		return verdict{outputs: appendOutputs(make([]byte, 0, size+size/8+outputOverhead*len(outputs)+2), outputs)}
	case errors.Is(cause, tools.ErrCancelled):
		return verdict{cancelled: true}
	case errors.Is(cause, context.DeadlineExceeded):
		return verdict{failure: failed(codeTimeout, fmt.Sprintf("%s: no answer within %s; what it began may go on, ask again with the same request_id", tool.Name, time.Since(since).Round(time.Millisecond)))}
	case errors.Is(cause, errStopping):
		f := failed(codeUnavailable, tool.Name+": "+errStopping.Error()+"; ask another one, with the same session_id and request_id")
		f.Details = &details{RetryAfterMS: 1}
		return verdict{failure: f}
	default:
		return verdict{failure: failureIn(tool, err)}
	}
}

// protected keeps a defect of a tool from ending the server.
func (w *worker) protected(ctx context.Context, tool *tools.Tool, c tools.Call) (_ []tools.Output, err error) {
	defer func() {
		if p := recover(); p != nil {
			w.log.Error("a tool panicked", "tool", tool.Name, "panic", p, "stack", string(debug.Stack()))
			err = fault.New(fault.Internal, "%s: the server ran into a defect; its log says where", tool.Name)
		}
	}()
	return w.tools.Call(ctx, tool, c)
}

// Runner runs calls that the cluster keeps, as their callers. It implements dispatch.Runner.
type Runner struct {
	worker
	access Access
}

// NewRunner makes a runner; answers over so many bytes are refused.
func NewRunner(t Tools, a Access, resultBytes int, log *slog.Logger) *Runner {
	return &Runner{worker{t, resultBytes, log}, a}
}

// Run implements dispatch.Runner.
func (r *Runner) Run(ctx context.Context, run dispatch.Run) dispatch.Answer {
	c := run.Call
	tool, ok := r.tools.Find(c.Tool)
	if !ok {
		return dispatch.Answer{Code: codeToolNotFound, Message: fmt.Sprintf("tool %.64q: server %s has none; another version of the program took the call", c.Tool, c.Server)}
	}
	who := auth.Identity{TokenID: c.Caller.TokenID, Name: c.Caller.Name, Role: auth.Role(c.Caller.Role), Namespace: c.Caller.Namespace}
	since := time.Unix(0, c.CreateTime)
	if c.CreateTime == 0 {
		since = time.Now() // it is being taken
	}
	v := r.do(r.access.AsCaller(ctx, who), tool, tools.Call{
		ID: effectID(who, c.Session, c.RequestID), Origin: tools.Origin{Client: c.Session, RequestID: c.RequestID}, Arguments: run.Arguments, Priority: c.Priority.String(), Progress: run.Progress, Chunk: run.Chunk,
	}, since)
	a := dispatch.Answer{Outputs: v.outputs, Cancelled: v.cancelled, Passing: !v.kept()}
	if f := v.failure; f != nil {
		a.Code, a.Message = f.Code, f.Message
		if f.Details != nil {
			a.RetryAfter, a.Field = time.Duration(f.Details.RetryAfterMS)*time.Millisecond, f.Details.Field
		}
		// What may pass is tried again, as long as somebody waits for it.
		a.Again = (f.Code == codeOverCapacity || f.Code == codeUnavailable) && ctx.Err() == nil
	}
	return a
}
