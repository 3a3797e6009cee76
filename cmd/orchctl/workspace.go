// spawn --workspace: a session that begins with files.
//
// It is an import whose checkpoint was never taken of a session: a workspace at turn 0, made here.

package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/workspace"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/session"
)

// skipsShown is how many of the things that are not in a workspace are named.
const skipsShown = 10

func (a *app) spawnWithFiles(ctx context.Context, f *spawnFlags, spec *apiv1.SessionSpec) (*apiv1.Session, error) {
	getting := a.transfer("getting the workspace", -1)
	defer getting.done()
	dir, cleanup, err := workspace.Open(ctx, f.workspace, workspace.Options{Progress: func(p workspace.Progress) { getting.at(p.Bytes, p.Total) }})
	if err != nil {
		return nil, err
	}
	defer cleanup()
	getting.done()
	im, err := a.client.Import(ctx)
	if err != nil {
		return nil, err
	}
	defer im.Close() //nolint:errcheck // it has no error
	sending := a.transfer("sending the workspace", -1)
	defer sending.done()
	got, err := serializer.Capture(ctx, im, serializer.CaptureOptions{Roots: []serializer.Root{{Name: session.RootWorkspace, Dir: dir}}, Progress: sending.at})
	if fault.Is(err, fault.Aborted) {
		return nil, fault.New(fault.Aborted, "%w; something writes there meanwhile: try again when it is quiet", err)
	}
	if err != nil {
		return nil, err
	}
	// An export before the first checkpoint of its own has to say what it runs.
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		return nil, fault.New(fault.Internal, "encode the spec: %w", err)
	}
	m := &serializer.Manifest{
		// Nothing here but what was given, so that a repetition is the same request; the cluster knows when it was.
		SessionID: "workspace", Namespace: spec.GetNamespace(), Name: spec.GetName(), Spec: raw, SerializedAt: time.Unix(0, 0).UTC(), Sequence: 1,
		Keeps: serializer.KeepsWorkspace, Roots: got.Roots, Chunks: got.Chunks,
	}
	st, err := serializer.StoreManifest(ctx, im, m)
	if err != nil {
		return nil, err
	}
	sending.done()
	a.warnSkipped(got.Stats)
	return im.Commit(ctx, &apiv1.ImportSessionRequest_Commit{
		Namespace: spec.GetNamespace(), Manifest: st.ID[:], Spec: spec, Name: spec.GetName(), IdempotencyKey: f.key,
	})
}

// warnSkipped says what the session will miss.
func (a *app) warnSkipped(s serializer.Stats) {
	for i, skip := range s.Skipped {
		if i == skipsShown {
			break
		}
		line := fmt.Sprintf("warning: %s is not in the workspace: %s", skip.Path, skip.Reason)
		if skip.Detail != "" {
			line += " (" + skip.Detail + ")"
		}
		a.note(line)
	}
	if more := s.SkippedTotal - min(len(s.Skipped), skipsShown); more > 0 {
		a.note(fmt.Sprintf("warning: %d more are not in the workspace", more))
	}
}
