// What a Client tells those who watch it: its state, and each change.

package toolclient

import (
	"sync"
	"time"
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

// events are the state and its subscribers. A slow one misses events, and is told how many; it never holds up the client.
type events struct {
	mu    sync.Mutex
	state State
	subs  map[*subscriber]struct{}
}

type subscriber struct {
	ch     chan Event
	missed uint64
}

// State is how the cluster is reached at present.
func (c *Client) State() State {
	c.events.mu.Lock()
	defer c.events.mu.Unlock()
	return c.events.state
}

// Subscribe returns what changes from now on, and a function that ends the subscription. The channel is closed when the Client is.
func (c *Client) Subscribe(buffer int) (<-chan Event, func()) {
	v := &c.events
	s := &subscriber{ch: make(chan Event, max(buffer, 1))}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.state == Closed {
		close(s.ch)
		return s.ch, func() {}
	}
	v.subs[s] = struct{}{}
	return s.ch, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if _, ok := v.subs[s]; ok {
			delete(v.subs, s)
			close(s.ch)
		}
	}
}

// emit sets the state and tells all.
func (v *events) emit(e Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state, e.Time = e.State, time.Now()
	for s := range v.subs {
		e.Missed = s.missed
		select {
		case s.ch <- e:
			s.missed = 0
		default:
			s.missed++
		}
		if e.State == Closed {
			delete(v.subs, s)
			close(s.ch)
		}
	}
}
