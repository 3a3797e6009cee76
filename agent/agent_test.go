// What an agent does with what it is told: starting, ending, epochs, messages, facts.

package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

const (
	stop   = nodev1.DesiredSession_STOP
	kill   = nodev1.DesiredSession_KILL
	forget = nodev1.DesiredSession_FORGET
	normal = apiv1.Priority_NORMAL
)

func same[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestDesiredStateIsFollowed(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		began := time.Now()
		n.lead.desired(10, true, toRun("a", 1), toRun("b", 1))
		same(t, "a", n.lead.told("a"), []string{"1:started"})
		same(t, "b", n.lead.told("b"), []string{"1:started"})
		if d := time.Since(began); d != 0 {
			t.Errorf("a start was reported after %s, not at once", d)
		}
		n.lead.desired(11, false, toRun("c", 1), want("a", 1, stop))
		same(t, "a", n.lead.told("a"), []string{"1:started", "1:exited terminated"})
		same(t, "c", n.lead.told("c"), []string{"1:started"})
		n.lead.desired(12, false, want("b", 1, kill))
		same(t, "b", n.lead.told("b"), []string{"1:started", "1:exited lost"})
		if !n.world.alive("c") {
			t.Error("a delta ended a session that it does not name")
		}
		n.lead.desired(13, true, toRun("d", 1))
		if n.world.alive("c") || !n.world.alive("d") {
			t.Error("after a full frame, what it names and nothing else should run")
		}
		same(t, "starts", n.world.started(), []string{"a/1", "b/1", "c/1", "d/1"})
	})
}

func TestEpochs(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.world.locked(func() { n.world.stubborn = 3 * time.Second })
		n.lead.desired(1, true, toRun("s", 2))
		n.lead.desired(2, false, toRun("s", 1))
		n.lead.desired(3, false, toRun("s", 2))
		same(t, "older and equal epochs start nothing", n.world.started(), []string{"s/2"})
		n.lead.desired(4, false, toRun("s", 3))
		wait(2 * time.Second)
		same(t, "while epoch 2 dies", n.world.started(), []string{"s/2"})
		wait(2 * time.Second)
		same(t, "once epoch 2 is gone", n.world.started(), []string{"s/2", "s/3"})
		same(t, "facts: whoever wants an epoch that is over is told", n.lead.told("s"), []string{"2:started", "1:exited lost", "2:exited lost", "3:started"})
		n.lead.desired(5, false, want("s", 2, kill), want("s", 2, stop), want("s", 2, forget))
		if !n.world.alive("s") {
			t.Error("an order about an older epoch ended a newer one")
		}
		n.world.tree("s").die(session.Exit{Cause: session.CauseCompleted})
		wait(4 * time.Second)
		n.lead.desired(6, false, toRun("s", 3))
		same(t, "an epoch that ended is not started again", n.world.started(), []string{"s/2", "s/3"})
	})
}

func TestOvertakenFramesRaiseNobody(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(5, true, toRun("s", 1))
		n.lead.desired(7, false, want("s", 1, stop))
		n.lead.desired(8, false, want("s", 1, forget))
		n.lead.desired(5, true, toRun("s", 1))
		n.lead.desired(8, false, toRun("s", 1))
		same(t, "starts", n.world.started(), []string{"s/1"})
	})
}

func TestStopOfWhatNeverRanIsAnswered(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		for i := range 3 {
			n.lead.desired(uint64(1+i), false, want("s", 4, stop))
		}
		same(t, "facts", n.lead.told("s"), []string{"4:exited terminated"})
	})
}

func TestStartsAreParallelAndBounded(t *testing.T) {
	inBubble(t, func(n *node) {
		n.world.startTime = time.Second
		n.start()
		var ds []*nodev1.DesiredSession
		for i := range 24 {
			ds = append(ds, toRun(fmt.Sprint("s", i), 1))
		}
		n.lead.desired(1, true, ds...)
		wait(3 * time.Second)
		same(t, "started after three rounds", len(n.world.started()), 24)
		same(t, "starts at one time", n.world.startPeak, DefaultMaxStarts)
	})
}

