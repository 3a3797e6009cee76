// Tokens of moves: both sides are told one, nobody else, and a new leader makes its own. And how far moves are.

package leader

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

// linkNode links a node that serves chunks at an address, or does not when it is empty.
func (s *stage) linkNode(id, chunkAddress string, has ...*nodev1.SessionState) *stageLink {
	s.t.Helper()
	l := &stageLink{hello: &nodev1.Hello{NodeId: id, Name: id, Incarnation: 1, ChunkAddress: chunkAddress, Capabilities: &apiv1.Capabilities{
		CanSpawnSessions: true, SupportedSessionTypes: []string{session.TypeProcess},
	}}}
	s.hub.handler.LinkUp(l)
	synctest.Wait()
	s.hub.handler.LinkFrame(l, &nodev1.Frame{Payload: &nodev1.Frame_SessionsResponse{SessionsResponse: &nodev1.SessionsResponse{Incarnation: 1, Sessions: has}}})
	synctest.Wait()
	return l
}

// desired returns what a node was told of a session since the last time, as "ACTION epoch address", and the last token.
func (l *stageLink) desired(id string) (told []string, token string) {
	for _, f := range l.take() {
		for _, d := range f.GetDesired().GetSessions() {
			if d.GetSessionId() == id {
				told = append(told, fmt.Sprintf("%s %d %s", d.GetAction(), d.GetEpoch(), d.GetPeer().GetAddress()))
				token = d.GetPeer().GetToken()
			}
		}
	}
	return told, token
}

// facts commits what a node reports.
func (s *stage) facts(node string, first uint64, facts ...*nodev1.Fact) {
	s.t.Helper()
	for i, f := range facts {
		f.Index, f.SessionId = first+uint64(i), "a"
	}
	s.do(&clusterv1.Command{Kind: &clusterv1.Command_ApplyFacts{ApplyFacts: &clusterv1.ApplyFacts{NodeId: node, Incarnation: 1, Facts: facts}}})
}

// moving is a session on n1 that is told to move to n2.
func (s *stage) moving() {
	s.t.Helper()
	s.do(&clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: &clusterv1.SpawnSession{
		SessionId: "a", NodeId: "n1", Spec: &apiv1.SessionSpec{Command: []string{"true"}, Restart: "always"},
	}}})
	s.facts("n1", 1, &nodev1.Fact{Epoch: 1, Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: 7}}})
	s.do(&clusterv1.Command{Kind: &clusterv1.Command_MigrateSession{MigrateSession: &clusterv1.MigrateSession{SessionId: "a", Epoch: 1, NodeId: "n2"}}})
}

func manifest(b byte) []byte { return append([]byte{b}, make([]byte, 31)...) }

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.Errorf("%s: %s, want %s", what, g, w)
	}
}

func TestTokensOfMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		defer func() { s.end() }()
		source, target := s.linkNode("n1", "10.0.0.1:9"), s.linkNode("n2", "")
		s.moving()
		told, token := source.desired("a")
		same(t, "the source", told, "[RUN 1  LEAVE 1 10.0.0.1:9]")
		if len(token) < 26 {
			t.Fatalf("token %q", token)
		}
		copied := func(round uint32) *nodev1.Fact {
			return &nodev1.Fact{Epoch: 1, Kind: &nodev1.Fact_Copied{Copied: &nodev1.Copied{Move: s.state.View().Session("a").Move, Round: round, Manifest: manifest(byte(round))}}}
		}
		s.facts("n1", 2, copied(1))
		told, its := target.desired("a")
		same(t, "the target", told, "[PREPARE 2 10.0.0.1:9]")
		if its != token {
			t.Error("source and target were told different tokens")
		}
		if told, _ := source.desired("a"); told != nil {
			t.Errorf("the source was told %v again", told)
		}

		// A new leader knows nothing of it, and tells both anew.
		s.end()
		s.reign(2)
		has := &nodev1.SessionState{SessionId: "a", Epoch: 1, Phase: apiv1.Session_RUNNING}
		source, target = s.linkNode("n1", "10.0.0.1:99", has), s.linkNode("n2", "")
		told, second := source.desired("a")
		same(t, "the source, by a new leader", told[:1], "[LEAVE 1 10.0.0.1:99]")
		if second == token || second == "" {
			t.Errorf("a new leader's token is %q, the one before was %q", second, token)
		}
		told, its = target.desired("a")
		same(t, "the target, by a new leader", told, "[PREPARE 2 10.0.0.1:99]")
		if its != second {
			t.Error("source and target were told different tokens")
		}

		// The source has stored the last piece and ended; the target runs on from it.
		move := s.state.View().Session("a").Move
		s.facts("n1", 3, &nodev1.Fact{Epoch: 1, Kind: &nodev1.Fact_Captured{Captured: &nodev1.Captured{Sequence: 1}}},
			&nodev1.Fact{Epoch: 1, Kind: &nodev1.Fact_Checkpointed{Checkpointed: &nodev1.Checkpointed{Sequence: 1, Manifest: manifest(9), Move: move}}},
			&nodev1.Fact{Epoch: 1, Kind: &nodev1.Fact_Exited{Exited: &nodev1.Exited{Exit: &apiv1.Session_Exit{Cause: session.CauseEvicted}}}})
		told, its = target.desired("a")
		same(t, "the target", told, "[RUN 2 10.0.0.1:99]")
		if its != second {
			t.Error("the target was told another token for the rest")
		}
		s.facts("n2", 1, &nodev1.Fact{Epoch: 2, Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: 8}}})
		told, _ = source.desired("a")
		same(t, "the source, once it runs there", told[len(told)-1:], "[FORGET 1 ]")

		// And back, with the token of this move: n2 serves nothing.
		s.do(&clusterv1.Command{Kind: &clusterv1.Command_MigrateSession{MigrateSession: &clusterv1.MigrateSession{SessionId: "a", Epoch: 2, NodeId: "n1"}}})
		told, its = target.desired("a")
		same(t, "a source that serves nothing", told, "[LEAVE 2 ]")
		if its != "" {
			t.Error("it was told a token")
		}
	})
}

func TestProgressOfMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		defer func() { s.end() }()
		source, target := s.linkNode("n1", ""), s.linkNode("n2", "")
		s.moving()
		move := s.state.View().Session("a").Move
		tell := func(l *stageLink, epoch uint32, move uint64, step string, done, total int64) {
			s.hub.handler.LinkFrame(l, &nodev1.Frame{Epoch: epoch, Payload: &nodev1.Frame_MoveProgress{MoveProgress: &nodev1.MoveProgress{SessionId: "a", Move: move,
				Progress: &apiv1.Session_Progress{Step: step, BytesDone: done, BytesTotal: total}}}})
			synctest.Wait()
		}
		is := func(want string) {
			t.Helper()
			p := s.leader.Progress("a")
			if got := fmt.Sprintf("%s %d/%d", p.GetStep(), p.GetBytesDone(), p.GetBytesTotal()); got != want {
				t.Errorf("it is %s, want %s", got, want)
			}
		}
		_, seen, told := s.leader.ProgressSince(0)
		tell(source, 1, move, "copying", 5, 10)
		is("copying 5/10")
		select {
		case <-told:
		default:
			t.Error("nobody was woken")
		}
		ids, seen, _ := s.leader.ProgressSince(seen)
		same(t, "told of", ids, "[a]")
		if ids, _, _ := s.leader.ProgressSince(seen); ids != nil {
			t.Errorf("told again: %v", ids)
		}
		// Nobody else is heard, nor nonsense.
		tell(source, 1, move+1, "copying", 6, 10)
		tell(source, 2, move, "copying", 6, 10)
		tell(target, 1, 0, "copying", 6, 10)
		tell(target, 2, move, "preparing", 6, 10)
		tell(source, 1, move, "", 6, 10)
		tell(source, 1, move, "copying", -6, 10)
		is("copying 5/10")
		tell(target, 2, 0, "preparing", 12, 10)
		is("preparing 10/10")
		tell(source, 1, move, "saving", 1, 2)
		is("saving 1/2")
		s.facts("n1", 2, &nodev1.Fact{Epoch: 1, Kind: &nodev1.Fact_Captured{Captured: &nodev1.Captured{Sequence: 1}}},
			&nodev1.Fact{Epoch: 1, Kind: &nodev1.Fact_Checkpointed{Checkpointed: &nodev1.Checkpointed{Sequence: 1, Manifest: manifest(9), Move: move}}},
			&nodev1.Fact{Epoch: 1, Kind: &nodev1.Fact_Exited{Exited: &nodev1.Exited{Exit: &apiv1.Session_Exit{Cause: session.CauseEvicted}}}})
		is(" 0/0") // what its source said is over
		tell(source, 1, move, "saving", 2, 2)
		tell(target, 2, 0, "restoring", 3, 4)
		is("restoring 3/4")
		s.facts("n2", 1, &nodev1.Fact{Epoch: 2, Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: 8}}})
		is(" 0/0")
		tell(target, 2, 0, "restoring", 4, 4)
		is(" 0/0")
		s.end()
		s.reign(2)
		time.Sleep(time.Second)
		is(" 0/0")
	})
}
