// What leaves a cluster and comes into it: who may do so at a time, and what of it only the leader can say.
//
// The bytes of a checkpoint are in the chunk store, which every server reaches: exports, imports and comparisons are served by the server
// that is asked. Only the session is looked up at, and made by, the leader.

package gateway

import (
	"context"
	"encoding/hex"
	"sync/atomic"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/session"
)

// The bounds of the exchange, of each server.
const (
	// maxExports, maxImports and maxDiffs are how many streams are served at a time; exchangeRetry is when more may come back. A comparison
	// has two manifests in memory, of which the largest take hundreds of megabytes.
	maxExports    = 8
	maxImports    = 8
	maxDiffs      = 2
	exchangeRetry = 5 * time.Second
	// maxManifests is how many manifests are in memory at a time besides. More wait, for the moment that it takes to read one.
	maxManifests = 2
	// maxStall is how long a client may take nothing, or give nothing, before its place is another one's.
	maxStall = 2 * time.Minute
	// askAtOnce is how many chunks are asked about at a time.
	askAtOnce = 16384
)

// exchange bounds what goes on at a time.
type exchange struct {
	exports, imports, diffs, looks *bounded
	manifests                      chan struct{} // holds one for each that is in memory
}

func newExchange() exchange {
	return exchange{
		exports: newBounded("exports", maxExports), imports: newBounded("imports", maxImports), diffs: newBounded("comparisons of checkpoints", maxDiffs),
		looks:     newBounded("calls that look into checkpoints", maxLooks),
		manifests: make(chan struct{}, maxManifests),
	}
}

// bounded admits a number of calls at a time, and refuses more.
type bounded struct {
	what     string
	slots    chan struct{}
	admitted atomic.Uint64
	refused  atomic.Uint64
}

func newBounded(what string, limit int) *bounded {
	return &bounded{what: what, slots: make(chan struct{}, limit)}
}

// enter admits a call until it calls leave.
func (b *bounded) enter() (leave func(), err error) {
	select {
	case b.slots <- struct{}{}:
		b.admitted.Add(1)
		return func() { <-b.slots }, nil
	default:
		b.refused.Add(1)
		return nil, fault.New(fault.Exhausted, "this server serves %d %s already, its limit; come back later, or ask another server", cap(b.slots), b.what).WithRetry(exchangeRetry)
	}
}

// ExchangeStats counts the calls of one kind that move checkpoints in or out, or look into them.
type ExchangeStats struct {
	Kind              string // export, import, diff or look
	UnderWay          int
	Admitted, Refused uint64 // ever
}

// ExchangeStats returns the counts of this server.
func (o *Operations) ExchangeStats() []ExchangeStats {
	stats := func(kind string, b *bounded) ExchangeStats {
		return ExchangeStats{Kind: kind, UnderWay: len(b.slots), Admitted: b.admitted.Load(), Refused: b.refused.Load()}
	}
	return []ExchangeStats{stats("export", o.exchange.exports), stats("import", o.exchange.imports), stats("diff", o.exchange.diffs), stats("look", o.exchange.looks)}
}

// unlessStalled runs what writes to a stream, and gives up when it did not get on for too long: the client reads no more. work calls
// progress for each step that it made, and ends soon after ctx or the stream does.
func unlessStalled(ctx context.Context, what string, work func(ctx context.Context, progress func()) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done, steps := make(chan error, 1), make(chan struct{}, 1)
	go func() { // the stream ends a blocked write when its handler has returned
		done <- work(ctx, func() {
			select {
			case steps <- struct{}{}:
			default:
			}
		})
	}()
	t := time.NewTimer(maxStall)
	defer t.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-steps:
			t.Reset(maxStall)
		case <-t.C:
			return fault.New(fault.Timeout, "%s: the client took nothing for %s", what, maxStall)
		}
	}
}

// errNoStore is the answer of a server without chunks.
var errNoStore = fault.New(fault.Unimplemented, "this server has no chunk store")

// withManifest has use look at a manifest, which is gone from memory soon after.
func (o *Operations) withManifest(ctx context.Context, id chunk.ID, use func(*serializer.Manifest, serializer.Stored) error) error {
	select {
	case o.exchange.manifests <- struct{}{}:
		defer func() { <-o.exchange.manifests }()
	case <-ctx.Done():
		return ctx.Err()
	}
	m, stored, err := serializer.LoadManifest(ctx, o.Chunks, id)
	if err != nil {
		return err
	}
	return use(m, stored)
}

