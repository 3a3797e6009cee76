// Calls of servers that are gone, in simulated time: who is gone when, and what becomes of its calls.

package leader

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
)

// stageServers answers until they are made silent.
type stageServers struct {
	mu     sync.Mutex
	silent map[string]time.Time
	left   map[string]bool
	ids    []string
}

func newStageServers(ids ...string) *stageServers {
	return &stageServers{silent: map[string]time.Time{}, left: map[string]bool{}, ids: ids}
}

func (s *stageServers) presences() []cluster.Presence {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []cluster.Presence
	for _, id := range s.ids {
		p := cluster.Presence{ID: id, Heard: time.Now(), Left: s.left[id]}
		if since, ok := s.silent[id]; ok {
			p.Heard = since
		}
		all = append(all, p)
	}
	return all
}

func (s *stageServers) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *stageServers) silence(id string) { s.change(func() { s.silent[id] = time.Now() }) }

func (s *stageServers) speak(id string) { s.change(func() { delete(s.silent, id) }) }

// withServers is a stage whose leader hears of servers.
func withServers(t *testing.T, servers *stageServers) *stage {
	s := newStage(t)
	s.end()
	s.leader.opts.Servers = servers.presences
	s.reign(2)
	return s
}

// submit takes calls on a server.
func (s *stage) submit(server string, from, count int, change ...func(*clusterv1.SubmitCall)) {
	s.t.Helper()
	var commands []*clusterv1.Command
	for i := from; i < from+count; i++ {
		c := &clusterv1.SubmitCall{
			Key: &clusterv1.CallKey{Owner: "o", Session: "c", RequestId: fmt.Sprint(i)}, Tool: "session_send", Priority: apiv1.Priority_NORMAL,
			Deadline: time.Now().Add(time.Hour).UnixNano(), ServerId: server, Repeatable: true,
		}
		for _, f := range change {
			f(c)
		}
		commands = append(commands, &clusterv1.Command{Kind: &clusterv1.Command_SubmitCall{SubmitCall: c}})
	}
	if err := s.log.ProposeAsync(func(r []state.Result, err error) {
		for i := range r {
			if r[i].Err != nil {
				s.t.Errorf("submit: %v", r[i].Err)
			}
		}
	}, commands...); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) on(server string) (n int) {
	for range s.state.View().CallsOn(server) {
		n++
	}
	return n
}

// after lets so much time pass.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func assigns(c *clusterv1.Command) bool { return c.GetAssignCalls() != nil }

func TestCallsOfALostServerGoToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := newStageServers("s1", "s2", "s3")
		s := withServers(t, servers)
		defer func() { s.end() }()
		s.submit("s2", 0, callsPerCommand+10)
		s.submit("s1", 5000, 3)
		s.submit("s2", 6000, 1, func(c *clusterv1.SubmitCall) { c.Begin, c.Repeatable = true, false })
		after(time.Minute)
		if s.on("s2") != callsPerCommand+11 {
			t.Fatal("calls were taken from a server that is there")
		}
		servers.silence("s2")
		after(serverSilence - tickEvery - time.Millisecond)
		if n := s.log.count(assigns); n != 0 {
			t.Fatal("a server was given up before its time")
		}
		servers.speak("s2") // it was slow
		after(serverSilence)
		if n := s.log.count(assigns); n != 0 {
			t.Fatal("a server that is heard of again was given up")
		}
		servers.silence("s2")
		after(serverSilence + 2*tickEvery)
		if a, b, c := s.on("s1"), s.on("s2"), s.on("s3"); b != 0 || a+c != callsPerCommand+13 || a < 200 || c < 200 {
			t.Errorf("the calls went to s1: %d, s2: %d, s3: %d", a, b, c)
		}
		dead := s.state.View().Call(queue.Key{Owner: "o", Session: "c", RequestID: "6000"})
		if dead.Status != queue.Dead || !strings.Contains(dead.Outcome.Message, "its server (s2) was lost while it ran") {
			t.Errorf("what may not be repeated: %+v", dead)
		}
		if n := s.log.count(assigns); n != 2 {
			t.Errorf("%d commands, want a piece in each of 2", n)
		}
	})
}

func TestServersThatStopOrWereRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := newStageServers("s1", "s2", "s3")
		s := withServers(t, servers)
		defer func() { s.end() }()
		s.submit("s2", 0, 5)
		s.submit("s3", 100, 5)
		servers.change(func() { servers.left["s2"] = true })
		after(10 * time.Second)
		if s.on("s2") != 5 {
			t.Fatal("calls were taken from a server that is still ending them")
		}
		servers.silence("s2")
		after(leftSilence + 2*tickEvery)
		if s.on("s2") != 0 || s.on("s1")+s.on("s3") != 10 {
			t.Errorf("the calls of a server that was stopped: s1 %d, s2 %d, s3 %d", s.on("s1"), s.on("s2"), s.on("s3"))
		}
		servers.change(func() { servers.ids = []string{"s1", "s2"} })
		after(2 * tickEvery)
		if s.on("s1") != 10 {
			t.Errorf("the calls of a server that was removed: s1 %d, s2 %d, s3 %d", s.on("s1"), s.on("s2"), s.on("s3"))
		}
	})
}

// TestANewLeaderListensFirst: who was not heard of yet by this leader may be there all the same.
func TestANewLeaderListensFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := newStageServers("s1", "s2")
		servers.silent["s2"] = time.Time{}
		s := withServers(t, servers)
		s.submit("s2", 0, 1)
		after(serverSilence - 2*tickEvery)
		s.end()
		s.reign(3)
		defer func() { s.end() }()
		after(serverSilence - 2*tickEvery)
		if s.on("s2") != 1 {
			t.Fatal("a new leader gave up a server that it had no time to hear of")
		}
		// The log takes nothing: it is tried again, one proposal at a time.
		s.log.set(fault.New(fault.Unavailable, "no majority"), false)
		after(2 * time.Second)
		s.log.set(nil, false)
		after(2 * tickEvery)
		if s.on("s2") != 0 || s.on("s1") != 1 {
			t.Error("the call was not given to the other server")
		}
	})
}

// TestASlowLogIsAskedOnce: while what was asked for is on its way, it is not asked for again.
func TestASlowLogIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := newStageServers("s1", "s2")
		s := withServers(t, servers)
		defer func() { s.end() }()
		s.submit("s2", 0, 3)
		s.submit("s1", 100, 3, func(c *clusterv1.SubmitCall) { c.Deadline = time.Now().Add(time.Second).UnixNano() })
		s.log.hold()
		servers.silence("s2")
		after(time.Minute)
		expires := func(c *clusterv1.Command) bool { return c.GetExpireCalls() != nil }
		if a, e := s.log.count(assigns), s.log.count(expires); a != 1 || e != 1 {
			t.Errorf("the log was asked %d and %d times", a, e)
		}
		s.log.release()
		after(2 * tickEvery)
		if s.on("s1") != 3 || s.on("s2") != 0 {
			t.Errorf("s1: %d, s2: %d", s.on("s1"), s.on("s2"))
		}
	})
}

func TestNobodyElseIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := newStageServers("s1", "s2")
		s := withServers(t, servers)
		defer func() { s.end() }()
		s.submit("s2", 0, 1)
		servers.silence("s2")
		servers.change(func() { servers.left["s1"] = true })
		after(time.Minute)
		if n := s.log.count(assigns); n != 0 || s.on("s2") != 1 {
			t.Errorf("a call went to a server that stops")
		}
	})
}

func TestCallsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := withServers(t, newStageServers("s1"))
		defer func() { s.end() }()
		in := func(d time.Duration) func(*clusterv1.SubmitCall) {
			return func(c *clusterv1.SubmitCall) { c.Deadline = time.Now().Add(d).UnixNano() }
		}
		s.submit("s1", 0, callsPerCommand+1, in(10*time.Second))
		s.submit("s1", 5000, 1, in(30*time.Second))
		after(10*time.Second + callGrace - time.Millisecond)
		if n := s.on("s1"); n != callsPerCommand+2 {
			t.Fatalf("%d calls wait: some were ended before their time", n)
		}
		after(3 * tickEvery)
		if n := s.on("s1"); n != 1 {
			t.Errorf("%d calls wait", n)
		}
		if c := s.state.View().Call(queue.Key{Owner: "o", Session: "c", RequestID: "0"}); c.Outcome == nil || c.Outcome.Code != queue.CodeTimeout {
			t.Errorf("%+v", c)
		}
		// And what is over is collected in its time.
		after(30*time.Second + callGrace)
		after(12 * time.Minute)
		if st := s.state.View().Stats(); st.Calls.Total() != 0 {
			t.Errorf("%+v", st.Calls)
		}
	})
}
