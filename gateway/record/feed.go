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
)

const (
	// recentMax and recentBytesMax bound what a server that does not lead remembers: more than a leader reads in the time in which what it records
	// becomes durable.
	recentMax      = 8192
	recentBytesMax = 16 << 20
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
	missed prometheus.Counter

	mu      sync.Mutex
	senders map[messageKey]string
	noted   []messageKey // those of senders, the oldest first

	// Of Run.
	waiting []recorder.Interaction // messages whose sender is not known yet, the oldest first
	since   []time.Time            // from when each of them waits
	view    *state.View            // to look up sessions in; nil when it is to be taken anew
	recent  []recorder.Interaction
	bytes   int
}

// NewFeed makes a feed that knows all that changes from now on: made before the log is opened, it sees what that replays. Close ends it.
func NewFeed(o FeedOptions) (*Feed, error) {
	f := &Feed{o: o, senders: map[messageKey]string{}, missed: prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "orchestrator", Subsystem: "recorder", Name: "missed_changes_total", Help: "Changes of the log that were not recorded, because the record was full for too long.",
	})}
	if o.Registerer != nil {
		if err := o.Registerer.Register(f.missed); err != nil {
			return nil, fmt.Errorf("record: register metrics: %w", err)
		}
	}
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
func (f *Feed) sender(i *recorder.Interaction) string {
	n, err := strconv.ParseUint(i.RequestID, 10, 64)
	if err != nil {
		return ""
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.senders[messageKey{i.Session, n}]
}

// settle records the messages whose sender is known by now, or that have waited long enough; with all, every one. It returns when to come back, zero
// when nothing waits.
func (f *Feed) settle(all bool) (next time.Time) {
	n := 0
	for ; n < len(f.waiting); n++ {
		i := &f.waiting[n]
		due := f.since[n].Add(senderTime)
		if i.Principal = f.sender(i); i.Principal == "" && !all && n+sendersMax > len(f.waiting) && time.Until(due) > 0 {
			next = due
			break
		}
		f.record(*i)
	}
	f.waiting, f.since = f.waiting[n:], f.since[n:]
	if len(f.waiting) == 0 {
		f.waiting, f.since = nil, nil
	}
	return next
}

// next returns the next change; nil and no error when it is time to settle before that.
func (f *Feed) next(period context.Context) (*state.Change, error) {
	due := f.settle(false)
	if due.IsZero() {
		return f.sub.Next(period)
	}
	until, cancel := context.WithDeadline(period, due)
	defer cancel()
	c, err := f.sub.Next(until)
	if err != nil && until.Err() != nil && period.Err() == nil {
		return nil, nil
	}
	return c, err
}

// follow follows the log for as long as it is known who leads; what was applied by then belongs to that time, also where it was not read yet.
func (f *Feed) follow(period context.Context, leads bool) error {
	if leads {
		f.catchUp()
	}
	defer f.settle(true) // the rest goes without its senders
	last := uint64(0)    // the last change of the period, once that has ended
	for {
		c, err := f.next(period) // which has what is there also when the period has ended
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
	for i := range f.recent {
		f.record(f.recent[i])
	}
	f.recent, f.bytes = nil, 0
}

// take records a change, or remembers it.
func (f *Feed) take(c *state.Change, leads bool) {
	f.view = nil
	f.each(c, func(i recorder.Interaction) {
		switch {
		case leads && i.Kind == recorder.Message:
			f.waiting, f.since = append(f.waiting, i), append(f.since, time.Now())
			return
		case leads:
			f.record(i)
			return
		}
		f.recent = append(f.recent, i)
		f.bytes += size(&i)
	})
	drop := 0
	for ; len(f.recent)-drop > recentMax || f.bytes > recentBytesMax; drop++ {
		f.bytes -= size(&f.recent[drop])
		f.recent[drop] = recorder.Interaction{}
	}
	f.recent = f.recent[drop:]
}

func size(i *recorder.Interaction) int { return len(i.Request) + len(i.Response) }

// record waits for room even when the server is about to end; the recorder's Release ends that.
func (f *Feed) record(i recorder.Interaction) {
	_ = f.o.Recorder.Take(&i) // what it could not keep it has counted
}

// each makes interactions of a change, in their order.
func (f *Feed) each(c *state.Change, yield func(recorder.Interaction)) {
	for _, m := range c.Messages {
		if m.Attempts > 0 { // it was here before
			continue
		}
		yield(recorder.Interaction{
			ID: id(m.SessionID, 'm', m.Sequence, m.CreateTime), Time: time.Unix(0, m.CreateTime), Kind: recorder.Message,
			Namespace: f.namespace(c, m.SessionID), Session: m.SessionID, RequestID: strconv.FormatUint(m.Sequence, 10), Request: string(m.Text),
		})
	}
	for _, r := range c.Results {
		i := recorder.Interaction{
			ID: id(r.SessionID, 'a', r.Sequence, r.EndTime), Time: time.Unix(0, r.EndTime), Kind: recorder.Answer,
			Namespace: f.namespace(c, r.SessionID), Session: r.SessionID, RequestID: strconv.FormatUint(r.Sequence, 10), Response: string(r.Text),
		}
		if r.Truncated {
			i.ResponseBytes = int64(len(r.Text)) + 1 // nobody knows how much there was
		}
		yield(i)
	}
	for _, d := range c.Dead {
		yield(recorder.Interaction{
			ID: id(d.SessionID, 'd', d.Sequence, d.Time), Time: time.Unix(0, d.Time), Kind: recorder.Answer, Status: recorder.Failed, Code: "dead letter", Error: d.Cause,
			Namespace: d.Namespace, Session: d.SessionID, RequestID: strconv.FormatUint(d.Sequence, 10),
		})
	}
	for _, e := range c.Events {
		if e.SessionID == "" {
			continue
		}
		yield(recorder.Interaction{
			ID: id(e.SessionID, 'e', e.Number, e.Time), Time: time.Unix(0, e.Time), Kind: recorder.SessionEvent,
			Namespace: e.Namespace, Session: e.SessionID, Epoch: uint64(e.Epoch), Tool: e.Type, Response: e.Message,
		})
	}
}

// id is the same on every server, and after every replay of the log. The time tells apart what a restored cluster counts anew.
func id(session string, kind byte, number uint64, at int64) string {
	b := make([]byte, 0, len(session)+32)
	b = append(append(b, session...), '/', kind)
	b = append(strconv.AppendUint(b, number, 10), '.')
	return string(strconv.AppendInt(b, at, 36))
}

// namespace looks up a session's namespace.
func (f *Feed) namespace(c *state.Change, id string) string {
	if f.view == nil {
		f.view = f.o.State.View()
	}
	if s := f.view.Session(id); s != nil {
		return s.Spec.Namespace
	}
	for _, s := range c.RemovedSessions {
		if s.ID == id { // as one may be that was terminated and collected since
			return s.Spec.Namespace
		}
	}
	return unknownNamespace
}
