// The owner: one goroutine that has the calls and the way to the cluster. Nothing in it blocks.

package toolclient

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// owner is the state of a Client. Only its goroutine touches it.
type owner struct {
	c      *Client
	cfg    *Config
	timers *timers
	ring   *ring

	// The calls that have not ended. Of those that wait, the lists hold more than there are: one that ended meanwhile is passed over.
	calls   map[string]*Pending
	waiting [levels][]*Pending
	asked   int // of calls in that phase
	queries map[string]*query
	pace    pace
	resume  *timer // when pace lets calls be asked for again

	conn    *conn  // nil while there is none
	route   *route // for calls over HTTP; nil while there is none
	trying  bool   // an attempt is under way
	tried   time.Time
	reading bool   // the token is being read again
	next    *timer // for the next one
	ping    *timer
	heard   bool   // something came since the last ping
	missed  int    // pings in a row
	barrier string // a ping whose answer comes behind all that the server had kept

	failures int // WebSocket attempts in a row that failed
	outages  int // attempts in a row that reached nobody in any way
	refusals int // attempts in a row in which the token was refused
	lastErr  error

	token  *string // instead of Config.Token
	server string  // to whose numbering seq belongs
	seq    uint64  // of the last message; 0 when not known
	order  uint64  // the highest of ended calls
	marks  uint64  // barriers so far
}

// query is a question that is no call.
type query struct {
	request request
	token   string // to be used from then on
	answer  chan answer
	on      *conn  // where it was asked; nil while it waits, or is asked over HTTP
	poll    func() // ends its request over HTTP; nil when there is none
}

type answer struct {
	m   *message
	err error
}

// maxQueries bounds questions that are not answered.
const maxQueries = 64

// event is something that the owner is told.
type event interface {
	handle(o *owner)
	dropped() // it came too late: the client is closed
}

type (
	startCall  struct{ k *Pending }
	cancelCall struct {
		k     *Pending
		cause error
	}
	startQuery struct{ q *query }
	dropQuery  struct{ q *query }
	received   struct {
		conn *conn
		m    *message
	}
	disconnected struct {
		conn *conn
		err  error
	}
)

func newOwner(c *Client, endpoints []*endpoint) *owner {
	o := &owner{
		c: c, cfg: &c.cfg, timers: newTimers(), ring: &ring{all: endpoints},
		calls: map[string]*Pending{}, queries: map[string]*query{}, pace: newPace(c.cfg.MaxInFlight),
	}
	o.ring.at = int(o.cfg.Rand() * float64(len(endpoints)))
	return o
}

func (o *owner) run() {
	defer close(o.c.owner)
	defer o.end()
	o.try()
	for o.c.life.Err() == nil {
		select {
		case e := <-o.c.inbox:
			e.handle(o)
		case <-o.timers.clock.C:
			o.timers.fire()
		case <-o.c.life.Done():
		}
	}
}

// end fails what has not ended.
func (o *owner) end() {
	if o.conn != nil {
		o.conn.close()
	}
	o.timers.clock.Stop()
	for _, k := range o.inOrder() {
		o.finish(k, nil, errClosed())
	}
	for _, q := range o.queries {
		q.answer <- answer{err: errClosed()}
	}
}

// inOrder are all calls in the order in which they were made.
func (o *owner) inOrder() []*Pending {
	all := make([]*Pending, 0, len(o.calls))
	for _, k := range o.calls {
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b *Pending) int { return int(a.n) - int(b.n) })
	return all
}

func (e startCall) handle(o *owner) {
	k := e.k
	if o.calls[k.id] != nil {
		e.k.c.settle(k, nil, fault.New(fault.AlreadyExists, "%s: a call of request id %s has not ended; wait for it, or choose another id", k.name, k.id))
		return
	}
	o.calls[k.id] = k
	k.timeout = o.timers.after(time.Until(k.deadline), func() { o.expire(k) })
	o.enqueue(k)
	switch {
	case o.conn != nil || o.route != nil:
	case o.refusals > 0 || o.hopeless(): // there may be another token by now, or a server
		o.hurry(0)
	default: // where attempts are minutes apart, nobody new waits for the next that long
		o.hurry(time.Until(o.tried.Add(o.cfg.Backoff.Max)))
	}
	if err := k.lapsed(); err != nil { // it ended before the owner could be told
		cancelCall{k, err}.handle(o)
	}
}

