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

// TestATargetLetsGo: of what it has ready for a move that came to nothing, and not when the session begins there all the same.
func TestATargetLetsGo(t *testing.T) {
	for name, end := range map[string]func(log *soleLog){
		"cancelled": func(log *soleLog) {
			log.do(t, &clusterv1.Command{Kind: &clusterv1.Command_CancelMigration{CancelMigration: &clusterv1.CancelMigration{SessionId: "s"}}})
		},
		"terminated": func(log *soleLog) {
			log.do(t, &clusterv1.Command{Kind: &clusterv1.Command_TerminateSession{TerminateSession: &clusterv1.TerminateSession{SessionId: "s"}}})
		},
		"its node is lost": func(log *soleLog) {
			log.do(t, &clusterv1.Command{Kind: &clusterv1.Command_LoseNode{LoseNode: &clusterv1.LoseNode{NodeId: "id-node-1", Incarnation: 1}}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			reigning(t, func(t *testing.T, log *soleLog, hub *soleHub, _ *Leader) {
				source := link(t, hub, "node-1")
				spawn(t, log, "s", "id-node-1", func(s *apiv1.SessionSpec) { s.Restart = string(session.RestartAlways) })
				synctest.Wait()
				started(hub, source, 1, "s")
				target := link(t, hub, "node-2")
				moving := log.do(t, &clusterv1.Command{Kind: &clusterv1.Command_MigrateSession{MigrateSession: &clusterv1.MigrateSession{
					SessionId: "s", Epoch: 1, NodeId: "id-node-2"}}}).Session
				fact(hub, source, &nodev1.Fact{Index: 2, SessionId: "s", Epoch: 1, Kind: &nodev1.Fact_Copied{Copied: &nodev1.Copied{
					Move: moving.Move, Round: 1, Manifest: make32(1)}}})
				if d := toldOf(target, "s"); d.GetAction() != nodev1.DesiredSession_PREPARE || d.GetRestore() == nil || d.GetEpoch() != 2 {
					t.Fatalf("the target was told %v", d)
				}
				end(log)
				synctest.Wait()
				time.Sleep(2 * tickEvery)
				d := toldOf(target, "s")
				if name == "its node is lost" {
					if d.GetAction() != nodev1.DesiredSession_RUN || d.GetEpoch() != 2 {
						t.Errorf("the target, where there is a place, was told %v", d)
					}
				} else if d.GetAction() != nodev1.DesiredSession_PREPARE || d.GetRestore() != nil || d.GetEpoch() != 2 {
					t.Errorf("the target was told %v", d)
				}
			})
		})
	}
}

func make32(first byte) []byte {
	b := make([]byte, 32)
	b[0] = first
	return b
}
