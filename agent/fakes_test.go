// A world of processes that outlive agents, a leader at the other end of a link in memory, and a lease in memory.

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/shim"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
)

func TestMain(m *testing.M) {
	shim.MainIfRequested()
	goleak.VerifyTestMain(m)
}

// world is the machine: its process trees live beside any agent.
type world struct {
	t testing.TB

	mu        sync.Mutex
	trees     map[string]*tree
	starts    []string // "id/epoch", in order
	startErr  error
	think     time.Duration // how long a turn takes; negative for ever
	stubborn  time.Duration // how long a killed tree takes to die
	absent    bool          // what is not alive was never started
	starting  int
	startPeak int
	startTime time.Duration
}

type tree struct {
	w           *world
	id          string
	dir         string
	epoch       uint32
	env         []string
	given       []uint64
	turns       []driver.Turn
	outstanding uint64
	lines       uint64
	exit        *session.Exit
	hungUp      chan struct{} // its terminal is gone
	done        chan struct{}
	changed     []chan struct{}
}

func newWorld(t testing.TB) *world { return &world{t: t, trees: map[string]*tree{}} }

func (w *world) Type() string { return session.TypeProcess }
func (w *world) Probe(context.Context) (map[string]bool, error) {
	return map[string]bool{"probed": true}, nil
}
func (w *world) locked(f func())      { w.mu.Lock(); defer w.mu.Unlock(); f() }
func (w *world) tree(id string) *tree { w.mu.Lock(); defer w.mu.Unlock(); return w.trees[id] }
func (w *world) started() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(slices.Values(w.starts)) // those of one frame come in any order
}
func (w *world) alive(id string) bool { tr := w.tree(id); return tr != nil && !closed(tr.done) }
func (w *world) given(id string) []uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.trees[id] == nil {
		return nil
	}
	return append([]uint64(nil), w.trees[id].given...)
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (w *world) Start(_ context.Context, s driver.Start) (driver.Process, error) {
	w.mu.Lock()
	w.starting++
	w.startPeak = max(w.startPeak, w.starting)
	d := w.startTime
	w.mu.Unlock()
	if d > 0 {
		time.Sleep(d)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starting--
	if w.startErr != nil {
		return nil, w.startErr
	}
	if old := w.trees[s.SessionID]; old != nil && !closed(old.done) {
		w.t.Errorf("two owners: %s epoch %d is started while epoch %d lives", s.SessionID, s.Epoch, old.epoch)
		return nil, errors.New("it lives")
	}
	tr := &tree{w: w, id: s.SessionID, dir: s.Dir, epoch: s.Epoch, env: s.Env, lines: s.OutputBase, hungUp: make(chan struct{}), done: make(chan struct{})}
	w.trees[s.SessionID] = tr
	w.starts = append(w.starts, fmt.Sprintf("%s/%d", s.SessionID, s.Epoch))
	return tr.handle(0), nil
}

func (w *world) Adopt(_ context.Context, s driver.Start) (driver.Process, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	tr := w.trees[s.SessionID]
	if w.absent {
		return nil, &driver.Gone{Exit: session.Exit{Cause: session.CauseStartFailed, Message: "never started"}}
	}
	if tr == nil || tr.epoch != s.Epoch {
		return nil, &driver.Gone{Exit: session.Exit{Cause: session.CauseLost, Message: "no trace of it"}}
	}
	if closed(tr.done) {
		return nil, &driver.Gone{Exit: *tr.exit, OutputLine: tr.lines, Outstanding: tr.outstanding, Turns: tr.turns}
	}
	return tr.handle(0), nil
}

// handle is one agent's hold on a tree; it delivers the turns from the given one on. The lock is held.
func (tr *tree) handle(from int) *process {
	p := &process{tree: tr, turns: make(chan driver.Turn), released: make(chan struct{}), changed: make(chan struct{}, 1)}
	tr.changed = append(tr.changed, p.changed)
	go p.pump(from)
	return p
}

type process struct {
	*tree
	turns    chan driver.Turn
	released chan struct{}
	changed  chan struct{}
	taken    atomic.Int64 // turns
	once     sync.Once
}

func (p *process) pump(next int) {
	defer close(p.turns)
	for {
		p.w.mu.Lock()
		ts := p.tree.turns
		p.w.mu.Unlock()
		for ; next < len(ts); next++ {
			select {
			case p.turns <- ts[next]:
				p.taken.Add(1)
			case <-p.released:
				return
			}
		}
		select {
		case <-p.changed:
		case <-p.released:
			return
		case <-p.tree.done:
			p.w.mu.Lock()
			rest := p.tree.turns[next:]
			p.w.mu.Unlock()
			for _, t := range rest {
				select {
				case p.turns <- t:
					p.taken.Add(1)
				case <-p.released:
					return
				}
			}
			return
		}
	}
}

func (p *process) PID() int { return 4242 }

func (p *process) Send(_ context.Context, in driver.Input) error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	for _, s := range p.given {
		if s == in.Sequence {
			return nil
		}
	}
	if p.outstanding != 0 {
		return driver.ErrBusy
	}
	if closed(p.done) {
		return errors.New("broken pipe")
	}
	p.given = append(p.given, in.Sequence)
	p.outstanding = in.Sequence
	if p.w.think >= 0 {
		time.AfterFunc(p.w.think, func() { p.endTurn(in.Sequence, "done") })
	}
	return nil
}

