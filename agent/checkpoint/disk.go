// The keeper of real nodes: directories on one side, a chunk store on the other.

package checkpoint

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/neolith/orchestrator/agent/outputlog"
	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/peer"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
)

const (
	// indexFile, in a session's directory, is what the next capture may rely on. It is worth no more than time.
	indexFile = "checkpoint.index"

	// DefaultSpoolBytes is Options.SpoolBytes.
	DefaultSpoolBytes = 1 << 30
	// DefaultParallel is Options.Parallel, in chunks.
	DefaultParallel = 16
	// DefaultCaptures is Options.Captures, in sessions.
	DefaultCaptures = 4
	// maxKnown bounds the sessions of which it is remembered what the store has; the others are asked about again.
	maxKnown = 4096
)

// Options of a Disk; zero values of the numbers mean their defaults.
type Options struct {
	// Store is where checkpoints are kept for other nodes.
	Store chunks.Store
	// Cache is asked before the store, and given what was fetched or sent; nil for none.
	Cache chunks.Store
	// SpoolDir holds what was captured until it is stored. It belongs to the Disk, and what is in it is removed.
	SpoolDir   string
	SpoolBytes int64  // over all sessions; what finds no room goes straight to the store, the session being held
	Parallel   int    // chunks moved at a time, of one session
	Captures   int    // sessions being read at one time
	Release    string // of this program
	// Lender lends to other nodes what sessions that leave are made of, from the cache; nil lends nothing. Borrow reaches the
	// lender of another node; nil asks the store alone.
	Lender *peer.Lender
	Borrow func(Peer) (*peer.Borrower, error)
	Logger *slog.Logger
}

// Disk captures sessions from the disk, and restores them to it. It implements Keeper.
type Disk struct {
	o     Options
	log   *slog.Logger
	spool *spool
	reads chan struct{} // holds one for each session being read while it is held
	// copies holds one for each session being copied: those that are large do not keep others held.
	copies chan struct{}

	staged stages
	from   Sources

	mu    sync.Mutex
	known map[string]known // by session
}

// known are chunks that the store had when it was last asked.
type known struct {
	chunks map[chunk.ID]struct{}
	asked  time.Time // when the store said so of all of them; zero when some are taken from an index
}

// askedFor is how long a session that is held for its last checkpoint takes for granted that the store has what it said it has. The store keeps
// what was asked about for hours.
const askedFor = 2 * time.Minute

var _ Keeper = (*Disk)(nil)

// New makes a Disk, and empties its spool.
func New(o Options) (*Disk, error) {
	if o.Store == nil || o.SpoolDir == "" {
		return nil, fault.New(fault.Internal, "checkpoint: Options need Store and SpoolDir")
	}
	if o.SpoolBytes <= 0 {
		o.SpoolBytes = DefaultSpoolBytes
	}
	if o.Parallel <= 0 {
		o.Parallel = DefaultParallel
	}
	if o.Captures <= 0 {
		o.Captures = DefaultCaptures
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	sp, err := openSpool(o.SpoolDir, o.SpoolBytes)
	if err != nil {
		return nil, err
	}
	return &Disk{o: o, log: o.Logger, spool: sp, reads: make(chan struct{}, o.Captures),
		copies: make(chan struct{}, max(1, o.Captures/2)), known: map[string]known{}}, nil
}

// Warm implements Keeper.
func (d *Disk) Warm(sessionID string) bool { return d.knownOf(sessionID) != nil }

func (d *Disk) knownOf(id string) map[chunk.ID]struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known[id].chunks
}

// confirmedOf returns the chunks of a session of which the store said not long ago, and when, that it has them. Only a session that is to
// leave makes use of that: the others work on while the store is asked.
func (d *Disk) confirmedOf(s Session) known {
	d.mu.Lock()
	defer d.mu.Unlock()
	if k := d.known[s.ID]; s.Whole && time.Since(k.asked) < askedFor {
		return k
	}
	return known{asked: time.Now()}
}

