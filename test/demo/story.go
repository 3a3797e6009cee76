// The story: spawn, send, move, kill the leader, kill an agent, kill a whole node, count.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
)

// story is one run and what it measured.
type story struct {
	c       *client.Client
	program string
	data    string

	ids        []string
	spawns     []time.Duration
	accepted   atomic.Int64
	answered   int
	lost       int
	doubled    int
	wrongSums  int
	leaderGap  time.Duration
	adoption   time.Duration
	adopted    int
	agentName  string
	leaderName string
	started    time.Time
	took       time.Duration
	moves      moves
}

func newStory(c *client.Client, program, data string) *story {
	return &story{c: c, program: program, data: data}
}

func (s *story) run(ctx context.Context) error {
	if err := s.spawn(ctx); err != nil {
		return fmt.Errorf("spawn: %w", err)
	}
	step("sending %d messages to them, %d each, one after the other", sessions*messagesPerSender, messagesPerSender)
	s.started = time.Now()
	sending, sendCtx := errgroup.WithContext(ctx)
	for i := range sessions {
		sending.Go(func() error { return s.send(sendCtx, i) })
	}
	watch := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { s.progress(watch) })
	moved := make(chan struct{})
	watching.Go(func() { s.migrate(sendCtx, moved) })
	killErr := s.kills(ctx)
	err := errors.Join(killErr, sending.Wait())
	close(moved)
	close(watch)
	watching.Wait()
	s.took = time.Since(s.started)
	if err != nil {
		return err
	}
	return s.audit(ctx)
}

// spawn starts the sessions one at a time, so that each time is that of a lone caller.
func (s *story) spawn(ctx context.Context) error {
	step("spawning %d sessions", sessions)
	for i := range sessions {
		start := time.Now()
		r, err := s.c.Sessions.SpawnSession(ctx, &apiv1.SpawnSessionRequest{Wait: true, Spec: &apiv1.SessionSpec{
			Name: fmt.Sprintf("ledger-%02d", i+1), Command: []string{s.program, "ledger"}, Labels: map[string]string{"app": "ledger"},
			CheckpointEvery: "1s", Restart: "on-failure",
		}})
		if err != nil {
			return err
		}
		if r.GetSession().GetPhase() != apiv1.Session_RUNNING {
			return fmt.Errorf("session %s is %s: %s", r.GetSession().GetName(), r.GetSession().GetPhase(), r.GetSession().GetReason())
		}
		s.spawns = append(s.spawns, time.Since(start))
		s.ids = append(s.ids, r.GetSession().GetId())
	}
	return nil
}

// entry is the n-th message to a session: a name that is used once, and an amount.
func entry(i, n int) (name string, amount int) {
	return fmt.Sprintf("s%02d-m%03d", i+1, n+1), (i*31+n*17)%97 + 1
}

