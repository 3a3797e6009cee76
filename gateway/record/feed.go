// What the log has: messages, answers and session events, recorded by whoever leads.

package record

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/session"
)

const (
	// recentMax and recentBytesMax bound what a server that does not lead remembers: more than a leader reads in the time in which what it records
	// becomes durable.
	recentMax      = 8192
	recentBytesMax = 16 << 20
	// gatherTime is how long the feed lets the log go on after it has read all: to be woken for each entry costs more than to read it.
	gatherTime = 10 * time.Millisecond
	// settleEvery is after how many changes messages are settled where the log does not pause.
	settleEvery = 64
	// namesMax bounds the namespaces of sessions that are remembered.
	namesMax = 16 << 10
	// senderTime is how long a message waits for its sender: what the log has, the feed may read before whoever sent it hears of it.
	senderTime = 100 * time.Millisecond
	// sendersMax bounds the senders that are remembered for the feed, and the messages that wait for theirs.
	sendersMax = 8192
	// unknownNamespace is that of a session which is gone already.
	unknownNamespace = "unknown"
)

// FeedOptions are what a feed works with.
type FeedOptions struct {
	State    *state.Store
	Recorder Recorder
	// Leads says whether this server leads, and gives a channel that is closed when that may have changed.
	Leads      func() (bool, <-chan struct{})
	Logger     *slog.Logger
	Registerer prometheus.Registerer // may be nil
}

// Feed records what is in the log while its server leads.
type Feed struct {
	o      FeedOptions
	sub    *state.Subscription
	ended  context.Context // has ended: with it a subscription gives what is there, and does not wait
	missed prometheus.Counter

	mu      sync.Mutex
	senders map[messageKey]string
	noted   []messageKey // those of senders, the oldest first

	// Of Run.
	waiting   []waiting            // messages whose sender is not known yet, the oldest first
	names     map[string]string    // namespaces of sessions, which do not change
	room      recorder.Interaction // for the one that is handed over: it is too large to be made for each
	unsettled int                  // changes since the last settling
	busy      bool                 // something was read since the last pause
	recent    []past               // while another server leads, the oldest first
	rows      int                  // of recent
	bytes     int                  // of recent
}

// waiting is a message that waits for its sender.
type waiting struct {
	row       *session.Message
	namespace string
	since     time.Time
}

// past is what a change has for the record; what is made of it is made when it is needed. Rows do not change.
type past struct {
	messages []*session.Message
	results  []*session.Result
	dead     []*session.DeadLetter
	events   []*state.Event
	removed  []*session.Session
}

// rows counts what a change holds on to, and bytes its texts.
func (p *past) rows() int {
	return len(p.messages) + len(p.results) + len(p.dead) + len(p.events) + len(p.removed)
}

func (p *past) bytes() (n int) {
	for _, m := range p.messages {
		n += len(m.Text)
	}
	for _, r := range p.results {
		n += len(r.Text)
	}
	for _, d := range p.dead {
		n += len(d.Text) + len(d.Cause)
	}
	for _, e := range p.events {
		n += len(e.Message)
	}
	return n
}

// NewFeed makes a feed that knows all that changes from now on: made before the log is opened, it sees what that replays. Close ends it.
func NewFeed(o FeedOptions) (*Feed, error) {
	f := &Feed{o: o, senders: map[messageKey]string{}, names: map[string]string{}, missed: prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "orchestrator", Subsystem: "recorder", Name: "missed_changes_total", Help: "Changes of the log that were not recorded, because the record was full for too long.",
	})}
	if o.Registerer != nil {
		if err := o.Registerer.Register(f.missed); err != nil {
			return nil, fmt.Errorf("record: register metrics: %w", err)
		}
	}
	var end context.CancelFunc
	f.ended, end = context.WithCancel(context.Background())
	end()
	f.sub, _ = o.State.Subscribe()
	return f, nil
}

// Close ends the feed; Run must not run any more.
func (f *Feed) Close() { f.sub.Close() }

// Run follows the log until ctx ends; it may be started again then.
func (f *Feed) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		leads, changed := f.o.Leads()
		period, end := context.WithCancel(ctx)
		var wait sync.WaitGroup
		wait.Go(func() {
			defer end()
			select {
			case <-changed:
			case <-period.Done():
			}
		})
		err := f.follow(period, leads)
		end()
		wait.Wait()
		if err != nil {
			return err
		}
	}
	return nil
}

