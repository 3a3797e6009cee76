// ExportSession: a checkpoint on its way out, and DiffCheckpoints: what differs between two.

package gateway

import (
	"context"
	"strings"
	"sync"

	"google.golang.org/grpc"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// The bounds of one export and of one comparison.
const (
	// exportAheadChunks is how many chunks are fetched before the client has taken those before them: so much memory an export takes.
	exportAheadChunks = 8
	// exportPartBytes is how much of small frames goes into one message.
	exportPartBytes = 1 << 20
	// diffPartChanges and diffPartBytes (of paths) bound one message of a comparison.
	diffPartChanges = 512
	diffPartBytes   = 256 << 10
)

// ExportSession streams a checkpoint: which it is, the chunks of its manifest, and the chunks that these name.
func (s *sessionService) ExportSession(req *apiv1.ExportSessionRequest, stream grpc.ServerStreamingServer[apiv1.ExportSessionResponse]) error {
	o, ctx := s.ops, stream.Context()
	if o.Chunks == nil {
		return errNoStore
	}
	leave, err := o.exchange.exports.enter()
	if err != nil {
		return err
	}
	defer leave()
	from, err := o.lookUp(ctx, req.GetNamespace(), req.GetId())
	if err != nil {
		return err
	}
	c, err := from.at(req.GetSequence())
	if err != nil {
		return err
	}
	ids, err := o.named(ctx, c)
	if err != nil {
		return unreadable("export", c, err)
	}
	return unlessStalled(ctx, "export", func(ctx context.Context, progress func()) error {
		if err := stream.Send(&apiv1.ExportSessionResponse{Open: &apiv1.ExportSessionResponse_Open{
			Session: from.session, Checkpoint: c, ClusterId: o.State.View().ClusterID(), Chunks: uint64(len(ids)),
		}}); err != nil {
			return err
		}
		var part []*apiv1.ChunkFrame
		bytes := 0
		flush := func() error {
			if len(part) == 0 {
				return nil
			}
			err := stream.Send(&apiv1.ExportSessionResponse{Chunks: part})
			part, bytes = nil, 0
			progress()
			return err
		}
		if err := o.fetch(ctx, ids, func(id chunk.ID, frame []byte, err error) error {
			if err != nil {
				return unreadable("export", c, err)
			}
			if bytes+len(frame) > exportPartBytes {
				if err := flush(); err != nil {
					return err
				}
			}
			part, bytes = append(part, &apiv1.ChunkFrame{Id: id[:], Frame: frame}), bytes+len(frame)
			return nil
		}); err != nil {
			return err
		}
		return flush()
	})
}

// named returns every chunk of a checkpoint, once: the one that names the manifest, the manifest's other parts, and those that it names.
// They stay for the grace of the collection, whatever becomes of the checkpoint meanwhile.
func (o *Operations) named(ctx context.Context, c *apiv1.Session_Checkpoint) (ids []chunk.ID, err error) {
	root, err := manifestID(c)
	if err != nil {
		return nil, err
	}
	err = o.withManifest(ctx, root, func(m *serializer.Manifest, stored serializer.Stored) error {
		ids = everyChunk(m, stored)
		return nil
	})
	if err != nil {
		return nil, err
	}
	// What a majority lacks may be read from one server all the same: who cannot, says so when it comes to that.
	_, _, err = o.missing(ctx, ids)
	return ids, err
}

// everyChunk lists the chunks of a manifest and those that it names, in the order in which they travel, each once.
func everyChunk(m *serializer.Manifest, stored serializer.Stored) []chunk.ID {
	ids := make([]chunk.ID, 0, len(stored.Parts)+len(m.Chunks))
	seen := make(map[chunk.ID]struct{}, cap(ids))
	add := func(id chunk.ID) {
		if _, ok := seen[id]; !ok {
			seen[id] = struct{}{}
			ids = append(ids, id)
		}
	}
	add(stored.ID)
	for _, id := range stored.Parts {
		add(id)
	}
	for _, r := range m.Chunks {
		add(r.ID)
	}
	return ids
}

// fetch calls take with each chunk in order, several of them being fetched at a time, until it returns an error.
func (o *Operations) fetch(ctx context.Context, ids []chunk.ID, take func(id chunk.ID, frame []byte, err error) error) error {
	type got struct {
		frame []byte
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	queue := make(chan chan got, exportAheadChunks-1)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() {
		defer close(queue)
		for _, id := range ids {
			one := make(chan got, 1)
			select {
			case queue <- one:
			case <-ctx.Done():
				return
			}
			all.Go(func() {
				frame, err := o.Chunks.Get(ctx, id)
				one <- got{frame, err}
			})
		}
	})
	for _, id := range ids {
		one, ok := <-queue
		if !ok {
			return ctx.Err()
		}
		g := <-one
		if err := take(id, g.frame, g.err); err != nil {
			return err
		}
	}
	return nil
}

// DiffCheckpoints streams what differs between two checkpoints of a session.
func (s *sessionService) DiffCheckpoints(req *apiv1.DiffCheckpointsRequest, stream grpc.ServerStreamingServer[apiv1.DiffCheckpointsResponse]) error {
	o, ctx := s.ops, stream.Context()
	if o.Chunks == nil {
		return errNoStore
	}
	leave, err := o.exchange.diffs.enter()
	if err != nil {
		return err
	}
	defer leave()
	of, err := o.lookUp(ctx, req.GetNamespace(), req.GetId())
	if err != nil {
		return err
	}
	to, err := of.at(req.GetTo())
	if err != nil {
		return err
	}
	from, err := of.at(req.GetFrom())
	if req.GetFrom() == 0 {
		from, err = of.before(to.GetSequence())
	}
	if err != nil {
		return err
	}
	a, err := o.manifestOf(ctx, from)
	if err != nil {
		return err
	}
	b, err := o.manifestOf(ctx, to)
	if err != nil {
		return err
	}
	return unlessStalled(ctx, "compare checkpoints", func(ctx context.Context, progress func()) error {
		part, bytes := &apiv1.DiffCheckpointsResponse{From: from, To: to}, 0
		flush := func() error {
			err := stream.Send(part)
			part, bytes = &apiv1.DiffCheckpointsResponse{}, 0
			progress()
			return err
		}
		if err := serializer.Diff(a, b, func(c serializer.Change) error {
			if part.Changes, bytes = append(part.Changes, changeProto(&c)), bytes+len(c.Path()); len(part.Changes) >= diffPartChanges || bytes >= diffPartBytes {
				if err := flush(); err != nil {
					return err
				}
			}
			return ctx.Err()
		}); err != nil {
			return err
		}
		if len(part.Changes) == 0 && part.From == nil {
			return nil
		}
		return flush()
	})
}

// manifestOf loads a checkpoint's manifest.
func (o *Operations) manifestOf(ctx context.Context, c *apiv1.Session_Checkpoint) (*serializer.Manifest, error) {
	id, err := manifestID(c)
	if err != nil {
		return nil, err
	}
	m, _, err := serializer.LoadManifest(ctx, o.Chunks, id)
	if err != nil {
		return nil, unreadable("compare checkpoints", c, err)
	}
	return m, nil
}

// changeProto describes a change as clients see it.
func changeProto(c *serializer.Change) *apiv1.DiffCheckpointsResponse_Change {
	// Names of files are any bytes, and strings of the API are text.
	out := &apiv1.DiffCheckpointsResponse_Change{Root: c.Root, Path: strings.ToValidUTF8(c.Path(), "\uFFFD")}
	switch {
	case c.Old == nil:
		out.Kind = apiv1.DiffCheckpointsResponse_Change_ADDED
	case c.New == nil:
		out.Kind = apiv1.DiffCheckpointsResponse_Change_REMOVED
	case c.Touched:
		out.Kind = apiv1.DiffCheckpointsResponse_Change_TOUCHED
	default:
		out.Kind = apiv1.DiffCheckpointsResponse_Change_MODIFIED
	}
	if e := c.Old; e != nil {
		out.OldType, out.OldBytes, out.OldMode = entryType(e.Type), e.Size, e.Mode
	}
	if e := c.New; e != nil {
		out.NewType, out.NewBytes, out.NewMode = entryType(e.Type), e.Size, e.Mode
	}
	return out
}

func entryType(t serializer.Type) string {
	switch t {
	case serializer.Dir:
		return "d"
	case serializer.Symlink:
		return "l"
	default:
		return "f"
	}
}

// clipID shows the beginning of a chunk's id: enough to find it, and, since an id is the right to read the chunk, not more.
func clipID(id chunk.ID) string { return id.String()[:16] + "…" }

// lacking is the error of an import whose manifest names chunks that are not there.
func lacking(n, of int, one chunk.ID) error {
	return fault.New(fault.FailedPrecondition, "import: %d of the %d chunks that the manifest names are not stored, %s among them; put them, and commit again", n, of, clipID(one))
}