func TestStartFailures(t *testing.T) {
	inBubble(t, func(n *node) {
		n.opts = func(o *Options) {
			o.SecretsDir = n.dir + "/secrets"
			o.Capabilities = &apiv1.Capabilities{MaxConcurrentSessions: 3}
		}
		if err := os.MkdirAll(n.dir+"/secrets", 0o700); err != nil {
			t.Fatal(err)
		}
		n.start()
		secret := toRun("secret", 1)
		secret.Spec.Secrets = []string{"API_KEY"}
		typ := toRun("type", 1)
		typ.Spec.Type = session.TypeACP
		empty := toRun("empty", 1)
		empty.Spec.Command = nil
		n.lead.desired(1, false, secret, typ, empty)
		n.world.locked(func() { n.world.startErr = errors.New("no such program") })
		n.lead.desired(2, false, toRun("program", 1))
		n.world.locked(func() { n.world.startErr = nil })
		n.lead.desired(3, false, toRun("x1", 1), toRun("x2", 1), toRun("x3", 1), toRun("full", 1))
		for id, remedy := range map[string]string{"secret": "put it into the file", "type": "runs no sessions of type acp",
			"empty": "give the program", "program": "no such program", "full": "max_concurrent_sessions"} {
			same(t, id, n.lead.told(id), []string{"1:exited start-failed"})
			if i := slices.IndexFunc(n.lead.facts, func(f *nodev1.Fact) bool { return f.GetSessionId() == id }); i >= 0 {
				if m := n.lead.facts[i].GetExited().GetExit().GetMessage(); !strings.Contains(m, remedy) {
					t.Errorf("%s: %q does not say %q", id, m, remedy)
				}
			}
		}
		same(t, "x3", n.lead.told("x3"), []string{"1:started"})
	})
}

func TestMessagesAreGivenByPriority(t *testing.T) {
	inBubble(t, func(n *node) {
		n.world.think = time.Second
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lead.deliver("s", 1, msg(1, normal), msg(2, apiv1.Priority_LOW), msg(3, apiv1.Priority_PRIORITY_UNSPECIFIED), msg(4, apiv1.Priority_CRITICAL), msg(5, apiv1.Priority_HIGH))
		wait(10 * time.Second)
		same(t, "given", n.world.given("s"), []uint64{4, 5, 1, 3, 2})
		n.lead.deliver("s", 1, msg(4, apiv1.Priority_CRITICAL), msg(6, normal))
		wait(2 * time.Second)
		same(t, "after a message came twice", n.world.given("s"), []uint64{4, 5, 1, 3, 2, 6})
		var taken []uint64
		for _, f := range n.lead.got {
			for _, s := range f.GetDelivered().GetSessions() {
				taken = append(taken, s.GetSequences()...)
			}
		}
		same(t, "delivered frames", taken, []uint64{1, 2, 3, 4, 5, 4, 6})
		n.lead.deliver("s", 2, msg(7, normal))
		n.lead.deliver("nobody", 1, msg(1, normal))
		same(t, "of another epoch nothing is taken", n.world.given("s"), []uint64{4, 5, 1, 3, 2, 6})
	})
}

func TestDeliveredIsReportedForLongTurnsOnly(t *testing.T) {
	inBubble(t, func(n *node) {
		n.world.think = 99 * time.Millisecond
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lead.deliver("s", 1, msg(1, normal))
		wait(time.Second)
		same(t, "a short turn", n.lead.told("s"), []string{"1:started", "1:turn 1"})
		n.world.locked(func() { n.world.think = 500 * time.Millisecond })
		n.lead.deliver("s", 1, msg(2, normal))
		wait(150 * time.Millisecond)
		same(t, "a long turn", n.lead.told("s")[2:], []string{"1:delivered 2"})
		wait(time.Second)
		same(t, "its end", n.lead.told("s")[3:], []string{"1:turn 2"})
		n.world.locked(func() { n.world.think = -1 })
		n.lead.deliver("s", 1, msg(3, normal))
		wait(time.Second)
		n.world.tree("s").die(session.Exit{Cause: session.CauseFailed, Code: 1})
		wait(0)
		same(t, "the end of a process within a turn", n.lead.told("s")[4:], []string{"1:delivered 3", "1:exited failed outstanding 3"})
	})
}