// messageKey names a message.
type messageKey struct {
	session  string
	sequence uint64
}

// Sent is told who sent a message, by whoever accepted it on this server. The log does not have it.
func (f *Feed) Sent(session string, sequence uint64, who string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.noted) >= sendersMax {
		delete(f.senders, f.noted[0])
		f.noted = f.noted[1:]
	}
	k := messageKey{session, sequence}
	f.senders[k], f.noted = who, append(f.noted, k)
}

// sender returns who sent a message; empty where that is not known, or not yet.
func (f *Feed) sender(m *session.Message) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.senders[messageKey{m.SessionID, m.Sequence}]
}

// settle records the messages whose sender is known by now, or that have waited long enough; with all, every one. It returns when to come back, zero
// when nothing waits.
func (f *Feed) settle(all bool) (next time.Time) {
	f.unsettled = 0
	if len(f.waiting) == 0 {
		return next
	}
	n, now := 0, time.Now()
	for ; n < len(f.waiting); n++ {
		w := &f.waiting[n]
		due, who := w.since.Add(senderTime), f.sender(w.row)
		if who == "" && !all && n+sendersMax > len(f.waiting) && due.After(now) {
			next = due
			break
		}
		f.message(w.row, w.namespace, who)
	}
	rest := copy(f.waiting, f.waiting[n:])
	clear(f.waiting[rest:])
	f.waiting = f.waiting[:rest]
	return next
}

// next returns the next change; nil and no error when it is time to look again, and the period's error when it has ended and nothing is left.
func (f *Feed) next(period context.Context) (*state.Change, error) {
	if f.unsettled++; f.unsettled > settleEvery {
		f.settle(false)
	}
	c, err := f.sub.Next(f.ended)
	if !errors.Is(err, context.Canceled) {
		f.busy = true
		return c, err
	}
	due := f.settle(false)
	if err := period.Err(); err != nil {
		return nil, err
	}
	if f.busy {
		f.busy = false
		pause(period)
		return nil, nil
	}
	until := period
	if !due.IsZero() {
		var cancel context.CancelFunc
		until, cancel = context.WithDeadline(period, due)
		defer cancel()
	}
	if c, err = f.sub.Next(until); err != nil && until.Err() != nil {
		return nil, nil
	}
	f.busy = true
	return c, err
}

// pause waits for gatherTime, or until the period ends.
func pause(period context.Context) {
	t := time.NewTimer(gatherTime)
	defer t.Stop()
	select {
	case <-t.C:
	case <-period.Done():
	}
}

// follow follows the log for as long as it is known who leads; what was applied by then belongs to that time, also where it was not read yet.
func (f *Feed) follow(period context.Context, leads bool) error {
	if leads {
		f.catchUp()
	}
	defer f.settle(true) // the rest goes without its senders
	last := uint64(0)    // the last change of the period, once that has ended
	for {
		c, err := f.next(period)
		switch {
		case c == nil && err == nil:
		case err == nil:
			f.take(c, leads)
			if period.Err() == nil {
				continue
			}
			if last == 0 {
				last = f.o.State.Index()
			}
			if c.Index >= last {
				return nil
			}
		case errors.Is(err, state.ErrLagged):
			f.lagged(f.sub.Resume(), leads)
		case period.Err() != nil:
			return nil
		default:
			return fmt.Errorf("record: follow the log: %w", err)
		}
	}
}

// lagged tells what is lost to the feed. Where this server does not lead, somebody else has recorded it.
func (f *Feed) lagged(lost uint64, leads bool) {
	if leads {
		f.missed.Add(float64(lost))
		f.o.Logger.Error("the record fell behind the log: messages, answers and events are not recorded; look after the record's database", "changes", lost)
	}
}

// catchUp records what was remembered while another server led.
func (f *Feed) catchUp() {
	for n := range f.recent { // of sessions that are gone since
		f.learn(f.recent[n].removed)
	}
	for n := range f.recent {
		p := &f.recent[n]
		for _, m := range p.messages {
			if m.Attempts == 0 { // else it was here before
				f.message(m, f.namespace(m.SessionID), "")
			}
		}
		f.others(p)
	}
	f.recent, f.rows, f.bytes = nil, 0, 0
}

