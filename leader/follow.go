// Following: while another server leads, this one's links are relayed to it.

package leader

import (
	"context"

	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/nodelink"
)

// Watch says who leads, and closes the channel when that changes; cluster.Node is one.
type Watch interface {
	Leader() (cluster.Leader, <-chan struct{})
}

// Follow points the hub at whoever leads until ctx ends: at nobody while that is not known. open opens a relay to the
// leader's address, and changed, which may be nil, is told who leads.
//
// Follow hears of changes late, at times so late that this server leads by then. The hub is a reign's from the beginning
// of Run to its end; what Follow has heard by then is old, and what it does about it waits for the next news.
func (l *Leader) Follow(ctx context.Context, w Watch, open func(ctx context.Context, address string) (nodelink.RelayStream, error), changed func(cluster.Leader)) {
	var last cluster.Leader
	for reigns := l.reigns(); ; {
		now, next := w.Leader()
		if now != last && changed != nil {
			changed(now)
		}
		if r := l.reigns(); now != last || r != reigns {
			last, reigns = now, r
			l.follow(now, open)
		}
		select {
		case <-ctx.Done():
			return
		case <-next:
		}
	}
}

func (l *Leader) follow(now cluster.Leader, open func(ctx context.Context, address string) (nodelink.RelayStream, error)) {
	l.hub.Lock()
	defer l.hub.Unlock()
	switch {
	case l.leads || now.Self: // the reign has the hub, or is about to take it
	case now.Address == "":
		l.opts.Hub.Pause()
	default:
		l.opts.Logger.Info("following", "leader", now.ID, "address", now.Address)
		l.opts.Hub.Follow(func(ctx context.Context) (nodelink.RelayStream, error) { return open(ctx, now.Address) })
	}
}

// reigns counts the reigns that have ended on this server: each leaves the hub paused.
func (l *Leader) reigns() uint64 {
	l.hub.Lock()
	defer l.hub.Unlock()
	return l.reigned
}

// take gives the hub to a reign; the returned function gives it back.
func (l *Leader) take() (giveBack func()) {
	l.hub.Lock()
	defer l.hub.Unlock()
	l.leads = true
	return func() {
		l.hub.Lock()
		defer l.hub.Unlock()
		l.leads = false
		l.reigned++
	}
}
