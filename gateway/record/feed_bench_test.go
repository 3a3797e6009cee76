// What the feed costs for each message and its answer: the leader's, which records them, and another one's, which remembers them.

package record

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/session"
)

// nowhere is a recorder that keeps nothing.
type nowhere struct{}

func (nowhere) Take(*recorder.Interaction) error { return nil }
func (nowhere) Room(context.Context) error       { return nil }

func BenchmarkFeed(b *testing.B) {
	const sessions, each = 256, 16
	for _, leads := range []bool{true, false} {
		b.Run(map[bool]string{true: "leader", false: "follower"}[leads], func(b *testing.B) {
			f, err := NewFeed(FeedOptions{State: state.New(state.DefaultLimits()), Recorder: nowhere{}, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			names := make([]string, sessions)
			for n := range names {
				names[n] = fmt.Sprintf("session-%03d", n)
				f.name(&session.Session{ID: names[n], Spec: &session.Spec{Namespace: "default"}})
			}
			c := &state.Change{}
			for n := range each {
				at := time.Now().UnixNano()
				c.Messages = append(c.Messages, &session.Message{SessionID: names[n*sessions/each], Sequence: uint64(n), Text: make([]byte, 256), CreateTime: at})
				c.Results = append(c.Results, &session.Result{SessionID: names[n*sessions/each], Sequence: uint64(n), Text: make([]byte, 8), EndTime: at})
			}
			n := 0
			for b.Loop() {
				if leads { // who accepted it says so
					for _, m := range c.Messages {
						f.Sent(m.SessionID, m.Sequence, "client:bench")
					}
				}
				f.take(c, leads)
				f.settle(false)
				n += each
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/message")
		})
	}
}