// take records a change, or remembers it.
func (f *Feed) take(c *state.Change, leads bool) {
	if c.Restored {
		clear(f.names)
	}
	p := past{c.Messages, c.Results, c.Dead, c.Events, c.RemovedSessions}
	if !leads {
		f.remember(p)
		return
	}
	f.learn(p.removed) // as one may be that was terminated and collected since
	now := time.Now()
	for _, m := range p.messages {
		if m.Attempts == 0 {
			f.waiting = append(f.waiting, waiting{m, f.namespace(m.SessionID), now})
		}
	}
	f.others(&p)
}

// remember keeps what a change has, and lets go of the oldest that is too much.
func (f *Feed) remember(p past) {
	if p.rows() == 0 {
		return
	}
	f.recent = append(f.recent, p)
	f.rows += p.rows()
	f.bytes += p.bytes()
	drop := 0
	for ; len(f.recent)-drop > 1 && (f.rows > recentMax || f.bytes > recentBytesMax); drop++ {
		f.rows -= f.recent[drop].rows()
		f.bytes -= f.recent[drop].bytes()
		f.recent[drop] = past{}
	}
	f.recent = f.recent[drop:]
}

// record waits for room even when the server is about to end; the recorder's Release ends that.
func (f *Feed) record() {
	_ = f.o.Recorder.Take(&f.room) // what it could not keep it has counted
	f.room = recorder.Interaction{}
}

// message records a message.
func (f *Feed) message(m *session.Message, namespace, who string) {
	f.room = recorder.Interaction{
		ID: id(m.SessionID, 'm', m.Sequence, m.CreateTime), Time: time.Unix(0, m.CreateTime), Kind: recorder.Message,
		Namespace: namespace, Session: m.SessionID, RequestID: strconv.FormatUint(m.Sequence, 10), Request: string(m.Text), Principal: who,
	}
	f.record()
}

// others records what a change has beside messages, in its order.
func (f *Feed) others(p *past) {
	for _, r := range p.results {
		f.room = recorder.Interaction{
			ID: id(r.SessionID, 'a', r.Sequence, r.EndTime), Time: time.Unix(0, r.EndTime), Kind: recorder.Answer,
			Namespace: f.namespace(r.SessionID), Session: r.SessionID, RequestID: strconv.FormatUint(r.Sequence, 10), Response: string(r.Text),
		}
		if r.Truncated {
			f.room.ResponseBytes = int64(len(r.Text)) + 1 // nobody knows how much there was
		}
		f.record()
	}
	for _, d := range p.dead {
		f.room = recorder.Interaction{
			ID: id(d.SessionID, 'd', d.Sequence, d.Time), Time: time.Unix(0, d.Time), Kind: recorder.Answer, Status: recorder.Failed, Code: "dead letter", Error: d.Cause,
			Namespace: d.Namespace, Session: d.SessionID, RequestID: strconv.FormatUint(d.Sequence, 10),
		}
		f.record()
	}
	for _, e := range p.events {
		if e.SessionID == "" {
			continue
		}
		f.room = recorder.Interaction{
			ID: id(e.SessionID, 'e', e.Number, e.Time), Time: time.Unix(0, e.Time), Kind: recorder.SessionEvent,
			Namespace: e.Namespace, Session: e.SessionID, Epoch: uint64(e.Epoch), Tool: e.Type, Response: e.Message,
		}
		f.record()
	}
}

// id is the same on every server, and after every replay of the log. The time tells apart what a restored cluster counts anew.
func id(session string, kind byte, number uint64, at int64) string {
	b := make([]byte, 0, len(session)+32)
	b = append(append(b, session...), '/', kind)
	b = append(strconv.AppendUint(b, number, 10), '.')
	return string(strconv.AppendInt(b, at, 36))
}

// learn remembers the namespaces of sessions that are gone.
func (f *Feed) learn(removed []*session.Session) {
	for _, s := range removed {
		f.name(s)
	}
}

// name remembers a session's namespace.
func (f *Feed) name(s *session.Session) {
	if len(f.names) >= namesMax {
		clear(f.names)
	}
	f.names[s.ID] = s.Spec.Namespace
}

// namespace looks up a session's namespace.
func (f *Feed) namespace(id string) string {
	if n, ok := f.names[id]; ok {
		return n
	}
	if s := f.o.State.View().Session(id); s != nil {
		f.name(s)
		return s.Spec.Namespace
	}
	return unknownNamespace
}