// endTurn ends the turn under way, as the process would by writing its result.
func (tr *tree) endTurn(seq uint64, result string) {
	tr.w.mu.Lock()
	defer tr.w.mu.Unlock()
	if tr.outstanding != seq || closed(tr.done) {
		return
	}
	tr.outstanding = 0
	tr.lines++
	tr.book(seq)
	tr.turns = append(tr.turns, driver.Turn{Sequence: seq, Result: []byte(result), OutputLine: tr.lines})
	for _, c := range tr.changed {
		signal(c)
	}
}

// book writes a message's sequence into the ledger in its workspace.
func (tr *tree) book(seq uint64) {
	f, err := os.OpenFile(filepath.Join(tr.dir, "workspace", "ledger"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		tr.w.t.Error(err)
		return
	}
	defer f.Close()
	fmt.Fprintln(f, seq)
}

// hangUp ends its terminal. The lock is held.
func (tr *tree) hangUp() {
	if !closed(tr.hungUp) {
		close(tr.hungUp)
	}
}

// die ends the tree.
func (tr *tree) die(exit session.Exit) {
	tr.w.mu.Lock()
	if tr.exit == nil {
		tr.exit = &exit
		tr.hangUp()
	}
	d := tr.w.stubborn
	tr.w.mu.Unlock()
	end := func() {
		tr.w.mu.Lock()
		defer tr.w.mu.Unlock()
		if !closed(tr.done) {
			close(tr.done)
		}
	}
	if d > 0 {
		time.AfterFunc(d, end)
		return
	}
	end()
}

func (p *process) Turns() <-chan driver.Turn { return p.turns }
func (p *process) Outstanding() uint64       { p.w.mu.Lock(); defer p.w.mu.Unlock(); return p.outstanding }
func (p *process) Backlog() int {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	return len(p.tree.turns) - int(p.taken.Load())
}
func (p *process) OutputLine() uint64     { p.w.mu.Lock(); defer p.w.mu.Unlock(); return p.lines }
func (p *process) Done() <-chan struct{}  { return p.done }
func (p *process) Exit() session.Exit     { p.w.mu.Lock(); defer p.w.mu.Unlock(); return *p.exit }
func (p *process) Release()               { p.once.Do(func() { close(p.released) }) }
func (p *process) Kill(exit session.Exit) { exit.Signal = "SIGKILL"; p.die(exit) }
func (p *process) Stop(_ time.Duration, exit session.Exit) {
	exit.Signal = "SIGTERM"
	p.die(exit)
}

func (p *process) ReadLogs(ctx context.Context, from uint64, follow bool, emit func([]*apiv1.LogLine) error) error {
	for n := max(from, 1); n <= p.OutputLine(); n++ {
		if err := emit([]*apiv1.LogLine{{Number: n, Epoch: p.epoch, Text: fmt.Appendf(nil, "line %d", n)}}); err != nil {
			return err
		}
	}
	if follow {
		select {
		case <-ctx.Done():
		case <-p.done:
		}
	}
	return nil
}

// Attach echoes what is typed.
func (p *process) Attach(ctx context.Context, in io.Reader, out io.Writer, _ <-chan driver.Size) error {
	echoed := make(chan error, 1)
	go func() { _, err := io.Copy(out, in); echoed <- err }()
	select {
	case err := <-echoed:
		return err
	case <-p.hungUp:
	case <-ctx.Done():
	}
	return nil
}

func (p *process) Exec(_ context.Context, x driver.Exec) (session.Exit, error) {
	b, err := io.ReadAll(x.Stdin)
	if err != nil {
		return session.Exit{}, err
	}
	fmt.Fprintf(x.Stdout, "%s: %s", x.Command[0], b)
	fmt.Fprint(x.Stderr, "warning")
	return session.Exit{Code: 3, Cause: session.CauseFailed}, nil
}

// memLease is a lease file in memory.
type memLease struct {
	deadline atomic.Int64
	broken   atomic.Bool
}

func (m *memLease) Deadline() int64 { return m.deadline.Load() }
func (m *memLease) Renew(d int64) error {
	if m.broken.Load() {
		return errors.New("disk full")
	}
	if d > m.deadline.Load() {
		m.deadline.Store(d)
	}
	return nil
}

// leader is the control plane at the other end of the link.
type leader struct {
	cluster string
	lease   time.Duration
	settle  func() // waits until nothing moves any more

	mu        sync.Mutex
	down      bool // refuses new links
	conn      nodelink.Conn
	streams   *nodelink.Streams
	hellos    []*nodev1.Hello
	facts     []*nodev1.Fact // each once, in the order of their numbers
	resent    int            // facts that came more than once
	last      map[uint64]uint64
	holdFacts bool          // facts are not acked
	loseFacts int           // as many of the next frames with facts never come
	factTimes []time.Time   // when frames with facts came, or were lost
	holdLease bool          // heartbeats are not answered
	greeting  *nodev1.Frame // sent behind each hello_ack
	got       []*nodev1.Frame
	beats     []*nodev1.Heartbeat
	wg        sync.WaitGroup
}

func newLeader() *leader {
	return &leader{cluster: "c1", lease: 12 * time.Second, settle: synctest.Wait, last: map[uint64]uint64{}}
}

func (l *leader) dial(context.Context, string) (nodelink.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return nil, errors.New("connection refused")
	}
	node, server := nodelink.Pipe()
	l.wg.Go(func() { l.serve(server) })
	return node, nil
}

