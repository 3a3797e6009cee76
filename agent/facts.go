// The facts that the control plane has not acknowledged yet: numbered, batched, sent again.

package agent

import (
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

// The bounds of one facts frame.
const (
	maxFactsPerFrame     = 512
	maxFactBytesPerFrame = 1 << 20
)

// factLog numbers the facts of one incarnation from 1 and keeps each until it is committed. It is owned by the
// supervisor.
//
//	1 … committed │ committed+1 … sent │ sent+1 … last
//	   (dropped)  │    (on their way)  │   (waiting)
type factLog struct {
	committed uint64
	sent      uint64
	unacked   []*nodev1.Fact // committed+1 … last
}

// add numbers a fact and keeps it; the fact must not be changed any more.
func (l *factLog) add(f *nodev1.Fact) {
	f.Index = l.last() + 1
	l.unacked = append(l.unacked, f)
}

func (l *factLog) last() uint64 { return l.committed + uint64(len(l.unacked)) }

// ack drops the facts up to index; false when index was never given out.
func (l *factLog) ack(index uint64) bool {
	if index > l.last() {
		return false
	}
	if index <= l.committed {
		return true
	}
	n := index - l.committed
	clear(l.unacked[:n])
	l.unacked = l.unacked[n:]
	l.committed = index
	l.sent = max(l.sent, index)
	return true
}

// renumber makes every fact come after the given index.
func (l *factLog) renumber(after uint64) {
	for i, f := range l.unacked {
		f = proto.Clone(f).(*nodev1.Fact) // the link may hold it
		f.Index = after + 1 + uint64(i)
		l.unacked[i] = f
	}
	l.committed, l.sent = after, after
}

// resend makes every fact beyond the committed ones go out again, over a new link.
func (l *factLog) resend() { l.sent = l.committed }

// batch returns the next facts to send, nil for none; sentTo says that they were handed to the link.
func (l *factLog) batch() []*nodev1.Fact {
	rest := l.unacked[l.sent-l.committed:]
	bytes := 0
	for i, f := range rest {
		bytes += proto.Size(f)
		if i > 0 && (i == maxFactsPerFrame || bytes > maxFactBytesPerFrame) {
			return rest[:i:i]
		}
	}
	return rest[:len(rest):len(rest)]
}

func (l *factLog) sentTo(index uint64) { l.sent = index }

// uncommitted calls visit with each fact that is not committed.
func (l *factLog) uncommitted(visit func(*nodev1.Fact)) {
	for _, f := range l.unacked {
		visit(f)
	}
}
