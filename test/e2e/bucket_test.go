// Checkpoints in a bucket: servers keep no bytes, and sessions move, fail over and pause as ever.

package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/chunks/s3/s3test"
)

func TestBucket(t *testing.T) {
	t.Parallel()
	g := s3test.Start(t)
	g.Make(t, "chunks")
	keys := t.TempDir()
	file := func(name, content string) string {
		p := filepath.Join(keys, name)
		if err := os.WriteFile(p, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	watch := newObserver(t)
	s := startSmallWith(t, 2, 2*time.Second, map[string]any{"chunks": map[string]any{"store": "s3", "s3": map[string]any{
		"endpoint": g.Address, "bucket": "chunks", "prefix": "test/one", "region": s3test.Region, "insecure": true,
		"access_key_file": file("access", s3test.AccessKey), "secret_key_file": file("secret", s3test.SecretKey),
	}}}, nil)
	row := s.spawn(&apiv1.SessionSpec{Name: "watched", Command: watch.keeping(), CheckpointEvery: "turn", Restart: "on-failure"})
	id := row.GetId()
	want := 0
	counts := func(when string) {
		t.Helper()
		want++
		if got := s.count(id); got != want {
			t.Fatalf("%s: message %d was counted as %d", when, want, got)
		}
	}
	for range 5 {
		counts("at first")
	}
	if _, err := s.c.Sessions.MigrateSession(t.Context(), &apiv1.MigrateSessionRequest{Id: id, Wait: true}); err != nil {
		t.Fatal(err)
	}
	counts("after a move")
	if _, err := s.c.Sessions.PauseSession(t.Context(), &apiv1.PauseSessionRequest{Id: id, Wait: true}); err != nil {
		t.Fatal(err)
	}
	counts("after a pause")
	s.agents[s.agentOf(s.session(id))].kill()
	counts("after its node was lost")
	watch.check(t)
	if n := len(g.Objects(t, "chunks", "test/one/chunks")); n < 3 {
		t.Errorf("%d chunks are in the bucket", n)
	}
	inDir := 0
	if err := filepath.WalkDir(filepath.Join(s.dir, "server", "chunks"), func(_ string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && len(e.Name()) == 64 {
			inDir++
		}
		return err
	}); err != nil || inDir > 0 {
		t.Errorf("%d chunks are in the server's directory, %v", inDir, err)
	}
}
