// Progress: how far moves are, as nodes tell it now and then. It is in the leader's memory only, and nothing depends on it.

package leader

import (
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

const (
	// maxProgress bounds the moves of which it is known how far they are; of others nothing is told.
	maxProgress = 10_000
	// maxStepBytes bounds the name of a step.
	maxStepBytes = 32
)

// progress is what was told last of one move.
type progress struct {
	told *apiv1.Session_Progress
	seq  uint64 // of all that was told, by this server
	move bool   // by the source
}

// Progress returns how far a session's move is: that it waits for its turn, or what its source or its target told last; nil when
// nothing was told. The message is shared: it must not be changed.
func (l *Leader) Progress(sessionID string) *apiv1.Session_Progress {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.waiting[sessionID] {
		return &apiv1.Session_Progress{Step: StepWaiting}
	}
	return l.progress[sessionID].told
}

// ProgressSince returns the sessions of which something was told after seq, the seq of what was told last, and what is closed
// when something is told after that.
func (l *Leader) ProgressSince(seq uint64) (ids []string, last uint64, told <-chan struct{}) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for id, p := range l.progress {
		if p.seq > seq {
			ids = append(ids, id)
		}
	}
	return ids, l.progressSeq, l.progressTold
}

// setProgress notes what was told.
func (l *Leader) setProgress(id string, p progress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.progress[id]; !known && len(l.progress) >= maxProgress {
		return
	}
	l.progressSeq++
	p.seq = l.progressSeq
	l.progress[id] = p
	close(l.progressTold)
	l.progressTold = make(chan struct{})
}

// dropProgress forgets what is over: of a session that does not move any more, or, once it is being restored, what its source said.
func (l *Leader) dropProgress(s *session.Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p, ok := l.progress[s.ID]; ok && (!movesOn(s) || p.move && s.Phase == session.Restoring) {
		delete(l.progress, s.ID)
	}
}

// moveProgress takes in what a node says of a session that moves from it, or to it. Whatever else it says is not heard.
func (r *reign) moveProgress(n *node, epoch uint32, p *nodev1.MoveProgress) {
	s, told := r.opts.State.View().Session(p.GetSessionId()), p.GetProgress()
	if s == nil || !movesOn(s) || told.GetStep() == "" || len(told.GetStep()) > maxStepBytes || told.GetBytesDone() < 0 || told.GetBytesTotal() < 0 {
		return
	}
	source := s.Phase == session.Migrating && n.id == s.NodeID && epoch == s.Epoch && p.GetMove() == s.Move
	target := s.Phase == session.Migrating && n.id == s.Migration.Target && epoch == s.Epoch+1 ||
		s.Phase == session.Restoring && n.id == s.NodeID && epoch == s.Epoch
	if source || target && p.GetMove() == 0 {
		told.BytesDone = min(told.GetBytesDone(), told.GetBytesTotal())
		r.l.setProgress(s.ID, progress{told: told, move: source})
	}
}