func TestMessageDeadlines(t *testing.T) {
	inBubble(t, func(n *node) {
		n.world.think = 10 * time.Second
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		soon := msg(2, normal)
		soon.Deadline = timestamppb.New(time.Now().Add(2 * time.Second))
		late := msg(3, normal)
		late.Deadline = timestamppb.New(time.Now().Add(time.Hour))
		n.lead.deliver("s", 1, msg(1, normal), soon, late)
		wait(2 * time.Second)
		if got := n.lead.told("s"); !slices.Contains(got, "1:refused 2") {
			t.Errorf("at its deadline: %v", got)
		}
		wait(time.Minute)
		same(t, "given", n.world.given("s"), []uint64{1, 3})
	})
}

// A dead letter that is tried again has its number still.
func TestARefusedMessageMayBeTriedAgain(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.world.think = -1
		n.lead.desired(1, true, toRun("s", 1))
		late := msg(2, normal)
		late.Deadline = timestamppb.New(time.Now().Add(time.Second))
		n.lead.deliver("s", 1, msg(1, normal), late)
		wait(2 * time.Second)
		n.lead.deliver("s", 1, msg(2, normal))
		n.world.tree("s").endTurn(1, "done")
		wait(time.Second)
		same(t, "given", n.world.given("s"), []uint64{1, 2})
		same(t, "facts", n.lead.told("s"), []string{"1:started", "1:delivered 1", "1:refused 2", "1:turn 1", "1:delivered 2"})
	})
}

// The cluster's state was restored from a snapshot in which a message waits whose turn has ended since.
func TestAForgottenTurnIsReportedAgain(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lead.deliver("s", 1, msg(1, normal))
		wait(time.Second)
		n.lead.deliver("s", 1, msg(1, normal), msg(7, normal))
		wait(time.Second)
		same(t, "given", n.world.given("s"), []uint64{1, 7})
		same(t, "facts", n.lead.told("s"), []string{"1:started", "1:turn 1", "1:turn 1", "1:turn 7"})
		var ends []*nodev1.TurnEnded
		n.lead.locked(func() {
			for _, f := range n.lead.facts {
				if e := f.GetTurnEnded(); e.GetSequence() == 1 {
					ends = append(ends, e)
				}
			}
		})
		if string(ends[0].GetResult()) != "done" || len(ends[1].GetResult()) > 0 || !ends[1].GetResultTruncated() {
			t.Errorf("the ends are %v", ends)
		}
	})
}

func TestFactsAreSentAgainUntilCommitted(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.locked(func() { n.lead.holdFacts = true })
		n.lead.desired(1, true, toRun("a", 1), toRun("b", 1))
		n.lead.locked(func() { n.lead.last[n.agent.Incarnation()] = 1; n.lead.facts = n.lead.facts[:1] })                  // one of them is committed, the other lost
		n.lead.send(&nodev1.Frame{Payload: &nodev1.Frame_FactsAck{FactsAck: &nodev1.FactsAck{Incarnation: 99, Index: 2}}}) // of another agent
		n.cut()
		n.lead.desired(2, false, want("b", 1, kill)) // the link is gone: has no effect
		n.lead.locked(func() { n.lead.holdFacts = false })
		wait(2 * time.Second)
		all := append(n.lead.told("a"), n.lead.told("b")...)
		same(t, "facts", all, []string{"1:started", "1:started"})
		same(t, "facts that came twice", n.lead.resent, 0)
		same(t, "hellos", len(n.lead.hellos), 2)
		same(t, "resume index", n.lead.hellos[1].GetResumeIndex(), uint64(1))
		n.cut()
		wait(2 * time.Second)
		same(t, "after they were committed", n.lead.resent, 0)
	})
}

