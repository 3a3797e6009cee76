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
	maxRounds = 5
	// smallRoundBytes: when a round had no more to send, the rest is small.
	smallRoundBytes = 1 << 20
	// roundShrink: when a round had to send less than this fraction of the one before, the next would be shorter still; the
	// last one, with messages held, may as well be it.
	roundShrink = 4
	// leavePatience bounds how long messages are held for the last capture, and again for storing it.
	leavePatience = time.Minute
	// coldPatience is the same where nothing was copied before: all of it is.
	coldPatience = 30 * time.Minute

	// targetPatience bounds how long a session that is copied waits for its target to be ready.
	targetPatience = time.Minute

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
	waited bool // for the target, after the last round
	// copiedAt is when enough was copied and the wait for the target began.
	copiedAt time.Time
	held     time.Time // since when messages are held; zero while they are not
	tells    *teller
}

// nextForLeave copies, or holds the session for the last checkpoint.
func (s *serving) nextForLeave(ctx context.Context, p plan) {
	l := s.leaving
	if !l.ready && !l.cold {
		l.tells.begin(stepCopying, l.move, l.rounds+1)
		s.work(ctx, copying, p)
		return
	}
	if l.held.IsZero() {
		if p.holdOff && !l.cold && s.waitsForTarget() {
			return
		}
		if l.waited && l.rounds <= maxRounds {
			l.waited = false // what was written meanwhile
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
	if l.copiedAt.IsZero() {
		l.copiedAt = time.Now()
	}
	left := targetPatience - time.Since(l.copiedAt)
	if left <= 0 {
		return false
	}
	l.waited = true
	s.soon.Reset(left)
	return true
}

// copied decides whether another round would help.
func (l *leaving) copied(r checkpoint.Round) {
	first := l.rounds == 0
	l.rounds++
	sent := r.Sent.Sent
	l.sum.Sent, l.sum.Content = l.sum.Sent+sent, l.sum.Content+r.Content
	l.ready = l.ready || l.rounds >= maxRounds || sent < smallRoundBytes ||
		!first && (sent < l.last/roundShrink || sent >= l.last) // little is left, or it is written as fast as it is copied
	l.last = sent
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
