// A node: a machine with process trees that live on their own, and an agent that comes and goes.

package sim

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"github.com/neolith/orchestrator/agent"
	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/driver/fake"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
)

// node is a machine that runs sessions.
type node struct {
	connections
	w       *World
	id      string // its name, and its place in the network
	dir     string
	machine *fake.Machine

	mu    sync.Mutex
	stop  context.CancelFunc // of the agent; nil when none runs
	ended chan struct{}      // closed once the last agent is gone
	slow  time.Duration      // how long starting a process takes
	gone  bool               // for good
}

func newNode(w *World, id string) *node {
	n := &node{w: w, id: id, dir: filepath.Join(w.opts.Dir, id), ended: make(chan struct{})}
	close(n.ended)
	n.machine = fake.NewMachine(id, fake.Options{
		TurnTime: w.opts.TurnTime, StopTime: 50 * time.Millisecond, Observer: w.watch.tree, Given: w.watch.given,
	})
	return n
}

// start starts an agent, once the one before is gone.
func (n *node) start() error {
	n.mu.Lock()
	ended := n.ended
	n.mu.Unlock()
	<-ended
	// Each agent has drivers and a lease of its own, which are of no effect once it was killed.
	life := &life{n: n}
	var cancel context.CancelFunc
	life.ctx, cancel = context.WithCancel(context.Background())
	a, err := agent.New(agent.Options{
		DataDir: n.dir, Name: n.id, Version: "sim", Servers: n.w.serverIDs(),
		Dial:         func(ctx context.Context, server string) (nodelink.Conn, error) { return n.w.dial(ctx, n, server) },
		Drivers:      map[string]driver.Driver{session.TypeProcess: &slowDriver{n.machine.Driver(), life}},
		Capabilities: &apiv1.Capabilities{CanSpawnSessions: true},
		Checkpoints:  func() (checkpoint.Keeper, error) { return &keeper{n.machine.Keeper(n.w.vault), life}, nil },
		Lease:        &leaseWriter{life}, Boottime: n.machine.Now, Logger: n.w.log.With("node", n.id),
	})
	if err != nil {
		cancel()
		return err
	}
	n.mu.Lock()
	n.stop, n.ended = cancel, make(chan struct{})
	ended = n.ended
	n.mu.Unlock()
	n.w.net.change(func() { delete(n.w.net.dead, n.id) })
	go func() {
		defer close(ended)
		if err := a.Run(life.ctx); err != nil {
			n.w.fail("the agent of %s ended: %v", n.id, err)
		}
	}()
	return nil
}

// kill ends the agent as SIGKILL does; what it started lives on.
func (n *node) kill() {
	n.mu.Lock()
	stop := n.stop
	n.stop = nil
	n.mu.Unlock()
	if stop == nil {
		return
	}
	n.w.net.change(func() { n.w.net.dead[n.id] = true })
	n.reset()
	stop()
}

// crash ends the whole machine.
func (n *node) crash() {
	n.kill()
	n.machine.Crash()
}

// destroy ends the machine for good.
func (n *node) destroy() {
	n.mu.Lock()
	n.gone = true
	n.mu.Unlock()
	n.crash()
}

func (n *node) isGone() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gone
}

func (n *node) alive() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stop != nil
}

// freeze stops the agent as SIGSTOP does, for so long.
func (n *node) freeze(d time.Duration) {
	n.w.net.change(func() { n.w.net.frozen[n.id] = time.Now().Add(d) })
}

func (n *node) setSlow(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow = d
}

func (n *node) slowness() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.slow
}

// life is one agent's hold on its machine.
type life struct {
	n   *node
	ctx context.Context
}

// act waits until the agent is not frozen. It reports false once the agent was killed.
func (l *life) act() bool {
	l.n.w.net.awake(l.n.id)
	return l.ctx.Err() == nil
}

// leaseWriter is the machine's lease, as this agent may write it.
type leaseWriter struct{ *life }

// Renew implements agent.LeaseWriter.
func (w *leaseWriter) Renew(deadline int64) error {
	if !w.act() {
		return context.Canceled
	}
	return w.n.machine.Renew(deadline)
}

// Deadline implements agent.LeaseWriter.
func (w *leaseWriter) Deadline() int64 { return w.n.machine.Deadline() }

// slowDriver does nothing while the agent is frozen, and takes its time on a slow machine.
type slowDriver struct {
	*fake.Driver
	life *life
}

// Start implements driver.Driver.
func (d *slowDriver) Start(ctx context.Context, s driver.Start) (driver.Process, error) {
	time.Sleep(d.life.n.slowness())
	if !d.life.act() {
		return nil, context.Canceled
	}
	p, err := d.Driver.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	return &slowProcess{p, d.life, s.SessionID}, nil
}

// Adopt implements driver.Driver.
func (d *slowDriver) Adopt(ctx context.Context, s driver.Start) (driver.Process, error) {
	if !d.life.act() {
		return nil, context.Canceled
	}
	p, err := d.Driver.Adopt(ctx, s)
	if err != nil {
		return nil, err
	}
	return &slowProcess{p, d.life, s.SessionID}, nil
}

// slowProcess is a process as a frozen agent has it: not at all.
type slowProcess struct {
	driver.Process
	life *life
	id   string
}

// Send implements driver.Process.
func (p *slowProcess) Send(ctx context.Context, in driver.Input) error {
	if !p.life.act() {
		return context.Canceled
	}
	return p.Process.Send(ctx, in)
}

// Stop implements driver.Process.
func (p *slowProcess) Stop(grace time.Duration, exit session.Exit) {
	p.end(func() { p.Process.Stop(grace, exit) })
}

// Kill implements driver.Process.
func (p *slowProcess) Kill(exit session.Exit) {
	p.end(func() { p.Process.Kill(exit) })
}

// end sends a signal, later when a story wants to see that.
func (p *slowProcess) end(signal func()) {
	if !p.life.act() {
		return
	}
	w := p.life.n.w
	held := w.steps.reach(stepStopping, p.id)
	if held == 0 {
		signal()
		return
	}
	w.client.background(func() {
		time.Sleep(held)
		if p.life.act() {
			signal()
		}
	})
}
