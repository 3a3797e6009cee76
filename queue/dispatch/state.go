// The replicated state as a dispatcher sees it.

package dispatch

import (
	"context"
	"errors"
	"fmt"

	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/queue"
)

// StoreState is a server's state machine as a State.
type StoreState struct{ Store *state.Store }

// View implements State.
func (s StoreState) View() View { return s.Store.View() }

// Subscribe implements State.
func (s StoreState) Subscribe() Feed { return &storeFeed{store: s.Store} }

// storeFeed subscribes when it is first asked, and anew when it fell behind or the state was replaced.
type storeFeed struct {
	store *state.Store
	sub   *state.Subscription
	last  uint64 // the index of what was given last
	back  bool   // the state was set back behind that
}

// Next implements Feed.
func (f *storeFeed) Next(ctx context.Context) (*Change, error) {
	for {
		if f.sub == nil {
			var v *state.View
			f.sub, v = f.store.Subscribe()
			back := f.back || v.Index() < f.last
			f.last, f.back = v.Index(), false
			return &Change{Index: v.Index(), View: v, Back: back}, nil
		}
		c, err := f.sub.Next(ctx)
		switch {
		case errors.Is(err, state.ErrLagged) || err == nil && c.Restored:
			// The view that comes may be further by then: the index of the restore says whether it went back.
			f.back = f.back || err == nil && c.Index < f.last
			f.Close()
			f.sub = nil
			continue
		case err != nil:
			return nil, fmt.Errorf("%w: %w", errFeedEnded, err)
		}
		f.last = c.Index
		out := &Change{Index: c.Index, Calls: c.Calls}
		for _, r := range c.Rekeyed {
			if out.Rekeyed == nil {
				out.Rekeyed = map[queue.ClientKey]queue.ClientKey{}
			}
			out.Rekeyed[r.From] = r.To
		}
		return out, nil
	}
}

// Close implements Feed.
func (f *storeFeed) Close() {
	if f.sub != nil {
		f.sub.Close()
	}
}
