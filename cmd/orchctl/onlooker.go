// Looking on while something goes on in the cluster: it is shown until it is over, and Ctrl-C asks what is to become of it.

package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// errBackground is what somebody leaves with who lets it go on by itself.
var errBackground = errors.New("in the background")

// ongoing is something that goes on in the cluster, and is seen as one S after another. watch and end run beside the other methods,
// which belong to one goroutine, and may use nothing that update changes.
type ongoing[S any] interface {
	// watch passes on what it becomes until seen fails, and returns why there is no more.
	watch(ctx context.Context, seen func(S) error) error
	// update takes in what it has become, which is then drawn. After an error it is not looked at any more.
	update(s S) error
	// over reports whether it has ended.
	over() bool
	// end asks for its end, which is then seen.
	end(ctx context.Context) error
	// left is the error of whoever was interrupted while it goes on, and late of whoever had no more time.
	left() error
	late() error
}

// onlooker shows something until it is over.
type onlooker[S any] struct {
	it    ongoing[S]
	ctx   context.Context // of what is asked meanwhile; an interrupt does not end it
	show  *live
	ask   question
	tasks sync.WaitGroup

	seen   chan S
	unseen chan error // why it is seen no more
	ended  chan error // what the wish for its end was answered
}

// lookOn shows something until it is over, or until the onlooker is told otherwise: its error is then errBackground, or says why. ask is
// what an interrupt asks, without the way to end it.
func lookOn[S any](ctx context.Context, it ongoing[S], ask question) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	o := &onlooker[S]{it: it, ctx: own, show: ask.show, ask: ask, seen: make(chan S), unseen: make(chan error, 1), ended: make(chan error, 1)}
	o.ask.end = o.end
	o.show.draw()
	defer func() {
		o.ask.close()
		cancel()
		o.tasks.Wait()
		o.show.leave()
	}()
	if errors.Is(ctx.Err(), context.Canceled) && !pending(signals) { // by a signal that came before it was listened for here
		return it.left()
	}
	o.tasks.Go(o.watch)
	return o.run(ctx, signals)
}

// pending reports whether a signal waits, or comes at once: those who listen hear of one after the other.
func pending(signals chan os.Signal) bool {
	select {
	case sig := <-signals:
		signals <- sig
		return true
	case <-time.After(signalSkew):
		return false
	}
}

// signalSkew is by how much one listener may hear of a signal before another.
const signalSkew = 50 * time.Millisecond

func (o *onlooker[S]) watch() {
	o.unseen <- o.it.watch(o.ctx, func(s S) error {
		select {
		case o.seen <- s:
			return nil
		case <-o.ctx.Done():
			return o.ctx.Err()
		}
	})
}

func (o *onlooker[S]) run(ctx context.Context, signals <-chan os.Signal) error {
	expired := ctx.Done()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for !o.it.over() {
		select {
		case s := <-o.seen:
			if err := o.it.update(s); err != nil {
				return err
			}
			o.show.draw()
		case <-tick.C:
			o.show.tick()
		case err := <-o.unseen:
			return err
		case err := <-o.ended:
			if err != nil {
				o.show.say(err.Error())
			}
		case sig := <-signals:
			if sig != os.Interrupt || !o.ask.ask(o.ctx) {
				return o.it.left()
			}
		case typed := <-o.ask.keys():
			if o.ask.answer(typed) {
				return errBackground
			}
		case <-expired:
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return o.it.late()
			}
			expired = nil // a signal, which comes by its own channel
		}
	}
	return nil
}

// end asks for the end of what goes on, beside the looking on.
func (o *onlooker[S]) end() {
	o.tasks.Go(func() {
		err := o.it.end(o.ctx)
		select {
		case o.ended <- err:
		case <-o.ctx.Done():
		}
	})
}
