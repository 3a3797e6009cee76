// Looking into checkpoints: what a directory holds, the bytes of files, what is refused, and from which server.
package gateway

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/serializer"
)

// lookedInto is a session's workspace, its first checkpoint, and a server that is not the leader to ask about it.
type lookedInto struct {
	*alone
	sessions apiv1.SessionServiceClient // at another server
	dir      string
	index    *serializer.Index // of the first checkpoint
	all      []string          // what is in dir, as list tells it
	large    []byte            // what is in e: several chunks
}

func lookInto(t *testing.T) *lookedInto {
	servers := startServers(t, 3)
	l := &lookedInto{alone: servers[0], sessions: apiv1.NewSessionServiceClient(servers[1].conn), large: bytes.Repeat([]byte("0123456789abcdef"), 200_000)}
	l.addNode("one")
	l.run("works", "one")
	if _, _, err := l.list(&apiv1.ListFilesRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("before any checkpoint: %v", err)
	}
	l.dir = tree(t, map[string]string{"a.txt": "alpha", "b/c/deep": "deep", "b/d": "d", "b.txt": "beside b", "e": string(l.large), "empty": "", "umläut": "ü"})
	if err := os.Symlink("../a.txt", filepath.Join(l.dir, "b", "link")); err != nil {
		t.Fatal(err)
	}
	hole, err := os.Create(filepath.Join(l.dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hole.WriteAt([]byte("end"), 1<<20); err != nil {
		t.Fatal(err)
	}
	_ = hole.Close()
	l.all = []string{"f a.txt 5 ", "d b 0 ", "f b.txt 8 ", fmt.Sprintf("f e %d ", len(l.large)), "f empty 0 ", "f sparse 1048579 ", "f umläut 2 "}
	first, m, index := capturedAfter(t, l.store, l.dir, nil)
	l.checkpointOf("one", "works", first, m)
	l.index = index
	return l
}

func (l *lookedInto) list(req *apiv1.ListFilesRequest) (names []string, r *apiv1.ListFilesResponse, err error) {
	req.Id = "works"
	r, err = l.sessions.ListFiles(l.as(l.admin), req)
	for _, e := range r.GetEntries() {
		names = append(names, fmt.Sprintf("%s %s %d %s", e.GetType(), e.GetName(), e.GetBytes(), e.GetTarget()))
	}
	return names, r, err
}

func (l *lookedInto) read(req *apiv1.ReadFileRequest) ([]byte, *apiv1.ReadFileResponse, error) {
	req.Id = "works"
	r, err := l.sessions.ReadFile(l.as(l.admin), req)
	return r.GetContent(), r, err
}

// TestFilesOfACheckpoint: any server tells what a checkpoint's workspace holds.
func TestFilesOfACheckpoint(t *testing.T) {
	l := lookInto(t)
	if got, r, err := l.list(&apiv1.ListFilesRequest{}); err != nil || !slices.Equal(got, l.all) || r.GetSessionId() != "works" || r.GetCheckpoint().GetSequence() != 1 || r.GetNextPageToken() != "" {
		t.Errorf("the workspace: %q %v", got, err)
	}
	if got, _, err := l.list(&apiv1.ListFilesRequest{Path: "b"}); err != nil || !slices.Equal(got, []string{"d c 0 ", "f d 1 ", "l link 0 ../a.txt"}) {
		t.Errorf("a directory: %q %v", got, err)
	}
	for path, want := range map[string]string{"a.txt": "alpha", "b/c/deep": "deep", "empty": "", "e": string(l.large), "umläut": "ü", "sparse": strings.Repeat("\x00", 1<<20) + "end"} {
		if got, r, err := l.read(&apiv1.ReadFileRequest{Path: path}); err != nil || string(got) != want || r.GetFile().GetBytes() != int64(len(want)) {
			t.Errorf("%s: %d bytes, %v", path, len(got), err)
		}
	}
	// Stretches, across chunks and holes, and beyond the end.
	for _, c := range []struct {
		path          string
		offset, limit int64
		want          string
	}{
		{"e", 1<<20 - 3, 10, string(l.large[1<<20-3 : 1<<20+7])}, {"e", int64(len(l.large)) - 2, 100, "ef"}, {"e", int64(len(l.large)), 5, ""}, {"a.txt", 1, 3, "lph"},
		{"sparse", 1<<20 - 2, 4, "\x00\x00en"},
	} {
		if got, _, err := l.read(&apiv1.ReadFileRequest{Path: c.path, Offset: c.offset, Limit: c.limit}); err != nil || string(got) != c.want {
			t.Errorf("%s from %d: %q %v", c.path, c.offset, got, err)
		}
	}
	if got, r, err := l.read(&apiv1.ReadFileRequest{Path: "b/link"}); err != nil || len(got) != 0 || r.GetFile().GetTarget() != "../a.txt" {
		t.Errorf("a link: %q %v", got, err)
	}
}

// TestPagesOfFiles are of one checkpoint, also when a newer one comes in between.
func TestPagesOfFiles(t *testing.T) {
	l := lookInto(t)
	page, r, err := l.list(&apiv1.ListFilesRequest{PageSize: 4})
	if err != nil || !slices.Equal(page, l.all[:4]) {
		t.Fatalf("a page: %q %v", page, err)
	}
	if err := os.Remove(filepath.Join(l.dir, "umläut")); err != nil {
		t.Fatal(err)
	}
	second, m, _ := capturedAfter(t, l.store, l.dir, l.index)
	l.checkpointOf("one", "works", second, m)
	if got, next, err := l.list(&apiv1.ListFilesRequest{PageSize: 4, PageToken: r.GetNextPageToken()}); err != nil || !slices.Equal(got, l.all[4:]) || next.GetNextPageToken() != "" {
		t.Errorf("the next page: %q %v", got, err)
	}
	if got, _, err := l.list(&apiv1.ListFilesRequest{}); err != nil || !slices.Equal(got, l.all[:6]) {
		t.Errorf("of the head: %q %v", got, err)
	}
	if got, _, err := l.read(&apiv1.ReadFileRequest{Path: "umläut", Sequence: 1}); err != nil || string(got) != "ü" {
		t.Errorf("of an earlier checkpoint: %q %v", got, err)
	}
	if _, _, err := l.read(&apiv1.ReadFileRequest{Path: "umläut"}); status.Code(err) != codes.NotFound {
		t.Errorf("of the head: %v", err)
	}
}

// TestFilesRefused: paths that lead elsewhere, what is not there, and who may not.
func TestFilesRefused(t *testing.T) {
	a := startAlone(t)
	a.addNode("one")
	a.run("works", "one")
	first, m := captured(t, a.store, tree(t, map[string]string{"a/b": "1"}))
	a.checkpointOf("one", "works", first, m)
	sessions := apiv1.NewSessionServiceClient(a.conn)
	for path, want := range map[string]codes.Code{
		"/etc/passwd": codes.InvalidArgument, "../x": codes.InvalidArgument, "a/../../x": codes.InvalidArgument, "./a": codes.InvalidArgument, "a//b": codes.InvalidArgument,
		"a/": codes.InvalidArgument, "a\x00": codes.InvalidArgument, strings.Repeat("x/", 3000) + "x": codes.InvalidArgument, "a/c": codes.NotFound, "a/b/c": codes.NotFound,
	} {
		if _, err := sessions.ReadFile(a.as(a.admin), &apiv1.ReadFileRequest{Id: "works", Path: path}); status.Code(err) != want {
			t.Errorf("read %.20q: %v", path, err)
		}
		if _, err := sessions.ListFiles(a.as(a.admin), &apiv1.ListFilesRequest{Id: "works", Path: path}); status.Code(err) != want {
			t.Errorf("list %.20q: %v", path, err)
		}
	}
	for name, req := range map[string]*apiv1.ReadFileRequest{
		"a negative offset": {Id: "works", Path: "a/b", Offset: -1}, "a negative limit": {Id: "works", Path: "a/b", Limit: -1}, "too large a limit": {Id: "works", Path: "a/b", Limit: maxReadFileBytes + 1},
	} {
		if _, err := sessions.ReadFile(a.as(a.admin), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := sessions.ListFiles(a.as(a.admin), &apiv1.ListFilesRequest{Id: "works", Path: "a/b"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("list a file: %v", err)
	}
	for _, token := range []string{"x", "1.x", "1.-1", "x.1", "9.1"} {
		if _, err := sessions.ListFiles(a.as(a.admin), &apiv1.ListFilesRequest{Id: "works", Sequence: 1, PageToken: token}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("page token %q: %v", token, err)
		}
	}
	// A viewer sees which files there are, and not what is in them; another tenant sees neither.
	viewer, other := a.token(auth.Viewer, ""), a.token(auth.Client, "elsewhere")
	if _, err := sessions.ListFiles(a.as(viewer), &apiv1.ListFilesRequest{Id: "works"}); err != nil {
		t.Errorf("a viewer lists: %v", err)
	}
	if _, err := sessions.ReadFile(a.as(viewer), &apiv1.ReadFileRequest{Id: "works", Path: "a/b"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a viewer reads: %v", err)
	}
	if _, err := sessions.ListFiles(a.as(other), &apiv1.ListFilesRequest{Id: "works"}); status.Code(err) != codes.NotFound {
		t.Errorf("another tenant lists: %v", err)
	}
	if _, err := sessions.ReadFile(a.as(other), &apiv1.ReadFileRequest{Id: "works", Path: "a/b"}); status.Code(err) != codes.NotFound {
		t.Errorf("another tenant reads: %v", err)
	}
	// Too many at a time.
	var leave []func()
	for range maxLooks {
		l, err := a.ops.exchange.looks.enter()
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	if _, err := sessions.ListFiles(a.as(a.admin), &apiv1.ListFilesRequest{Id: "works"}); status.Code(err) != codes.ResourceExhausted || !hasRetry(err) {
		t.Errorf("one too many: %v", err)
	}
	for _, l := range leave {
		l()
	}
}
