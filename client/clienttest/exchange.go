// What leaves the cluster in memory and comes into it: checkpoints with real manifests and chunks, made up when they are asked for.

package clienttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/session"
)

// clusterID is the id of every cluster in memory.
const clusterID = "c1"

// manifest returns the manifest of a checkpoint, by its id where it was imported, else made up: a workspace whose notes say which checkpoint
// it is, with a file more in each.
func (c *Cluster) manifest(ctx context.Context, n *sessionState, k *apiv1.Session_Checkpoint) (*serializer.Manifest, serializer.Stored, error) {
	if id, err := chunk.Parse(k.GetManifest()); err == nil {
		if m, st, err := serializer.LoadManifest(ctx, &c.Chunks, id); err == nil {
			return m, st, nil
		}
	}
	spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(n.GetSpec())
	if err != nil {
		return nil, serializer.Stored{}, err
	}
	m := &serializer.Manifest{
		SessionID: n.GetId(), Namespace: n.GetNamespace(), Name: n.GetName(), Spec: spec, SerializedAt: k.GetCreateTime().AsTime(), NodeID: n.GetNode(), Release: "1.0.0",
		Epoch: uint64(k.GetEpoch()), Sequence: k.GetSequence(), Turn: k.GetTurn(), Keeps: serializer.KeepsMessages | serializer.KeepsTranscript | serializer.KeepsWorkspace,
	}
	at := time.Unix(1_700_000_000, 0).UnixNano()
	work := serializer.Tree{Name: session.RootWorkspace, Entries: []serializer.Entry{{Path: ".", Mode: 0o755, ModTime: at}}}
	add := func(path, text string) error {
		id := chunk.Sum([]byte(text))
		if err := c.Chunks.Put(ctx, id, chunk.Seal([]byte(text))); err != nil {
			return err
		}
		m.Chunks = append(m.Chunks, serializer.ChunkRef{ID: id, Bytes: uint32(len(text))})
		work.Entries = append(work.Entries, serializer.Entry{Path: path, Type: serializer.File, Mode: 0o644, ModTime: at, Size: int64(len(text)),
			Extents: []serializer.Extent{{Chunk: uint32(len(m.Chunks) - 1), Length: int64(len(text))}}})
		return nil
	}
	for i := range min(k.GetSequence(), 9) {
		if err := add(fmt.Sprintf("file-%d", i+1), fmt.Sprintf("the file that checkpoint %d added\n", i+1)); err != nil {
			return nil, serializer.Stored{}, err
		}
	}
	if err := add("notes", fmt.Sprintf("of checkpoint %d\n", k.GetSequence())); err != nil {
		return nil, serializer.Stored{}, err
	}
	log := serializer.Tree{Name: session.RootLog, Entries: []serializer.Entry{{Path: ".", Mode: 0o700, ModTime: at}}}
	m.Roots = []serializer.Tree{work, log}
	st, err := serializer.StoreManifest(ctx, &c.Chunks, m)
	return m, st, err
}

// look finds a session and its checkpoints.
func (c *Cluster) look(namespace, ref string, sequences ...uint64) (n *sessionState, out []*apiv1.Session_Checkpoint, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n, err = c.find(namespace, ref); err != nil {
		return nil, nil, err
	}
	for _, s := range sequences {
		k, err := n.kept(s)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, k)
	}
	copied := *n
	copied.Session = proto.CloneOf(n.Session)
	copied.checkpoints = slices.Clone(n.checkpoints)
	return &copied, out, nil
}

