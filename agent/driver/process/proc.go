// One running session: the goroutine that owns it, and what it is asked.

package process

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

const (
	turnsMax     = 1024 // ended turns that wait to be taken
	callPatience = 10 * time.Second
	reconnectGap = 50 * time.Millisecond
)

// ending is what was asked first: a stop or a kill.
type ending struct {
	exit  session.Exit
	kill  bool
	grace time.Time // when the tree is killed
}

type proc struct {
	d        *Driver
	s        driver.Start
	group    group
	run      shim.Run
	shim     *os.Process // when this driver launched it
	calls    chan func() // to the owner
	turnsOut chan driver.Turn
	done     chan struct{}
	exit     session.Exit // set before done is closed
	released chan struct{}
	release  sync.Once
	stopped  chan struct{} // closed when the owner has returned
	more     bell
	line     atomic.Uint64
	busy     atomic.Uint64  // a copy of outstanding
	backlog  atomic.Int64   // the length of queue
	asks     sync.WaitGroup // requests to the shim that the owner does not wait for
	execs    execs

	// Owned by the owner's goroutine.
	client      *shim.Client // nil while it is lost
	turns       *turns
	outstanding uint64
	given       map[uint64]bool
	givenOrder  []uint64 // oldest first, at most shim.InputsMax
	queue       []driver.Turn
	ending      *ending
	idle        *time.Timer // ends a terminal's turn
	force       *time.Timer // kills a shim that does not obey
	retry       *time.Timer // reconnects
}

// newProc reads the log up to now: for a session that was just started, nothing; for an adopted one, its turns.
func (d *Driver) newProc(s driver.Start, client *shim.Client, st shim.Status, g group) (*proc, error) {
	from := st.FirstLine
	if len(st.Inputs) >= shim.InputsMax {
		from = st.Inputs[0].Line + 1
	}
	t, err := newTurns(&s, from, st.Inputs)
	if err != nil {
		return nil, fault.New(fault.Internal, "process: %s: read its log: %w", s.SessionID, err)
	}
	p := &proc{
		d: d, s: s, group: g, run: st.Run, calls: make(chan func()), turnsOut: make(chan driver.Turn),
		done: make(chan struct{}), released: make(chan struct{}), stopped: make(chan struct{}),
		client: client, turns: t, given: make(map[uint64]bool), idle: idleTimer(), force: idleTimer(), retry: idleTimer(),
	}
	p.execs.init()
	for _, in := range st.Inputs {
		p.remember(in.Sequence)
	}
	p.line.Store(max(st.LastLine, client.Line()))
	if _, err := t.read(); err != nil {
		t.reader.Close()
		return nil, fault.New(fault.Internal, "process: %s: read its log: %w", s.SessionID, err)
	}
	p.settle()
	p.setOutstanding(t.open)
	t.remembered = p.inputs
	return p, nil
}

// inputs are the messages that the shim remembers; none when it does not answer.
func (p *proc) inputs() []shim.GivenInput {
	if p.client == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), inputsPatience)
	defer cancel()
	st, err := p.client.Status(ctx)
	if err != nil {
		return nil
	}
	return st.Inputs
}

// inputsPatience bounds how long the shim is waited for where lines were dropped before they were read.
const inputsPatience = 2 * time.Second

func idleTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func (p *proc) begin() { go p.own() }

// own is the goroutine that owns the session's state, until its end was taken or Release.
func (p *proc) own() {
	defer close(p.stopped)
	defer p.turns.reader.Close()
	for !isClosed(p.done) {
		var grew, lost <-chan struct{}
		if p.client != nil {
			grew, lost = p.client.Grew(), p.client.Done()
		}
		out, head := p.head()
		select {
		case f := <-p.calls:
			f()
		case <-grew:
			p.advance()
		case <-lost:
			p.find() // the shim has ended, or only the connection has
		case <-p.retry.C:
			p.find()
		case <-p.idle.C:
			p.advance()
			p.settle()
		case <-p.force.C:
			p.killShim()
		case out <- head:
			p.dequeue()
		case <-p.released:
			p.leave()
			return
		}
	}
	for len(p.queue) > 0 {
		out, head := p.head()
		select {
		case out <- head:
			p.dequeue()
		case <-p.released:
			p.leave()
			return
		}
	}
	close(p.turnsOut)
	p.asks.Wait()
}

// head is the oldest ended turn and where it goes; nil when there is none.
func (p *proc) head() (chan<- driver.Turn, driver.Turn) {
	if len(p.queue) == 0 {
		return nil, driver.Turn{}
	}
	return p.turnsOut, p.queue[0]
}

func (p *proc) enqueue(t driver.Turn) {
	p.queue = append(p.queue, t)
	p.backlog.Add(1)
}

func (p *proc) dequeue() {
	p.queue = p.queue[1:]
	p.backlog.Add(-1)
}

