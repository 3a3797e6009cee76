// Repetitions: requests that were answered a moment ago and are asked again, because the answer was lost.

package gateway

import (
	"sync"

	"github.com/neolith/orchestrator/internal/fault"
)

// repeatsMax bounds what is remembered, in requests.
const repeatsMax = 4096

// repeatKey is one request: what about which session, by which idempotency key.
type repeatKey struct{ method, session, key string }

// repeats remembers the last requests whose repetition would not be harmless, and the number that each was given. A spawn, a
// fork and a message are remembered by the state. This is for what happens to a session that is there: another leader
// recognises a repetition by what the session shows, such as a move that is under way.
type repeats struct {
	mu    sync.Mutex
	byKey map[repeatKey]repeat
	ring  []repeatKey // in the order in which they came; next is the oldest once it is full
	next  int
}

// repeat is what was asked for, and the number that it was given.
type repeat struct {
	what   string
	number uint64
}

// seen returns the number that a request was given; requests without a key are never the same. The same key for something
// else is refused.
func (r *repeats) seen(k repeatKey, what string) (uint64, bool, error) {
	if k.key == "" {
		return 0, false, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	before, ok := r.byKey[k]
	if ok && before.what != what {
		return 0, false, fault.New(fault.AlreadyExists, "idempotency key %q was used for another request; use a new key", k.key).WithField("idempotency_key")
	}
	return before.number, ok, nil
}

func (r *repeats) remember(k repeatKey, what string, number uint64) {
	if k.key == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.byKey[k]; ok {
		return
	}
	if r.byKey == nil {
		r.byKey = map[repeatKey]repeat{}
	}
	if len(r.ring) < repeatsMax {
		r.ring = append(r.ring, k)
	} else {
		delete(r.byKey, r.ring[r.next])
		r.ring[r.next] = k
		r.next = (r.next + 1) % repeatsMax
	}
	r.byKey[k] = repeat{what, number}
}
