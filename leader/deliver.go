// Messages on their way: for each session, the most urgent few that its node does not have yet.
//
// What was sent is remembered for the life of a link only. A node that comes back says what it still holds, everything
// else is sent again, and the node knows what its process was given already.

package leader

import (
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

const (
	// deliverWindowMessages and deliverWindowBytes bound what is sent to one session and not acked, for each priority: an
	// urgent message does not wait behind a window full of others.
	deliverWindowMessages = 64
	deliverWindowBytes    = 1 << 20
	// resendAfter is when a message that the node has not confirmed is sent again.
	resendAfter = 5 * time.Second
)

// delivery is what was sent to a session in its present epoch.
type delivery struct {
	epoch   uint32
	sent    map[uint64]sentMessage
	windows [session.Low + 1]window // by priority
	last    time.Time
	behind  bool // a window was full, so there is more in the mailbox
}

// sentMessage is a message that was sent and is not acked.
type sentMessage struct {
	priority  session.Priority
	bytes     int
	confirmed bool // by the node: it is in the session's inbox
}

// window counts what is sent and not acked.
type window struct{ messages, bytes int }

func (w window) full() bool {
	return w.messages >= deliverWindowMessages || w.bytes >= deliverWindowBytes
}

// add counts a message as sent.
func (d *delivery) add(m *session.Message, confirmed bool) {
	d.remove(m.Sequence)
	d.sent[m.Sequence] = sentMessage{priority: m.Priority, bytes: len(m.Text), confirmed: confirmed}
	w := &d.windows[m.Priority]
	w.messages++
	w.bytes += len(m.Text)
}

// remove makes room: the message was acked, or must be sent again.
func (d *delivery) remove(sequence uint64) {
	s, ok := d.sent[sequence]
	if !ok {
		return
	}
	delete(d.sent, sequence)
	w := &d.windows[s.priority]
	w.messages--
	w.bytes -= s.bytes
}

type messageKey struct {
	session  string
	sequence uint64
}

func (r *reign) delivery(s *session.Session) *delivery {
	d := r.deliveries[s.ID]
	if d == nil || d.epoch != s.Epoch {
		d = &delivery{epoch: s.Epoch, sent: map[uint64]sentMessage{}}
		r.deliveries[s.ID] = d
	}
	return d
}

// loadMessages takes in a session's mailbox as it stands.
func (r *reign) loadMessages(v *state.View, id string) {
	box := v.Mailbox(id)
	if box == nil || box.Queued+box.Delivered == 0 {
		return
	}
	r.toDeliver[id] = true
	for m := range v.Messages(id) {
		if m.Deadline != 0 {
			r.expiries.add(m.Deadline, id, m.Sequence)
		}
	}
}

// observeMessages takes in what a change of the state says of messages.
func (r *reign) observeMessages(c *state.Change) {
	for _, m := range c.Messages {
		// What was sent stays sent, also if this change is older than the view it was read from. What is taken back from
		// a process that ended is sent anew because its session's next epoch begins with nothing sent.
		r.toDeliver[m.SessionID] = true
		if m.Deadline != 0 {
			r.expiries.add(m.Deadline, m.SessionID, m.Sequence)
		}
	}
	for _, res := range c.Results {
		r.settled(res.SessionID, res.Sequence)
	}
	for _, dead := range c.Dead {
		r.settled(dead.SessionID, dead.Sequence)
		delete(r.buried, messageKey{dead.SessionID, dead.Sequence})
	}
}

// settled: the message needs no delivery any more.
func (r *reign) settled(id string, sequence uint64) {
	d := r.deliveries[id]
	if d == nil {
		return
	}
	d.remove(sequence)
	if d.behind {
		r.toDeliver[id] = true
	}
}

// takesMessages reports whether a session's node may have its messages: also before the process runs, and while it is being
// copied, which does not keep it from working.
func takesMessages(s *session.Session) bool {
	switch s.Phase {
	case session.Starting, session.Restoring, session.Running:
		return true
	case session.Migrating, session.Pausing:
		return !s.Left && s.RewindTo == 0
	}
	return false
}

// pullMessages gives each session that may have some its next messages.
func (r *reign) pullMessages() {
	if len(r.toDeliver) == 0 {
		return
	}
	view := r.opts.State.View()
	for id := range r.toDeliver {
		delete(r.toDeliver, id)
		if box := view.Mailbox(id); box.Queued+box.Delivered == 0 {
			continue
		}
		s := view.Session(id)
		if s == nil || !takesMessages(s) {
			continue
		}
		n := r.nodes[s.NodeID]
		if n == nil || !n.synced {
			continue
		}
		if batch := r.nextMessages(view, s); len(batch) > 0 {
			sm := &nodev1.SessionMessages{SessionId: id, Epoch: s.Epoch}
			for _, m := range batch {
				sm.Messages = append(sm.Messages, pbconv.MessageToProto(m))
			}
			n.deliver = append(n.deliver, sm)
			r.mark(n)
		}
	}
}

// nextMessages returns what fits into a session's windows, most urgent first, and counts it as sent. Behind a full window
// nothing less urgent is sent.
func (r *reign) nextMessages(view *state.View, s *session.Session) []*session.Message {
	d := r.delivery(s)
	d.behind = false
	var batch []*session.Message
	for m := range view.Messages(s.ID) {
		if _, sent := d.sent[m.Sequence]; sent {
			continue
		}
		if d.windows[m.Priority].full() {
			d.behind = true
			break
		}
		d.add(m, false)
		batch = append(batch, m)
	}
	if len(batch) > 0 {
		d.last = r.opts.Now()
	}
	return batch
}

// flushMessages sends a node its messages, in frames of a bounded size.
func (r *reign) flushMessages(n *node, index uint64) {
	var batch []*nodev1.SessionMessages
	bytes := 0
	count := uint64(0)
	send := func() {
		if len(batch) > 0 {
			r.send(n, &nodev1.Frame{Index: index, Payload: &nodev1.Frame_Deliver{Deliver: &nodev1.Deliver{Sessions: batch}}})
		}
		batch, bytes = nil, 0
	}
	deliver := n.deliver
	n.deliver = nil
	for _, sm := range deliver {
		batch = append(batch, sm)
		count += uint64(len(sm.GetMessages()))
		for _, m := range sm.GetMessages() {
			bytes += len(m.GetText()) + 64
		}
		if bytes >= maxDownFrameBytes {
			send()
		}
	}
	send()
	if count > 0 {
		r.l.count(func(s *Stats) { s.MessagesSent += count })
	}
}

// delivered: the node has taken messages into its inboxes.
func (r *reign) delivered(f *nodev1.Delivered) {
	for _, s := range f.GetSessions() {
		d := r.deliveries[s.GetSessionId()]
		if d == nil || d.epoch != s.GetEpoch() {
			continue
		}
		for _, seq := range s.GetSequences() {
			if m, ok := d.sent[seq]; ok {
				m.confirmed = true
				d.sent[seq] = m
			}
		}
	}
}

// resend sends again what nodes have not confirmed.
func (r *reign) resend(now time.Time) {
	for id, d := range r.deliveries {
		if len(d.sent) == 0 || now.Sub(d.last) < resendAfter {
			continue
		}
		for seq, m := range d.sent {
			if !m.confirmed {
				d.remove(seq)
				r.toDeliver[id] = true
			}
		}
		d.last = now
	}
}

// bury commits that messages whose deadline has passed are dead letters.
func (r *reign) bury(id string, sequence uint64, cause string) {
	key := messageKey{id, sequence}
	if r.buried[key] {
		return
	}
	m := r.opts.State.View().Message(id, sequence)
	if m == nil || m.Delivered {
		return // done, or with the process: what has begun is not taken back
	}
	r.buried[key] = true
	fail := r.logFailures("a message's deadline")
	r.propose(func(results []state.Result, err error) {
		delete(r.buried, key)
		fail(results, err)
	}, &clusterv1.Command{Kind: &clusterv1.Command_BuryMessages{BuryMessages: &clusterv1.BuryMessages{
		SessionId: id, Sequences: []uint64{sequence}, Cause: cause,
	}}})
}
