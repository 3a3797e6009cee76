// Telling how far a move is. Nothing depends on it: what finds no room is not told.

package agent

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/types/known/timestamppb"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// The steps of a move, as the API names them.
const (
	stepCopying   = "copying"
	stepHolding   = "holding"
	stepSaving    = "saving"
	stepPreparing = "preparing"
	stepRestoring = "restoring"
)

const (
	// progressPerSecond bounds what is told of one session; so much may come at once where steps are short.
	progressPerSecond = 4
	// progressWaiting bounds what waits for the supervisor, in frames of all sessions.
	progressWaiting = 64
)

// teller tells of one session. Its methods may be called from any goroutine, and never block.
type teller struct {
	out   chan<- *nodev1.Frame
	id    string
	epoch uint32

	mu    sync.Mutex
	move  uint64 // of a source; 0 of a target
	step  string
	round uint32
	last  time.Time // something was told of this step
	limit *rate.Limiter
}

func newTeller(out chan<- *nodev1.Frame, id string, epoch uint32) *teller {
	return &teller{out: out, id: id, epoch: epoch, limit: rate.NewLimiter(progressPerSecond, progressPerSecond)}
}

// begin says that another step, or round, begins.
func (t *teller) begin(step string, move uint64, round uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.step == step && t.move == move && t.round == round {
		return
	}
	t.step, t.move, t.round, t.last = step, move, round, time.Time{}
	t.tell(0, 0)
}

// bytes says how far the step is. It implements checkpoint.Progress.
func (t *teller) bytes(done, total int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if done < total && time.Since(t.last) < time.Second/progressPerSecond {
		return
	}
	t.tell(done, total)
}

// tell sends, if there is room. t.mu is held.
func (t *teller) tell(done, total int64) {
	now := time.Now()
	if !t.limit.AllowN(now, 1) {
		return
	}
	t.last = now
	f := &nodev1.Frame{Epoch: t.epoch, Payload: &nodev1.Frame_MoveProgress{MoveProgress: &nodev1.MoveProgress{SessionId: t.id, Move: t.move,
		Progress: &apiv1.Session_Progress{Step: t.step, BytesDone: done, BytesTotal: total, Round: t.round, Time: timestamppb.New(now)}}}}
	select {
	case t.out <- f:
	default:
	}
}

// tellProgress passes on what a session's teller said. It is dropped when there is no link, or one that is busy.
func (s *supervisor) tellProgress(f *nodev1.Frame) {
	if s.linked.Load() {
		_ = s.link.Send(f) // as above
	}
}
