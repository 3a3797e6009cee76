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

// Admit counts in a connection that is served elsewhere, together with those of the hub; leave counts it out. Errors are of kind
// fault.Exhausted, or fault.Unavailable when the server stops.
func (h *Hub) Admit(r *http.Request) (leave func(), err error) {
	c := &conn{hub: h, ip: h.addressOf(r)}
	if f := h.admit(c); f != nil {
		h.count.refused.Add(1)
		kind := fault.Unavailable
		if f.Code == codeOverCapacity {
			h.count.overCapacity.Add(1)
			kind = fault.Exhausted
		}
		return nil, fault.New(kind, "%s", f.Message).WithRetry(time.Second)
	}
	return func() { h.dismiss(c) }, nil
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
