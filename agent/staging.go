// Having ready what a session that is about to move here will be restored from.

package agent

import (
	"context"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/neolith/orchestrator/agent/checkpoint"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// stagedKept is how long what is ready is kept for a session that does not come.
const stagedKept = 10 * time.Minute

// stageAttempts bounds how often a copy is tried to be made ready while the store is away, storeRetryFirst, doubling, between: 16 s.
const stageAttempts = 6

// staging is one session that is expected. It is owned by the supervisor.
type staging struct {
	epoch  uint32
	want   [32]byte // what is to be ready
	peer   *checkpoint.Peer
	busy   bool // somebody is at work
	cancel context.CancelFunc
	gone   bool // nobody expects it any more
	since  time.Time
	rounds uint32 // that were begun
	teller *teller
}

// staged: the work on a session's staging is over.
type staged struct {
	id       string
	manifest [32]byte
	fetched  int64
	took     time.Duration
	err      error
}

// wantPrepared has a session ready to begin here, as far as it was copied by now.
func (s *supervisor) wantPrepared(d *nodev1.DesiredSession) error {
	id, manifest := d.GetSessionId(), d.GetRestore().GetManifest()
	if d.GetRestore() == nil {
		s.unprepare(id, d.GetEpoch())
		return nil
	}
	st := s.staging[id]
	if len(manifest) != len(st.wanted()) {
		return fault.New(fault.Invalid, "an order to prepare without a manifest")
	}
	if e := s.entries[id]; e != nil && e.epoch() >= d.GetEpoch() || s.tombs.buried(id, d.GetEpoch()) {
		return nil // it is here already
	}
	if st == nil {
		st = &staging{}
		s.staging[id] = st
	}
	st.since, st.gone, st.epoch, st.peer = time.Now(), false, d.GetEpoch(), peerOf(d)
	if next := [32]byte(manifest); st.want != next {
		st.want = next
		s.stage(id, st)
	}
	return nil
}

// wanted is what is to be ready; of nil, nothing.
func (st *staging) wanted() (m [32]byte) {
	if st != nil {
		m = st.want
	}
	return m
}

// stage begins to make ready what is wanted, unless somebody is at work: then it follows.
func (s *supervisor) stage(id string, st *staging) {
	if st.busy || s.stopping {
		return
	}
	ctx, cancel := context.WithCancel(s.runCtx)
	st.busy, st.cancel = true, cancel
	order := checkpoint.Staging{SessionID: id, Dir: s.host.store.stagedPath(id), Manifest: st.want, Peer: st.peer}
	if st.teller == nil || st.teller.epoch != st.epoch {
		st.teller = newTeller(s.progress, id, st.epoch)
	}
	st.rounds++
	st.teller.begin(stepPreparing, 0, st.rounds)
	order.Progress = st.teller.bytes
	s.runs.Go(func() {
		began := time.Now()
		n := staged{id: id, manifest: order.Manifest}
		n.fetched, n.err = stageWith(ctx, s.host.keeper, order)
		cancel()
		n.took = time.Since(began)
		s.notes <- n // the supervisor takes notes until all of these have ended
	})
}

// staged is told that work is over.
func (s *supervisor) staged(n staged) {
	st := s.staging[n.id]
	if st == nil {
		return
	}
	st.busy, st.cancel = false, nil
	switch {
	case st.gone:
		s.unstage(n.id)
	case st.want != n.manifest:
		s.stage(n.id, st)
	case n.err != nil:
		st.want = [32]byte{} // it may be asked for again
		s.log.Warn("a session that is to move here could not be made ready", "session", n.id, "error", n.err)
		s.tell(preparedFact(n, st.epoch))
	default:
		s.tell(preparedFact(n, st.epoch))
		s.log.Debug("a session that is to move here is ready", "session", n.id, "fetched", n.fetched, "took", n.took)
	}
}

func preparedFact(n staged, epoch uint32) *nodev1.Fact {
	p := &nodev1.Prepared{Manifest: n.manifest[:], BytesFetched: n.fetched}
	if n.err != nil {
		p.Error = oneLine(n.err)
	}
	return &nodev1.Fact{SessionId: n.id, Epoch: epoch, Time: timestamppb.Now(), Kind: &nodev1.Fact_Prepared{Prepared: p}}
}

// stageWith makes a copy ready; a hiccup of the store is waited out.
func stageWith(ctx context.Context, keeper checkpoint.Keeper, order checkpoint.Staging) (fetched int64, err error) {
	delay := storeRetryFirst
	for range stageAttempts {
		var n int64
		n, err = keeper.Stage(ctx, order)
		if fetched += n; !fault.Is(err, fault.Unavailable) {
			return fetched, err
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fetched, err
		}
		delay *= 2
	}
	return fetched, err
}

// unprepare lets go of what is ready for epochs up to the given one.
func (s *supervisor) unprepare(id string, epoch uint32) {
	st := s.staging[id]
	if st == nil || st.epoch > epoch {
		return
	}
	st.gone = true
	if st.busy {
		st.cancel()
		return // removed when it is over
	}
	s.unstage(id)
}

// unstage removes what is ready, beside this goroutine.
func (s *supervisor) unstage(id string) {
	delete(s.staging, id)
	s.runs.Go(func() {
		if err := s.host.keeper.Unstage(id); err != nil {
			s.log.Warn("what was ready for a session could not be removed", "session", id, "error", err)
		}
	})
}

// arrived takes a session off the list whose restore makes use of what is ready, and removes it. When it does not come to that,
// unrestored does.
func (s *supervisor) arrived(id string) {
	if st := s.staging[id]; st != nil {
		delete(s.staging, id) // work under way is waited for by the restore
	}
}

// unrestored removes what is ready for a run that ended before it could make use of it, unless it is wanted anew.
func (s *supervisor) unrestored(r *run) {
	if r.restore != nil && r.status().proc == nil && s.staging[r.id] == nil {
		s.unstage(r.id)
	}
}

// expireStaging lets go of what is ready for sessions that did not come.
func (s *supervisor) expireStaging() {
	for id, st := range s.staging {
		if !st.gone && time.Since(st.since) > stagedKept {
			s.unprepare(id, st.epoch)
		}
	}
}

func (s *store) stagedPath(id string) string { return filepath.Join(s.path, stagedDir, id) }
