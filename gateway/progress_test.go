// A watch tells how far a move is while nothing of it is in the log, and not more often than anybody could read.

package gateway

import (
	"context"
	"testing"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
)

// linked links a node that was added, and returns its end.
func (a *alone) linked(name string) nodelink.Conn {
	a.t.Helper()
	node, server := nodelink.Pipe()
	if err := a.hub.AttachConn(server); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { node.Close("the test has ended") })
	for _, f := range []*nodev1.Frame{
		{Payload: &nodev1.Frame_Hello{Hello: &nodev1.Hello{ProtocolMin: nodelink.ProtocolMin, ProtocolMax: nodelink.ProtocolMax, NodeId: "id-" + name, Name: name, Incarnation: 1,
			LinkNumber: 1, Capabilities: &apiv1.Capabilities{CanSpawnSessions: true, SupportedSessionTypes: []string{session.TypeProcess}, CpuMilli: 4000, MemoryBytes: 1 << 30}}}},
	} {
		if err := node.Send(f); err != nil {
			a.t.Fatal(err)
		}
	}
	for {
		f, err := node.Recv(a.t.Context())
		if err != nil {
			a.t.Fatal(err)
		}
		if f.GetHelloAck() != nil {
			return node
		}
	}
}

func TestWatchTellsHowFarAMoveIs(t *testing.T) {
	a := startAlone(t)
	a.addNode("one")
	a.addNode("two")
	a.run("works", "one")
	node := a.linked("one")
	s := a.do(&clusterv1.Command{Kind: &clusterv1.Command_MigrateSession{MigrateSession: &clusterv1.MigrateSession{SessionId: "works", Epoch: 1, NodeId: "id-two"}}}).Session
	c := apiv1.NewSessionServiceClient(a.conn)
	ctx, cancel := context.WithCancel(a.as(a.admin))
	defer cancel()
	watch, err := c.WatchSessions(ctx, &apiv1.WatchSessionsRequest{Id: "works"})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetSynced() {
			break
		}
	}
	const last = 200
	began := time.Now()
	for i := range last {
		err := node.Send(&nodev1.Frame{Epoch: 1, Payload: &nodev1.Frame_MoveProgress{MoveProgress: &nodev1.MoveProgress{SessionId: "works", Move: s.Move,
			Progress: &apiv1.Session_Progress{Step: "copying", BytesDone: int64(i + 1), BytesTotal: last, Round: 1}}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	told := 0
	for done := int64(0); done < last; told++ {
		m, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		p := m.GetSession().GetMigration().GetProgress()
		if p.GetStep() != "copying" || p.GetBytesTotal() != last || p.GetBytesDone() < done {
			t.Fatalf("told %v after %d bytes", p, done)
		}
		done = p.GetBytesDone()
	}
	if most := int(time.Since(began)/progressRest) + 1; told > most {
		t.Errorf("told %d times in %s", told, time.Since(began))
	}
	r, err := c.GetSession(ctx, &apiv1.GetSessionRequest{Id: "works"})
	if err != nil || r.GetSession().GetMigration().GetProgress().GetBytesDone() != last {
		t.Errorf("got %v, %v", r, err)
	}
	a.do(&clusterv1.Command{Kind: &clusterv1.Command_CancelMigration{CancelMigration: &clusterv1.CancelMigration{SessionId: "works"}}})
	m, err := watch.Recv()
	if err != nil || m.GetSession().GetMigration().GetProgress() != nil || m.GetSession().GetMigration().GetState() != apiv1.Session_Migration_CANCELLED {
		t.Errorf("after its end: %v, %v", m, err)
	}
}
