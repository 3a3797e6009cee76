// What a node's end of the link tells those who watch it: its state, and events by the names they have always had.

package nodelink

import (
	"sync"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fanout"
)

// State is where a node's link is in its life.
//
//	disconnected ─► connecting ─► connected ─► reconnecting ─► connected …
//	                    └────────────┬──────────────┘ ▲
//	           after ClientOptions.Attempts failures  │
//	                                 ▼                │
//	                               failed ── tries on, slowly, for ever
type State string

// The states.
const (
	Disconnected State = "disconnected" // not begun, or ended by its owner
	Connecting   State = "connecting"
	Connected    State = "connected" // acknowledged by a leader
	Reconnecting State = "reconnecting"
	Failed       State = "failed" // ClientOptions.Attempts failed in a row; it goes on every SlowInterval
)

// EventType names an event.
type EventType string

// The events. Those about sessions are told when the node reports it to the leader, once each.
const (
	EventConnecting        EventType = "connecting"
	EventConnected         EventType = "connected"
	EventDisconnected      EventType = "disconnected"
	EventReconnecting      EventType = "reconnecting"     // an attempt failed or the link was lost; Delay until the next
	EventReconnectFailed   EventType = "reconnect-failed" // the attempts are used up; the slow ones begin
	EventSessionSpawned    EventType = "session-spawned"
	EventSessionTerminated EventType = "session-terminated"
	EventSessionRestored   EventType = "session-restored"
	EventError             EventType = "error"   // an error frame came, or an attempt failed
	EventMessage           EventType = "message" // any frame came
)

// Event is something that happened on the link.
type Event struct {
	Type      EventType
	Time      time.Time
	Server    string
	Attempt   int           // of the attempts in a row that did not reach a leader
	Delay     time.Duration // with reconnecting
	SessionID string        // with session-…
	Frame     *nodev1.Frame // with message, error and session-…; must not be changed
	Err       error         // with disconnected, reconnecting, reconnect-failed and error
	Missed    uint64        // events that this subscriber was too slow for, just before this one
}

// broadcaster hands events to subscribers, and knows which it has told. A slow subscriber never holds up the link.
type broadcaster struct {
	fanout.Fanout[Event]
	mu sync.Mutex
	// Facts are told once, though they are sent again until they are acked.
	incarnation, lastFact uint64
}

func (b *broadcaster) emit(e Event) {
	e.Time = time.Now()
	b.Emit(func(missed uint64) Event { e.Missed = missed; return e })
}

// sent tells what a frame to the leader reports about sessions.
func (b *broadcaster) sent(server string, f *nodev1.Frame) {
	tell := func(t EventType, session string) {
		b.emit(Event{Type: t, Server: server, SessionID: session, Frame: f})
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch p := f.GetPayload().(type) {
	case *nodev1.Frame_SessionSpawned:
		tell(EventSessionSpawned, p.SessionSpawned.GetSession().GetSessionId())
	case *nodev1.Frame_SessionTerminated:
		tell(EventSessionTerminated, p.SessionTerminated.GetSession().GetSessionId())
	case *nodev1.Frame_SessionRestored:
		tell(EventSessionRestored, p.SessionRestored.GetSession().GetSessionId())
	case *nodev1.Frame_Facts:
		if p.Facts.GetIncarnation() != b.incarnation {
			b.incarnation, b.lastFact = p.Facts.GetIncarnation(), 0
		}
		for _, fact := range p.Facts.GetFacts() {
			if fact.GetIndex() <= b.lastFact {
				continue
			}
			b.lastFact = fact.GetIndex()
			switch fact.GetKind().(type) {
			case *nodev1.Fact_Started:
				tell(EventSessionSpawned, fact.GetSessionId())
			case *nodev1.Fact_Exited:
				tell(EventSessionTerminated, fact.GetSessionId())
			}
		}
	}
}
