// The moves of the story: sessions change nodes while they work, and a whole node dies with all that ran on it.

package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/crash"
)

// moves is what was measured of them.
type moves struct {
	still     sync.Mutex      // held while a session moves, and while none may: processes are compared
	blackouts []time.Duration // of the sessions that were moved, as the cluster says
	refused   atomic.Int64    // moves that did not come about, such as during the kills

	crashed   string // the node that died with its sessions
	lost      int    // sessions that it had
	lag       uint32 // turns that their checkpoints had not seen, at most
	recovered time.Duration
}

// migrate moves one session after the other until stop is closed.
func (s *story) migrate(ctx context.Context, stop <-chan struct{}) {
	for i := 0; ; i = (i + 7) % len(s.ids) {
		select {
		case <-stop:
			return
		case <-ctx.Done():
			return
		default:
		}
		s.moves.still.Lock()
		ask, cancel := context.WithTimeout(ctx, 20*time.Second)
		r, err := s.c.Sessions.MigrateSession(ask, &apiv1.MigrateSessionRequest{Id: s.ids[i], Wait: true})
		cancel()
		s.moves.still.Unlock()
		m := r.GetSession().GetMigration()
		if err != nil || m.GetState() != apiv1.Session_Migration_DONE {
			s.moves.refused.Add(1)
			select { // it waits for a place, or for a leader
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		s.moves.blackouts = append(s.moves.blackouts, time.Duration(m.GetBlackoutMs()*float64(time.Millisecond)))
	}
}

// crash kills a node agent and everything that it runs, and measures until all of its sessions run again from their last
// checkpoints.
func (s *story) crash(ctx context.Context) error {
	s.moves.still.Lock()
	defer s.moves.still.Unlock()
	nodes, err := s.c.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{})
	if err != nil {
		return err
	}
	victim := slices.MaxFunc(nodes.GetNodes(), func(a, b *apiv1.Node) int { return int(a.GetSessions()) - int(b.GetSessions()) })
	r, err := s.c.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{Filter: "node=" + victim.GetName(), PageSize: 1000})
	if err != nil {
		return err
	}
	var pids []int
	epochs := map[string]uint32{}
	for _, row := range r.GetSessions() {
		epochs[row.GetId()] = row.GetEpoch()
		s.moves.lag = max(s.moves.lag, row.GetLag().GetTurns())
		pids = append(pids, int(row.GetPid()))
	}
	s.moves.crashed, s.moves.lost = victim.GetName(), len(epochs)
	say("killing all of %s with SIGKILL: its agent (pid %d), %d sessions and their shims", victim.GetName(), victim.GetPid(), len(epochs))
	start := time.Now()
	if err := crash.Node(int(victim.GetPid()), pids); err != nil {
		return err
	}
	err = poll(ctx, func() (bool, error) {
		r, err := s.c.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{PageSize: 1000})
		if err != nil {
			return false, err
		}
		for _, row := range r.GetSessions() {
			if before, ok := epochs[row.GetId()]; ok && (row.GetEpoch() == before || row.GetPhase() != apiv1.Session_RUNNING) {
				return false, nil
			}
		}
		return true, nil
	})
	s.moves.recovered = time.Since(start)
	if err == nil {
		say("its %d sessions run again, %s after the kill", len(epochs), s.moves.recovered.Round(time.Millisecond))
	}
	return err
}

// report adds the moves to the table.
func (m *moves) report(row func(what, value string)) {
	slices.Sort(m.blackouts)
	q := func(p float64) time.Duration {
		if len(m.blackouts) == 0 {
			return 0
		}
		return m.blackouts[min(len(m.blackouts)-1, int(p*float64(len(m.blackouts))))].Round(100 * time.Microsecond)
	}
	row("sessions moved live", fmt.Sprintf("%d (%d more could not be at that time)", len(m.blackouts), m.refused.Load()))
	row("blackout of a move, p50 / p99", q(.5).String()+" / "+q(.99).String())
	row(fmt.Sprintf("until %d sessions ran again (all of %s killed)", m.lost, m.crashed), m.recovered.Round(time.Millisecond).String())
	row("turns that their checkpoints had not seen, at most", strconv.FormatUint(uint64(m.lag), 10))
}