// A frame with facts is lost on a link that stays, and no other follows by which it would be missed.
func TestLostFactsAreSentAgainOnTheSameLink(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		times := func(since int) (out []time.Duration) {
			n.lead.locked(func() {
				for _, at := range n.lead.factTimes[since:] {
					out = append(out, at.Sub(n.lead.factTimes[since]))
				}
			})
			return out
		}
		frames := len(times(0))
		n.lead.locked(func() { n.lead.loseFacts = 3 })
		n.lead.deliver("s", 1, msg(1, normal))
		wait(factsPatienceMin - time.Millisecond)
		same(t, "facts", n.lead.told("s"), []string{"1:started"})
		wait(time.Minute)
		same(t, "facts", n.lead.told("s"), []string{"1:started", "1:turn 1"})
		same(t, "facts that came twice", n.lead.resent, 0)
		same(t, "sent again after", times(frames), []time.Duration{0, factsPatienceMin, 3 * factsPatienceMin, 7 * factsPatienceMin})

		// The fact has come, and its ack is what is lost: it is said again, and then no more.
		frames = len(times(0))
		n.lead.locked(func() { n.lead.holdFacts = true })
		n.lead.deliver("s", 1, msg(2, normal))
		wait(factsPatienceMin / 2)
		n.lead.locked(func() { n.lead.holdFacts = false })
		wait(time.Minute)
		same(t, "facts", n.lead.told("s"), []string{"1:started", "1:turn 1", "1:turn 2"})
		same(t, "facts that came twice", n.lead.resent, 1)
		same(t, "sent again after an ack was lost", times(frames), []time.Duration{0, factsPatienceMin})
		same(t, "links", len(n.lead.hellos), 1)
		same(t, "messages given", n.world.given("s"), []uint64{1, 2})
	})
}

// An ack that comes late, of some of what is on its way, is a sign that the others are coming too.
func TestFactsThatAreAckedSlowlyAreNotSentAgain(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.locked(func() { n.lead.holdFacts = true })
		n.lead.desired(1, true, toRun("a", 1), toRun("b", 1), toRun("c", 1))
		for index := range uint64(3) {
			wait(factsPatienceMin - time.Millisecond)
			n.lead.send(&nodev1.Frame{Payload: &nodev1.Frame_FactsAck{FactsAck: &nodev1.FactsAck{Incarnation: n.agent.Incarnation(), Index: index + 1}}})
		}
		wait(time.Minute)
		same(t, "facts that came twice", n.lead.resent, 0)
	})
}

func TestFullFactsHoldMessagesBackAndDropNothing(t *testing.T) {
	inBubble(t, func(n *node) {
		n.opts = func(o *Options) { o.MaxFactsUnacked = 5 }
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lead.locked(func() { n.lead.holdFacts = true })
		var ms []*apiv1.Message
		for i := range 20 {
			ms = append(ms, msg(uint64(i+1), normal))
		}
		n.lead.deliver("s", 1, ms...)
		wait(5 * time.Second)
		if got := len(n.world.given("s")); got > 5 {
			t.Errorf("%d messages were given while no fact was committed", got)
		}
		n.lead.locked(func() { n.lead.holdFacts = false })
		n.cut()
		wait(5 * time.Second)
		same(t, "given", len(n.world.given("s")), 20)
		turns := 0
		for _, f := range n.lead.told("s") {
			if strings.HasPrefix(f, "1:turn") {
				turns++
			}
		}
		same(t, "turns reported", turns, 20)
	})
}

