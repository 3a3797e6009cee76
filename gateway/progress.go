// How far moves are, in what is got and watched: it is in no row of the state.

package gateway

import (
	"context"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/leader"
	"github.com/neolith/orchestrator/session"
)

// progressRest is how long a watch gathers what nodes tell of moves before it passes on the newest.
const progressRest = 250 * time.Millisecond

// sessionNow is sessionProto, with how far the session's move is where this server leads.
func (o *Operations) sessionNow(v *state.View, s *session.Session) *apiv1.Session {
	out := sessionProto(v, s)
	if s.Migration.Under() {
		out.Migration.Progress = o.Leader.Progress(s.ID)
	}
	return out
}

// progressFeed is what one watch has heard of the progress of moves. It belongs to one goroutine.
//
//	told ──► pause ──► rest.C ──► next ──► told …
type progressFeed struct {
	l    *leader.Leader
	seen uint64
	told <-chan struct{} // nil while it rests
	rest *time.Timer
}

func (o *Operations) followProgress() *progressFeed {
	f := &progressFeed{l: o.Leader, rest: time.NewTimer(progressRest)}
	f.rest.Stop()
	_, f.seen, f.told = f.l.ProgressSince(0)
	return f
}

// pause begins to gather.
func (f *progressFeed) pause() {
	f.told = nil
	f.rest.Reset(progressRest)
}

// next returns the sessions of which something was told since the last time.
func (f *progressFeed) next() (ids []string) {
	ids, f.seen, f.told = f.l.ProgressSince(f.seen)
	return ids
}

func (f *progressFeed) end() { f.rest.Stop() }

// change is what a subscription gives next.
type change struct {
	*state.Change
	err error
}

// follow hands on what a subscription gives, until it ends or ctx does.
func follow(ctx context.Context, sub *state.Subscription, to chan<- change) {
	for {
		c, err := sub.Next(ctx)
		select {
		case to <- change{c, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}
