// The suite of all stores over versitygw; package s3test says how that comes to be there.

package s3

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/chunkstest"
	"github.com/neolith/orchestrator/chunks/s3/s3test"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const accessKey, secretKey = s3test.AccessKey, s3test.SecretKey

// gateway is a running versitygw, or what poses as one.
type gateway struct{ addr, root string }

func startGateway(t testing.TB) *gateway {
	t.Helper()
	g := s3test.Start(t)
	return &gateway{g.Address, g.Root}
}

func (g *gateway) open(t testing.TB, bucket string, change func(*Options)) *Store {
	t.Helper()
	o := Options{Endpoint: g.addr, Bucket: bucket, Prefix: "orchestrator", Region: "us-east-1", AccessKey: accessKey, SecretKey: secretKey, Insecure: true, PathStyle: true}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// bucketOf is the bucket that stands for a directory of the suite's.
func bucketOf(state string) string {
	sum := sha256.Sum256([]byte(state))
	return "test-" + hex.EncodeToString(sum[:8])
}

func (g *gateway) make(t testing.TB, bucket string) {
	t.Helper()
	(&s3test.Gateway{Address: g.addr, Root: g.root}).Make(t, bucket)
}

func TestConformance(t *testing.T) {
	g := startGateway(t)
	chunkstest.Run(t, chunkstest.Harness{
		Open: func(t testing.TB, state string, _ int64) chunks.Store {
			g.make(t, bucketOf(state))
			return g.open(t, bucketOf(state), nil)
		},
		Damage: func(t testing.TB, state string, id chunk.ID) {
			name := filepath.Join(g.root, bucketOf(state), "orchestrator/chunks", id.String())
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/2] ^= 1
			f, err := os.OpenFile(name, os.O_WRONLY, 0) // the same file: its attributes are the object's
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Write(b); err != nil {
				t.Fatal(err)
			}
			f.Close()
		},
	})
}