func TestInventoryAndVerbs(t *testing.T) {
	inBubble(t, func(n *node) {
		n.world.think = -1
		n.start()
		n.lead.desired(1, true, toRun("a", 1), toRun("b", 3))
		n.lead.deliver("a", 1, msg(1, normal), msg(2, normal))
		n.world.tree("b").die(session.Exit{Cause: session.CauseFailed, Code: 9})
		wait(0)
		inv := n.lead.inventory()
		same(t, "sessions", len(inv), 2)
		same(t, "a", inv["a"].GetPhase(), apiv1.Session_RUNNING)
		same(t, "a's inbox", inv["a"].GetInbox(), []uint64{1, 2})
		same(t, "a's pid", inv["a"].GetPid(), int32(4242))
		same(t, "b", inv["b"].GetPhase(), apiv1.Session_FAILED)
		same(t, "b's exit", inv["b"].GetExit().GetCode(), int32(9))
		same(t, "b's epoch", inv["b"].GetEpoch(), uint32(3))

		spawn := n.lead.request(&nodev1.Frame{Epoch: 1, Payload: &nodev1.Frame_SpawnSession{SpawnSession: &nodev1.SpawnSession{Session: toRun("c", 1)}}})
		same(t, "session_spawned", spawn.GetSessionSpawned().GetSession().GetPhase(), apiv1.Session_RUNNING)
		stale := n.lead.request(&nodev1.Frame{Payload: &nodev1.Frame_SpawnSession{SpawnSession: &nodev1.SpawnSession{Session: toRun("b", 2)}}})
		same(t, "a stale epoch", stale.GetError().GetCode(), "FAILED_PRECONDITION")
		get := n.lead.request(&nodev1.Frame{Payload: &nodev1.Frame_GetSession{GetSession: &nodev1.GetSession{SessionId: "c"}}})
		same(t, "session_state", get.GetSessionState().GetSessionId(), "c")
		none := n.lead.request(&nodev1.Frame{Payload: &nodev1.Frame_GetSession{GetSession: &nodev1.GetSession{SessionId: "nobody"}}})
		same(t, "get_session of none", none.GetError().GetCode(), "NOT_FOUND")
		bad := n.lead.request(&nodev1.Frame{Payload: &nodev1.Frame_SpawnSession{SpawnSession: &nodev1.SpawnSession{Session: toRun("../x", 1)}}})
		same(t, "a session id that leads out", bad.GetError().GetCode(), "INVALID_ARGUMENT")
		end := n.lead.request(&nodev1.Frame{Epoch: 1, Payload: &nodev1.Frame_TerminateSession{TerminateSession: &nodev1.TerminateSession{SessionId: "c", Grace: durationpb.New(time.Second)}}})
		same(t, "session_terminated", end.GetSessionTerminated().GetSession().GetPhase(), apiv1.Session_TERMINATED)
		again := n.lead.request(&nodev1.Frame{Payload: &nodev1.Frame_TerminateSession{TerminateSession: &nodev1.TerminateSession{SessionId: "c"}}})
		same(t, "of one that has ended", again.GetSessionTerminated().GetSession().GetPhase(), apiv1.Session_TERMINATED)
		restore := n.lead.request(&nodev1.Frame{Payload: &nodev1.Frame_RestoreSession{RestoreSession: &nodev1.RestoreSession{Session: toRun("d", 1)}}})
		same(t, "restore_session without a checkpoint", restore.GetError().GetCode(), "INVALID_ARGUMENT")
		h := n.lead.request(&nodev1.Frame{Payload: &nodev1.Frame_GetHealth{GetHealth: &nodev1.GetHealth{}}})
		same(t, "health", h.GetHealthResponse().GetStatus(), apiv1.Node_HEALTHY)
		same(t, "active sessions", h.GetHealthResponse().GetHealth().GetActiveSessions(), uint32(1))
		odd := n.lead.request(&nodev1.Frame{Payload: &nodev1.Frame_Heartbeat{Heartbeat: &nodev1.Heartbeat{}}})
		same(t, "a frame that is not for nodes", odd.GetError().GetCode(), "INVALID_ARGUMENT")
	})
}

