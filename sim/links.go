// Node links and relays over the network.

package sim

import (
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/nodelink"
)

const (
	dialPatience  = 5 * time.Second
	relayPatience = 13 * time.Second // keepalive of the servers' connections: 10 s, and 3 s for the answer
	arrivalStep   = time.Microsecond // what keeps two frames in their order
)

// wire decides about the frames of one node link.
type wire struct {
	net          *network
	steps        *steps
	node, server string

	mu      sync.Mutex
	arrival [2]time.Time // of the last frame, by direction
	broken  [2]bool      // something was lost: nothing more arrives in that direction
}

// verdict implements nodelink.Faults.
func (w *wire) verdict(d nodelink.Direction, f *nodev1.Frame) nodelink.Verdict {
	from, to := w.node, w.server
	if d == nodelink.Down {
		from, to = to, from
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.net.reaches(from, to) {
		w.broken[d] = true
		return nodelink.Verdict{Drop: true}
	}
	if w.broken[d] { // mended too late: the other side asks for what was lost, and nobody has it
		return nodelink.Verdict{Cut: true}
	}
	if w.net.loses(w.node, f) {
		return nodelink.Verdict{Drop: true}
	}
	now, suffers := time.Now(), w.net.trouble(w.node)
	at := now.Add(w.net.latency() + suffers.delay + w.steps.frame(d, f))
	for _, id := range []string{from, to} {
		if thaw := w.net.thaw(id); thaw.After(at) {
			at = thaw
		}
	}
	if f != nil && w.net.chance(suffers.reorder) {
		return nodelink.Verdict{Delay: at.Sub(now) + disorder}
	}
	if next := w.arrival[d].Add(arrivalStep); next.After(at) {
		at = next
	}
	w.arrival[d] = at
	v := nodelink.Verdict{Delay: at.Sub(now)}
	if f != nil && w.net.chance(suffers.duplicate) {
		v.Duplicates = 1
	}
	return v
}

// trouble is what links suffer from.
type trouble struct {
	duplicate, reorder float64
	delay              time.Duration
}

func (n *network) trouble(node string) trouble {
	n.mu.Lock()
	defer n.mu.Unlock()
	return trouble{n.duplicate, n.reorder, n.delay[node]}
}

// dial opens a node's link to a server.
func (w *World) dial(ctx context.Context, n *node, server string) (nodelink.Conn, error) {
	w.net.awake(n.id)
	if err := w.net.pass(ctx, n.id, server, dialPatience); err != nil {
		return nil, fault.New(fault.Unavailable, "dial: %w", err)
	}
	inst := w.servers[w.index(server)].running()
	if inst == nil {
		return nil, fault.New(fault.Unavailable, "dial %s: connection refused", server)
	}
	wire := &wire{net: w.net, steps: w.steps, node: n.id, server: server}
	near, far := nodelink.FaultyPipe(wire.verdict)
	inst.keep(near)
	n.keep(near)
	if err := inst.hub.AttachConn(far); err != nil {
		nodelink.Cut(near)
		return nil, err
	}
	return near, nil
}

// relay opens a follower's stream to the leader.
func (w *World) relay(ctx context.Context, follower, leader string) (nodelink.RelayStream, error) {
	if err := w.net.pass(ctx, follower, leader, dialPatience); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	inst := w.servers[w.index(leader)].running()
	if inst == nil {
		return nil, status.Error(codes.Unavailable, "connection refused")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(inst.ctx, func() { cancel(status.Error(codes.Unavailable, "connection reset")) })
	s := &relayStream{net: w.net, ctx: ctx, cancel: cancel, follower: follower, leader: leader}
	s.RelayStream = nodelink.RelayPipe(ctx, func(served nodelink.RelayServerStream) error {
		defer stop()
		return inst.hub.ServeRelay(served)
	})
	return s, nil
}

// relayStream carries both directions over the network, at the follower's end.
type relayStream struct {
	nodelink.RelayStream
	net              *network
	ctx              context.Context
	cancel           context.CancelCauseFunc
	follower, leader string
}

func (s *relayStream) pass(from, to string) error {
	err := s.net.pass(s.ctx, from, to, relayPatience)
	if err == nil || s.ctx.Err() != nil && errors.Is(err, context.Cause(s.ctx)) {
		return err
	}
	err = status.Error(codes.Unavailable, err.Error())
	s.cancel(err) // for the leader, too
	return err
}

// Send implements nodelink.RelayStream.
func (s *relayStream) Send(m *clusterv1.LinkRequest) error {
	if err := s.pass(s.follower, s.leader); err != nil {
		return err
	}
	return s.RelayStream.Send(m)
}

// Recv implements nodelink.RelayStream.
func (s *relayStream) Recv() (*clusterv1.LinkResponse, error) {
	m, err := s.RelayStream.Recv()
	if err != nil {
		return nil, err
	}
	if err := s.pass(s.leader, s.follower); err != nil {
		return nil, err
	}
	return m, nil
}

// connections are the links of one process, which break when it dies.
type connections struct {
	mu   sync.Mutex
	open []nodelink.Conn
}

func (c *connections) keep(conn nodelink.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	live := c.open[:0]
	for _, o := range c.open {
		select {
		case <-o.Done():
		default:
			live = append(live, o)
		}
	}
	c.open = append(live, conn)
}

// reset breaks all of them without a word.
func (c *connections) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.open {
		nodelink.Cut(conn)
	}
	c.open = nil
}
