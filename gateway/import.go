// ImportSession: chunks on their way in, and the session that is made of them.
//
//	client ── missing? put, put … ──► any server ──► chunk store
//	client ── commit ──► any server ──► leader: manifest, chunks and spec are checked ──► the road of a spawn
//
// Steps are answered in their order; those that only concern chunks are worked on several at a time.

package gateway

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/session"
)

// The bounds of one import.
const (
	// MaxImportStepBytes bounds one message.
	MaxImportStepBytes = 4 << 20
	// importSteps is how many steps are worked on at a time, and importPuts how many chunks of each.
	importSteps = 4
	importPuts  = 8
)

// ImportSession makes a session of chunks that the client brings.
func (s *sessionService) ImportSession(stream grpc.BidiStreamingServer[apiv1.ImportSessionRequest, apiv1.ImportSessionResponse]) error {
	o, ctx := s.ops, stream.Context()
	if o.Chunks == nil {
		return errNoStore
	}
	if !isForwarded(ctx) { // a commit that another server passed on has its place there
		leave, err := o.exchange.imports.enter()
		if err != nil {
			return err
		}
		defer leave()
	}
	ctx, cancel := context.WithCancel(ctx)
	im := &importing{ops: o, steps: make(chan received)}
	defer im.work.Wait()
	defer cancel()
	go func() { // ends with the stream: Recv fails when the handler has returned
		for {
			req, err := stream.Recv()
			select {
			case im.steps <- received{req, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return im.run(ctx, stream.Send)
}

// received is what came of one Recv.
type received struct {
	req *apiv1.ImportSessionRequest
	err error
}

// importing is one import. It belongs to the goroutine of its stream.
type importing struct {
	ops    *Operations
	steps  chan received
	work   sync.WaitGroup
	flight []*step // in the order of their answers
}

// step is a step that is not answered yet.
type step struct {
	do   func(context.Context) (*apiv1.ImportSessionResponse, error)
	last bool // it begins when all before it are answered
	busy bool
	done chan error
	resp *apiv1.ImportSessionResponse // once done
}

// run answers steps until there are no more.
func (im *importing) run(ctx context.Context, send func(*apiv1.ImportSessionResponse) error) error {
	idle := time.NewTimer(maxStall)
	defer idle.Stop()
	steps := im.steps
	for {
		var in chan received
		if len(im.flight) < importSteps {
			in = steps
		}
		var first chan error
		if len(im.flight) > 0 {
			im.begin(ctx, im.flight[0])
			first = im.flight[0].done
		} else if steps == nil {
			return nil
		}
		select {
		case r := <-in:
			if errors.Is(r.err, io.EOF) {
				steps = nil
				continue
			}
			if r.err != nil {
				return r.err
			}
			st, err := im.accept(ctx, r.req)
			if err != nil {
				return err
			}
			if im.flight = append(im.flight, st); !st.last {
				im.begin(ctx, st)
			}
		case err := <-first:
			if err != nil {
				return err
			}
			if err := send(im.flight[0].resp); err != nil {
				return err
			}
			im.flight = im.flight[1:]
			idle.Reset(maxStall)
		case <-idle.C:
			if len(im.flight) == 0 {
				return fault.New(fault.Timeout, "import: no step came for %s; import again: what was stored need not be sent once more", maxStall)
			}
			idle.Reset(maxStall)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// begin starts the work on a step.
func (im *importing) begin(ctx context.Context, st *step) {
	if st.busy {
		return
	}
	st.busy = true
	im.work.Go(func() {
		var err error
		st.resp, err = st.do(ctx)
		st.done <- err
	})
}

// accept checks the form of a step.
func (im *importing) accept(ctx context.Context, req *apiv1.ImportSessionRequest) (*step, error) {
	st := &step{done: make(chan error, 1)}
	if n := proto.Size(req); n > MaxImportStepBytes {
		return nil, fault.New(fault.Invalid, "import: a step of %d bytes, at most %d; send fewer chunks at a time", n, MaxImportStepBytes)
	}
	if _, commits := req.GetStep().(*apiv1.ImportSessionRequest_Commit_); isForwarded(ctx) && !commits {
		return nil, fault.New(fault.Invalid, "import: only a commit is passed on from server to server")
	}
	switch k := req.GetStep().(type) {
	case *apiv1.ImportSessionRequest_Missing_:
		ids, err := chunkIDs(k.Missing.GetIds())
		if err != nil {
			return nil, err
		}
		st.do = func(ctx context.Context) (*apiv1.ImportSessionResponse, error) { return im.ops.importMissing(ctx, ids) }
	case *apiv1.ImportSessionRequest_Put_:
		frames := make([]chunks.Frame, len(k.Put.GetChunks()))
		for i, c := range k.Put.GetChunks() {
			id, err := chunk.FromBytes(c.GetId())
			if err != nil {
				return nil, fault.New(fault.Invalid, "import: %w", err).WithField("put.chunks.id")
			}
			frames[i] = chunks.Frame{ID: id, Bytes: c.GetFrame()}
		}
		st.do = func(ctx context.Context) (*apiv1.ImportSessionResponse, error) { return im.ops.importPut(ctx, frames) }
	case *apiv1.ImportSessionRequest_Commit_:
		st.last = true
		st.do = func(ctx context.Context) (*apiv1.ImportSessionResponse, error) {
			s, err := im.ops.CommitImport(ctx, k.Commit)
			return &apiv1.ImportSessionResponse{Step: &apiv1.ImportSessionResponse_Session{Session: s}}, err
		}
	default:
		return nil, fault.New(fault.Invalid, "import: a step that is neither missing, put nor commit")
	}
	return st, nil
}

func chunkIDs(raw [][]byte) ([]chunk.ID, error) {
	if len(raw) > askAtOnce {
		return nil, fault.New(fault.Invalid, "import: a question about %d chunks, at most %d", len(raw), askAtOnce).WithField("missing.ids")
	}
	ids := make([]chunk.ID, len(raw))
	for i, b := range raw {
		var err error
		if ids[i], err = chunk.FromBytes(b); err != nil {
			return nil, fault.New(fault.Invalid, "import: %w", err).WithField("missing.ids")
		}
	}
	return ids, nil
}

func (o *Operations) importMissing(ctx context.Context, ids []chunk.ID) (*apiv1.ImportSessionResponse, error) {
	lacks, err := o.Chunks.Missing(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := &apiv1.ImportSessionResponse_Missing{Ids: make([][]byte, len(lacks))}
	for i := range lacks {
		out.Ids[i] = lacks[i][:]
	}
	return &apiv1.ImportSessionResponse{Step: &apiv1.ImportSessionResponse_Missing_{Missing: out}}, nil
}

// importPut stores chunks. The store checks each against its name, and has it at a majority of servers when it answers.
func (o *Operations) importPut(ctx context.Context, frames []chunks.Frame) (*apiv1.ImportSessionResponse, error) {
	for _, err := range chunks.PutBatch(ctx, o.Chunks, frames, importPuts) {
		if err != nil {
			return nil, err
		}
	}
	return &apiv1.ImportSessionResponse{Step: &apiv1.ImportSessionResponse_Stored_{Stored: &apiv1.ImportSessionResponse_Stored{}}}, nil
}

// CommitImport makes a session that begins with the checkpoint of a manifest whose chunks are stored; with dry_run it only says which.
func (o *Operations) CommitImport(ctx context.Context, c *apiv1.ImportSessionRequest_Commit) (*apiv1.Session, error) {
	conn, err := (&forwarder{node: o.Node, peers: o.Peers}).leader(ctx)
	if err != nil {
		return nil, err
	}
	if conn != nil {
		return passCommit(ctx, conn, c)
	}
	id, err := chunk.FromBytes(c.GetManifest())
	if err != nil {
		return nil, fault.New(fault.Invalid, "import: the manifest: %w", err).WithField("commit.manifest")
	}
	n := start{key: c.GetIdempotencyKey(), wait: c.GetWait()}
	err = o.withManifest(ctx, id, func(m *serializer.Manifest, stored serializer.Stored) error {
		if n.spec, err = importedSpec(m, c); err != nil {
			return err
		}
		if n.checkpoint, err = importedCheckpoint(m, n.spec); err != nil {
			return err
		}
		n.checkpoint.Manifest = id.String()
		ids := everyChunk(m, stored)
		lacks, one, err := o.missing(ctx, ids)
		if err == nil && lacks > 0 {
			err = lacking(lacks, len(ids), one)
		}
		return err
	})
	if fault.Is(err, fault.NotFound) {
		return nil, fault.New(fault.FailedPrecondition, "import: the manifest is not stored: %w", err)
	}
	if err != nil {
		return nil, err
	}
	if c.GetDryRun() {
		return o.tryStart(ctx, n)
	}
	n.hash = hashRequest(&apiv1.ImportSessionRequest_Commit{Namespace: n.spec.Namespace, Manifest: c.GetManifest(), Spec: c.GetSpec(), Name: c.GetName()})
	row, err := o.spawn(ctx, n)
	if err != nil {
		return nil, err
	}
	return sessionProto(o.State.View(), row), nil
}

// passCommit has the leader commit, on behalf of whoever asked this server.
func passCommit(ctx context.Context, conn *grpc.ClientConn, c *apiv1.ImportSessionRequest_Commit) (*apiv1.Session, error) {
	ctx, cancel := context.WithCancel(outgoing(ctx))
	defer cancel()
	st, err := apiv1.NewSessionServiceClient(conn).ImportSession(ctx)
	if err != nil {
		return nil, forwardError(err)
	}
	if err := st.Send(&apiv1.ImportSessionRequest{Step: &apiv1.ImportSessionRequest_Commit_{Commit: c}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, forwardError(err)
	}
	resp, err := st.Recv()
	if err != nil {
		return nil, forwardError(err)
	}
	return resp.GetSession(), nil
}

// importedSpec is what an imported session runs.
func importedSpec(m *serializer.Manifest, c *apiv1.ImportSessionRequest_Commit) (*session.Spec, error) {
	p := c.GetSpec()
	if p == nil {
		if len(m.Spec) == 0 {
			return nil, fault.New(fault.Invalid, "import: the checkpoint does not say what to run; give a spec with it").WithField("commit.spec")
		}
		p = &apiv1.SessionSpec{}
		if err := proto.Unmarshal(m.Spec, p); err != nil {
			return nil, fault.New(fault.Invalid, "import: the spec in the checkpoint cannot be read: %w; give one with it", err).WithField("commit.spec")
		}
	}
	spec := pbconv.SpecFromProto(p)
	spec.Name, spec.Namespace = c.GetName(), c.GetNamespace()
	return spec, nil
}

// importedCheckpoint is the first link of an imported session's chain, or says why the session could not go on from it.
func importedCheckpoint(m *serializer.Manifest, spec *session.Spec) (*apiv1.Session_Checkpoint, error) {
	refuse := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "import: the checkpoint "+format, args...).WithField("commit.manifest")
	}
	if m.Sequence > session.CountMax || m.Turn > session.CountMax || m.OutputLine > session.CountMax {
		return nil, refuse("counts further than %d (sequence %d, turn %d, output line %d)", uint64(session.CountMax), m.Sequence, m.Turn, m.OutputLine)
	}
	if spec.Type == "" || spec.Type == session.TypeProcess {
		switch {
		case m.Root(session.RootWorkspace) == nil:
			return nil, refuse("has no tree %q, which a session of type %s works on", session.RootWorkspace, session.TypeProcess)
		case m.OutputLine > 0 && m.Root(session.RootLog) == nil:
			return nil, refuse("has seen %d lines of output and has no tree %q that holds them", m.OutputLine, session.RootLog)
		}
		for i := range m.Roots {
			if name := m.Roots[i].Name; name != session.RootWorkspace && name != session.RootLog {
				return nil, refuse("has a tree %q, which a session of type %s would lose; upgrade the cluster, or give a spec of the right type", name, session.TypeProcess)
			}
		}
	}
	var at int64
	if !m.SerializedAt.IsZero() {
		at = m.SerializedAt.UnixNano()
	}
	return &apiv1.Session_Checkpoint{
		Sequence: max(m.Sequence, 1), CreateTime: pbconv.Time(at), Bytes: m.ContentBytes(), Chunks: uint32(len(m.Chunks)),
		Turn: m.Turn, OutputLine: m.OutputLine, Keeps: m.Keeps.List(),
	}, nil
}

// tryStart says what spawn would make.
func (o *Operations) tryStart(ctx context.Context, n start) (*apiv1.Session, error) {
	v := o.State.View()
	if err := o.checkSpec(caller(ctx), n.spec); err != nil {
		return nil, err
	}
	if err := checkKey(n.key); err != nil {
		return nil, err
	}
	if n.spec.Name != "" {
		if s := v.SessionByName(n.spec.Namespace, n.spec.Name); s != nil {
			return nil, fault.New(fault.AlreadyExists, "spawn: the name %q in namespace %q is held by session %s (%s); terminate it, or choose another name", n.spec.Name, n.spec.Namespace, s.ID, s.Phase)
		}
	}
	out := sessionProto(v, &session.Session{Spec: n.spec, Phase: session.Pending})
	out.Checkpoint = n.checkpoint
	p, err := o.Router.Place(n.spec, "")
	switch {
	case err == nil:
		o.Router.Release(p)
		out.Node, out.Placement = nodeName(v, p.NodeID), p.Why
	case fault.Is(err, fault.Exhausted):
		out.Reason = err.Error()
	default:
		return nil, err
	}
	return out, nil
}