func (e startCall) dropped() { e.k.c.settle(e.k, nil, errClosed()) }

func (e cancelCall) handle(o *owner) {
	k := e.k
	if o.calls[k.id] != k || k.cancelled != nil {
		return
	}
	if errors.Is(e.cause, context.DeadlineExceeded) {
		o.expire(k)
		return
	}
	k.cancelled = e.cause
	k.unwanted.Store(true)
	if k.tries == 0 || k.phase == delayed {
		o.finish(k, nil, fault.New(fault.Aborted, "%s: %w before a server took it", k.name, e.cause))
		return
	}
	k.giveUp = o.timers.after(o.cfg.CancelPatience, func() {
		o.finish(k, nil, fault.New(fault.Aborted, "%s: %w; no server confirmed it within %s, so it may go on", k.name, e.cause, o.cfg.CancelPatience))
	})
	if o.conn == nil || k.phase == waiting || k.on != nil { // otherwise it is asked for again when all has come that was kept, and cancelled then
		o.sayCancel(k)
	}
}

func (cancelCall) dropped() {}

func (e startQuery) handle(o *owner) {
	if len(o.queries) >= maxQueries {
		e.q.answer <- answer{err: fault.New(fault.Exhausted, "%s: %d questions have not been answered, which is as many as may be; wait for some", e.q.request.Op, maxQueries)}
		return
	}
	o.queries[e.q.request.RequestID] = e.q
	o.askQuery(e.q)
}

func (e startQuery) dropped() { e.q.answer <- answer{err: errClosed()} }

func (e dropQuery) handle(o *owner) {
	if e.q.request.Op == "rotate_token" && e.q.on != nil && o.queries[e.q.request.RequestID] == e.q {
		return // its answer still counts
	}
	o.leaveQuery(e.q)
	delete(o.queries, e.q.request.RequestID)
}

func (dropQuery) dropped() {}

// askQuery asks over the WebSocket or, for what is served there, over HTTP. For the rest a WebSocket is tried soon, and that decides.
func (o *owner) askQuery(q *query) {
	switch {
	case o.conn != nil:
		r := q.request
		if q.token != "" {
			r.Old = &o.conn.token
		}
		q.on = o.conn
		o.write(r)
	case o.route != nil && q.overHTTP():
		o.queryHTTP(q)
	case o.route != nil:
		o.hurry(0)
	}
}

func (o *owner) answerQuery(q *query, m *message, err error) {
	delete(o.queries, q.request.RequestID)
	q.answer <- answer{m, err}
}

func (e received) handle(o *owner) {
	if o.conn != e.conn {
		return
	}
	o.heard = true
	m := e.m
	o.follow(m)
	k := o.calls[m.RequestID]
	switch m.Op {
	case "call_tool_ack":
		o.wentWell()
		if k != nil {
			o.pace.taken(k)
			o.pump()
		}
	case "progress":
		if k != nil {
			k.note(note{progress: true, chunk: Chunk{Text: m.Message}})
		}
	case "stream_chunk":
		if k != nil {
			k.note(note{chunk: Chunk{Text: m.Chunk, Again: k.anew}})
			k.streamed, k.anew = true, false
		}
	case "stream_complete":
		if k != nil {
			k.truncated = k.truncated || m.Truncated
		}
	case "call_tool_res", "cancelled":
		o.wentWell()
		o.outcome(k, m)
	case "pong":
		if m.RequestID != "" && m.RequestID == o.barrier {
			o.barrier = ""
			o.askAgain()
		}
	case "error":
		o.cfg.Logger.Warn("client gateway: a message was refused", "address", e.conn.e.name, "error", string(m.Error))
	default:
		o.answerTo(m)
	}
}

func (received) dropped() {}

// answerTo hands a question's answer out.
func (o *owner) answerTo(m *message) {
	q := o.queries[m.RequestID]
	if q == nil || q.on != o.conn {
		return
	}
	if q.token != "" && m.failure() == nil {
		o.token, o.conn.token = &q.token, q.token
	}
	o.replyTo(q, m)
}