// send sends a session its messages. Each is accepted before the next is sent; all calls wait for each other's pace.
func (s *story) send(ctx context.Context, i int) error {
	for n := range messagesPerSender {
		name, amount := entry(i, n)
		_, err := s.c.Sessions.SendMessage(ctx, &apiv1.SendMessageRequest{
			SessionId: s.ids[i], Text: []byte(name + " " + strconv.Itoa(amount)), IdempotencyKey: name,
		})
		if err != nil {
			return fmt.Errorf("send %s: %w", name, err)
		}
		s.accepted.Add(1)
		// A human pace, so that the kills happen in the middle of the work.
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// kills kills the leader at a quarter of the messages, a node agent at a half, and all of a node at three quarters.
func (s *story) kills(ctx context.Context) error {
	total := int64(sessions * messagesPerSender)
	if err := s.waitAccepted(ctx, total/4); err != nil {
		return err
	}
	if err := s.killLeader(ctx); err != nil {
		return fmt.Errorf("kill the leader: %w", err)
	}
	if err := s.waitAccepted(ctx, total/2); err != nil {
		return err
	}
	if err := s.killAgent(ctx); err != nil {
		return fmt.Errorf("kill an agent: %w", err)
	}
	if err := s.waitAccepted(ctx, total*3/4); err != nil {
		return err
	}
	if err := s.crash(ctx); err != nil {
		return fmt.Errorf("kill a node: %w", err)
	}
	return nil
}

func (s *story) waitAccepted(ctx context.Context, n int64) error {
	return poll(ctx, func() (bool, error) { return s.accepted.Load() >= n, nil })
}

// killLeader kills the leader's process and measures until the next write was accepted.
func (s *story) killLeader(ctx context.Context) error {
	members, err := s.c.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
	if err != nil {
		return err
	}
	i := slices.IndexFunc(members.GetMembers(), func(m *apiv1.Member) bool { return m.GetRole() == apiv1.Member_LEADER })
	if i < 0 || members.GetMembers()[i].GetPid() == 0 {
		return errors.New("no member says that it leads and which process it is")
	}
	m := members.GetMembers()[i]
	s.leaderName = m.GetId()
	say("killing the leader, %s, with SIGKILL (pid %d)", m.GetId(), m.GetPid())
	before := s.accepted.Load()
	start := time.Now()
	if err := syscall.Kill(int(m.GetPid()), syscall.SIGKILL); err != nil {
		return err
	}
	// The calls under way at the kill may still be counted in the first moment; a dead leader accepts nothing more.
	settled := before + sessions
	if err := s.waitAccepted(ctx, settled+1); err != nil {
		return err
	}
	s.leaderGap = time.Since(start)
	say("a new leader accepts messages, %s after the kill", s.leaderGap.Round(time.Millisecond))
	return nil
}

// killAgent kills the agent with the most sessions and measures until all of them are back in its hands.
func (s *story) killAgent(ctx context.Context) error {
	s.moves.still.Lock()
	defer s.moves.still.Unlock()
	nodes, err := s.c.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{})
	if err != nil {
		return err
	}
	victim := slices.MaxFunc(nodes.GetNodes(), func(a, b *apiv1.Node) int { return int(a.GetSessions()) - int(b.GetSessions()) })
	s.agentName, s.adopted = victim.GetName(), int(victim.GetSessions())
	before, err := s.pids(ctx, victim.GetName())
	if err != nil {
		return err
	}
	say("killing the node agent of %s with SIGKILL (pid %d); it has %d sessions", victim.GetName(), victim.GetPid(), s.adopted)
	start := time.Now()
	if err := syscall.Kill(int(victim.GetPid()), syscall.SIGKILL); err != nil {
		return err
	}
	err = poll(ctx, func() (bool, error) {
		n, err := s.c.Nodes.GetNode(ctx, &apiv1.GetNodeRequest{Id: victim.GetId()})
		if err != nil {
			return false, err
		}
		node := n.GetNode()
		return node.GetConnection() == "connected" && node.GetPid() != victim.GetPid() && int(node.GetHealth().GetActiveSessions()) >= s.adopted, nil
	})
	if err != nil {
		return err
	}
	s.adoption = time.Since(start)
	after, err := s.pids(ctx, victim.GetName())
	if err != nil {
		return err
	}
	for id, pid := range before {
		if after[id] != pid {
			return fmt.Errorf("session %s was process %d before its agent was killed, and is %d now", id, pid, after[id])
		}
	}
	say("%s has its %d sessions again, the same processes, %s after the kill", victim.GetName(), s.adopted, s.adoption.Round(time.Millisecond))
	return nil
}

// pids are the processes of the sessions on a node.
func (s *story) pids(ctx context.Context, node string) (map[string]int32, error) {
	r, err := s.c.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{Filter: "node=" + node + ",phase=RUNNING", PageSize: 1000})
	if err != nil {
		return nil, err
	}
	out := map[string]int32{}
	for _, row := range r.GetSessions() {
		out[row.GetId()] = row.GetPid()
	}
	return out, nil
}

// audit waits until every message was answered, and compares each session's file and output with what was accepted.
func (s *story) audit(ctx context.Context) error {
	step("waiting for the last answers, and counting")
	err := poll(ctx, func() (bool, error) {
		done := 0
		r, err := s.c.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{PageSize: 1000})
		if err != nil {
			return false, err
		}
		for _, row := range r.GetSessions() {
			done += int(row.GetMailbox().GetAcked() + row.GetMailbox().GetDead())
		}
		return done >= sessions*messagesPerSender, nil
	})
	if err != nil {
		return err
	}
	for i, id := range s.ids {
		if err := s.auditSession(ctx, i, id); err != nil {
			return fmt.Errorf("audit session %d: %w", i+1, err)
		}
	}
	return nil
}

