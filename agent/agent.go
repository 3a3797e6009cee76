// The agent as a whole: opening its data directory, what it starts, and how it ends.

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/nodelink"
)

// link is the agent's side of the node link; nodelink.Client is the real one.
type link interface {
	// Run keeps the link up until ctx ends.
	Run(ctx context.Context) error
	// Send queues a frame, which must not be changed any more; it does not block.
	Send(f *nodev1.Frame) error
}

// Agent is one node's agent. It is made by New and lives through one Run.
type Agent struct {
	opts    Options
	log     *slog.Logger
	data    *dataDir
	host    *host
	janitor *janitor
	keeper  *leaseKeeper
	metrics *metrics
	link    link
	caps    *apiv1.Capabilities
	began   time.Time

	in       chan any           // from the link, in order: linkUp, linkDown, *nodev1.Frame
	events   chan event         // from the runs
	progress chan *nodev1.Frame // from the sessions' tellers; what finds no room is lost
	notes    chan any           // from the helpers: leaseWritten, removed, sampled

	// resumeIndex is the index of the last desired frame applied; written by the supervisor, read when a hello is made.
	resumeIndex atomic.Uint64

	connMu sync.Mutex
	conn   nodelink.Conn // the one last dialled

	linked  atomic.Bool // written by the supervisor
	leaves  atomic.Bool // it is being drained, because it was told to stop; written by the supervisor
	running atomic.Int64
	ran     atomic.Bool
	super   supervisor
}

// New opens the data directory, begins the node's next incarnation, and reads what sessions there are. Errors say what is
// wrong with the directory; Close or Run must follow.
func New(opts Options) (*Agent, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	data, err := openDataDir(opts.DataDir)
	if err != nil {
		return nil, err
	}
	a := &Agent{opts: opts, log: opts.Logger, data: data, began: time.Now(),
		in: make(chan any, 64), events: make(chan event, 256), notes: make(chan any, 16), progress: make(chan *nodev1.Frame, progressWaiting)}
	if err := a.assemble(); err != nil {
		data.close()
		return nil, err
	}
	return a, nil
}

// assemble makes the parts.
//
//	1 store ── 2 checkpoints ── 3 lease ── 4 metrics, janitor ── 5 host (what runs share) ── 6 supervisor, with a run for each
//	                                                                                     └─ 7 lease keeper ── 8 link    session found
func (a *Agent) assemble() error {
	o := a.opts
	store, err := newStore(a.data.root, a.data.path)
	if err != nil {
		return err
	}
	keeper, err := o.Checkpoints()
	if err != nil {
		return err
	}
	l := &lease{now: func() time.Duration { return time.Duration(o.Boottime()) }}
	l.deadline.Store(o.Lease.Deadline())
	l.wanted = time.Duration(o.Lease.Deadline())
	a.metrics = newMetrics()
	a.janitor = newJanitor(store, a.log)
	a.host = &host{nodeName: o.Name, nodeID: a.NodeID(), secretsDir: o.SecretsDir, leasePath: o.LeasePath, startTimeout: o.StartTimeout,
		drivers: o.Drivers, keeper: keeper, restores: make(chan struct{}, o.MaxRestores), sweep: a.janitor.sweep, store: store, lease: l, slots: make(chan struct{}, o.MaxStarts), room: &gate{max: int64(o.MaxFactsUnacked)}, events: a.events, progress: a.progress,
		metrics: a.metrics, log: a.log}
	a.keeper = newLeaseKeeper(o.Lease)
	a.super.init(a)
	if err := a.super.load(); err != nil {
		return err
	}
	if a.link, err = a.newLink(); err != nil {
		return err
	}
	if o.Metrics != nil {
		if err := a.metrics.register(o.Metrics, a); err != nil {
			return fmt.Errorf("agent: register the metrics: %w", err)
		}
	}
	return nil
}

// NodeID is the node's id, made once and kept in its data directory.
func (a *Agent) NodeID() string { return a.data.id.NodeID }

// Incarnation counts the starts of agents of this node, from 1.
func (a *Agent) Incarnation() uint64 { return a.data.id.Incarnation }

// Close gives up an agent that is not to be run.
func (a *Agent) Close() {
	if a.ran.CompareAndSwap(false, true) {
		a.data.close()
	}
}