func TestBucket(t *testing.T) {
	g := startGateway(t)
	ctx := context.Background()
	s := g.open(t, "nothing-there", nil)
	says := func(what string, err error, want string) {
		t.Helper()
		if !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	says("a bucket that is not there", s.Check(ctx), "make the bucket first")
	g.make(t, "chunks")
	if err := g.open(t, "chunks", nil).Check(ctx); err != nil {
		t.Error(err)
	}
	if left := (&s3test.Gateway{Root: g.root}).Objects(t, "chunks", "orchestrator"); len(left) > 0 {
		t.Errorf("a check leaves %q", left)
	}
	says("a wrong key", g.open(t, "chunks", func(o *Options) { o.SecretKey = "wrong" }).Check(ctx), "the credentials are wrong")
	says("an unknown account", g.open(t, "chunks", func(o *Options) { o.AccessKey = "nobody" }).Check(ctx), "the credentials are wrong")
	says("TLS where there is none", g.open(t, "chunks", func(o *Options) { o.Insecure = false }).Check(ctx), "insecure: true")
	// Two clusters never keep their chunks under one prefix.
	one, other := g.open(t, "chunks", nil), g.open(t, "chunks", func(o *Options) { o.Prefix = "" })
	for range 2 {
		if err := one.Own(ctx, "cluster-a"); err != nil {
			t.Error(err)
		}
	}
	says("another cluster's", one.Own(ctx, "cluster-b"), "keeps the chunks of cluster \"cluster-a\"")
	if err := other.Own(ctx, "cluster-b"); err != nil {
		t.Error("with a prefix of its own:", err)
	}
	f := chunkstest.Chunk(1, 1000)
	bad := g.open(t, "chunks", func(o *Options) { o.SecretKey = "wrong" })
	if err := bad.Put(ctx, f.ID, f.Bytes); !fault.Is(err, fault.PermissionDenied) {
		t.Error("a wrong key:", err)
	}
	// Two prefixes are two stores.
	a, b := g.open(t, "chunks", func(o *Options) { o.Prefix = "" }), g.open(t, "chunks", func(o *Options) { o.Prefix = "b" })
	if err := a.Put(ctx, f.ID, f.Bytes); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Missing(ctx, []chunk.ID{f.ID}); err != nil || len(got) != 1 {
		t.Errorf("of another prefix: missing %v, %v", got, err)
	}
	if _, err := New(Options{}); !fault.Is(err, fault.Invalid) {
		t.Error("without a bucket:", err)
	}
}

// A question makes an old object young, so that a sweep that began before it does not take it.
func TestRefresh(t *testing.T) {
	g := startGateway(t)
	g.make(t, "chunks")
	ctx := context.Background()
	s := g.open(t, "chunks", func(o *Options) { o.RefreshAfter = time.Hour })
	asked, left := chunkstest.Chunk(1, 1000), chunkstest.Chunk(2, 1000)
	for _, f := range []chunks.Frame{asked, left} {
		if err := s.Put(ctx, f.ID, f.Bytes); err != nil {
			t.Fatal(err)
		}
		old := time.Now().Add(-48 * time.Hour)
		if err := os.Chtimes(filepath.Join(g.root, "chunks/orchestrator/chunks", f.ID.String()), old, old); err != nil {
			t.Fatal(err)
		}
	}
	// This gateway leaves the time of what is copied onto itself, so the answer is to put it again; others need not.
	if got, err := s.Missing(ctx, []chunk.ID{asked.ID}); err != nil {
		t.Fatal(err)
	} else if len(got) > 0 {
		if err := s.Put(ctx, asked.ID, asked.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Missing(ctx, []chunk.ID{asked.ID}); err != nil || len(got) > 0 {
		t.Fatal("missing although it was refreshed:", err)
	}
	if got, err := s.Get(ctx, asked.ID); err != nil || !slices.Equal(got, asked.Bytes) {
		t.Errorf("refreshed: %d bytes, %v", len(got), err)
	}
	cutoff := time.Now().Add(-24 * time.Hour)
	if err := s.Delete(ctx, asked.ID, cutoff); !fault.Is(err, fault.FailedPrecondition) {
		t.Error("delete of what was asked for:", err)
	}
	if err := s.Delete(ctx, left.ID, cutoff); err != nil {
		t.Error("delete of what was not:", err)
	}
	if got, err := s.Missing(ctx, []chunk.ID{asked.ID, left.ID}); err != nil || !slices.Equal(got, []chunk.ID{left.ID}) {
		t.Errorf("missing %v, %v", got, err)
	}
}

// What an object store may answer, as kinds.
func TestKinds(t *testing.T) {
	f := chunkstest.Chunk(1, 100)
	for _, c := range []struct {
		status int
		code   string
		want   fault.Kind
	}{
		{507, "XMinioStorageFull", fault.Exhausted}, {403, "AccessDenied", fault.PermissionDenied}, {400, "QuotaExceeded", fault.Exhausted},
		{404, "NoSuchBucket", fault.FailedPrecondition}, {404, "NoSuchKey", fault.NotFound}, {501, "NotImplemented", fault.Unavailable},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(c.status)
			fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>m</Message></Error>`, c.code)
		}))
		s := (&gateway{addr: strings.TrimPrefix(server.URL, "http://")}).open(t, "bucket", nil)
		_, err := s.Get(context.Background(), f.ID)
		if !fault.Is(err, c.want) {
			t.Errorf("%d %s: %v", c.status, c.code, err)
		}
		if c.want == fault.Exhausted && fault.As(err).RetryAfter <= 0 {
			t.Errorf("%s says not when to come back", c.code)
		}
		s.Close()
		server.Close()
	}
	// What is wrong with the settings is told apart from what is wrong just now, and the remedy is said.
	for code, want := range map[string]struct {
		status int
		kind   fault.Kind
		says   string
	}{
		"RequestTimeTooSkewed":         {403, fault.FailedPrecondition, "NTP"},
		"AccessDenied":                 {403, fault.FailedPrecondition, "allow them to get, put, delete and list"},
		"AuthorizationHeaderMalformed": {400, fault.FailedPrecondition, "set region"},
		"NoSuchBucket":                 {404, fault.FailedPrecondition, "make the bucket first"},
		"SlowDown":                     {503, fault.Exhausted, ""},
		"NotImplemented":               {501, fault.Unavailable, ""},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(want.status)
			fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>m</Message></Error>`, code)
		}))
		s := (&gateway{addr: strings.TrimPrefix(server.URL, "http://")}).open(t, "bucket", nil)
		if err := s.Check(context.Background()); !fault.Is(err, want.kind) || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%s: %v", code, err)
		}
		s.Close()
		server.Close()
	}
	s := (&gateway{addr: "127.0.0.1:1"}).open(t, "bucket", nil)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Put(ctx, f.ID, f.Bytes); err == nil || !errors.Is(err, context.DeadlineExceeded) && !fault.Is(err, fault.Unavailable) {
		t.Error("nobody there:", err)
	}
}