// missing returns how many of the chunks are not stored, and one of them. Those that are stay for the grace of the collection.
func (o *Operations) missing(ctx context.Context, ids []chunk.ID) (n int, one chunk.ID, err error) {
	for len(ids) > 0 {
		some := ids[:min(len(ids), askAtOnce)]
		ids = ids[len(some):]
		lacks, err := o.Chunks.Missing(ctx, some)
		if err != nil {
			return 0, one, err
		}
		if n == 0 && len(lacks) > 0 {
			one = lacks[0]
		}
		n += len(lacks)
	}
	return n, one, nil
}

// chain is a session with its checkpoints, as the leader knows them.
type chain struct {
	session     *apiv1.Session
	checkpoints []*apiv1.Session_Checkpoint // oldest first
}

// lookUp returns a session with its checkpoints: from this server's state when it leads, else by asking the leader, as whoever asked
// this server.
func (o *Operations) lookUp(ctx context.Context, namespace, id string) (*chain, error) {
	conn, err := (&forwarder{node: o.Node, peers: o.Peers}).leader(ctx)
	if err != nil {
		return nil, err
	}
	if conn != nil {
		c := apiv1.NewSessionServiceClient(conn)
		ctx = outgoing(ctx)
		s, err := c.GetSession(ctx, &apiv1.GetSessionRequest{Namespace: namespace, Id: id})
		if err != nil {
			return nil, forwardError(err)
		}
		l, err := c.ListCheckpoints(ctx, &apiv1.ListCheckpointsRequest{Namespace: s.GetSession().GetNamespace(), Id: s.GetSession().GetId()})
		if err != nil {
			return nil, forwardError(err)
		}
		return &chain{s.GetSession(), l.GetCheckpoints()}, nil
	}
	v, err := o.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	row, err := o.resolve(ctx, v, namespace, id)
	if err != nil {
		return nil, err
	}
	out := &chain{session: sessionProto(v, row)}
	for _, c := range row.Checkpoints {
		out.checkpoints = append(out.checkpoints, pbconv.CheckpointToProto(c))
	}
	return out, nil
}

// at returns the checkpoint with the sequence, the head for 0.
func (c *chain) at(sequence uint64) (*apiv1.Session_Checkpoint, error) {
	if n := len(c.checkpoints); sequence == 0 && n > 0 {
		return c.checkpoints[n-1], nil
	}
	for _, k := range c.checkpoints {
		if k.GetSequence() == sequence {
			return k, nil
		}
	}
	return nil, notKept(c.session.GetId(), session.Phase(c.session.GetPhase()).Ended(), len(c.checkpoints), sequence)
}

// before returns the checkpoint before one of the chain.
func (c *chain) before(sequence uint64) (*apiv1.Session_Checkpoint, error) {
	for i, k := range c.checkpoints {
		if k.GetSequence() == sequence && i > 0 {
			return c.checkpoints[i-1], nil
		}
	}
	return nil, fault.New(fault.FailedPrecondition, "session %s: keeps no checkpoint before %d to compare it with; see `orchctl sessions checkpoints %s`", c.session.GetId(), sequence, c.session.GetId())
}

// manifestID is the chunk that names a checkpoint's manifest.
func manifestID(c *apiv1.Session_Checkpoint) (chunk.ID, error) {
	raw, err := hex.DecodeString(c.GetManifest())
	if err != nil {
		return chunk.ID{}, fault.New(fault.Internal, "checkpoint %d: its manifest %q: %w", c.GetSequence(), clip(c.GetManifest()), err)
	}
	return chunk.FromBytes(raw)
}

// unreadable is the error of a checkpoint whose chunks cannot be had. That a chunk is not there says nothing about what was asked for.
func unreadable(verb string, c *apiv1.Session_Checkpoint, err error) error {
	f := fault.As(err)
	if f == nil {
		return err // the end of a context
	}
	kind := f.Kind
	if kind == fault.NotFound || kind == fault.Invalid {
		kind = fault.Internal
	}
	return fault.New(kind, "%s: checkpoint %d cannot be read: %w", verb, c.GetSequence(), err).WithRetry(f.RetryAfter)
}
