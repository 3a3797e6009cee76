// The end of the API: a server that stops ends what would not end by itself, and says that another server goes on with it.

package gateway

import (
	"context"
	"errors"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// waitGrace is how long calls that wait for something still may when the server stops: many of them are answered in that time.
const waitGrace = time.Second

// stopping ends calls when the server stops: streams, such as watches and logs, at once; calls that wait for something a little later.
// The others end by themselves.
type stopping struct {
	server string
	// streams and waits are the lives of both kinds.
	streams, waits       context.Context
	endStreams, endWaits context.CancelFunc
}

func newStopping(server string) *stopping {
	s := &stopping{server: server}
	s.streams, s.endStreams = context.WithCancel(context.Background())
	s.waits, s.endWaits = context.WithCancel(context.Background())
	return s
}

// within makes a call whose context ends with a life; its error says then that the server stops.
func (s *stopping) within(life, ctx context.Context, call func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	why := fault.New(fault.Unavailable, "server %s is stopping; ask another one", s.server)
	unwatch := context.AfterFunc(life, func() { cancel(why) })
	defer unwatch()
	err := call(ctx)
	if err != nil && errors.Is(context.Cause(ctx), why) {
		return why
	}
	return err
}

// waiting reports whether a request asks to wait for something.
func waiting(req any) bool {
	r, ok := req.(interface{ GetWait() bool })
	return ok && r.GetWait()
}

// End ends the API: no call is taken any more, streams end at once, and calls that wait soon after. It returns when all have ended;
// those that have not after patience are cut off.
func (s *Server) End(patience time.Duration) {
	ended := make(chan struct{})
	s.guard.endStreams()
	go func() { defer close(ended); s.GracefulStop() }()
	grace, late := time.NewTimer(waitGrace), time.NewTimer(patience)
	defer grace.Stop()
	defer late.Stop()
	for {
		select {
		case <-ended:
			s.guard.endWaits()
			return
		case <-grace.C:
			s.guard.endWaits()
		case <-late.C:
			s.Stop()
		}
	}
}