// leave lets go of the shim, and ends what cannot go on without this driver.
func (p *proc) leave() {
	p.execs.end()
	if p.client != nil {
		p.client.Close()
	}
	p.asks.Wait()
}

// advance reads what was logged and takes the turns that ended.
func (p *proc) advance() {
	if p.client != nil {
		p.line.Store(max(p.line.Load(), p.client.Line()))
	}
	more, err := p.turns.read()
	if err != nil {
		p.d.log.Error("a session's log cannot be read: its turns do not end", "session", p.s.SessionID, "error", err)
	}
	p.takeTurns()
	if more && p.s.Spec.Protocol == session.ProtocolRaw && p.turns.open != 0 {
		p.idle.Reset(turnIdle(p.s.Spec))
	}
	p.more.ring()
}

func (p *proc) takeTurns() {
	for _, t := range p.turns.take() {
		p.enqueue(t)
		if t.Sequence == p.outstanding {
			p.setOutstanding(0)
		}
	}
}

// settle ends a terminal's turn that was idle for long enough, or waits for it to be.
func (p *proc) settle() {
	idle := turnIdle(p.s.Spec)
	p.turns.settle(idle, time.Now().UnixNano())
	p.takeTurns()
	if p.s.Spec.Protocol == session.ProtocolRaw && p.turns.open != 0 {
		p.idle.Reset(max(idle-time.Duration(time.Now().UnixNano()-p.turns.time), time.Millisecond))
	}
}

func (p *proc) setOutstanding(sequence uint64) {
	p.outstanding = sequence
	p.busy.Store(sequence)
}

func (p *proc) remember(sequence uint64) {
	if p.given[sequence] {
		return
	}
	if len(p.givenOrder) >= shim.InputsMax {
		delete(p.given, p.givenOrder[0])
		p.givenOrder = append(p.givenOrder[:0], p.givenOrder[1:]...)
	}
	p.given[sequence] = true
	p.givenOrder = append(p.givenOrder, sequence)
}

// find takes up the end of a shim that is gone, or connects to it again.
func (p *proc) find() {
	dir := p.s.Dir
	patience := time.Second // one that told the end is about to exit
	if p.client != nil && p.client.Exit() == nil {
		patience = reconnectGap
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	lock, err := shim.WaitLock(ctx, dir)
	cancel()
	if err == nil {
		exit := p.conclude()
		shim.Unlock(lock) // before anybody hears of the end and starts the next epoch
		p.exit = sessionExit(exit)
		close(p.done)
		p.more.ring()
		return
	}
	if !errors.Is(err, shim.ErrLives) {
		p.d.log.Error("a session's shim cannot be looked for", "session", p.s.SessionID, "error", err)
	} else if p.reconnect(dir) {
		return
	}
	if p.client != nil {
		p.client.Close()
		p.client = nil
	}
	p.retry.Reset(reconnectGap)
}

func (p *proc) reconnect(dir string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), reconnectGap)
	defer cancel()
	client, _, err := connect(ctx, dir)
	if err != nil {
		return false
	}
	if p.client != nil {
		p.client.Close()
	}
	p.client = client
	p.advance()
	if p.ending != nil {
		p.ask(*p.ending)
	}
	return true
}

// conclude takes up the session's end, with the shim's lock held; nothing of it lives after.
func (p *proc) conclude() *shim.Exit {
	var wanted *session.Exit
	if p.ending != nil {
		wanted = &p.ending.exit
	}
	if p.shim != nil {
		_, _ = p.shim.Wait() // a zombie no more; its exit code says nothing that the record does not
	}
	p.execs.end()
	exit, err := p.d.conclude(&p.s, wanted)
	if exit == nil && p.client != nil {
		exit = p.client.Exit() // the disk had no room for the record
	}
	if exit == nil {
		p.d.log.Error("how a session ended is not known", "session", p.s.SessionID, "error", err)
		exit = &shim.Exit{Cause: session.CauseFailed, Message: "how it ended is not known: its records are lost", LastLine: p.line.Load()}
	}
	if p.execs.lost() { // an exec's shim was killed: what it left bears the session's name
		if err := shim.Sweep(context.Background(), &p.run); err != nil {
			p.d.log.Error("a session's execs could not be swept", "session", p.s.SessionID, "error", err)
		}
	}
	p.group.remove()
	if p.client != nil {
		p.client.Close()
	}
	p.advance()
	p.turns.settle(turnIdle(p.s.Spec), exit.Ended)
	p.takeTurns()
	p.line.Store(exit.LastLine)
	return exit
}

// killShim is for one that did not act on a kill: its process dies with it, and the rest is swept.
func (p *proc) killShim() {
	p.d.log.Warn("a shim did not end its session in time and is killed", "session", p.s.SessionID, "pid", p.run.Shim.PID)
	p.run.Shim.Kill()
	p.force.Reset(p.d.opt.KillPatience)
}

// do has the owner call f and returns when it has; an error when there is no owner any more.
func (p *proc) do(ctx context.Context, f func()) error {
	called := make(chan struct{})
	select {
	case p.calls <- func() { f(); close(called) }:
		<-called
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-p.done:
		return errEnded
	case <-p.released:
		return errReleased
	}
}

