// Leaving the node: copied while it works, held for the last piece, and killed once that is stored.

package agent

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/neolith/orchestrator/agent/checkpoint"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

const (
	// maxRounds bounds how often a session is copied while it works.
	maxRounds = 6
	// smallRoundBytes: when a round had no more to send, the rest is small.
	smallRoundBytes = 1 << 20
	// roundShrink: when a round had to send less than this fraction of the one before, the next would be shorter still; the
	// last one, with messages held, may as well be it.
	roundShrink = 4
	// leavePatience bounds how long messages are held for the last capture, and again for storing it.
	leavePatience = time.Minute
	// coldPatience is the same where nothing was copied before: all of it is.
	coldPatience = 30 * time.Minute

	// targetPatience bounds how long a session that is copied waits for its target to be ready, with a second more for each
	// targetBytesPerSecond of it.
	targetPatience       = time.Minute
	targetBytesPerSecond = 16 << 20
	// copyFresh is how old a copy may be that is as good as new: another round would take about as long.
	copyFresh = 250 * time.Millisecond

	movedMessage = "moved"
)

// leaving is an order to leave that is being carried out.
type leaving struct {
	move   uint64
	cold   bool
	ready  bool // enough was copied
	rounds uint32
	last   int64 // bytes that the last round sent
	sum    checkpoint.Sent
	copy   [32]byte  // the manifest of the last round
	bytes  int64     // of all that it names
	began  time.Time // when the last round did
	// waits is when the wait for the target began.
	waits time.Time
	held  time.Time // since when messages are held; zero while they are not
	tells *teller
}

// nextForLeave copies, waits for the target to have the copy ready, or holds the session for the last checkpoint.
//
//	copy … copy ──► the target makes it ready ──► copy what was written meanwhile ──► … ──► hold
//
// Each copy is smaller than the one before, for less time has passed, until what is left is small or nothing is won.
func (s *serving) nextForLeave(ctx context.Context, p plan) {
	l := s.leaving
	if l.held.IsZero() {
		switch {
		case l.cold:
		case p.holdOff && l.ready && p.ready != l.copy && s.waitsForTarget():
			return
		case !l.ready, p.holdOff && l.stale():
			l.began = time.Now()
			l.tells.begin(stepCopying, l.move, l.rounds+1)
			s.work(ctx, copying, p)
			return
		}
		l.held = time.Now()
		l.tells.begin(stepHolding, l.move, l.rounds)
	}
	s.captureWhenQuiet(ctx, p)
}

// waitsForTarget reports whether the target may still become ready in time.
func (s *serving) waitsForTarget() bool {
	l := s.leaving
	if l.waits.IsZero() {
		l.waits = time.Now()
	}
	left := targetPatience + time.Duration(l.bytes/targetBytesPerSecond)*time.Second - time.Since(l.waits)
	if left <= 0 {
		return false
	}
	s.soon.Reset(left)
	return true
}

// stale reports whether another round would leave less to do while the session is held.
func (l *leaving) stale() bool {
	return l.rounds < maxRounds && (l.last >= smallRoundBytes || time.Since(l.began) > copyFresh)
}

// copied decides whether another round would help.
func (l *leaving) copied(r checkpoint.Round) {
	first := l.rounds == 0
	l.rounds++
	sent := r.Sent.Sent
	l.sum.Sent, l.sum.Content = l.sum.Sent+sent, l.sum.Content+r.Content
	l.ready = l.ready || l.rounds >= maxRounds || sent < smallRoundBytes ||
		!first && (sent < l.last/roundShrink || sent >= l.last) // little is left, or it is written as fast as it is copied
	l.last, l.copy, l.bytes = sent, r.Manifest, r.Bytes
}

// fact tells of the round that was copied just now.
func (l *leaving) fact(r checkpoint.Round) *nodev1.Fact {
	return &nodev1.Fact{Kind: &nodev1.Fact_Copied{Copied: &nodev1.Copied{Move: l.move, Round: l.rounds, Manifest: r.Manifest[:], Bytes: r.Bytes,
		BytesSent: r.Sent.Sent, BytesReused: max(0, r.Bytes-r.Content)}}}
}

// finish completes what the cluster is told of the last checkpoint; left says that it is the last.
func (l *leaving) finish(c *nodev1.Checkpointed, st checkpoint.Stored, left bool) {
	c.BytesSent += l.sum.Sent
	c.BytesReused = max(0, st.Bytes-st.Content-l.sum.Content)
	c.Rounds = l.rounds
	c.HeldTime = timestamppb.New(l.held)
	if left {
		c.Move = l.move
	}
}

// stay ends an order to leave that was taken back.
func (s *serving) stay() {
	s.log.Info("a session that was to leave stays", "session", s.id, "epoch", s.epoch, "move", s.leaving.move)
	s.leaving = nil
	s.drop()
}

// failLeave ends an order to leave that cannot be carried out: the session works on here.
func (s *serving) failLeave(err error) {
	move := s.leaving.move
	s.log.Warn("a session could not leave; it runs on here", "session", s.id, "epoch", s.epoch, "move", move, "error", err)
	s.leaving, s.refused, s.hold = nil, move, false
	s.tellFailure(err, move)
}
