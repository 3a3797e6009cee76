// A server that was away gets what it missed, a bucket's settings are whole or refused, and only whom a bucket belongs to sweeps it.

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/dir"
	chunkhttp "github.com/neolith/orchestrator/chunks/http"
	"github.com/neolith/orchestrator/chunks/s3"
	"github.com/neolith/orchestrator/chunks/s3/s3test"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/session"
	"github.com/neolith/orchestrator/telemetry/metricstest"
)

// alone is the standing of a server that leads, or does not.
type alone struct{ follows atomic.Bool }

func (a *alone) Leader() (cluster.Leader, <-chan struct{}) {
	return cluster.Leader{Self: !a.follows.Load()}, nil
}
func (a *alone) Stats() cluster.ServerStats         { return cluster.ServerStats{} }
func (a *alone) AppliedIndex() uint64               { return 1 }
func (a *alone) CommitIndex() uint64                { return 1 }
func (a *alone) VerifyLeader(context.Context) error { return nil }

// records is a state with sessions that have checkpoints.
type records struct {
	t     *testing.T
	store *state.Store
	index uint64
	facts uint64
}

func newRecords(t *testing.T) *records {
	r := &records{t: t, store: state.New(state.DefaultLimits())}
	r.do(&clusterv1.Command{Kind: &clusterv1.Command_RegisterNode{RegisterNode: &clusterv1.RegisterNode{NodeId: "n", Name: "n", Incarnation: 1}}})
	return r
}

func (r *records) do(c *clusterv1.Command) {
	r.t.Helper()
	r.index++
	if res := r.store.Apply(r.index, &clusterv1.Batch{Time: int64(r.index), Commands: []*clusterv1.Command{c}})[0]; res.Err != nil {
		r.t.Fatal(res.Err)
	}
}

// checkpointed is a session with one checkpoint of some bytes, in a store.
func (r *records) checkpointed(id string, in chunks.Store, bytes int) {
	r.t.Helper()
	work := r.t.TempDir()
	if err := os.WriteFile(filepath.Join(work, "file"), []byte(strings.Repeat(id, bytes/len(id))), 0o600); err != nil {
		r.t.Fatal(err)
	}
	got, err := serializer.Capture(r.t.Context(), in, serializer.CaptureOptions{Roots: []serializer.Root{{Name: "workspace", Dir: work}}})
	if err != nil {
		r.t.Fatal(err)
	}
	st, err := serializer.StoreManifest(r.t.Context(), in, &serializer.Manifest{SessionID: id, Roots: got.Roots, Chunks: got.Chunks})
	if err != nil {
		r.t.Fatal(err)
	}
	r.do(&clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{SessionId: id, NodeId: "n", Spec: &apiv1.SessionSpec{Command: []string{"true"}}}}})
	first := r.facts + 1
	r.facts += 3
	r.do(&clusterv1.Command{Kind: &clusterv1.Command_ApplyFacts{ApplyFacts: &clusterv1.ApplyFacts{NodeId: "n", Incarnation: 1, Facts: []*nodev1.Fact{
		{Index: first, SessionId: id, Epoch: 1, Kind: &nodev1.Fact_Started{Started: &nodev1.Started{}}},
		{Index: first + 1, SessionId: id, Epoch: 1, Kind: &nodev1.Fact_Captured{Captured: &nodev1.Captured{Sequence: 1}}},
		{Index: first + 2, SessionId: id, Epoch: 1, Kind: &nodev1.Fact_Checkpointed{Checkpointed: &nodev1.Checkpointed{Sequence: 1, Manifest: st.ID[:]}}},
	}}}})
	if s := r.store.View().Session(id); s.Head() == nil {
		r.t.Fatalf("session %s has no checkpoint: %s", id, s.Reason)
	}
}

// peerDir is a server's directory behind its port.
type peerDir struct {
	*dir.Store
	at *httptest.Server
}