// replyTo hands a question's answer out, whichever way it came.
func (o *owner) replyTo(q *query, m *message) {
	if f := m.failure(); f != nil {
		o.answerQuery(q, nil, fault.New(kinds[f.Code], "%s: %w", q.request.Op, f).WithRetry(f.RetryAfter))
		return
	}
	o.answerQuery(q, m, nil)
}

// follow notes a message's numbers. Where one is missing, what is in flight is asked for again.
func (o *owner) follow(m *message) {
	o.order = max(o.order, m.Order)
	if m.Seq == 0 {
		return
	}
	if o.seq != 0 && m.Seq != o.seq+1 {
		o.c.count.gaps.Add(1)
		o.cfg.Logger.Info("client gateway: messages are missing; asking again for the calls in flight", "server", o.server, "seen", o.seq, "came", m.Seq)
		o.mark()
		for _, k := range o.calls {
			k.truncated = k.truncated || k.streamed
			o.pace.forget(k)
			k.on = nil
		}
	}
	o.seq = m.Seq
}

// outcome is the end of a call, or its refusal for a while. k is nil for one that has ended already: the answer came twice.
func (o *owner) outcome(k *Pending, m *message) {
	if k == nil {
		o.c.count.duplicates.Add(1)
		return
	}
	f := m.failure()
	switch {
	case m.Op == "cancelled" && k.cancelled == nil && f != nil: // late, of an earlier call of the id
	case m.Op == "cancelled" && k.cancelled != nil && f != nil && f.Code == codeNotFound && k.mayArrive():
		o.cancelAgain(k, 0)
	case m.Op == "cancelled" && k.cancelled != nil && f != nil:
		o.finish(k, nil, fault.New(fault.Aborted, "%s: %w; the server has nothing of it in flight", k.name, k.cancelled))
	case m.Op == "cancelled" && k.cancelled != nil:
		o.finish(k, nil, fault.New(fault.Aborted, "%s: %w, and stopped", k.name, k.cancelled))
	case m.Op == "cancelled":
		o.finish(k, nil, fault.New(fault.Aborted, "%s: somebody else of this session cancelled it", k.name))
	case f == nil:
		o.finish(k, &Result{RequestID: k.id, Outputs: m.Outputs, FromCache: m.FromCache, FromInflight: m.FromInflight}, nil)
	case f.passing() && k.cancelled != nil:
		o.finish(k, nil, fault.New(fault.Aborted, "%s: %w before a server took it", k.name, k.cancelled))
	case f.passing():
		o.delay(k, f)
	default:
		o.finish(k, nil, f.fault())
		if f.Code == codeUnauthorized {
			o.readToken()
		}
	}
}

// delay lets a refused call rest, if its deadline allows.
func (o *owner) delay(k *Pending, f *Error) {
	if k.phase != asked { // it was refused twice
		return
	}
	k.refusals++
	pause := min(retryFirst<<min(k.refusals-1, 10), retryMax)
	pause -= time.Duration(o.cfg.Rand() * float64(pause) / 2)
	if said := f.RetryAfter; said > pause { // or up to a fifth later, so that not all come at once
		pause = said + time.Duration(o.cfg.Rand()*float64(said)/5)
	}
	if k.open && f.Code == codeOverCapacity { // it is the server that is full, not what the call is about
		o.leaveAlone(pause)
	}
	o.pace.forget(k)
	if time.Now().Add(pause).After(k.deadline) {
		o.finish(k, nil, f.fault())
		return
	}
	o.asked--
	k.phase, k.on, k.code, k.anew = delayed, nil, f.Code, k.streamed
	o.timers.stop(k.pause)
	k.pause = o.timers.after(pause, func() { o.enqueue(k) })
	o.pump()
}

// leaveAlone asks for nothing for a while: the server has no room.
func (o *owner) leaveAlone(d time.Duration) {
	o.pace.refused(time.Now().Add(d))
	o.timers.stop(o.resume)
	o.resume = o.timers.after(time.Until(o.pace.until), o.pump)
}

// enqueue lets a call wait for its turn. One that was asked for before goes before those that were not.
func (o *owner) enqueue(k *Pending) {
	o.timers.stop(k.pause)
	k.phase = waiting
	list := &o.waiting[k.priority.level()]
	if k.tries > 0 {
		*list = slices.Insert(*list, 0, k)
	} else {
		*list = append(*list, k)
	}
	o.pump()
}