func (l *leader) serve(c nodelink.Conn) {
	streams := nodelink.NewStreams(nodelink.StreamsOptions{Send: c.Send})
	defer streams.Close(nodelink.ErrClosed)
	for {
		f, err := c.Recv(context.Background())
		if err != nil {
			return
		}
		if streams.Handle(f) {
			continue
		}
		l.mu.Lock()
		switch p := f.GetPayload().(type) {
		case *nodev1.Frame_Hello:
			l.conn, l.streams = c, streams
			l.hellos = append(l.hellos, p.Hello)
			_ = c.Send(&nodev1.Frame{Payload: &nodev1.Frame_HelloAck{HelloAck: &nodev1.HelloAck{Protocol: 1, ClusterId: l.cluster,
				Lease: durationpb.New(l.lease), RenewInterval: durationpb.New(3 * time.Second), HeartbeatInterval: durationpb.New(10 * time.Second),
				FactIndex: l.last[p.Hello.GetIncarnation()]}}})
			if l.greeting != nil {
				_ = c.Send(l.greeting)
			}
		case *nodev1.Frame_Heartbeat:
			l.beats = append(l.beats, p.Heartbeat)
			if !l.holdLease {
				_ = c.Send(&nodev1.Frame{Payload: &nodev1.Frame_HeartbeatAck{HeartbeatAck: &nodev1.HeartbeatAck{
					SentAt: p.Heartbeat.GetSentAt(), Lease: durationpb.New(l.lease)}}})
			}
		case *nodev1.Frame_Facts:
			inc := p.Facts.GetIncarnation()
			l.factTimes = append(l.factTimes, time.Now())
			if l.loseFacts > 0 {
				l.loseFacts--
				break
			}
			for _, fact := range p.Facts.GetFacts() {
				if fact.GetIndex() <= l.last[inc] {
					l.resent++
					continue
				}
				if fact.GetIndex() != l.last[inc]+1 {
					panic(fmt.Sprintf("fact %d came after %d", fact.GetIndex(), l.last[inc]))
				}
				l.last[inc] = fact.GetIndex()
				l.facts = append(l.facts, fact)
			}
			if !l.holdFacts {
				_ = c.Send(&nodev1.Frame{Payload: &nodev1.Frame_FactsAck{FactsAck: &nodev1.FactsAck{Incarnation: inc, Index: l.last[inc]}}})
			}
		default:
			l.got = append(l.got, f)
		}
		l.mu.Unlock()
	}
}

