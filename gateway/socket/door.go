// The door: the limits of this hub for those who speak to clients in another way.

package socket

import (
	"net/http"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/fault"
)

// Pace takes from the rates of a caller. Errors are of kind fault.Exhausted and say when to come back.
func (h *Hub) Pace(r *http.Request, who auth.Identity) error {
	retry, ok := h.buckets.take(h.addressOf(r), ownerOf(who))
	if ok {
		return nil
	}
	h.count.overCapacity.Add(1)
	return fault.New(fault.Exhausted, "more is asked than the rate allows; ask again later").WithRetry(retry)
}

// Begin counts a call in that runs beside those of the hub; end counts it out.
func (h *Hub) Begin() (end func(), err error) {
	if h.count.inFlight.Add(1) > int64(h.o.Limits.InFlight) {
		h.count.inFlight.Add(-1)
		h.count.overCapacity.Add(1)
		return nil, fault.New(fault.Exhausted, "as many calls are in flight on this server as may be").WithRetry(time.Second)
	}
	if h.stopping.Load() {
		h.count.inFlight.Add(-1)
		return nil, fault.New(fault.Unavailable, "server %s is stopping; ask another one", h.o.Server).WithRetry(time.Second)
	}
	h.count.calls.Add(1)
	return func() { h.count.inFlight.Add(-1) }, nil
}