func newDir(t *testing.T) *peerDir {
	t.Helper()
	d, err := dir.Open(t.TempDir(), dir.Options{Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	s := &peerDir{d, httptest.NewServer(chunkhttp.NewHandler(d, chunkhttp.HandlerOptions{RequestsMax: 64, RequestsPerClientMax: 64}))}
	t.Cleanup(func() { s.at.Close(); d.Close() })
	return s
}

func (s *peerDir) address() string { return strings.TrimPrefix(s.at.URL, "http://") }

// three is the store of three servers as the first sees it; the address of the third may be changed.
func three(t *testing.T, a, b, c *peerDir) (*chunkStore, *atomic.Pointer[string]) {
	var third atomic.Pointer[string]
	nobody := "127.0.0.1:1"
	third.Store(&nobody)
	st := &chunkStore{id: "a", local: a.Store, log: slog.New(slog.DiscardHandler), members: func() ([]cluster.Member, error) {
		return []cluster.Member{{ID: "a", Voter: true}, {ID: "b", Voter: true, LinkAddress: b.address()}, {ID: "c", Voter: true, LinkAddress: *third.Load()}}, nil
	}, dial: func(address string) (*chunkhttp.Client, error) {
		return chunkhttp.NewClient(chunkhttp.ClientOptions{URL: "http://" + address, AttemptsMax: 1})
	}}
	t.Cleanup(func() { st.closeRemote() })
	return st, &third
}

func ids(t *testing.T, s chunks.Collectable) (all []chunk.ID) {
	t.Helper()
	if err := s.Walk(t.Context(), chunk.ID{}, func(id chunk.ID, _ int64, _ time.Time) error { all = append(all, id); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

// gathered is the sum of a metric over its labels.
func gathered(t *testing.T, r *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func TestAServerThatWasAwayGetsWhatItMissed(t *testing.T) {
	a, b, c := newDir(t), newDir(t), newDir(t)
	store, third := three(t, a, b, c)
	r := newRecords(t)
	for i := range 5 {
		r.checkpointed(fmt.Sprint("session-", i), store, 300_000)
	}
	garbage := []byte("what no checkpoint names")
	if err := store.Put(t.Context(), chunk.Sum(garbage), chunk.Seal(garbage)); err != nil {
		t.Fatal(err)
	}
	if n := len(ids(t, c.Store)); n != 0 {
		t.Fatalf("%d chunks came to a server that is away", n)
	}
	here := c.address()
	third.Store(&here) // it is back
	store.looked = time.Time{}
	node := &alone{}
	u := &upkeep{chunks: store, view: r.store.View, node: node, log: slog.New(slog.DiscardHandler), repairBytesPerSecond: 1 << 30}
	node.follows.Store(true)
	u.repair(t.Context())
	if n := len(ids(t, c.Store)); n != 0 {
		t.Errorf("a server that does not lead repairs: %d chunks", n)
	}
	node.follows.Store(false)
	u.repair(t.Context())
	want, err := chunks.Collect(t.Context(), liveChunks(r.store.View(), store))
	if err != nil {
		t.Fatal(err)
	}
	got := ids(t, c.Store)
	for _, id := range got {
		if !want.Has(id) {
			t.Errorf("chunk %s was copied, and nobody needs it", id)
		}
	}
	if len(got) != want.Len() || want.Len() < 10 {
		t.Errorf("after a round it has %d chunks of %d", len(got), want.Len())
	}
	st := u.Stats().repair
	if st.rounds != 1 || st.copied != int64(len(got)) || st.copiedBytes < 10 || st.lost != 0 || st.copiesFailed != 0 || st.lastTime.IsZero() {
		t.Errorf("%+v", st)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.CollectorFunc(u.collect))
	metricstest.Lint(t, registry)
	for name, want := range map[string]float64{"orchestrator_chunk_repair_copies_total": float64(len(got)), "orchestrator_chunk_repair_lost_chunks": 0,
		"orchestrator_chunk_directory_chunks": float64(len(ids(t, a.Store))), "orchestrator_chunk_repair_rounds_total": 1} {
		if n := gathered(t, registry, name); n != want {
			t.Errorf("%s is %v, want %v", name, n, want)
		}
	}
	u.repair(t.Context())
	if again := u.Stats().repair; again.copied != st.copied || again.rounds != 2 {
		t.Errorf("the second round: %+v", again)
	}
	// A chunk that is nowhere is told.
	for _, d := range []*peerDir{a, b, c} {
		if err := d.Delete(t.Context(), got[0], time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	u.repair(t.Context())
	if s := u.Stats().repair; s.lost+s.failed == 0 && want.Has(got[0]) {
		view := r.store.View()
		for row := range view.Sessions("") {
			if chunk.ID(row.Head().Manifest) == got[0] {
				return // the manifest itself is gone: nothing names its chunks any more
			}
		}
		t.Errorf("a lost chunk is not told: %+v", s)
	}
}

// The chunks of a conversation are kept, and repaired, until it is deleted.
func TestChunksOfConversationsAreLive(t *testing.T) {
	a, b, c := newDir(t), newDir(t), newDir(t)
	store, third := three(t, a, b, c)
	r := newRecords(t)
	id := chunk.Sum([]byte("a long text"))
	if err := store.Put(t.Context(), id, chunk.Seal([]byte("a long text"))); err != nil {
		t.Fatal(err)
	}
	key := &clusterv1.ConversationKey{Namespace: "n", Owner: "o", Id: "c"}
	r.do(&clusterv1.Command{Kind: &clusterv1.Command_KeepTurn{KeepTurn: &clusterv1.KeepTurn{Key: key, TurnId: "1", Messages: []*clusterv1.ConversationMessage{
		{Role: "user", Text: &clusterv1.Blob{Inline: []byte("x"), SizeBytes: 1}}, {Role: "assistant", Text: &clusterv1.Blob{Chunks: [][]byte{id[:]}, SizeBytes: 100_000}},
	}}}})
	if live, err := chunks.Collect(t.Context(), liveChunks(r.store.View(), store)); err != nil || live.Len() != 1 || !live.Has(id) {
		t.Errorf("%d chunks are live: %v", live.Len(), err)
	}
	here := c.address()
	third.Store(&here)
	store.looked = time.Time{}
	u := &upkeep{chunks: store, view: r.store.View, node: &alone{}, log: slog.New(slog.DiscardHandler), repairBytesPerSecond: 1 << 30}
	u.repair(t.Context())
	if got := ids(t, c.Store); len(got) != 1 {
		t.Errorf("%d chunks were repaired, want that of the answer", len(got))
	}
	r.do(&clusterv1.Command{Kind: &clusterv1.Command_DropConversation{DropConversation: &clusterv1.DropConversation{Key: key}}})
	if live, err := chunks.Collect(t.Context(), liveChunks(r.store.View(), store)); err != nil || live.Len() != 0 {
		t.Errorf("%d chunks are live: %v", live.Len(), err)
	}
}

// The chunks of calls are kept, and repaired, as long as the calls are.
func TestChunksOfCallsAreLive(t *testing.T) {
	a, b, c := newDir(t), newDir(t), newDir(t)
	store, third := three(t, a, b, c)
	r := newRecords(t)
	put := func(text string) chunk.ID {
		t.Helper()
		id := chunk.Sum([]byte(text))
		if err := store.Put(t.Context(), id, chunk.Seal([]byte(text))); err != nil {
			t.Fatal(err)
		}
		return id
	}
	blob := func(ids ...chunk.ID) *clusterv1.Blob {
		out := &clusterv1.Blob{SizeBytes: 100_000}
		for _, id := range ids {
			out.Chunks = append(out.Chunks, id[:])
		}
		return out
	}
	argument, one, two, garbage := put("argument"), put("result, first part"), put("result, second part"), put("what nobody names")
	key := &clusterv1.CallKey{Owner: "o", Session: "s", RequestId: "r"}
	r.do(&clusterv1.Command{Kind: &clusterv1.Command_SubmitCall{SubmitCall: &clusterv1.SubmitCall{
		Key: key, Tool: "chat", Arguments: blob(argument), Priority: apiv1.Priority_NORMAL, Deadline: 1 << 60, ServerId: "a", Begin: true,
	}}})
	u := &upkeep{chunks: store, view: r.store.View, node: &alone{}, log: slog.New(slog.DiscardHandler), repairBytesPerSecond: 1 << 30}
	has := func(want ...chunk.ID) {
		t.Helper()
		live, err := chunks.Collect(t.Context(), liveChunks(r.store.View(), store))
		if err != nil || live.Len() != len(want) {
			t.Fatalf("%d chunks are live, want %d: %v", live.Len(), len(want), err)
		}
		for _, id := range want {
			if !live.Has(id) {
				t.Errorf("%s is not live", id)
			}
		}
		if live.Has(garbage) {
			t.Error("what nobody names is live")
		}
	}
	has(argument)
	r.do(&clusterv1.Command{Kind: &clusterv1.Command_EndCall{EndCall: &clusterv1.EndCall{
		Key: key, ServerId: "a", Attempt: 1, Outcome: &clusterv1.Outcome{Outputs: blob(one, two)},
	}}})
	has(one, two)
	here := c.address()
	third.Store(&here)
	store.looked = time.Time{}
	u.repair(t.Context())
	if got := ids(t, c.Store); len(got) != 2 {
		t.Errorf("%d chunks were repaired, want those of the result", len(got))
	}
}

// A round that is cut off goes on where it was, and one that sessions are moving in waits for them.
func TestRepairGoesOnAndGivesWay(t *testing.T) {
	a, b, c := newDir(t), newDir(t), newDir(t)
	store, third := three(t, a, b, c)
	here := c.address()
	r := newRecords(t)
	for i := range 3 {
		r.checkpointed(fmt.Sprint("session-", i), store, 1000)
	}
	third.Store(&here)
	store.looked = time.Time{}
	u := &upkeep{chunks: store, view: r.store.View, node: &alone{}, log: slog.New(slog.DiscardHandler), repairBytesPerSecond: 1 << 30}
	if u.busy() {
		t.Error("nothing moves")
	}
	u.cursor = "session-1" // of a round that was cut off behind it
	u.repair(t.Context())
	if n, all := len(ids(t, c.Store)), len(ids(t, a.Store)); n*3 != all || u.cursor != "" {
		t.Errorf("%d of %d chunks are there, and the next round begins after %q", n, all, u.cursor)
	}
	r.do(&clusterv1.Command{Kind: &clusterv1.Command_PauseSession{PauseSession: &clusterv1.PauseSession{SessionId: "session-0"}}})
	if r.store.View().Session("session-0").Phase != session.Pausing || !u.busy() {
		t.Error("a session that pauses makes nobody busy")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); u.repair(ctx) }()
	cancel()
	<-done
	if s := u.Stats().repair; s.rounds != 1 {
		t.Errorf("%d rounds", s.rounds)
	}
}

func TestHalvesOfABucketAreRefused(t *testing.T) {
	whole := func(c *Config) {
		c.Chunks.Store = storeS3
		c.Chunks.S3 = bucketConfig{Endpoint: "s3.example:443", Bucket: "b"}
	}
	for want, change := range map[string]func(*Config){
		`chunks.store: "tape" is not a store`:        func(c *Config) { c.Chunks.Store = "tape" },
		"chunks.store: is dir, and chunks.s3":        func(c *Config) { whole(c); c.Chunks.Store = storeDir },
		"chunks.max_bytes: bounds a directory":       func(c *Config) { whole(c); c.Chunks.MaxBytes = 1 << 30 },
		"chunks.s3.endpoint: is empty":               func(c *Config) { whole(c); c.Chunks.S3.Endpoint = "" },
		"chunks.s3.endpoint: \"https://x\" is not":   func(c *Config) { whole(c); c.Chunks.S3.Endpoint = "https://x" },
		"chunks.s3.bucket: is empty":                 func(c *Config) { whole(c); c.Chunks.S3.Bucket = "" },
		"chunks.s3.prefix: \"a/\" begins or ends":    func(c *Config) { whole(c); c.Chunks.S3.Prefix = "a/" },
		"chunks.s3.access_key_file: access_key_file": func(c *Config) { whole(c); c.Chunks.S3.SecretKeyFile = "x" },
		"chunks.s3.ca_file: says whom to trust":      func(c *Config) { whole(c); c.Chunks.S3.Insecure, c.Chunks.S3.CAFile = true, "ca" },
		"chunks.repair_bytes_per_second: 1 is":       func(c *Config) { c.Chunks.RepairBytesPerSecond = 1 },
	} {
		c := defaults()
		c.Name = "server-1"
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("want a refusal that begins with %q, got %v", want, err)
		}
	}
	c := defaults()
	c.Name = "server-1"
	whole(&c)
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func TestKeysOfABucketAreSecret(t *testing.T) {
	file := func(content string, mode os.FileMode) string {
		name := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for want, name := range map[string]string{
		"chmod 600": file("key\n", 0o644), "no single line": file("a\nb\n", 0o600), "holds no single line": file("", 0o600),
		"make it readable": filepath.Join(t.TempDir(), "none"),
	} {
		if _, err := readSecret("chunks.s3.secret_key_file", name); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "chunks.s3.secret_key_file: ") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if key, err := readSecret("x", file("key\n", 0o440)); err != nil || key != "key" {
		t.Errorf("%q, %v", key, err)
	}
}

// An object store that is away does not keep a server from starting; one that says no does.
func TestOpeningABucket(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
	g := s3test.Start(t)
	g.Make(t, "chunks")
	b := bucketConfig{Endpoint: g.Address, Bucket: "chunks", Region: s3test.Region, Insecure: true}
	s, err := openBucket(b, log)
	if err != nil {
		t.Fatal("with the keys of the environment:", err)
	}
	defer s.Close()
	b.Bucket = "none"
	if _, err := openBucket(b, log); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "make the bucket first") {
		t.Error("a bucket that is not there:", err)
	}

	// A server that leads sweeps the bucket, unless it is another cluster's.
	r := newRecords(t)
	own := newDir(t)
	store := &chunkStore{id: "a", local: own.Store, bucket: s, log: log}
	r.checkpointed("session-0", store, 1000)
	garbage := []byte("what no checkpoint names")
	id := chunk.Sum(garbage)
	if err := store.Put(t.Context(), id, chunk.Seal(garbage)); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * bucketSweepGrace)
	for _, name := range g.Objects(t, "chunks", "chunks") {
		if err := os.Chtimes(name, old, old); err != nil {
			t.Fatal(err)
		}
	}
	node := &alone{}
	u := &upkeep{chunks: store, view: r.store.View, node: node, log: log}
	lacks := func() int {
		t.Helper()
		_, err := s.Get(t.Context(), id)
		if err != nil && !fault.Is(err, fault.NotFound) {
			t.Fatal(err)
		}
		if err != nil {
			return 1
		}
		return 0
	}
	node.follows.Store(true)
	u.sweepBucket(t.Context())
	if lacks() != 0 {
		t.Error("a server that does not lead sweeps the bucket")
	}
	node.follows.Store(false)
	other, err := s3.New(s3.Options{Endpoint: g.Address, Bucket: "chunks", Region: s3test.Region, Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Own(t.Context(), "another cluster"); err != nil {
		t.Fatal(err)
	}
	u.sweepBucket(t.Context())
	if lacks() != 0 || u.Stats().bucket.failed != 1 {
		t.Errorf("another cluster's bucket is swept: %+v", u.Stats().bucket)
	}
	if err := os.Remove(filepath.Join(g.Root, "chunks", "cluster")); err != nil {
		t.Fatal(err)
	}
	u.sweepBucket(t.Context())
	if st := u.Stats().bucket; lacks() != 1 || st.sweeps != 1 || st.deleted != 1 || st.last.Live < 2 {
		t.Errorf("%+v", st)
	}
}