func (l *leader) locked(f func()) { l.mu.Lock(); defer l.mu.Unlock(); f() }

// send sends a frame and waits until nothing moves any more.
func (l *leader) send(f *nodev1.Frame) {
	l.mu.Lock()
	c := l.conn
	l.mu.Unlock()
	_ = c.Send(f)
	l.settle()
}

func (l *leader) desired(index uint64, full bool, ds ...*nodev1.DesiredSession) {
	l.send(&nodev1.Frame{Index: index, Payload: &nodev1.Frame_Desired{Desired: &nodev1.Desired{Full: full, Sessions: ds}}})
}

func (l *leader) deliver(id string, epoch uint32, ms ...*apiv1.Message) {
	l.send(&nodev1.Frame{Payload: &nodev1.Frame_Deliver{Deliver: &nodev1.Deliver{Sessions: []*nodev1.SessionMessages{{SessionId: id, Epoch: epoch, Messages: ms}}}}})
}

var requests atomic.Int64

// request sends a request and returns its answer; nil when none has come.
func (l *leader) request(f *nodev1.Frame) *nodev1.Frame {
	f.RequestId = fmt.Sprint("r", requests.Add(1))
	l.send(f)
	return l.answer(f.RequestId)
}

func (l *leader) answer(id string) *nodev1.Frame {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.got {
		if a.GetRequestId() == id {
			return a
		}
	}
	return nil
}

func (l *leader) inventory() map[string]*nodev1.SessionState {
	m := map[string]*nodev1.SessionState{}
	for _, s := range l.request(&nodev1.Frame{Payload: &nodev1.Frame_GetSessions{GetSessions: &nodev1.GetSessions{}}}).GetSessionsResponse().GetSessions() {
		m[s.GetSessionId()] = s
	}
	return m
}