func (s *sessions) ExportSession(req *apiv1.ExportSessionRequest, out grpc.ServerStreamingServer[apiv1.ExportSessionResponse]) error {
	n, ks, err := s.c.look(req.GetNamespace(), req.GetId(), req.GetSequence())
	if err != nil {
		return err
	}
	m, st, err := s.c.manifest(out.Context(), n, ks[0])
	if err != nil {
		return err
	}
	ids := append([]chunk.ID{st.ID}, st.Parts[:len(st.Parts)-1]...)
	for _, r := range m.Chunks {
		ids = append(ids, r.ID)
	}
	k := proto.CloneOf(ks[0])
	k.Manifest, k.Bytes, k.Chunks = st.ID.String(), m.ContentBytes(), uint32(len(m.Chunks))
	if err := out.Send(&apiv1.ExportSessionResponse{Open: &apiv1.ExportSessionResponse_Open{Session: n.Session, Checkpoint: k, ClusterId: clusterID, Chunks: uint64(len(ids))}}); err != nil {
		return err
	}
	for _, id := range ids {
		frame, err := s.c.Chunks.Get(out.Context(), id)
		if err != nil {
			return err
		}
		if err := out.Send(&apiv1.ExportSessionResponse{Chunks: []*apiv1.ChunkFrame{{Id: id[:], Frame: frame}}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *sessions) ImportSession(stream grpc.BidiStreamingServer[apiv1.ImportSessionRequest, apiv1.ImportSessionResponse]) error {
	ctx := stream.Context()
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		resp := &apiv1.ImportSessionResponse{}
		switch k := req.GetStep().(type) {
		case *apiv1.ImportSessionRequest_Missing_:
			m := &apiv1.ImportSessionResponse_Missing{}
			for _, raw := range k.Missing.GetIds() {
				if lacks, _ := s.c.Chunks.Missing(ctx, []chunk.ID{chunk.ID(raw)}); len(lacks) > 0 { // of a store in memory, no error
					m.Ids = append(m.Ids, raw)
				}
			}
			resp.Step = &apiv1.ImportSessionResponse_Missing_{Missing: m}
		case *apiv1.ImportSessionRequest_Put_:
			for _, f := range k.Put.GetChunks() {
				if err := s.c.Chunks.Put(ctx, chunk.ID(f.GetId()), f.GetFrame()); err != nil {
					return fault.New(fault.Invalid, "import: %w", err)
				}
			}
			resp.Step = &apiv1.ImportSessionResponse_Stored_{Stored: &apiv1.ImportSessionResponse_Stored{}}
		case *apiv1.ImportSessionRequest_Commit_:
			made, err := s.c.commit(ctx, k.Commit)
			if err != nil {
				return err
			}
			resp.Step = &apiv1.ImportSessionResponse_Session{Session: made}
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// commit makes a session of a manifest, or says which it would be.
func (c *Cluster) commit(ctx context.Context, req *apiv1.ImportSessionRequest_Commit) (*apiv1.Session, error) {
	id := chunk.ID(req.GetManifest())
	m, _, err := serializer.LoadManifest(ctx, &c.Chunks, id)
	if err != nil {
		return nil, fault.New(fault.FailedPrecondition, "import: the manifest is not stored: %w", err)
	}
	for _, r := range m.Chunks {
		if lacks, _ := c.Chunks.Missing(ctx, []chunk.ID{r.ID}); len(lacks) > 0 {
			return nil, fault.New(fault.FailedPrecondition, "import: chunks that the manifest names are not stored")
		}
	}
	p := req.GetSpec()
	if p == nil {
		p = &apiv1.SessionSpec{}
		if err := proto.Unmarshal(m.Spec, p); err != nil {
			return nil, fault.New(fault.Invalid, "import: the spec in the checkpoint cannot be read: %w", err)
		}
	}
	spec := pbconv.SpecFromProto(p)
	spec.Name, spec.Namespace = req.GetName(), req.GetNamespace()
	spec.Normalize()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	first := &apiv1.Session_Checkpoint{Sequence: max(m.Sequence, 1), Manifest: id.String(), Bytes: m.ContentBytes(), Chunks: uint32(len(m.Chunks)), Turn: m.Turn,
		OutputLine: m.OutputLine, CreateTime: c.stamp(), Keeps: m.Keeps.List()}
	c.mu.Lock()
	defer c.mu.Unlock()
	if made, ok := c.keys[req.GetIdempotencyKey()].(*sessionState); ok {
		return proto.CloneOf(made.Session), nil
	}
	for _, other := range c.sessions {
		if spec.Name != "" && other.GetName() == spec.Name && other.GetNamespace() == spec.Namespace && !ended(other.GetPhase()) {
			return nil, fault.New(fault.AlreadyExists, "the name %q is taken by session %s; choose another", spec.Name, other.GetId())
		}
	}
	made := &sessionState{checkpoints: []*apiv1.Session_Checkpoint{first}, Session: &apiv1.Session{
		Id: ID("session", len(c.sessions)+1), Namespace: spec.Namespace, Name: spec.Name, Type: spec.Type, Priority: apiv1.Priority_Level(spec.Priority), Labels: p.GetLabels(),
		CreateTime: c.stamp(), Spec: pbconv.SpecToProto(spec), Mailbox: &apiv1.Session_Mailbox{}, Checkpoint: first, OutputLine: m.OutputLine, Reason: "imported",
	}}
	if req.GetDryRun() {
		c.again(made)
		made.Id, made.Phase, made.Reason, made.Epoch = "", apiv1.Session_PENDING, "", 0
		return made.Session, nil
	}
	c.sessions[made.GetId()] = made
	c.keys[req.GetIdempotencyKey()] = made
	c.again(made)
	return proto.CloneOf(made.Session), nil
}

func (s *sessions) DiffCheckpoints(req *apiv1.DiffCheckpointsRequest, out grpc.ServerStreamingServer[apiv1.DiffCheckpointsResponse]) error {
	n, ks, err := s.c.look(req.GetNamespace(), req.GetId(), req.GetTo())
	if err != nil {
		return err
	}
	from := req.GetFrom()
	if i := slices.Index(n.checkpoints, ks[0]); from == 0 && i > 0 {
		from = n.checkpoints[i-1].GetSequence()
	} else if from == 0 {
		return fault.New(fault.FailedPrecondition, "session %s: keeps no checkpoint before %d to compare it with", n.GetId(), ks[0].GetSequence())
	}
	if n, ks, err = s.c.look(req.GetNamespace(), req.GetId(), from, ks[0].GetSequence()); err != nil {
		return err
	}
	a, _, err := s.c.manifest(out.Context(), n, ks[0])
	if err != nil {
		return err
	}
	b, _, err := s.c.manifest(out.Context(), n, ks[1])
	if err != nil {
		return err
	}
	if err := out.Send(&apiv1.DiffCheckpointsResponse{From: ks[0], To: ks[1]}); err != nil {
		return err
	}
	return serializer.Diff(a, b, func(c serializer.Change) error {
		p := &apiv1.DiffCheckpointsResponse_Change{Root: c.Root, Path: strings.ToValidUTF8(c.Path(), "\uFFFD")}
		if e := c.Old; e != nil {
			p.Kind, p.OldType, p.OldBytes, p.OldMode = apiv1.DiffCheckpointsResponse_Change_REMOVED, "f", e.Size, e.Mode
		}
		if e := c.New; e != nil {
			p.NewType, p.NewBytes, p.NewMode = "f", e.Size, e.Mode
			if p.Kind = apiv1.DiffCheckpointsResponse_Change_ADDED; c.Old != nil {
				p.Kind = apiv1.DiffCheckpointsResponse_Change_MODIFIED
			}
		}
		return out.Send(&apiv1.DiffCheckpointsResponse{Changes: []*apiv1.DiffCheckpointsResponse_Change{p}})
	})
}

func (s *sessions) DeleteCheckpoint(_ context.Context, req *apiv1.DeleteCheckpointRequest) (*apiv1.DeleteCheckpointResponse, error) {
	out, err := s.c.verb(req.GetNamespace(), req.GetId(), req.GetIdempotencyKey(), func(n *sessionState) error {
		k, err := n.kept(req.GetSequence())
		if err != nil {
			return err
		}
		if k == n.checkpoints[len(n.checkpoints)-1] {
			return fault.New(fault.FailedPrecondition, "delete: checkpoint %d is the newest of session %s, which goes on from it; make another one first", k.GetSequence(), n.GetId())
		}
		n.checkpoints = slices.DeleteFunc(slices.Clone(n.checkpoints), func(o *apiv1.Session_Checkpoint) bool { return o == k })
		s.c.touch(n)
		return nil
	})
	return &apiv1.DeleteCheckpointResponse{Session: out}, err
}