func TestForgottenDirectoriesGo(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(1, true, toRun("a", 1), toRun("b", 1), toRun("ghost", 1))
		for _, id := range []string{"a", "b"} {
			write(t, filepath.Join(n.dir, "sessions", id, "workspace", "deep", "file"))
			n.world.tree(id).die(session.Exit{Cause: session.CauseCompleted})
		}
		wait(0)
		if err := os.Chmod(filepath.Join(n.dir, "sessions", "a", "workspace", "deep"), 0o500); err != nil {
			t.Fatal(err)
		}
		n.lead.desired(2, false, want("a", 1, forget), want("ghost", 1, forget))
		wait(0)
		if n.world.alive("ghost") {
			t.Error("a session that is held for ended lives on")
		}
		exists(t, n.dir, "sessions/a", false)
		exists(t, n.dir, "sessions/ghost", false)
		exists(t, n.dir, "sessions/b/workspace/deep/file", true)
		n.lead.desired(3, true)
		wait(0)
		exists(t, n.dir, "sessions/b", false)
		same(t, "inventory", len(n.lead.inventory()), 0)
		n.stop()
		if left, _ := os.ReadDir(filepath.Join(n.dir, "trash")); len(left) != 0 {
			t.Errorf("the trash holds %d entries", len(left))
		}
		n.start()
		same(t, "inventory of the next agent", len(n.lead.inventory()), 0)
	})
}

func TestEndedSessionsAreKeptUpToABound(t *testing.T) {
	inBubble(t, func(n *node) {
		n.opts = func(o *Options) { o.MaxEndedKept = 2 }
		n.start()
		for i, id := range []string{"a", "b", "c", "d"} {
			n.lead.desired(uint64(i+1), false, toRun(id, 1))
			n.world.tree(id).die(session.Exit{Cause: session.CauseCompleted})
			wait(time.Second)
		}
		exists(t, n.dir, "sessions/a", false)
		exists(t, n.dir, "sessions/b", false)
		exists(t, n.dir, "sessions/c/workspace", true)
		n.stop()
		n.opts = func(o *Options) { o.MaxEndedKept = 1 }
		n.lead.locked(func() { n.lead.holdFacts = true })
		n.start()
		exists(t, n.dir, "sessions/c/workspace", true) // its end may not be committed
		n.lead.locked(func() { n.lead.holdFacts = false })
		n.lead.desired(9, false, toRun("e", 1))
		n.world.tree("e").die(session.Exit{Cause: session.CauseCompleted})
		wait(time.Second)
		exists(t, n.dir, "sessions/c", false)
	})
}

func TestWhatTheClusterHasSeenRunIsNotStartedAgain(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		d := toRun("s", 3)
		d.Started = true
		n.lead.desired(1, false, d)
		same(t, "facts", n.lead.told("s"), []string{"3:exited lost"})
		same(t, "starts", len(n.world.started()), 0)
		n.lead.desired(2, false, toRun("s", 4))
		same(t, "the next epoch", n.world.started(), []string{"s/4"})
	})
}

func write(t *testing.T, name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func exists(t *testing.T, dir, name string, want bool) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != want {
		t.Errorf("%s: exists is %t, want %t", name, err == nil, want)
	}
}

func TestEndInGoodOrderIsQuickAndLeavesSessions(t *testing.T) {
	inBubble(t, func(n *node) {
		n.world.think = -1
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lead.deliver("s", 1, msg(1, normal))
		began := time.Now()
		n.stop()
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("the end took %s", d)
		}
		if !n.world.alive("s") {
			t.Error("the end of the agent ended its session")
		}
		synctest.Wait()
		if !slices.ContainsFunc(n.lead.got, func(f *nodev1.Frame) bool { return f.GetGoodbye() != nil }) {
			t.Error("no goodbye was said")
		}
	})
}

func TestEndOnStopEndsEverySessionAndSaysSo(t *testing.T) {
	inBubble(t, func(n *node) {
		n.opts = func(o *Options) { o.EndOnStop = true }
		n.world.stubborn = 2 * time.Second
		n.start()
		n.lead.desired(1, true, toRun("a", 1), toRun("b", 1))
		done := make(chan struct{})
		go func() { defer close(done); n.stop() }()
		wait(time.Second)
		n.lead.desired(2, false, toRun("late", 1))
		<-done
		same(t, "starts", n.world.started(), []string{"a/1", "b/1"})
		for _, id := range []string{"a", "b"} {
			if n.world.alive(id) {
				t.Errorf("%s outlived its agent", id)
			}
			same(t, id, n.lead.told(id), []string{"1:started", "1:exited evicted"})
		}
	})
}
