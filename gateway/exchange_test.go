// Checkpoints that leave and come: what travels, in which order, what is refused, and from which server.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/session"
)

// tree is a directory with files of the given contents.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// captured stores a directory as the workspace of a checkpoint.
func captured(t *testing.T, sink serializer.Sink, dir string, change ...func(*serializer.Manifest)) (chunk.ID, *serializer.Manifest) {
	t.Helper()
	id, m, _ := capturedAfter(t, sink, dir, nil, change...)
	return id, m
}

// capturedAfter is captured with what is known from the capture before.
func capturedAfter(t *testing.T, sink serializer.Sink, dir string, previous *serializer.Index, change ...func(*serializer.Manifest)) (chunk.ID, *serializer.Manifest, *serializer.Index) {
	t.Helper()
	roots := []serializer.Root{{Name: session.RootWorkspace, Dir: dir}, {Name: session.RootLog, Dir: t.TempDir()}}
	c, err := serializer.Capture(t.Context(), sink, serializer.CaptureOptions{Roots: roots, Previous: previous})
	if err != nil {
		t.Fatal(err)
	}
	spec, err := proto.Marshal(&apiv1.SessionSpec{Name: "elsewhere", Namespace: "other", Command: []string{"cat"}, Env: map[string]string{"A": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	m := &serializer.Manifest{SessionID: "s-9", Namespace: "other", Spec: spec, SerializedAt: time.Unix(1_700_000_000, 0).UTC(), Sequence: 4, Epoch: 3, Turn: 11,
		OutputLine: 12, Keeps: serializer.KeepsMessages | serializer.KeepsWorkspace, Roots: c.Roots, Chunks: c.Chunks}
	for _, f := range change {
		f(m)
	}
	st, err := serializer.StoreManifest(t.Context(), sink, m)
	if err != nil {
		t.Fatal(err)
	}
	return st.ID, m, c.Index
}

// checkpointOf makes a stored checkpoint the head of a session's chain.
func (a *alone) checkpointOf(node, id string, manifest chunk.ID, m *serializer.Manifest) {
	a.t.Helper()
	s := a.ops.State.View().Session(id)
	sequence := headSequence(s) + 1
	a.facts(node, &nodev1.Fact{SessionId: id, Epoch: s.Epoch, Kind: &nodev1.Fact_Captured{Captured: &nodev1.Captured{Sequence: sequence}}},
		&nodev1.Fact{SessionId: id, Epoch: s.Epoch, Kind: &nodev1.Fact_Checkpointed{Checkpointed: &nodev1.Checkpointed{
			Sequence: sequence, Manifest: manifest[:], Bytes: m.ContentBytes(), Chunks: uint32(len(m.Chunks)), Keeps: m.Keeps.List()}}})
}

// exported collects an export.
func exported(ctx context.Context, a *alone, req *apiv1.ExportSessionRequest) (open *apiv1.ExportSessionResponse_Open, frames []*apiv1.ChunkFrame, err error) {
	st, err := apiv1.NewSessionServiceClient(a.conn).ExportSession(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	for {
		r, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return open, frames, nil
		}
		if err != nil {
			return open, frames, err
		}
		if r.GetOpen() != nil {
			if open != nil || len(frames) > 0 {
				return nil, nil, errors.New("a second beginning")
			}
			open = r.GetOpen()
		}
		if size := proto.Size(r); size > MaxImportStepBytes {
			return nil, nil, fmt.Errorf("a part of %d bytes", size)
		}
		frames = append(frames, r.GetChunks()...)
	}
}

// importStream is one import in the tests.
type importStream struct {
	apiv1.SessionService_ImportSessionClient
}

func (a *alone) importing(ctx context.Context) importStream {
	a.t.Helper()
	st, err := apiv1.NewSessionServiceClient(a.conn).ImportSession(ctx)
	if err != nil {
		a.t.Fatal(err)
	}
	return importStream{st}
}

// step sends one step and returns its answer.
func (s importStream) step(req *apiv1.ImportSessionRequest) (*apiv1.ImportSessionResponse, error) {
	if err := s.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return s.Recv()
}

func missingStep(ids ...chunk.ID) *apiv1.ImportSessionRequest {
	m := &apiv1.ImportSessionRequest_Missing{}
	for _, id := range ids {
		m.Ids = append(m.Ids, id[:])
	}
	return &apiv1.ImportSessionRequest{Step: &apiv1.ImportSessionRequest_Missing_{Missing: m}}
}

func putStep(frames ...*apiv1.ChunkFrame) *apiv1.ImportSessionRequest {
	return &apiv1.ImportSessionRequest{Step: &apiv1.ImportSessionRequest_Put_{Put: &apiv1.ImportSessionRequest_Put{Chunks: frames}}}
}

func commitStep(c *apiv1.ImportSessionRequest_Commit) *apiv1.ImportSessionRequest {
	return &apiv1.ImportSessionRequest{Step: &apiv1.ImportSessionRequest_Commit_{Commit: c}}
}

// noise is content that does not compress, so that a few files are many frames.
func noise(seed, n int) string {
	var b strings.Builder
	id := chunk.Sum(fmt.Appendf(nil, "seed %d", seed))
	for b.Len() < n {
		b.Write(id[:])
		id = chunk.Sum(id[:])
	}
	return b.String()[:n]
}

// TestACheckpointTravels: from one cluster to another, there by a server that does not lead, every chunk once and in order; and the new session
// begins with it.
func TestACheckpointTravels(t *testing.T) {
	from := startAlone(t)
	from.addNode("one")
	from.run("works", "one")
	files := map[string]string{"notes.txt": "hello", "deep/er/x": noise(1, 3<<20), "y": noise(2, 1<<20)}
	manifest, m := captured(t, from.store, tree(t, files))
	from.checkpointOf("one", "works", manifest, m)
	open, frames, err := exported(from.as(from.admin), from, &apiv1.ExportSessionRequest{Id: "works"})
	if err != nil {
		t.Fatal(err)
	}
	if open.GetSession().GetId() != "works" || open.GetCheckpoint().GetSequence() != 1 || open.GetClusterId() != from.ops.State.View().ClusterID() || int(open.GetChunks()) != len(frames) {
		t.Errorf("begins with %v, of %d frames", open, len(frames))
	}
	want := []chunk.ID{manifest}
	for _, r := range m.Chunks {
		want = append(want, r.ID)
	}
	got := make([]chunk.ID, len(frames))
	for i, f := range frames {
		got[i] = chunk.ID(f.GetId())
	}
	if !slices.Equal(got, want) {
		t.Errorf("came as %v, want %v", got, want)
	}

	to := startServers(t, 3)
	to[0].addNode("far")
	st := to[1].importing(to[0].as(to[0].admin))
	if r, err := st.step(missingStep(want...)); err != nil || len(r.GetMissing().GetIds()) != len(want) {
		t.Fatalf("of %d are missing: %v %v", len(want), r, err)
	}
	for _, f := range frames { // pipelined: answers come in order
		if err := st.Send(putStep(f)); err != nil {
			t.Fatal(err)
		}
	}
	for range frames {
		if r, err := st.Recv(); err != nil || r.GetStored() == nil {
			t.Fatal(r, err)
		}
	}
	if r, err := st.step(missingStep(want...)); err != nil || len(r.GetMissing().GetIds()) != 0 {
		t.Fatalf("is missing: %v %v", r, err)
	}
	commit := &apiv1.ImportSessionRequest_Commit{Manifest: manifest[:], Name: "moved", IdempotencyKey: "k", DryRun: true}
	r, err := st.step(commitStep(commit))
	if err != nil || r.GetSession().GetId() != "" || r.GetSession().GetName() != "moved" || r.GetSession().GetCheckpoint().GetTurn() != 11 || r.GetSession().GetNode() != "far" {
		t.Fatalf("a dry run: %v %v", r, err)
	}
	if n := to[0].ops.State.View().PhaseCounts().Total(); n != 0 {
		t.Fatalf("a dry run made %d sessions", n)
	}
	commit.DryRun = false
	if r, err = st.step(commitStep(commit)); err != nil {
		t.Fatal(err)
	}
	made := r.GetSession()
	if made.GetNamespace() != "default" || made.GetName() != "moved" || made.GetPhase() != apiv1.Session_RESTORING || made.GetNode() != "far" || made.GetSpec().GetEnv()["A"] != "1" {
		t.Errorf("it is %v", made)
	}
	if c := made.GetCheckpoint(); c.GetSequence() != 4 || c.GetTurn() != 11 || c.GetOutputLine() != 12 || c.GetManifest() != manifest.String() || made.GetOutputLine() != 12 {
		t.Errorf("begins with %v", c)
	}
	// And out again, by a server that does not lead.
	if open, again, err := exported(to[0].as(to[0].admin), to[2], &apiv1.ExportSessionRequest{Id: "moved"}); err != nil || open.GetSession().GetId() != made.GetId() || len(again) != len(frames) {
		t.Errorf("out again: %v, %d frames, %v", open, len(again), err)
	}
	// Again, as after a lost answer: the same session, by another server.
	again := to[2].importing(to[0].as(to[0].admin))
	if r, err := again.step(commitStep(commit)); err != nil || r.GetSession().GetId() != made.GetId() {
		t.Errorf("again: %v %v", r, err)
	}
	if _, err := again.step(commitStep(&apiv1.ImportSessionRequest_Commit{Manifest: manifest[:], Name: "other", IdempotencyKey: "k"})); status.Code(err) != codes.AlreadyExists && status.Code(err) != codes.InvalidArgument {
		t.Errorf("the key of another request: %v", err)
	}
}

// TestAWorkspaceIsACheckpoint: what holds nothing but a workspace, with a spec beside it, is a session at turn 0.
func TestAWorkspaceIsACheckpoint(t *testing.T) {
	a := startAlone(t)
	a.addNode("one")
	manifest, _ := captured(t, a.store, tree(t, map[string]string{"a": "b"}), func(m *serializer.Manifest) {
		m.Spec, m.Sequence, m.Turn, m.OutputLine, m.Epoch, m.Roots = nil, 0, 0, 0, 0, m.Roots[:1]
	})
	st := a.importing(a.as(a.admin))
	r, err := st.step(commitStep(&apiv1.ImportSessionRequest_Commit{Manifest: manifest[:], Name: "w", Spec: &apiv1.SessionSpec{Name: "not this", Command: []string{"cat"}}}))
	if err != nil {
		t.Fatal(err)
	}
	if s := r.GetSession(); s.GetName() != "w" || s.GetOutputLine() != 0 || s.GetCheckpoint().GetSequence() != 1 || s.GetCheckpoint().GetTurn() != 0 || s.GetLag().GetTurns() != 0 {
		t.Errorf("%v", s)
	}
}

// TestImportsRefused: what is no chunk, no manifest, or no session is refused, and makes nothing.
func TestImportsRefused(t *testing.T) {
	a := startAlone(t)
	a.addNode("one")
	dir := tree(t, map[string]string{"a": "b"})
	bare := func(m *serializer.Manifest) { m.Spec = nil }
	whole, wholeManifest := captured(t, a.store, dir)
	noSpec, _ := captured(t, a.store, dir, bare)
	noWorkspace, _ := captured(t, a.store, dir, func(m *serializer.Manifest) { m.Roots, m.Chunks = m.Roots[1:], nil })
	noLog, _ := captured(t, a.store, dir, func(m *serializer.Manifest) { m.Roots = m.Roots[:1] })
	strange, _ := captured(t, a.store, dir, func(m *serializer.Manifest) { m.Roots[1].Name = "browser"; m.OutputLine = 0 })
	far, _ := captured(t, a.store, dir, func(m *serializer.Manifest) { m.Turn = 1 << 60 })
	lacks, _ := captured(t, a.store, dir, func(m *serializer.Manifest) {
		m.Chunks = append(slices.Clone(m.Chunks), serializer.ChunkRef{ID: chunk.Sum([]byte("never stored")), Bytes: 12})
	})
	oddSpec, _ := captured(t, a.store, dir, func(m *serializer.Manifest) { m.Spec = []byte{0xff} })
	content := []byte("no manifest")
	other := chunk.Sum(content)
	if err := a.store.Put(t.Context(), other, chunk.Seal(content)); err != nil {
		t.Fatal(err)
	}
	nobody := chunk.Sum([]byte("nobody"))
	bad := chunk.Seal([]byte("something"))
	commit := func(id chunk.ID, spec *apiv1.SessionSpec) *apiv1.ImportSessionRequest {
		return commitStep(&apiv1.ImportSessionRequest_Commit{Manifest: id[:], Spec: spec})
	}
	for _, tc := range []struct {
		name string
		step *apiv1.ImportSessionRequest
		code codes.Code
		want string
	}{
		{"nothing", &apiv1.ImportSessionRequest{}, codes.InvalidArgument, "neither missing, put nor commit"},
		{"an id too short", putStep(&apiv1.ChunkFrame{Id: []byte{1}}), codes.InvalidArgument, "an id of 1 bytes"},
		{"a question with an id too short", &apiv1.ImportSessionRequest{Step: &apiv1.ImportSessionRequest_Missing_{Missing: &apiv1.ImportSessionRequest_Missing{Ids: [][]byte{{1}}}}}, codes.InvalidArgument, "an id of 1 bytes"},
		{"another chunk", putStep(&apiv1.ChunkFrame{Id: nobody[:], Frame: bad}), codes.InvalidArgument, "holds something else"},
		{"too much", putStep(&apiv1.ChunkFrame{Id: nobody[:], Frame: make([]byte, MaxImportStepBytes)}), codes.InvalidArgument, "send fewer chunks"},
		{"no manifest there", commit(nobody, nil), codes.FailedPrecondition, "the manifest is not stored"},
		{"no manifest", commit(other, nil), codes.InvalidArgument, "corrupt"},
		{"no spec", commit(noSpec, nil), codes.InvalidArgument, "does not say what to run"},
		{"an odd spec", commit(oddSpec, nil), codes.InvalidArgument, "cannot be read"},
		{"a bad spec", commit(whole, &apiv1.SessionSpec{Type: session.TypeProcess}), codes.InvalidArgument, "command"},
		{"an unknown capability", commit(whole, &apiv1.SessionSpec{Command: []string{"x"}, Require: []string{"wings"}}), codes.InvalidArgument, "wings"},
		{"no workspace", commit(noWorkspace, nil), codes.InvalidArgument, `has no tree "workspace"`},
		{"no log", commit(noLog, nil), codes.InvalidArgument, `no tree "log"`},
		{"a strange tree", commit(strange, nil), codes.InvalidArgument, `a tree "browser"`},
		{"counts too far", commit(far, nil), codes.InvalidArgument, "counts further"},
		{"a chunk is missing", commit(lacks, nil), codes.FailedPrecondition, "1 of the "},
	} {
		_, err := a.importing(a.as(a.admin)).step(tc.step)
		if status.Code(err) != tc.code || !strings.Contains(status.Convert(err).Message(), tc.want) {
			t.Errorf("%s: %v, want %s %q", tc.name, err, tc.code, tc.want)
		}
	}
	if _, err := a.importing(a.as(a.token(auth.Viewer, ""))).step(missingStep()); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a viewer: %v", err)
	}
	films := a.as(a.token(auth.Client, "films"))
	if _, err := a.importing(films).step(commitStep(&apiv1.ImportSessionRequest_Commit{Manifest: whole[:], Namespace: "default"})); status.Code(err) != codes.PermissionDenied {
		t.Errorf("in another namespace: %v", err)
	}
	if n := a.ops.State.View().PhaseCounts().Total(); n != 0 {
		t.Errorf("%d sessions were made", n)
	}
	// Who knows the manifest's id may import it, and what it holds is all of it: here in a namespace of one's own.
	if r, err := a.importing(films).step(commit(whole, nil)); err != nil || r.GetSession().GetNamespace() != "films" || int(r.GetSession().GetCheckpoint().GetChunks()) != len(wholeManifest.Chunks) {
		t.Errorf("%v %v", r, err)
	}
}

// TestExportsRefused: what cannot leave, and why.
func TestExportsRefused(t *testing.T) {
	a := startAlone(t)
	a.addNode("one")
	a.run("bare", "one")
	a.run("works", "one")
	manifest, m := captured(t, a.store, tree(t, map[string]string{"a": "b"}))
	a.checkpointOf("one", "works", manifest, m)
	for _, tc := range []struct {
		req  *apiv1.ExportSessionRequest
		code codes.Code
		want string
	}{
		{&apiv1.ExportSessionRequest{Id: "nobody"}, codes.NotFound, "there is none"},
		{&apiv1.ExportSessionRequest{Id: "bare"}, codes.FailedPrecondition, "has no checkpoint yet"},
		{&apiv1.ExportSessionRequest{Id: "works", Sequence: 9}, codes.NotFound, "keeps no checkpoint 9"},
	} {
		if _, _, err := exported(a.as(a.admin), a, tc.req); status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: %v", tc.req, err)
		}
	}
	if err := a.store.Delete(t.Context(), m.Chunks[0].ID, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := exported(a.as(a.admin), a, &apiv1.ExportSessionRequest{Id: "works"}); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "checkpoint 1 cannot be read") {
		t.Errorf("without a chunk: %v", err)
	}
	for range maxExports {
		leave, err := a.ops.exchange.exports.enter()
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
	}
	_, _, err := exported(a.as(a.admin), a, &apiv1.ExportSessionRequest{Id: "works"})
	if status.Code(err) != codes.ResourceExhausted || !hasRetry(err) {
		t.Errorf("one too many: %v", err)
	}
	if st := a.ops.ExchangeStats()[0]; st.Kind != "export" || st.UnderWay != maxExports || st.Refused != 1 {
		t.Errorf("%+v", st)
	}
}

func hasRetry(err error) bool {
	return slices.ContainsFunc(status.Convert(err).Details(), func(d any) bool {
		r, ok := d.(*errdetails.RetryInfo)
		return ok && r.GetRetryDelay().AsDuration() > 0
	})
}

// TestDiffCheckpoints: changes in order, from the one before to the head when nothing is said, by any server.
func TestDiffCheckpoints(t *testing.T) {
	servers := startServers(t, 3)
	a := servers[0]
	a.addNode("one")
	a.run("works", "one")
	dir := tree(t, map[string]string{"a": "1", "b/c": "2", "gone": "3", "same": "4"})
	first, m, index := capturedAfter(t, a.store, dir, nil)
	a.checkpointOf("one", "works", first, m)
	for _, err := range []error{
		os.WriteFile(filepath.Join(dir, "a"), []byte("12"), 0o644), os.Remove(filepath.Join(dir, "gone")), os.Chmod(filepath.Join(dir, "b/c"), 0o600),
		os.WriteFile(filepath.Join(dir, "new\xff"), nil, 0o644), os.Symlink("a", filepath.Join(dir, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	second, m, _ := capturedAfter(t, a.store, dir, index)
	a.checkpointOf("one", "works", second, m)
	diff := func(req *apiv1.DiffCheckpointsRequest) (got []string, err error) {
		st, err := apiv1.NewSessionServiceClient(servers[1].conn).DiffCheckpoints(a.as(a.admin), req)
		if err != nil {
			return nil, err
		}
		for {
			r, err := st.Recv()
			if errors.Is(err, io.EOF) {
				return got, nil
			}
			if err != nil {
				return got, err
			}
			if r.GetFrom() != nil {
				got = append(got, fmt.Sprint(r.GetFrom().GetSequence(), "→", r.GetTo().GetSequence()))
			}
			for _, c := range r.GetChanges() {
				got = append(got, fmt.Sprint(c.GetRoot(), " ", c.GetPath(), " ", c.GetKind(), " ", c.GetOldType(), c.GetOldBytes(), c.GetNewType(), c.GetNewBytes()))
			}
		}
	}
	want := []string{"1→2", "workspace a MODIFIED f1f2", "workspace b/c TOUCHED f1f1", "workspace gone REMOVED f10", "workspace link ADDED 0l0", "workspace new\uFFFD ADDED 0f0"}
	if got, err := diff(&apiv1.DiffCheckpointsRequest{Id: "works"}); err != nil || !slices.Equal(got, want) {
		t.Errorf("%q %v", got, err)
	}
	if got, err := diff(&apiv1.DiffCheckpointsRequest{Id: "works", From: 2, To: 2}); err != nil || !slices.Equal(got, []string{"2→2"}) {
		t.Errorf("%q %v", got, err)
	}
	if _, err := diff(&apiv1.DiffCheckpointsRequest{Id: "works", To: 1}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("before the first: %v", err)
	}
	if _, err := diff(&apiv1.DiffCheckpointsRequest{Id: "works", From: 7}); status.Code(err) != codes.NotFound {
		t.Errorf("of none: %v", err)
	}
}

// TestDeleteCheckpoint: not the head, once for a key.
func TestDeleteCheckpoint(t *testing.T) {
	a := startAlone(t)
	a.addNode("one")
	a.run("works", "one")
	for range 3 {
		a.checkpointed("one", "works", 0)
	}
	del := func(sequence uint64, key string) (*apiv1.Session, error) {
		r, err := apiv1.NewSessionServiceClient(a.conn).DeleteCheckpoint(a.as(a.admin), &apiv1.DeleteCheckpointRequest{Id: "works", Sequence: sequence, IdempotencyKey: key})
		return r.GetSession(), err
	}
	for sequence, code := range map[uint64]codes.Code{0: codes.InvalidArgument, 3: codes.FailedPrecondition, 9: codes.NotFound} {
		if _, err := del(sequence, ""); status.Code(err) != code {
			t.Errorf("%d: %v", sequence, err)
		}
	}
	for range 2 {
		if s, err := del(2, "k"); err != nil || s.GetId() != "works" {
			t.Error(s, err)
		}
	}
	if s := a.ops.State.View().Session("works"); len(s.Checkpoints) != 2 || s.Checkpoint(2) != nil {
		t.Errorf("keeps %d", len(s.Checkpoints))
	}
}

// TestAForwardedStreamOnlyCommits: the mark of a forwarded call opens no way around the bound on imports.
func TestAForwardedStreamOnlyCommits(t *testing.T) {
	a := startAlone(t)
	conn := apiv1.NewSessionServiceClient(a.conn)
	ctx := metadata.AppendToOutgoingContext(a.as(a.admin), forwardedKey, "1")
	st, err := conn.ImportSession(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (importStream{st}).step(missingStep()); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a question: %v", err)
	}
}
