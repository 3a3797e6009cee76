// What a hub counts.

package nodelink

import "sync/atomic"

// HubStats is a hub's counts since it was made, for metrics.
type HubStats struct {
	Links          int    // sockets that are open now
	RelayedLinks   int    // links of followers, while this server leads
	Accepted       uint64 // links whose hello was taken
	Refused        uint64 // handshakes and hellos that were not
	FramesIn       uint64 // from nodes of this server
	Dropped        uint64 // frames from nodes that came while nobody led
	Overflowed     uint64 // links that were closed because a bounded queue was full
	Superseded     uint64 // links that were closed because the node had a newer one
	RelayOpened    uint64 // relay streams that this server opened as a follower
	RelayBatches   uint64 // relay messages sent, both ways
	RelayItems     uint64 // frames and changes of links in them
	RelaysAccepted uint64 // relay streams that followers opened
}

type counters struct {
	accepted, refused, framesIn, dropped, overflowed, superseded atomic.Uint64
	relayOpened, relayBatches, relayItems, relaysAccepted        atomic.Uint64
	relayedLinks                                                 atomic.Int64
}

// Stats returns the hub's counts.
func (h *Hub) Stats() HubStats {
	h.mu.Lock()
	links := len(h.sockets)
	h.mu.Unlock()
	c := &h.stats
	return HubStats{
		Links: links, RelayedLinks: int(c.relayedLinks.Load()), Accepted: c.accepted.Load(), Refused: c.refused.Load(),
		FramesIn: c.framesIn.Load(), Dropped: c.dropped.Load(), Overflowed: c.overflowed.Load(), Superseded: c.superseded.Load(),
		RelayOpened: c.relayOpened.Load(), RelayBatches: c.relayBatches.Load(), RelayItems: c.relayItems.Load(),
		RelaysAccepted: c.relaysAccepted.Load(),
	}
}