// mayAsk reports whether there is a way to ask for one more call, and room.
func (o *owner) mayAsk() bool {
	return (o.conn != nil || o.route != nil) && o.asked < o.cfg.MaxInFlight && o.pace.allows(time.Now())
}

// pump asks for calls that wait, the most urgent first, while there is a way and room.
func (o *owner) pump() {
	for level := 0; level < levels && o.mayAsk(); {
		list := o.waiting[level]
		if len(list) == 0 {
			o.waiting[level] = nil // its array is not kept
			level++
			continue
		}
		k := list[0]
		list[0] = nil
		o.waiting[level] = list[1:]
		if k.phase != waiting {
			continue
		}
		k.phase = asked
		o.asked++
		o.ask(k)
	}
}

// ask asks for a call, in whichever way there is.
func (o *owner) ask(k *Pending) {
	if k.tries++; k.tries > 1 {
		o.c.count.repeated.Add(1)
	}
	switch {
	case o.conn != nil:
		k.on = o.conn
		if k.cancelled != nil {
			o.sayCancel(k)
			return
		}
		k.viaHTTP = false
		o.pace.asked(k)
		k.bytes = o.write(k.request(time.Until(k.deadline), ""))
	case o.route != nil:
		k.on = nil
		if k.cancelled != nil {
			o.cancelHTTP(k)
			return
		}
		o.askHTTP(k)
	}
}

// askAgain asks again for calls that were asked for, in a way that is lost.
func (o *owner) askAgain() {
	for _, k := range slices.Backward(o.inOrder()) {
		if k.phase != asked || k.poll != nil || k.on != nil && k.on == o.conn {
			continue
		}
		k.phase = waiting
		o.asked--
		list := &o.waiting[k.priority.level()]
		*list = slices.Insert(*list, 0, k)
	}
	o.pump()
}

// mark has askAgain called when all that the server had kept has come: its answers are in order.
func (o *owner) mark() {
	if o.barrier != "" {
		return
	}
	o.marks++
	o.barrier = o.c.newID(0) + "." + strconv.FormatUint(o.marks, 10)
	o.write(request{Op: "ping", RequestID: o.barrier})
}

// expire ends a call whose time is over.
func (o *owner) expire(k *Pending) {
	if o.calls[k.id] != k {
		return
	}
	err := fault.New(fault.Timeout, "%s: no answer before its deadline; what it began may go on, ask again with request id %s: %w", k.name, k.id, context.DeadlineExceeded)
	switch {
	case k.phase == delayed:
		err = fault.New(fault.Timeout, "%s: refused until its deadline (%s): %w", k.name, k.code, context.DeadlineExceeded)
	case k.phase == waiting && o.conn == nil && o.route == nil && o.lastErr != nil:
		err = fault.New(fault.Timeout, "%s: no server was reached before its deadline: %w (%w)", k.name, o.lastErr, context.DeadlineExceeded)
	}
	o.finish(k, nil, err)
}

// finish ends a call, once.
func (o *owner) finish(k *Pending, r *Result, err error) {
	if o.calls[k.id] != k {
		return
	}
	delete(o.calls, k.id)
	o.timers.stop(k.timeout)
	o.timers.stop(k.pause)
	o.timers.stop(k.giveUp)
	o.timers.stop(k.again)
	o.leaveHTTP(k)
	if k.phase == asked {
		o.asked--
	}
	o.pace.forget(k)
	k.phase, k.on = ended, nil
	if cut := k.wasCut(); r != nil && (cut || k.truncated) {
		r.Truncated = true
		o.c.count.truncated.Add(1)
	}
	o.c.settle(k, r, err)
	if o.c.life.Err() == nil {
		o.pump()
	}
}

// settle tells a call's caller how it ended.
func (c *Client) settle(k *Pending, r *Result, err error) {
	k.stop()
	k.result, k.err = r, err
	c.admitted.Add(-1)
	close(k.done)
}

// write sends a message on the connection. What cannot be queued ends it.
func (o *owner) write(r request) (bytes int) {
	if o.conn == nil { // the message before could not be queued
		return 0
	}
	n, ok := o.conn.write(r)
	if !ok {
		o.lose(o.conn, fault.New(fault.Unavailable, "%s does not take what is written to it", o.conn.e.name))
	}
	return n
}