var errSearching = fault.New(fault.Unavailable, "process: the connection to the session's shim was lost and is being made again")

var errEnded = fault.New(fault.FailedPrecondition, "process: the session's process has ended")

// PID is the main process's.
func (p *proc) PID() int { return p.run.Process.PID }

// Outstanding is the message whose turn is under way.
func (p *proc) Outstanding() uint64 { return p.busy.Load() }

// Backlog is how many ended turns nobody has taken. It counts a turn before Outstanding is 0 for it.
func (p *proc) Backlog() int { return int(p.backlog.Load()) }

// OutputLine is the number of the last line that the shim told of.
func (p *proc) OutputLine() uint64 { return p.line.Load() }

// Turns delivers the ends of turns.
func (p *proc) Turns() <-chan driver.Turn { return p.turnsOut }

// Done is closed when nothing of the tree lives.
func (p *proc) Done() <-chan struct{} { return p.done }

// Exit says how it ended, after Done.
func (p *proc) Exit() session.Exit {
	if !isClosed(p.done) {
		return session.Exit{}
	}
	return p.exit
}

// Release lets go of the shim and returns when nothing of this driver's side is left.
func (p *proc) Release() {
	p.release.Do(func() { close(p.released) })
	<-p.stopped
}

// Send gives the process a message; see driver.Process.
func (p *proc) Send(ctx context.Context, in driver.Input) error {
	text, refused := encodeMessage(p.s.Spec.Protocol, &in)
	var client *shim.Client
	var verdict error
	given := false
	err := p.do(ctx, func() {
		switch {
		case in.Sequence == 0:
			verdict = fault.New(fault.Invalid, "process: a message needs a sequence")
		case p.given[in.Sequence] && in.Sequence != p.outstanding:
			given = true
		case p.outstanding != 0 && in.Sequence != p.outstanding, len(p.queue) >= turnsMax:
			verdict = driver.ErrBusy
		case refused != "":
			p.remember(in.Sequence)
			p.enqueue(driver.Turn{Sequence: in.Sequence, OutputLine: p.line.Load(), Refused: refused})
			given = true
		case p.client == nil:
			verdict = errSearching
		default:
			p.remember(in.Sequence)
			p.setOutstanding(in.Sequence)
			client = p.client
		}
	})
	if err != nil || verdict != nil || given {
		return errors.Join(err, verdict)
	}
	_, err = client.Input(ctx, in.Sequence, text) // the shim, too, writes a sequence only once
	var refusal *shim.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refusal):
		_ = p.do(ctx, func() { p.notTaken(in.Sequence) }) // when there is no owner any more, nobody asks
		return kind(err)
	case ctx.Err() != nil:
		return ctx.Err() // its pipe may take it yet: it stays outstanding, and the same Send may wait for it again
	default:
		return kind(err)
	}
}

// notTaken forgets a message that the shim refused, unless its marker is in the log: then it counts as given.
func (p *proc) notTaken(sequence uint64) {
	p.advance()
	if p.outstanding != sequence || p.turns.open == sequence {
		return
	}
	p.setOutstanding(0)
	delete(p.given, sequence)
	for i, g := range p.givenOrder {
		if g == sequence {
			p.givenOrder = append(p.givenOrder[:i], p.givenOrder[i+1:]...)
			return
		}
	}
}

// Stop asks the process to end, and has the tree killed after grace.
func (p *proc) Stop(grace time.Duration, exit session.Exit) {
	p.want(ending{exit: exit, grace: time.Now().Add(max(grace, 0))})
}

// Kill has the tree killed.
func (p *proc) Kill(exit session.Exit) { p.want(ending{exit: exit, kill: true}) }

func (p *proc) want(e ending) {
	_ = p.do(context.Background(), func() { // when it has ended, it has
		if p.ending != nil {
			if !e.kill || p.ending.kill {
				return
			}
			e.exit = p.ending.exit // the first one decides the cause
		}
		p.ending = &e
		p.ask(e)
		wait := p.d.opt.KillPatience
		if !e.kill {
			wait += time.Until(e.grace)
		}
		p.force.Reset(wait)
	})
}

// ask tells the shim, in a goroutine of its own: it may be stopped, and the owner waits for nobody.
func (p *proc) ask(e ending) {
	client := p.client
	if client == nil {
		return // told when it is found again
	}
	p.asks.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), callPatience)
		defer cancel()
		var err error
		if e.kill {
			err = client.Kill(ctx, e.exit.Cause, e.exit.Message)
		} else {
			err = client.Stop(ctx, time.Until(e.grace), e.exit.Cause, e.exit.Message)
		}
		if err != nil && !errors.Is(err, shim.ErrLost) {
			p.d.log.Warn("a shim did not take the order to end its session", "session", p.s.SessionID, "error", err)
		}
	})
}
