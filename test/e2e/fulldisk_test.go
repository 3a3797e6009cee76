// A node whose disk is full for a while: what its sessions were to do is done once there is room.

package e2e

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// fullRounds is how often the disk is filled; SOAK_FULL makes it more.
func fullRounds(t *testing.T) int {
	if v := os.Getenv("SOAK_FULL"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("SOAK_FULL: %v", err)
		}
		return n
	}
	return 5
}

// TestFullDisk: messages that come while the disk is full are answered once it is not, each once, and each line is there once.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	watch := newObserver(t)
	disks := smallDisks(t, 1)
	if disks == nil {
		t.Log("the disk of the node is not filled: only messages are sent")
	}
	s := startSmallWith(t, 1, 3*time.Second, nil, disks)
	id := s.spawn(&apiv1.SessionSpec{Command: watch.keeping(), CheckpointEvery: "turn", Restart: "on-failure"}).GetId()
	sent := 0
	send := func(n int) {
		t.Helper()
		for range n {
			if _, err := s.c.Sessions.SendMessage(t.Context(), &apiv1.SendMessageRequest{SessionId: id, Text: []byte("x")}); err != nil {
				t.Fatal(err)
			}
			sent++
		}
	}
	for range fullRounds(t) {
		send(20)
		for _, d := range disks {
			fill(t, d)
		}
		send(20)
		empty(t, disks)
		s.until("all are answered", func(context.Context) bool { return int(s.session(id).GetMailbox().GetAcked()) == sent })
	}
	if got := s.count(id); got != sent+1 {
		t.Errorf("message %d was counted as %d", sent+1, got)
	}
	text, _ := s.lines(id)
	if len(text) != sent+1 {
		t.Errorf("%d lines of %d answers", len(text), sent+1)
	}
	watch.check(t)
}
