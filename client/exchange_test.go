// Checkpoints out of one cluster and into another: whole or not at all, over streams that break.

package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/client/clienttest"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// The Importer is where a capture goes.
var _ serializer.Sink = (*client.Importer)(nil)

// withCheckpoint spawns a session that has one.
func withCheckpoint(t *testing.T, cl *client.Client) string {
	t.Helper()
	id := spawn(t, cl, "a")
	if _, err := cl.Sessions.CheckpointSession(t.Context(), &apiv1.CheckpointSessionRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestExport(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	id := withCheckpoint(t, cl)
	c.Inject("ExportSession", clienttest.Fault{Err: clienttest.Lost()}) // before the first answer: it is asked again
	e, err := cl.Export(t.Context(), &apiv1.ExportSessionRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	n := uint64(0)
	for {
		id, frame, err := e.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := chunk.Open(nil, id, frame); err != nil {
			t.Error(err)
		}
		if n == 0 && id.String() != e.Open().GetCheckpoint().GetManifest() {
			t.Errorf("begins with %s, not with the manifest", id)
		}
		n++
	}
	if n == 0 || n != e.Open().GetChunks() {
		t.Errorf("%d chunks of %d", n, e.Open().GetChunks())
	}
	if _, _, err := e.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	// What breaks off later is told as that.
	c.Inject("ExportSession", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 2})
	if e, err = cl.Export(t.Context(), &apiv1.ExportSessionRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	_, _, err = e.Next()
	if err == nil {
		_, _, err = e.Next()
	}
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("broke off: %v", err)
	}
	if _, err := cl.Export(t.Context(), &apiv1.ExportSessionRequest{Id: "nobody"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("of nobody: %v", err)
	}
}

// TestImporter: a capture goes in over streams that break, and the session is made once.
func TestImporter(t *testing.T) {
	var breaks atomic.Int32
	var servers []*clienttest.Server
	c, servers, cl := setup(t, 2, func(cfg *client.Config) {
		cfg.OnRetry = func(client.Retry) {
			if breaks.Add(1) == 3 {
				servers[0].Stop()
			}
		}
	})
	dir := t.TempDir()
	for i := range 40 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), noise(i, 200<<10), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		c.Inject("ImportSession", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1 + i%3})
	}
	im, err := cl.Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	got, err := serializer.Capture(t.Context(), im, serializer.CaptureOptions{Roots: []serializer.Root{{Name: "workspace", Dir: dir}}})
	if err != nil {
		t.Fatal(err)
	}
	m := &serializer.Manifest{SessionID: "new", SerializedAt: time.Now().UTC(), Roots: got.Roots, Chunks: got.Chunks}
	st, err := serializer.StoreManifest(t.Context(), im, m)
	if err != nil {
		t.Fatal(err)
	}
	if breaks.Load() < 3 {
		t.Fatalf("only %d streams broke; the test proves nothing", breaks.Load())
	}
	if _, _, err := serializer.LoadManifest(t.Context(), &c.Chunks, st.ID); err != nil {
		t.Fatal(err)
	}
	all := make([]chunk.ID, len(got.Chunks))
	for i, r := range got.Chunks {
		all[i] = r.ID
	}
	if lacks, err := im.Missing(t.Context(), all); err != nil || len(lacks) != 0 {
		t.Errorf("%d are missing, %v", len(lacks), err)
	}
	s, err := im.Commit(t.Context(), &apiv1.ImportSessionRequest_Commit{Manifest: st.ID[:], Spec: &apiv1.SessionSpec{Command: []string{"run"}}, Name: "new"})
	if err != nil || s.GetName() != "new" || c.Sessions() != 1 {
		t.Errorf("%v %v; %d sessions", s, err, c.Sessions())
	}
}

func noise(seed, n int) []byte {
	var b []byte
	id := chunk.Sum(fmt.Appendf(nil, "seed %d", seed))
	for len(b) < n {
		b = append(b, id[:]...)
		id = chunk.Sum(id[:])
	}
	return b[:n]
}

// TestACommitIsRepeatedOnce: an answer that is lost makes no second session.
func TestACommitIsRepeatedOnce(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	im, err := cl.Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	m := &serializer.Manifest{SessionID: "new", SerializedAt: time.Now().UTC(), Roots: []serializer.Tree{{Name: "workspace", Entries: []serializer.Entry{{Path: ".", Mode: 0o755}}}}}
	st, err := serializer.StoreManifest(t.Context(), im, m)
	if err != nil {
		t.Fatal(err)
	}
	_ = im.Close()
	again, err := cl.Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	c.Inject("ImportSession", clienttest.Fault{Err: clienttest.Lost(), After: true})
	if _, err := again.Commit(t.Context(), &apiv1.ImportSessionRequest_Commit{Manifest: st.ID[:], Spec: &apiv1.SessionSpec{Command: []string{"run"}}}); err != nil {
		t.Fatal(err)
	}
	if c.Sessions() != 1 {
		t.Errorf("%d sessions", c.Sessions())
	}
}

// TestImporterFails: what cannot be repeated ends all that waits, and what comes later.
func TestImporterFails(t *testing.T) {
	_, _, cl := setup(t, 1, nil)
	im, err := cl.Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			err := im.Put(t.Context(), chunk.Sum([]byte{byte(i)}), chunk.Seal([]byte("something else")))
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("a chunk under another name: %v", err)
			}
		})
	}
	wg.Wait()
	if _, err := im.Missing(t.Context(), []chunk.ID{{}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("later: %v", err)
	}
	im, err = cl.Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := im.Put(ctx, chunk.ID{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	_ = im.Close()
	if _, err := im.Commit(t.Context(), &apiv1.ImportSessionRequest_Commit{}); !fault.Is(err, fault.Aborted) {
		t.Errorf("closed: %v", err)
	}
}
