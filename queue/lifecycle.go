// The life of a call: the one table that says what a status may become.

package queue

import "fmt"

// Event is what may happen to a call.
type Event uint8

// The events.
const (
	Begin  Event = iota + 1 // its server begins an attempt
	Defer                   // the attempt failed in a way that may pass
	Assign                  // its server is gone: another one has it now
	End                     // it has an outcome
	GiveUp                  // it has an outcome that nobody wanted, and a person may try again
	Retry                   // a person tries again
	Submit                  // its client asks again after an outcome that is not kept
)

var eventNames = [...]string{Begin: "begin", Defer: "defer", Assign: "assign", End: "end", GiveUp: "give up", Retry: "retry", Submit: "submit"}

// String returns the event's name.
func (e Event) String() string {
	if int(e) < len(eventNames) && eventNames[e] != "" {
		return eventNames[e]
	}
	return fmt.Sprintf("event(%d)", uint8(e))
}

// Transition is one row of the lifecycle.
type Transition struct {
	From Status
	On   Event
	To   Status
}

// Lifecycle is the whole life of a call, which the package's comment draws. What is not here cannot happen. A call that waits may end
// without having begun: it was cancelled, its deadline passed, or its server had no right to make it any more.
var Lifecycle = []Transition{
	{Queued, Begin, Running},
	{Queued, Assign, Queued},
	{Queued, End, Ended},
	{Queued, GiveUp, Dead},
	{Running, Defer, Queued},
	{Running, Assign, Queued},
	{Running, End, Ended},
	{Running, GiveUp, Dead},
	{Dead, Retry, Queued},
	{Ended, Submit, Queued},
	{Dead, Submit, Queued},
}

// Next returns what the status becomes on the event, and false when that cannot happen.
func Next(s Status, e Event) (Status, bool) {
	for _, t := range Lifecycle {
		if t.From == s && t.On == e {
			return t.To, true
		}
	}
	return s, false
}
