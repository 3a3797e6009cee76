// Keeping chunks: what no checkpoint names goes, and what servers lack that were away is copied to them.
//
// A directory is swept by its server. A bucket is swept, and directories are repaired, by whoever leads: one place is enough,
// and two would do everything twice.

package main

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"sync"
	"time"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/chunks/majority"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/supervise"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/session"
)

const (
	// sweepEvery is how often chunks are looked for that no checkpoint names; younger ones than sweepGrace stay. A checkpoint must
	// be committed within it.
	sweepEvery = time.Hour
	sweepGrace = 6 * time.Hour
	// bucketSweepEvery and bucketSweepGrace are the same of a bucket: to list one costs, and to delete from one cannot be made
	// conditional on a chunk's age.
	bucketSweepEvery = 6 * time.Hour
	bucketSweepGrace = 24 * time.Hour
	// maxLag is how long ago a server may have heard of its leader that sweeps.
	maxLag = 10 * time.Second

	// repairEvery is the time between rounds of repair.
	repairEvery = 10 * time.Minute
	// repairTogether is how many chunks are looked after together, at least: those of whole sessions.
	repairTogether = 4 << 10
	// A repair waits while sessions move, for busyMax at most before it goes on: there may always be some that do. It looks again
	// after busyRest.
	busyMax  = 20 * time.Second
	busyRest = 500 * time.Millisecond

	defaultRepairBytes = 8 << 20
	minRepairBytes     = 64 << 10
)

// upkeep is a server's part of that.
type upkeep struct {
	chunks *chunkStore
	view   func() *state.View
	node   standing
	log    *slog.Logger

	repairBytesPerSecond int64
	cursor               string // the session after which the next round of repair begins; of its goroutine

	mu    sync.Mutex
	stats upkeepStats
}

// standing is what upkeep asks of the cluster; *cluster.Node is one.
type standing interface {
	Leader() (cluster.Leader, <-chan struct{})
	Stats() cluster.ServerStats
	AppliedIndex() uint64
	CommitIndex() uint64
	VerifyLeader(ctx context.Context) error
}

// upkeepStats count what was done since the server started.
type upkeepStats struct {
	dir, bucket sweepStats
	repair      repairStats
}

type sweepStats struct {
	sweeps, failed        int64
	deleted, deletedBytes int64         // over all sweeps
	last                  chunks.Swept  // of the last one that went through
	lastTime              time.Time     // when it ended
	lastTook              time.Duration // how long it took
}

type repairStats struct {
	rounds, failed      int64
	checked             int64
	copied, copiedBytes int64
	copiesFailed, lost  int64 // lost in the last round
	lastTime            time.Time
}

// Stats may be called from any goroutine.
func (u *upkeep) Stats() upkeepStats {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.stats
}

func (u *upkeep) note(f func(*upkeepStats)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f(&u.stats)
}

// daemons are what a server runs for it.
func (u *upkeep) daemons() []supervise.Daemon {
	daemon := func(name string, interval time.Duration, do func(context.Context)) supervise.Daemon {
		return supervise.Daemon{Name: name, Run: func(ctx context.Context) error { every(ctx, interval, do); return nil }}
	}
	out := []supervise.Daemon{daemon("chunk-sweep", sweepEvery, u.sweepDir)}
	if u.chunks.bucket != nil {
		return append(out, daemon("bucket-sweep", bucketSweepEvery, u.sweepBucket))
	}
	return append(out, daemon("chunk-repair", repairEvery, u.repair))
}

