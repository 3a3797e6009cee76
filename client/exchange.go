// A stream that asks and is answered in turn, with several questions under way, and the gathering of what goes into one of them.

package client

import (
	"context"
	"sync"

	"google.golang.org/grpc"
)

// exchange is one opening of a call that streams both ways, and its receiver.
type exchange[Req, Resp any] struct {
	grpc.BidiStreamingClient[Req, Resp]
	cancel  context.CancelFunc
	answers chan exchangeAnswer[Resp] // holds all that can come, so that the receiver never waits
	done    sync.WaitGroup
}

type exchangeAnswer[Resp any] struct {
	resp *Resp
	err  error
}

// openExchange opens a stream on which at most so many questions are unanswered, and starts its receiver; close ends it.
func openExchange[Req, Resp any](ctx context.Context, open func(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[Req, Resp], error), inFlight int) (*exchange[Req, Resp], error) {
	ctx, cancel := context.WithCancel(ctx)
	st, err := open(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	s := &exchange[Req, Resp]{BidiStreamingClient: st, cancel: cancel, answers: make(chan exchangeAnswer[Resp], inFlight+1)}
	s.done.Go(func() {
		for {
			m, err := st.Recv()
			select {
			case s.answers <- exchangeAnswer[Resp]{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	return s, nil
}

// close ends the stream and its receiver. Of a stream that is nil nothing is left to end.
func (s *exchange[Req, Resp]) close() {
	if s != nil {
		s.cancel()
		s.done.Wait()
	}
}

// gather puts what waits in a queue behind what is pending, without waiting for more, until so many are pending.
func gather[T any](pending []T, queue <-chan T, bound int) []T {
	for len(pending) < bound {
		select {
		case it := <-queue:
			pending = append(pending, it)
		default:
			return pending
		}
	}
	return pending
}