// Run does the agent's work until ctx ends, and then ends in good order: with DrainOnStop its sessions go elsewhere first; others go
// on without the agent, for as long as their lease lasts, so that the next agent can adopt them. It returns nil after ctx, or why it
// could not go on.
func (a *Agent) Run(ctx context.Context) error {
	if !a.ran.CompareAndSwap(false, true) {
		return errors.New("agent: Run may be called once")
	}
	defer a.data.close()
	a.caps = a.probe(ctx)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	// The link outlasts the supervisor, for its last facts and the goodbye; so do the helpers.
	linkCtx, cancelLink := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelLink()
	helperCtx, cancelHelpers := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelHelpers()
	var helpers, links sync.WaitGroup
	a.startHelpers(helperCtx, &helpers)
	links.Go(func() {
		if err := a.link.Run(linkCtx); err != nil && linkCtx.Err() == nil {
			cancel(fmt.Errorf("agent: the node link: %w", err))
		}
	})
	a.log.Info("node agent runs", "node", a.opts.Name, "node_id", a.NodeID(), "incarnation", a.Incarnation(),
		"sessions", len(a.super.entries), "data_dir", a.data.path)

	err := a.super.loop(ctx)
	cancelLink()
	cancelHelpers()
	a.drain(&links, &helpers)
	if err == nil && ctx.Err() != nil && !errors.Is(context.Cause(ctx), ctx.Err()) {
		err = context.Cause(ctx)
	}
	a.log.Info("node agent ended; its sessions go on until the lease ends", "node", a.opts.Name, "error", err)
	return err
}

// startHelpers starts what works beside the supervisor.
func (a *Agent) startHelpers(ctx context.Context, wg *sync.WaitGroup) {
	note := func(n any) {
		select {
		case a.notes <- n:
		case <-ctx.Done():
		}
	}
	wg.Go(func() {
		a.keeper.run(ctx, func(d time.Duration, err error) { note(leaseWritten{d, err}) })
	})
	wg.Go(func() { a.janitor.run(ctx, func(id string) { note(removed(id)) }) })
	wg.Go(func() { a.janitor.empty(ctx) })
	wg.Go(func() { a.sample(ctx, note) })
}

// drain waits for what was told to end, and takes in what it still has to say.
func (a *Agent) drain(groups ...*sync.WaitGroup) {
	done := make(chan struct{})
	go func() {
		for _, g := range groups {
			g.Wait()
		}
		close(done)
	}()
	for {
		select {
		case <-a.in:
		case <-a.notes:
		case <-done:
			return
		}
	}
}

// probe adds to the declared capabilities what the drivers find.
func (a *Agent) probe(ctx context.Context) *apiv1.Capabilities {
	caps := proto.Clone(a.opts.Capabilities).(*apiv1.Capabilities)
	if caps.CustomCapabilities == nil {
		caps.CustomCapabilities = map[string]bool{}
	}
	types := slices.Sorted(maps.Keys(a.opts.Drivers))
	if len(caps.SupportedSessionTypes) > 0 {
		types = slices.DeleteFunc(types, func(t string) bool { return !slices.Contains(caps.SupportedSessionTypes, t) })
	}
	caps.SupportedSessionTypes = nil
	for _, typ := range types {
		found, err := a.opts.Drivers[typ].Probe(ctx)
		if err != nil {
			a.log.Error("sessions of this type cannot run here", "type", typ, "error", err)
			continue
		}
		caps.SupportedSessionTypes = append(caps.SupportedSessionTypes, typ)
		for k, v := range found {
			if _, declared := caps.CustomCapabilities[k]; !declared {
				caps.CustomCapabilities[k] = v
			}
		}
	}
	caps.CanSpawnSessions = caps.CanSpawnSessions && len(caps.SupportedSessionTypes) > 0
	return caps
}

// hello is the first frame of each link.
func (a *Agent) hello() *nodev1.Hello {
	return &nodev1.Hello{
		ProtocolMin: nodelink.ProtocolMin, ProtocolMax: nodelink.ProtocolMax,
		NodeId: a.NodeID(), Name: a.opts.Name, Incarnation: a.Incarnation(), Version: a.opts.Version, Pid: pid(),
		Capabilities: a.caps, Labels: a.opts.Labels, ResumeIndex: a.resumeIndex.Load(), Address: a.opts.Address, ChunkAddress: a.opts.ChunkAddress,
		ClusterId: a.super.clusterID(),
	}
}
