// That calls which are made where they are read hold nobody up.
package socket

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/neolith/orchestrator/gateway/tools"
)

// They are acked, answered, kept and counted like others, and a defect in one ends nothing.
func TestCallsAtOnce(t *testing.T) {
	w := start(t, nil)
	p := w.hello("alice", "")
	for i := range 3 {
		id := fmt.Sprint("r", i)
		p.call(id, "now", map[string]string{"key": id})
		if m := p.next(); m["op"] != "call_tool_ack" || m["request_id"] != id || m["accepted"] != true {
			t.Fatalf("not acked first: %v", m)
		}
		if m := p.next(); m["op"] != "call_tool_res" || m["request_id"] != id || text(m) != id || m["seq"] != float64(2*i+2) {
			t.Fatalf("not answered: %v", m)
		}
	}
	p.call("r0", "now", map[string]string{"key": "r0"})
	if m := p.until("call_tool_res"); m["from_cache"] != true || w.bench.ran("r0") != 1 {
		t.Errorf("asked again: %v, run %d times", m, w.bench.ran("r0"))
	}
	p.call("broken", "now", map[string]string{"key": "broken"})
	if m := p.until("call_tool_res"); code(m) != codeInternal {
		t.Errorf("a defect is told as %v", m)
	}
	p.send(map[string]any{"op": "cancel", "request_id": "r1"})
	if m := p.next(); m["op"] != "cancelled" || code(m) != codeNotFound {
		t.Errorf("a call that has ended was cancelled: %v", m)
	}
	if n := w.hub.Stats(); n.InFlight != 0 || n.Calls != 4 {
		t.Errorf("%+v", n)
	}
}

// One that would have to wait to begin is made beside the reader: others go on, and it can be cancelled.
func TestCallsThatWouldWait(t *testing.T) {
	w := start(t, nil)
	p := w.hello("alice", "")
	p.call("waits", "now", map[string]string{"key": "full"})
	p.until("call_tool_ack")
	p.call("next", "now", map[string]string{"key": "next"})
	if m := p.until("call_tool_res"); m["request_id"] != "next" {
		t.Fatalf("%v", m)
	}
	p.send(map[string]any{"op": "cancel", "request_id": "waits"})
	if m := p.until("cancelled"); m["request_id"] != "waits" || code(m) != "" {
		t.Errorf("%v", m)
	}
	if err := <-w.bench.ended; !errors.Is(err, tools.ErrCancelled) {
		t.Errorf("it ended by %v", err)
	}
	if n := w.bench.ran("full"); n != 1 {
		t.Errorf("it was run %d times", n)
	}
}

// Who does not read what it is answered is still heard: its answers wait in the queue, and the reader does not wait with them.
func TestACancelIsHeardBehindAnswersThatNobodyReads(t *testing.T) {
	w := start(t, func(o *Options) {
		o.Limits.QueueFrames, o.Limits.QueueBytes, o.Limits.KeptCalls, o.Limits.WriteTimeout = 1<<20, 1<<30, 1<<20, time.Minute
	})
	p := w.hello("alice", "")
	noise := make([]byte, 2250) // which no compression makes small
	_, _ = rand.Read(noise)
	key := base64.StdEncoding.EncodeToString(noise)
	p.call("held", "hold", map[string]string{"key": "held"})
	for i := range uint64(2600) { // more than the kernel takes for a peer that does not read; one after the other, as the reader answers itself then
		p.call(fmt.Sprint(i), "now", map[string]string{"key": key})
		for giveUp := time.Now().Add(patience); w.hub.Stats().FramesReceived < i+3; runtime.Gosched() {
			if time.Now().After(giveUp) {
				t.Fatalf("after %d answers that nobody read the next call is not heard", i)
			}
		}
	}
	p.send(map[string]any{"op": "cancel", "request_id": "held"})
	if err := <-w.bench.ended; !errors.Is(err, tools.ErrCancelled) {
		t.Errorf("it ended by %v", err)
	}
}