// learn notes that the store has the chunks that the session is made of, and those that its manifest is; asked is when it said so.
func (d *Disk) learn(id string, refs []serializer.ChunkRef, manifest []chunk.ID, asked time.Time) {
	set := make(map[chunk.ID]struct{}, len(refs)+len(manifest))
	for _, r := range refs {
		set[r.ID] = struct{}{}
	}
	for _, id := range manifest {
		set[id] = struct{}{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for other := range d.known {
		if len(d.known) < maxKnown {
			break
		}
		delete(d.known, other)
	}
	d.known[id] = known{set, asked}
}

func (d *Disk) forget(s Session) {
	d.mu.Lock()
	delete(d.known, s.ID)
	d.mu.Unlock()
	if err := os.Remove(indexPath(s.Dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.log.Warn("an index of a session's files could not be removed", "session", s.ID, "error", err)
	}
}

func indexPath(dir string) string { return filepath.Join(dir, indexFile) }

// read captures the session's directories into a sink, at most as many sessions at a time as there are slots.
func (d *Disk) read(ctx context.Context, s Session, slots chan struct{}, sink serializer.Sink, live bool) (*serializer.Captured, error) {
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	previous, err := serializer.LoadIndex(indexPath(s.Dir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		d.log.Warn("an index of a session's files is of no use; all of them are read", "session", s.ID, "error", err)
		previous = nil
	}
	got, err := serializer.Capture(ctx, sink, serializer.CaptureOptions{Previous: previous, Live: live, Parallel: d.o.Parallel, Progress: s.Progress, Roots: []serializer.Root{
		{Name: Workspace, Dir: filepath.Join(s.Dir, Workspace)}, {Name: Log, Dir: filepath.Join(s.Dir, Log)}}})
	if err != nil {
		return nil, err
	}
	if s.Whole {
		if err := whole(got.Stats); err != nil {
			return nil, err
		}
	}
	if what := leftOut(got.Stats); what != "" {
		d.log.Debug("something of a session is in no checkpoint of it", "session", s.ID, "what", what)
	}
	return got, nil
}

// Copy implements Keeper.
func (d *Disk) Copy(ctx context.Context, s Session, manifest bool) (Round, error) {
	sink := through{d.o.Store, d.o.Cache}
	at := time.Now()
	got, err := d.read(ctx, s, d.copies, sink, true)
	if err != nil {
		return Round{}, err
	}
	d.keepIndex(s, got, nil, time.Time{})
	out := Round{Sent: Sent{got.Stats.BytesSent, got.Stats.ContentSent}, Bytes: got.Stats.ChunkBytes}
	if !manifest {
		return out, nil
	}
	// Now that nothing waits: the last capture need not ask about what has not changed until then.
	missing, err := sink.Missing(ctx, idsOf(got.Chunks))
	if err != nil {
		return out, err
	}
	if len(missing) > 0 {
		d.forget(s)
		return out, lostByStore(missing[0])
	}
	st, err := serializer.StoreManifest(ctx, sink, d.manifest(s, at, got))
	if err != nil {
		return out, err
	}
	out.Manifest, out.Sent.Sent = st.ID, out.Sent.Sent+st.Sent
	d.learn(s.ID, got.Chunks, st.Parts, at)
	return out, nil
}

func idsOf(refs []serializer.ChunkRef) []chunk.ID {
	ids := make([]chunk.ID, len(refs))
	for i, r := range refs {
		ids[i] = r.ID
	}
	return ids
}

func lostByStore(id chunk.ID) error {
	return fault.New(fault.Aborted, "the store has lost chunk %s, which it had; everything is read again", id)
}

// manifest names all that was captured.
func (d *Disk) manifest(s Session, at time.Time, got *serializer.Captured) *serializer.Manifest {
	return &serializer.Manifest{SessionID: s.ID, Namespace: s.Namespace, Name: s.Name, Spec: s.Spec, SerializedAt: at.UTC(),
		NodeID: s.NodeID, Release: d.o.Release, Epoch: uint64(s.Epoch), Sequence: s.Sequence, Turn: s.Turn, OutputLine: s.OutputLine,
		Keeps: serializer.KeepsOf(s.Keeps), Roots: got.Roots, Chunks: got.Chunks, PathMap: []serializer.PathPair{{Source: filepath.Join(s.Dir, Workspace), Root: Workspace}}}
}

// keepIndex writes down what the store has of the session by now.
func (d *Disk) keepIndex(s Session, got *serializer.Captured, manifest []chunk.ID, asked time.Time) {
	if err := got.Index.Save(indexPath(s.Dir)); err != nil {
		d.log.Warn("an index of a session's files could not be written; the next checkpoint reads them again", "session", s.ID, "error", err)
	}
	d.learn(s.ID, got.Chunks, manifest, asked)
}

// Capture implements Keeper. Of a session that writes files though it is held, files are taken as they were read.
func (d *Disk) Capture(ctx context.Context, s Session) (Capture, error) {
	c := &capture{d: d, s: s, held: d.spool.begin(), at: time.Now()}
	sink := &spoolSink{known: d.knownOf(s.ID), held: c.held, store: through{d.o.Store, d.o.Cache}}
	got, err := d.read(ctx, s, d.reads, sink, false)
	if fault.Is(err, fault.Aborted) && ctx.Err() == nil {
		d.log.Debug("a session writes files between its turns; they are captured as they were read", "session", s.ID, "error", err)
		got, err = d.read(ctx, s, d.reads, sink, true)
	}
	if err != nil {
		c.held.close()
		return nil, err
	}
	c.got, c.direct = got, sink.sent()
	return c, nil
}

// capture is a moment on its way from the spool to the store.
type capture struct {
	d      *Disk
	s      Session
	at     time.Time
	held   *spooled
	got    *serializer.Captured
	direct Sent // what went to the store without waiting in the spool; told with the first Store
}

// Discard implements Capture.
func (c *capture) Discard() { c.held.close() }

// Store implements Capture.
func (c *capture) Store(ctx context.Context) (Stored, error) {
	out := Stored{Sent: c.direct, Keeps: c.s.Keeps, LeftOut: leftOut(c.got.Stats)}
	c.direct = Sent{}
	sink := through{c.d.o.Store, c.d.o.Cache}
	m := c.d.manifest(c.s, c.at, c.got)
	pieces, st, err := serializer.SealManifest(m)
	if err != nil {
		return out, err
	}
	confirmed := c.d.confirmedOf(c.s)
	sent, err := c.upload(ctx, sink, pieces, confirmed.chunks)
	out.Sent.Sent, out.Content = out.Sent.Sent+sent.Sent, out.Content+sent.Content
	if err != nil {
		return out, err
	}
	out.Manifest, out.Bytes, out.Chunks = st.ID, m.ContentBytes(), uint32(len(m.Chunks))
	c.d.keepIndex(c.s, c.got, st.Parts, confirmed.asked)
	c.held.close()
	return out, nil
}

// Restore implements Keeper.
func (d *Disk) Restore(ctx context.Context, r Restore) (Restored, error) {
	src := d.source(r.Peer)
	defer src.close()
	m, stored, err := serializer.LoadManifest(ctx, src, chunk.ID(r.Manifest))
	if err != nil {
		return Restored{}, err
	}
	st := d.staged.lock(r.SessionID) // waits for what is being made ready
	defer d.staged.unlock(r.SessionID, st)
	defer func() {
		if err := st.clear(); err != nil {
			d.log.Warn("what was ready for a session could not be removed", "session", r.SessionID, "error", err)
		}
	}()
	var parts []*serializer.Restored
	var bytes int64
	far := roots{tell: r.Progress}
	for _, root := range []string{Workspace, Log} {
		if m.Root(root) == nil {
			continue // imported from somewhere that had none
		}
		o := serializer.RestoreOptions{Parallel: d.o.Parallel, NoSync: true, Staged: st.part(root), Progress: far.next()}
		got, err := serializer.Restore(ctx, src, m, root, filepath.Join(r.Dir, root), o)
		if err != nil && o.Staged != nil && ctx.Err() == nil {
			d.log.Warn("what was ready for a session is of no use; it is restored from nothing", "session", r.SessionID, "error", err)
			o.Staged = nil
			got, err = serializer.Restore(ctx, src, m, root, filepath.Join(r.Dir, root), o)
		}
		if err != nil {
			return Restored{}, err
		}
		bytes += got.Bytes
		parts = append(parts, got)
	}
	if err := rewriteLog(filepath.Join(r.Dir, Log), r); err != nil {
		return Restored{}, err
	}
	if len(parts) > 0 {
		if err := serializer.RestoredIndex(parts...).Save(indexPath(r.Dir)); err != nil {
			return Restored{}, err
		}
	}
	d.learn(r.SessionID, m.Chunks, stored.Parts, time.Time{})
	return Restored{Turn: m.Turn, Bytes: bytes, Fetched: src.fetched()}, nil
}

// rewriteLog makes the log end where the new epoch begins.
func rewriteLog(dir string, r Restore) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fault.New(fault.Internal, "restore the output log: %w", err)
	}
	if err := outputlog.Truncate(dir, r.OutputLine); err != nil {
		return err
	}
	if r.Notice == "" {
		return nil
	}
	w, err := outputlog.Open(dir, outputlog.Options{Epoch: r.Epoch, Base: r.OutputLine})
	if err != nil {
		return err
	}
	w.Notice(r.Notice, time.Now().UnixNano())
	return w.Close()
}