func (s *story) auditSession(ctx context.Context, i int, id string) error {
	answers := map[string]int{}
	var sums []int
	err := s.c.Logs(ctx, &apiv1.ReadLogsRequest{SessionId: id}, func(l *apiv1.LogLine) error {
		if l.GetStream() == apiv1.LogLine_STDOUT {
			name, sum, _ := strings.Cut(string(l.GetText()), " ")
			answers[name]++
			n, _ := strconv.Atoi(sum)
			sums = append(sums, n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	want := 0
	for n := range messagesPerSender {
		name, amount := entry(i, n)
		want += amount
		switch answers[name] {
		case 0:
			s.lost++
		case 1:
			s.answered++
		default:
			s.answered++
			s.doubled++
		}
	}
	if len(sums) == 0 || sums[len(sums)-1] != want {
		s.wrongSums++
	}
	return nil
}

// report prints the table and returns the exit code.
func (s *story) report(w io.Writer) int {
	slices.Sort(s.spawns)
	q := func(p float64) time.Duration { return s.spawns[min(len(s.spawns)-1, int(p*float64(len(s.spawns))))] }
	fmt.Fprintln(w)
	row := func(what, value string) { fmt.Fprintf(w, "  %-52s %s\n", what, value) }
	row("sessions spawned", strconv.Itoa(len(s.ids)))
	row("messages accepted", strconv.FormatInt(s.accepted.Load(), 10))
	row("messages answered", strconv.Itoa(s.answered))
	row("messages lost", strconv.Itoa(s.lost))
	row("messages doubled", strconv.Itoa(s.doubled))
	row("sessions whose sum is wrong", strconv.Itoa(s.wrongSums))
	row("spawn to running, p50 / p99", q(.5).Round(100*time.Microsecond).String()+" / "+q(.99).Round(100*time.Microsecond).String())
	row("without a leader ("+s.leaderName+" killed)", s.leaderGap.Round(time.Millisecond).String())
	row(fmt.Sprintf("until %d sessions were adopted (%s's agent killed)", s.adopted, s.agentName), s.adoption.Round(time.Millisecond).String())
	s.moves.report(row)
	row("sending took", s.took.Round(10*time.Millisecond).String())
	fmt.Fprintln(w)
	if s.lost+s.doubled+s.wrongSums > 0 {
		fmt.Fprintln(w, "FAILED: something was lost or doubled")
		return 1
	}
	fmt.Fprintln(w, "Nothing was lost, nothing happened twice.")
	return 0
}

// progress shows how far the sending is: a line that moves on a terminal, a line now and then elsewhere.
func (s *story) progress(stop <-chan struct{}) {
	terminal := term.IsTerminal(int(os.Stdout.Fd()))
	every := 2 * time.Second
	if terminal {
		every = 100 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	total := sessions * messagesPerSender
	show := func() {
		n := int(s.accepted.Load())
		if !terminal {
			fmt.Printf("    %d of %d messages accepted\n", n, total)
			return
		}
		const width = 40
		fmt.Printf("\r    [%-*s] %d/%d ", width, strings.Repeat("#", n*width/total), n, total)
	}
	for {
		select {
		case <-tick.C:
			show()
		case <-stop:
			show()
			if terminal {
				fmt.Println()
			}
			return
		}
	}
}

func say(format string, args ...any) {
	if term.IsTerminal(int(os.Stdout.Fd())) {
		fmt.Print("\r\033[K")
	}
	fmt.Printf("    "+format+"\n", args...)
}

// poll asks until the answer is yes; errors of single questions are asked again.
func poll(ctx context.Context, yes func() (bool, error)) error {
	var last error
	for {
		ok, err := yes()
		if err == nil && ok {
			return nil
		}
		last = err
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), last)
		}
	}
}

// freePorts finds a first port from which the ports of n servers are free.
func freePorts(n int) (int, error) {
	for base := 21000; base < 60000; base += 10 * (n + 1) {
		if allFree(base, n) {
			return base, nil
		}
	}
	return 0, errors.New("found no free ports")
}

func allFree(base, n int) bool {
	for i := range n {
		for p := range 5 {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(base+10*i+p)))
			if err != nil {
				return false
			}
			_ = l.Close()
		}
	}
	return true
}