// told returns the facts about a session, in words.
func (l *leader) told(id string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, f := range l.facts {
		if f.GetSessionId() != id {
			continue
		}
		s := ""
		switch k := f.GetKind().(type) {
		case *nodev1.Fact_Started:
			s = "started"
		case *nodev1.Fact_Exited:
			s = "exited " + k.Exited.GetExit().GetCause()
			if k.Exited.GetOutstanding() != 0 {
				s += fmt.Sprintf(" outstanding %d", k.Exited.GetOutstanding())
			}
		case *nodev1.Fact_MessageDelivered:
			s = fmt.Sprintf("delivered %d", k.MessageDelivered.GetSequence())
		case *nodev1.Fact_TurnEnded:
			s = fmt.Sprintf("turn %d", k.TurnEnded.GetSequence())
		case *nodev1.Fact_MessageRefused:
			s = fmt.Sprintf("refused %d", k.MessageRefused.GetSequence())
		case *nodev1.Fact_Copied:
			s = fmt.Sprintf("copied %d move %d", k.Copied.GetRound(), k.Copied.GetMove())
		case *nodev1.Fact_Prepared:
			s = fmt.Sprintf("prepared %d", k.Prepared.GetManifest()[0])
		case *nodev1.Fact_Captured:
			s = fmt.Sprintf("captured %d", k.Captured.GetSequence())
		case *nodev1.Fact_Checkpointed:
			s = fmt.Sprintf("checkpointed %d", k.Checkpointed.GetSequence())
			if m := k.Checkpointed.GetMove(); m != 0 {
				s += fmt.Sprintf(" move %d", m)
			}
		case *nodev1.Fact_CheckpointFailed:
			s = fmt.Sprintf("failed request %d move %d", k.CheckpointFailed.GetRequest(), k.CheckpointFailed.GetMove())
		}
		out = append(out, fmt.Sprintf("%d:%s", f.GetEpoch(), s))
	}
	return out
}

// node is one machine with its data directory, on which agents come and go.
type node struct {
	t     testing.TB
	dir   string
	world *world
	lease *memLease
	lead  *leader
	opts  func(*Options)

	agent  *Agent
	cancel context.CancelFunc
	done   chan error
}

// inBubble runs a test with fake time, a node and a leader.
func inBubble(t *testing.T, f func(n *node)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		n := &node{t: t, dir: dir, world: newWorld(t), lease: &memLease{}, lead: newLeader()}
		f(n)
		if n.cancel != nil {
			n.stop()
		}
		for _, tr := range n.world.trees {
			if !closed(tr.done) {
				close(tr.done)
			}
		}
		n.lead.wg.Wait()
		synctest.Wait()
	})
}

// boottime is fake time, far enough from 0.
func boottime() int64 { return time.Now().UnixNano() - 900_000_000_000_000_000 }

func (n *node) options() Options {
	o := Options{DataDir: n.dir, Name: "node-1", Version: "test", Drivers: map[string]driver.Driver{session.TypeProcess: n.world},
		Servers: []string{"s1:8078"}, Dial: n.lead.dial, Lease: n.lease, LeasePath: n.dir + "/lease", Boottime: boottime,
		Logger: slog.New(slog.NewTextHandler(n.t.Output(), nil))}
	if n.opts != nil {
		n.opts(&o)
	}
	return o
}

// start starts an agent and waits until it is linked and idle.
func (n *node) start() {
	n.t.Helper()
	a, err := New(n.options())
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.agent, n.cancel, n.done = a, cancel, make(chan error, 1)
	go func() { n.done <- a.Run(ctx) }()
	synctest.Wait()
}

// stop ends the agent in good order; sessions go on.
func (n *node) stop() {
	n.t.Helper()
	n.cancel()
	n.cancel = nil
	if err := <-n.done; err != nil {
		n.t.Errorf("Run: %v", err)
	}
	synctest.Wait()
}

// cut breaks the link; the client comes back by itself.
func (n *node) cut() {
	n.lead.mu.Lock()
	c := n.lead.conn
	n.lead.mu.Unlock()
	c.Close("cut")
	synctest.Wait()
}

// wait lets fake time pass.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func toRun(id string, epoch uint32) *nodev1.DesiredSession {
	return want(id, epoch, nodev1.DesiredSession_RUN)
}

func want(id string, epoch uint32, a nodev1.DesiredSession_Action) *nodev1.DesiredSession {
	return &nodev1.DesiredSession{SessionId: id, Epoch: epoch, Action: a, Spec: &apiv1.SessionSpec{Command: []string{"agent"}}}
}

func msg(seq uint64, p apiv1.Priority_Level) *apiv1.Message {
	return &apiv1.Message{Sequence: seq, Priority: p, Text: fmt.Appendf(nil, "m%d", seq)}
}
