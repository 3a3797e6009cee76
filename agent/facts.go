// The facts that the control plane has not acknowledged yet: numbered, batched, sent again.

package agent

import (
	"time"

	"google.golang.org/protobuf/proto"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

// The bounds of one facts frame.
const (
	maxFactsPerFrame     = 512
	maxFactBytesPerFrame = 1 << 20
)

// factsPatienceMin is how long facts may be on their way on a healthy link without any of them being acked; then all of
// them are sent again, and the patience doubles up to factsPatienceMax until one is. A leader notices a gap and breaks the
// link after 5 s, which a resend is to come before; it has no way to notice that the last frame is missing.
const (
	factsPatienceMin = 3 * time.Second
	factsPatienceMax = 30 * time.Second
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

// onTheirWay reports whether facts were sent and not acked.
func (l *factLog) onTheirWay() bool { return l.sent > l.committed }

// resend makes every fact beyond the committed ones go out again, over a new link or the same.
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

// factsPatience says when facts that are on their way have been so for too long. It is owned by the supervisor.
type factsPatience struct {
	timer   *time.Timer
	running bool
	lasts   time.Duration
}

func newFactsPatience() factsPatience {
	return factsPatience{timer: stoppedTimer(), lasts: factsPatienceMin}
}

// begin waits for an ack, unless one is waited for already.
func (p *factsPatience) begin() {
	if !p.running {
		p.running = true
		p.timer.Reset(p.lasts)
	}
}

// over is the timer's end: nothing was acked in time.
func (p *factsPatience) over() {
	p.running = false
	p.lasts = min(2*p.lasts, factsPatienceMax)
}

// renew: something was acked, or the link is another; the next wait begins anew.
func (p *factsPatience) renew() {
	p.timer.Stop()
	p.running, p.lasts = false, factsPatienceMin
}

// uncommitted calls visit with each fact that is not committed.
func (l *factLog) uncommitted(visit func(*nodev1.Fact)) {
	for _, f := range l.unacked {
		visit(f)
	}
}
