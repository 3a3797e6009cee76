// Turns: the ends of many messages' turns, told on the stream on which the messages were sent. One subscription to the state serves all
// messages of a stream, where a call each would cost a goroutine and a wake-up each.

package gateway

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc/codes"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/faultcode"
	"github.com/neolith/orchestrator/session"
)

// maxAwaitedTurns is how many messages of one stream may be awaited, or told and not taken yet.
const maxAwaitedTurns = 16_384

// turns are what is awaited on one stream. Its reader adds to it, its writer takes from it, and a goroutine of its own follows the state.
type turns struct {
	ops    *Operations
	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup
	ready  chan struct{} // there is something to take

	mu       sync.Mutex
	follows  bool
	awaited  map[state.LetterKey][]uint64 // places on the stream; of one message several, when it was sent again
	places   int                          // of all of them
	finished []*apiv1.SendMessagesResponse_Turn
}

func (o *Operations) newTurns(ctx context.Context) *turns {
	t := &turns{ops: o, ready: make(chan struct{}, 1), awaited: map[state.LetterKey][]uint64{}}
	t.ctx, t.cancel = context.WithCancel(ctx)
	return t
}

// end ends the following.
func (t *turns) end() {
	t.cancel()
	t.wait.Wait()
}

// await has the end of a message's turn told. The message is in the state.
func (t *turns) await(key state.LetterKey, place uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.places+len(t.finished) >= maxAwaitedTurns {
		t.tell(&apiv1.SendMessagesResponse_Turn{
			Number: place, Code: int32(codes.ResourceExhausted), Error: "as many turns are awaited on this stream as may be; the message was accepted, ask for it by its number",
		})
		return
	}
	t.awaited[key] = append(t.awaited[key], place)
	t.places++
	if !t.follows {
		t.follows = true
		t.wait.Go(t.follow)
	}
	t.look(t.ops.State.View(), key) // what ended before it was awaited comes in no change
}

// take returns what is to be told.
func (t *turns) take() []*apiv1.SendMessagesResponse_Turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.finished
	t.finished = nil
	return out
}

// tell adds to what is to be told. t.mu is held.
func (t *turns) tell(turn *apiv1.SendMessagesResponse_Turn) {
	t.finished = append(t.finished, turn)
	select {
	case t.ready <- struct{}{}:
	default:
	}
}

// finish tells the end of a message. t.mu is held.
func (t *turns) finish(key state.LetterKey, m *apiv1.Message, err error) {
	places := t.awaited[key]
	delete(t.awaited, key)
	t.places -= len(places)
	for _, place := range places {
		turn := &apiv1.SendMessagesResponse_Turn{Number: place, Message: m}
		if err != nil {
			turn.Code, turn.Error = int32(faultcode.Of(fault.KindOf(err))), err.Error()
		}
		t.tell(turn)
	}
}

// look tells the end of a message if it has ended. t.mu is held.
func (t *turns) look(v *state.View, key state.LetterKey) {
	if m, over, err := t.ops.ended(v, key.SessionID, key.Sequence); over {
		t.finish(key, m, err)
	}
}

// follow reads the feed until the stream ends.
func (t *turns) follow() {
	for t.ctx.Err() == nil {
		sub, v := t.ops.State.Subscribe()
		t.lookAll(v, nil)
		for {
			c, err := sub.Next(t.ctx)
			if err != nil {
				sub.Close()
				if errors.Is(err, state.ErrLagged) {
					break
				}
				return
			}
			t.observe(c)
		}
	}
}

// lookAll looks at all that is awaited, or at that of some sessions.
func (t *turns) lookAll(v *state.View, of []*session.Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := range t.awaited {
		if of != nil && key.SessionID != of[0].ID {
			continue
		}
		t.look(v, key)
	}
}

func (t *turns) observe(c *state.Change) {
	if c.Restored {
		t.lookAll(t.ops.State.View(), nil)
		return
	}
	for i := range c.RemovedSessions {
		t.lookAll(t.ops.State.View(), c.RemovedSessions[i:i+1])
	}
	if len(c.Results)+len(c.Dead) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range c.Results {
		if key := (state.LetterKey{SessionID: r.SessionID, Sequence: r.Sequence}); t.awaited[key] != nil {
			t.finish(key, resultProto(r), nil)
		}
	}
	for _, d := range c.Dead {
		if key := (state.LetterKey{SessionID: d.SessionID, Sequence: d.Sequence}); t.awaited[key] != nil {
			m := deadProto(d)
			t.finish(key, m, deadError(m))
		}
	}
}
