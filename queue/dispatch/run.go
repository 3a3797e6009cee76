// One attempt of a call: what it needs is fetched, the runner works, and what it answered is put where it can be had again.

package dispatch

import (
	"context"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
)

// storePatience is how long a large answer is tried to be stored.
const storePatience = 30 * time.Second

// start begins an attempt.
func (w *owner) start(e *entry, call *queue.Call) {
	d := w.d
	if w.stopping || !d.enter() {
		w.giveBack(e)
		return // another server has it soon
	}
	if !e.placed { // it was begun by what this process did not see
		w.takePlace(e)
	}
	ctx, cancel := context.WithCancelCause(d.life)
	r := &run{attempt: call.Attempt, cancel: cancel}
	e.run = r
	var arguments []byte
	if e.request != nil {
		arguments = e.request.Arguments
	}
	go func() {
		defer d.work.Done()
		defer cancel(nil)
		ctx, stop := context.WithDeadline(ctx, time.Unix(0, call.Deadline))
		defer stop()
		a, outputs := d.attempt(ctx, call, arguments)
		why := context.Cause(ctx)
		d.inbox.post(func() { w.ranOut(e, r, why, a, outputs) })
	}()
	if call.Cancelling {
		cancel(w.o.Cancelled)
	}
}

// attempt has the runner work.
func (d *Dispatcher) attempt(ctx context.Context, call *queue.Call, arguments []byte) (a Answer, outputs queue.Blob) {
	if arguments == nil {
		var err error
		if arguments, err = d.blobs.get(ctx, "the arguments", call.Arguments); err != nil {
			return failed(err), queue.Blob{}
		}
	}
	client, id := call.Client(), call.RequestID
	a = d.o.Runner.Run(ctx, Run{
		Call: call, Arguments: arguments,
		Progress: func(note string) {
			if s := d.sinkOf(client); s != nil {
				s.Progress(id, note)
			}
		},
		Chunk: func(ctx context.Context, text string) error {
			if s := d.sinkOf(client); s != nil {
				return s.Chunk(ctx, id, text)
			}
			return nil
		},
	})
	if a.Outputs == nil {
		return a, queue.Blob{}
	}
	// The work is done: its answer is stored also when the deadline passes meanwhile.
	keep, stop := context.WithTimeout(context.WithoutCancel(ctx), storePatience)
	defer stop()
	release := context.AfterFunc(d.life, stop)
	defer release()
	outputs, err := d.blobs.put(keep, "the answer", a.Outputs)
	if err != nil {
		return failed(err), queue.Blob{}
	}
	return a, outputs
}

// failed is an attempt that did not come to work, or whose answer could not be kept.
func failed(err error) Answer {
	a := Answer{Code: codeInternal, Message: err.Error(), Passing: true}
	switch fault.KindOf(err) {
	case fault.Unavailable, fault.Exhausted:
		a.Code, a.Again = queue.CodeUnavailable, true
	case fault.Unimplemented:
		a.Code, a.Passing = codeToolExecution, false
	}
	return a
}

// Codes of the client gateway that are given here.
const (
	codeInternal      = "INTERNAL_ERROR"
	codeToolExecution = "TOOL_EXECUTION_ERROR"
)
