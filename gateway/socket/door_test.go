// The door: what others who speak to clients share with the hub.
package socket

import (
	"net/http"
	"testing"

	"github.com/neolith/orchestrator/internal/fault"
)

// Connections that are served elsewhere count with those of the hub, and make room when they end.
func TestConnectionsServedElsewhereCount(t *testing.T) {
	w := start(t, func(o *Options) { o.Limits.Connections, o.Limits.ConnectionsPerIP = 3, 2 })
	w.hello("alice", "")
	from := func(address string) *http.Request { return &http.Request{RemoteAddr: address} }
	leave, err := w.hub.Admit(from("127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.hub.Admit(from("127.0.0.1:2")); !fault.Is(err, fault.Exhausted) || fault.As(err).RetryAfter == 0 {
		t.Errorf("the third of an address: %v", err)
	}
	w.turnedAway("the third of an address")
	other, err := w.hub.Admit(from("10.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer other()
	if _, err := w.hub.Admit(from("10.0.0.2:1")); !fault.Is(err, fault.Exhausted) {
		t.Errorf("the fourth of all: %v", err)
	}
	leave()
	leave() // once is enough
	w.hello("alice", "")
	if n := w.hub.Stats().Connections; n != 3 {
		t.Errorf("%d connections are counted", n)
	}
}