func every(ctx context.Context, interval time.Duration, do func(context.Context)) {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			do(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// sweepDir deletes what no checkpoint names from the directory of this server.
func (u *upkeep) sweepDir(ctx context.Context) {
	// A server that lags by more than the grace would take what is needed for garbage.
	if st := u.node.Stats(); st.LastContact < 0 || st.LastContact > maxLag || u.node.AppliedIndex() < u.node.CommitIndex() {
		u.log.Debug("chunks were not swept: the state may be behind")
		return
	}
	u.sweep(ctx, "directory", u.chunks.local, sweepGrace, func(s *upkeepStats) *sweepStats { return &s.dir })
}

// sweepBucket does so with the bucket, where this server leads and the bucket is this cluster's.
func (u *upkeep) sweepBucket(ctx context.Context) {
	if !u.leads(ctx) {
		return
	}
	if err := u.chunks.bucket.Own(ctx, u.view().ClusterID()); err != nil {
		u.note(func(s *upkeepStats) { s.bucket.failed++ })
		u.log.Error("the bucket is not swept", "error", err)
		return
	}
	u.sweep(ctx, "bucket", u.chunks.bucket, bucketSweepGrace, func(s *upkeepStats) *sweepStats { return &s.bucket })
}

// leads reports whether this server leads, and knows all that was committed.
func (u *upkeep) leads(ctx context.Context) bool {
	if l, _ := u.node.Leader(); !l.Self {
		return false
	}
	return u.node.VerifyLeader(ctx) == nil && u.node.AppliedIndex() >= u.node.CommitIndex()
}

func (u *upkeep) sweep(ctx context.Context, where string, store chunks.Collectable, grace time.Duration, of func(*upkeepStats) *sweepStats) {
	now := time.Now()
	swept, err := chunks.Sweep(ctx, store, liveChunks(u.view(), u.chunks), grace, now)
	u.note(func(s *upkeepStats) {
		one := of(s)
		one.deleted, one.deletedBytes = one.deleted+swept.Deleted, one.deletedBytes+swept.DeletedBytes
		if err != nil {
			one.failed++
			return
		}
		one.sweeps++
		one.last, one.lastTime, one.lastTook = swept, time.Now(), time.Since(now)
	})
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			u.log.Warn("chunks could not be swept", "where", where, "error", err)
		}
		return
	}
	u.log.Info("chunks were swept", "where", where, "needed", swept.Live, "young", swept.Young, "deleted", swept.Deleted,
		"deleted_bytes", swept.DeletedBytes, "took", time.Since(now))
}

// repair has every server get the chunks that it lacks, where this one leads. A round that is cut off goes on where it was.
func (u *upkeep) repair(ctx context.Context) {
	began := time.Now()
	var all majority.Repaired
	var err error
	for err == nil && !all.Finished {
		if !u.leads(ctx) {
			u.cursor = ""
			return
		}
		err = u.repairSome(ctx, &all)
	}
	u.note(func(s *upkeepStats) {
		r := &s.repair
		r.checked, r.copied, r.copiedBytes = r.checked+all.Checked, r.copied+all.Copied, r.copiedBytes+all.CopiedBytes
		r.copiesFailed, r.lost = r.copiesFailed+all.Failed, all.Lost
		if err != nil {
			r.failed++
			return
		}
		r.rounds++
		r.lastTime = time.Now()
	})
	switch {
	case ctx.Err() != nil:
	case err != nil:
		u.log.Warn("a round of repair of chunks was cut off; the next goes on there", "error", err, "checked", all.Checked, "copied", all.Copied)
	default:
		level := slog.LevelDebug // nothing to do, every ten minutes
		if all.Copied > 0 || all.Failed > 0 || all.Lost > 0 {
			level = slog.LevelInfo
		}
		u.log.Log(ctx, level, "chunks were repaired", "checked", all.Checked, "copied", all.Copied, "copied_bytes", all.CopiedBytes,
			"failed", all.Failed, "lost", all.Lost, "took", time.Since(began))
	}
}

