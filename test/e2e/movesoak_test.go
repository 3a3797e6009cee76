// A busy session is moved again and again, and in every fourth move something is killed.

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// soakMoves is how many moves there are; SOAK_MOVES=200 makes the long run.
func soakMoves(t *testing.T) int {
	if v := os.Getenv("SOAK_MOVES"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("SOAK_MOVES: %v", err)
		}
		return n
	}
	return 16
}

// TestMovesAmongKills: whatever is killed in the middle of a move, no message is lost or takes effect twice, there are
// never two owners, and the session goes on.
func TestMovesAmongKills(t *testing.T) {
	t.Parallel()
	watch := newObserver(t)
	disks := smallDisks(t, 3)
	s := startSmallWith(t, 3, 3*time.Second, nil, disks)
	row := s.spawn(&apiv1.SessionSpec{Name: "watched", Command: watch.keeping(), CheckpointEvery: "turn", Restart: "on-failure", MaxRestarts: 10_000})
	id := row.GetId()
	var stop atomic.Bool
	var total atomic.Int64
	sent := make(chan error, 1)
	go func() {
		pace := time.NewTicker(5 * time.Millisecond) // the session is to be busy, its mailbox not full
		defer pace.Stop()
		for n := 1; !stop.Load(); n++ {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			_, err := s.c.Sessions.SendMessage(ctx, &apiv1.SendMessageRequest{SessionId: id, Text: []byte("x"), IdempotencyKey: "m" + strconv.Itoa(n)})
			cancel()
			if err != nil {
				sent <- fmt.Errorf("message %d: %w", n, err)
				return
			}
			total.Add(1)
			<-pace.C
		}
		sent <- nil
	}()
	done, failed := 0, 0
	for n := range soakMoves(t) {
		s.until("the session runs", func(context.Context) bool { return s.session(id).GetPhase() == apiv1.Session_RUNNING })
		before := s.session(id)
		moved, over := false, make(chan struct{})
		go func() {
			defer close(over)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			r, err := s.c.Sessions.MigrateSession(ctx, &apiv1.MigrateSessionRequest{Id: id, Wait: true})
			moved = err == nil && r.GetSession().GetMigration().GetState() == apiv1.Session_Migration_DONE
		}()
		if n%4 == 3 {
			s.strike(n/4, before, over, disks)
		}
		if <-over; moved {
			done++
		} else {
			failed++
		}
		empty(t, disks)
	}
	stop.Store(true)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	want := int(total.Load())
	s.until("all are answered", func(context.Context) bool { return int(s.session(id).GetMailbox().GetAcked()) == want })
	t.Logf("%d moves, %d that came to nothing, %d messages, epoch %d", done, failed, want, s.session(id).GetEpoch())
	if done == 0 {
		t.Error("no move succeeded; the test shows nothing")
	}
	if got := s.count(id); got != want+1 {
		t.Errorf("message %d was counted as %d", want+1, got)
	}
	text, _ := s.lines(id)
	if len(text) != want+1 {
		t.Errorf("%d lines of %d answers", len(text), want+1)
	}
	for n, line := range text {
		if line != strconv.FormatUint(n, 10) {
			t.Errorf("line %d is %q", n, line)
		}
	}
	watch.check(t)
}

// strike kills something while the session moves, or when over says that the move was refused: its agent, the other agents, the session
// itself, the server; or fills the disks of the other agents, where they have disks of their own.
func (s *small) strike(n int, row *apiv1.Session, over <-chan struct{}, disks []string) {
	s.t.Helper()
	stages := []func(now *apiv1.Session) bool{ // another moment of the move each time
		func(*apiv1.Session) bool { return true },
		func(now *apiv1.Session) bool { return now.GetPhase() == apiv1.Session_MIGRATING },
		func(now *apiv1.Session) bool { return now.GetMigration().GetRounds() > 0 },
		func(now *apiv1.Session) bool { return now.GetMigration().GetState() == apiv1.Session_Migration_MOVING },
		func(now *apiv1.Session) bool { return now.GetPhase() == apiv1.Session_RESTORING },
	}
	s.until("the move is at the stage", func(context.Context) bool {
		select {
		case <-over: // it may pass between two looks, or be refused: the other nodes may not be back
			return true
		default:
			now := s.session(row.GetId())
			return stages[(n+n/len(stages))%len(stages)](now) || now.GetEpoch() > row.GetEpoch()
		}
	})
	kinds := 4
	if disks != nil {
		kinds = 5
	}
	what := n % kinds
	if what == 1 && n > 12 {
		what = 0 // its restarts are put off ever longer
	}
	switch agent := s.agentOf(row); what {
	case 0:
		s.agents[agent].kill()
		s.agents[agent].run()
	case 1:
		_ = syscall.Kill(int(row.GetPid()), syscall.SIGKILL)
	case 2:
		for i := range s.agents {
			if i != agent {
				s.agents[i].kill()
				s.agents[i].run()
			}
		}
	case 3:
		s.server.kill()
		s.server.run()
	case 4:
		for i, d := range disks {
			if i != agent {
				fill(s.t, d)
			}
		}
	}
}

// diskBytes is how large a disk of an agent is: a node with less than 256 MiB free calls itself unhealthy.
const diskBytes = 400 << 20

// smallDisks makes file systems that can be filled; nil where this process may not.
func smallDisks(t *testing.T, n int) (disks []string) {
	t.Helper()
	for range n {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "size="+strconv.Itoa(diskBytes)); err != nil {
			t.Logf("NOTE: no disk is filled: a file system of its own cannot be mounted: %v", err)
			return nil
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", dir, err)
			}
		})
		disks = append(disks, dir)
	}
	return disks
}

// fill leaves nothing free of a disk.
func fill(t *testing.T, disk string) {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("a disk of %d bytes was filled, and the error is %v", diskBytes, err)
	}
}

// empty takes away what fill left.
func empty(t *testing.T, disks []string) {
	t.Helper()
	for _, d := range disks {
		if err := os.Remove(filepath.Join(d, "fill")); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}
