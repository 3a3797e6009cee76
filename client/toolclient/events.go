// What a Client tells those who watch it: its state, and each change.

package toolclient

import (
	"sync"
	"time"

	"github.com/neolith/orchestrator/internal/fanout"
)

// State is how a Client reaches the cluster.
type State string

// The states. New makes a Client that is Connecting.
const (
	Connecting   State = "connecting"   // for the first time
	Connected    State = "connected"    // over a WebSocket
	Fallback     State = "fallback"     // over HTTP; the WebSocket is tried on
	Reconnecting State = "reconnecting" // nobody is reached; calls wait
	Closed       State = "closed"
)

// Event is a change of the state, or an attempt that failed and left it as it is.
type Event struct {
	State   State
	Time    time.Time
	Address string        // of the server that it is about
	Server  string        // its name; with Connected, where servers tell it
	Attempt int           // attempts in a row that failed
	Delay   time.Duration // until the next one
	Err     error         // why
	Missed  uint64        // events that this subscriber was too slow for, just before this one
}

// events are the state and who is told of it. A slow subscriber never holds up the client.
type events struct {
	fanout.Fanout[Event]
	mu    sync.Mutex
	state State
}

// State is how the cluster is reached at present.
func (c *Client) State() State {
	c.events.mu.Lock()
	defer c.events.mu.Unlock()
	return c.events.state
}

// Subscribe returns what changes from now on, and a function that ends the subscription. The channel is closed when the Client is.
func (c *Client) Subscribe(buffer int) (<-chan Event, func()) { return c.events.Subscribe(buffer) }

// emit sets the state and tells all. Closed is the last that is told.
func (v *events) emit(e Event) {
	v.mu.Lock()
	v.state = e.State
	v.mu.Unlock()
	e.Time = time.Now()
	v.Emit(func(missed uint64) Event { e.Missed = missed; return e })
	if e.State == Closed {
		v.Close()
	}
}