// repairSome looks after the chunks of the next sessions, and adds up; it is finished after the last ones.
func (u *upkeep) repairSome(ctx context.Context, all *majority.Repaired) error {
	store, err := u.chunks.store() // of the servers that there are now
	if err != nil {
		return err
	}
	if store.Members() < 2 {
		all.Finished = true
		return nil
	}
	if err := u.yield(ctx); err != nil {
		return err
	}
	last, more := u.cursor, false
	some := func(ctx context.Context) iter.Seq2[chunk.ID, error] {
		return func(yield func(chunk.ID, error) bool) {
			n := 0
			counted := func(id chunk.ID, err error) bool { n++; return yield(id, err) }
			for s := range u.view().Sessions(u.cursor) {
				if more = n >= repairTogether; more {
					return
				}
				for _, c := range s.Checkpoints {
					if !yieldManifest(ctx, u.chunks, c.Manifest, counted) {
						return
					}
				}
				last = s.ID
			}
			if yieldCalls(u.view(), counted) { // they are few, and belong to the last piece
				yieldConversations(u.view(), counted)
			}
		}
	}
	done, err := store.Repair(ctx, some, majority.Budget{BytesPerSecond: u.repairBytesPerSecond})
	all.Checked, all.Copied, all.CopiedBytes = all.Checked+done.Checked, all.Copied+done.Copied, all.CopiedBytes+done.CopiedBytes
	all.Failed, all.Lost = all.Failed+done.Failed, all.Lost+done.Lost
	if err != nil {
		return err
	}
	if u.cursor = last; !more {
		u.cursor, all.Finished = "", true
	}
	return nil
}

// yield waits while sessions move, for they need the disks and the network more.
func (u *upkeep) yield(ctx context.Context) error {
	for until := time.Now().Add(busyMax); u.busy() && time.Now().Before(until); {
		t := time.NewTimer(busyRest)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
	return ctx.Err()
}

func (u *upkeep) busy() bool {
	phases := u.view().PhaseCounts()
	return phases[session.Migrating]+phases[session.Restoring]+phases[session.Pausing] > 0
}

// liveChunks yields what the checkpoints of all sessions name, and the calls and conversations that are kept.
func liveChunks(view *state.View, from chunks.Source) chunks.Live {
	return func(ctx context.Context) iter.Seq2[chunk.ID, error] {
		return func(yield func(chunk.ID, error) bool) {
			seen := map[session.ManifestID]bool{}
			for s := range view.Sessions("") {
				for _, c := range s.Checkpoints {
					if seen[c.Manifest] {
						continue
					}
					seen[c.Manifest] = true
					if !yieldManifest(ctx, from, c.Manifest, yield) {
						return
					}
				}
			}
			if yieldCalls(view, yield) {
				yieldConversations(view, yield)
			}
		}
	}
}

// yieldCalls yields the chunks of arguments and results that are too large for the state, which names them itself. It reports whether
// yield wants more.
func yieldCalls(view *state.View, yield func(chunk.ID, error) bool) bool {
	for c := range view.Calls(0) {
		blobs := []*queue.Blob{&c.Arguments}
		if c.Outcome != nil {
			blobs = append(blobs, &c.Outcome.Outputs)
		}
		for _, b := range blobs {
			for _, id := range b.Chunks {
				if !yield(chunk.ID(id), nil) {
					return false
				}
			}
		}
	}
	return true
}

// yieldConversations yields the chunks of long texts of conversations.
func yieldConversations(view *state.View, yield func(chunk.ID, error) bool) {
	for c := range view.Conversations("", "", state.ConversationKey{}) {
		for i := range c.Messages {
			for _, id := range c.Messages[i].Text.Chunks {
				if !yield(chunk.ID(id), nil) {
					return
				}
			}
		}
	}
}

// yieldManifest yields the chunks of one checkpoint; false when that is the end.
func yieldManifest(ctx context.Context, from chunks.Source, id session.ManifestID, yield func(chunk.ID, error) bool) bool {
	m, stored, err := serializer.LoadManifest(ctx, from, chunk.ID(id))
	if fault.Is(err, fault.NotFound) {
		return true // it cannot be restored any more; that must not keep all garbage for ever
	}
	if err != nil {
		yield(chunk.ID{}, err)
		return false
	}
	for _, part := range stored.Parts {
		if !yield(part, nil) {
			return false
		}
	}
	for _, c := range m.Chunks {
		if !yield(c.ID, nil) {
			return false
		}
	}
	return true
}
