// What a restore must not take back: numbers that were given out since the snapshot was written. The nodes know messages by theirs,
// and whoever sent them does, too; another message under one of them would be taken for the first. And an epoch that was given out is
// over wherever it was: a session that is given it again would start nowhere.

package state

import (
	"fmt"
	"io"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
)

// GoOn copies a snapshot, and has each of its mailboxes go on with the number that is next in the view, each client with the order of its
// results, and each session that has not ended with its epoch there, where that is the greater one. So a session that moved since is
// not where the snapshot says: its node does not have that epoch, says so, and the session starts again from its checkpoint in the
// snapshot, at an epoch that nobody had. Calls that ran wait for another attempt, or are given up where they may not be
// repeated: nobody knows how far they came. So are calls that wait in the snapshot, may not be repeated, and have begun since. Everything
// else stays as it is.
func (v *View) GoOn(snapshot io.Reader, to io.Writer) error {
	g := &goingOn{now: v, w: newFrameWriter(to), sessions: newSessionReader(newInterner()), next: map[string]uint64{}, epochs: map[string]uint32{}}
	if err := readSnapshot(snapshot, g); err != nil {
		return fmt.Errorf("go on from a snapshot: %w", err)
	}
	g.openMailboxes()
	if err := g.restClients(); err != nil {
		return fmt.Errorf("go on from a snapshot: %w", err)
	}
	if err := g.w.close(); err != nil {
		return fmt.Errorf("go on from a snapshot: %w", err)
	}
	return nil
}

// goingOn is a snapshotReader.
type goingOn struct {
	now      *View
	w        *frameWriter
	sessions *sessionReader
	// next are the numbers of sessions of the snapshot whose mailbox was not seen yet.
	next map[string]uint64
	// epochs are those of sessions that go on at another one than the snapshot's.
	epochs map[string]uint32
	calls  callsGoingOn
}

func (g *goingOn) head(h *clusterv1.SnapshotHeader) {
	g.headCalls(h)
	g.w.open(h)
}

func (g *goingOn) session(b []byte, _ int) error {
	s, err := g.sessions.read(b)
	if err != nil {
		return err
	}
	if mb := g.now.mailbox(s.ID); mb != nil {
		g.next[s.ID] = mb.NextSequence
	}
	if now := g.now.Session(s.ID); now != nil && now.Epoch > s.Epoch && !s.Phase.Ended() {
		b = appendNumber(slices.Clip(b), fieldEpoch, uint64(now.Epoch)) // of a field that comes twice, the last one holds
		g.epochs[s.ID] = now.Epoch
	}
	g.w.frame(func(to []byte) ([]byte, error) {
		return protowire.AppendBytes(protowire.AppendTag(to, rowSession, protowire.BytesType), b), nil
	})
	g.w.rows++
	return nil // what could not be written is told at the end: the snapshot is none the worse
}

func (g *goingOn) row(row *clusterv1.SnapshotRow, _ int) error {
	switch k := row.GetRow().(type) {
	case *clusterv1.SnapshotRow_Mailbox:
		k.Mailbox.NextSequence = max(k.Mailbox.GetNextSequence(), g.next[k.Mailbox.GetSessionId()])
		delete(g.next, k.Mailbox.GetSessionId())
	case *clusterv1.SnapshotRow_Message: // one that a process had is with that of the epoch, until its node says what it has
		if epoch := g.epochs[k.Message.GetSessionId()]; epoch != 0 && k.Message.GetDelivered() {
			k.Message.DeliveredEpoch = epoch
		}
		g.openMailboxes()
	case *clusterv1.SnapshotRow_Result: // of the mailbox before
	case *clusterv1.SnapshotRow_Call:
		g.openMailboxes()
		return g.call(k.Call)
	case *clusterv1.SnapshotRow_Client:
		g.openMailboxes()
		return g.client(k.Client)
	default:
		g.openMailboxes()
	}
	g.w.row(row)
	return nil
}

// openMailboxes gives a mailbox to sessions that had no message yet when the snapshot was written. It comes behind the
// other mailboxes, which is not their order; the tables that it is read into have one of their own.
func (g *goingOn) openMailboxes() {
	for _, id := range slices.Sorted(maps.Keys(g.next)) {
		g.w.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Mailbox{Mailbox: &clusterv1.MailboxRow{SessionId: id, NextSequence: g.next[id]}}})
	}
	clear(g.next)
}
