// What a leader tells the nodes of a session that moves.
package leader

import (
	"testing"
	"testing/synctest"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

// fact reports one fact of epoch 1 of a session, or of another epoch.
func fact(hub *soleHub, l *fakeLink, f *nodev1.Fact) {
	hub.frame(l, &nodev1.Frame{Payload: &nodev1.Frame_Facts{Facts: &nodev1.Facts{Incarnation: 1, Facts: []*nodev1.Fact{f}}}})
	synctest.Wait()
}

// toldOf is what a node was told last of a session; nil for nothing.
func toldOf(l *fakeLink, id string) *nodev1.DesiredSession {
	var last *nodev1.DesiredSession
	for _, f := range l.take() {
		for _, d := range f.GetDesired().GetSessions() {
			if d.GetSessionId() == id {
				last = d
			}
		}
	}
	return last
}

// TestTheNodeBeforeForgets: once a session runs elsewhere, the node of its earlier epoch lets go of its directory.
func TestTheNodeBeforeForgets(t *testing.T) {
	reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, _ *Leader) {
		before := link(t, hub, "node-1")
		spawn(t, log, "s", "id-node-1", func(s *apiv1.SessionSpec) { s.Restart = string(session.RestartAlways) })
		synctest.Wait()
		started(hub, before, 1, "s")
		log.do(t, &clusterv1.Command{Kind: &clusterv1.Command_SetNodeSchedulable{SetNodeSchedulable: &clusterv1.SetNodeSchedulable{NodeId: "id-node-1"}}})
		after := link(t, hub, "node-2")
		before.take()
		fact(hub, before, &nodev1.Fact{Index: 2, SessionId: "s", Epoch: 1, Kind: &nodev1.Fact_Exited{Exited: &nodev1.Exited{
			Exit: &apiv1.Session_Exit{Cause: session.CauseFailed, Code: 1}}}})
		if d := toldOf(before, "s"); d != nil {
			t.Errorf("told %v before the session runs elsewhere", d)
		}
		time.Sleep(session.RestartDelay(1) + 2*tickEvery)
		if d := toldOf(after, "s"); d.GetAction() != nodev1.DesiredSession_RUN || d.GetEpoch() != 2 {
			t.Fatalf("the next node was told %v", d)
		}
		if d := toldOf(before, "s"); d.GetAction() != nodev1.DesiredSession_FORGET || d.GetEpoch() != 1 {
			t.Errorf("the node before was told %v", d)
		}
	})
}
