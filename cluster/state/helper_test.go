// Helpers of the tests: commands in few words, and a generator of plausible histories.

package state

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

const second = int64(1e9)

func cmd(m any) *clusterv1.Command {
	switch k := m.(type) {
	case *clusterv1.InitCluster:
		return &clusterv1.Command{Kind: &clusterv1.Command_InitCluster{InitCluster: k}}
	case *clusterv1.SpawnSession:
		return &clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: k}}
	case *clusterv1.PlaceSession:
		return &clusterv1.Command{Kind: &clusterv1.Command_PlaceSession{PlaceSession: k}}
	case *clusterv1.TerminateSession:
		return &clusterv1.Command{Kind: &clusterv1.Command_TerminateSession{TerminateSession: k}}
	case *clusterv1.SendMessage:
		return &clusterv1.Command{Kind: &clusterv1.Command_SendMessage{SendMessage: k}}
	case *clusterv1.ApplyFacts:
		return &clusterv1.Command{Kind: &clusterv1.Command_ApplyFacts{ApplyFacts: k}}
	case *clusterv1.RegisterNode:
		return &clusterv1.Command{Kind: &clusterv1.Command_RegisterNode{RegisterNode: k}}
	case *clusterv1.SetNodeStatus:
		return &clusterv1.Command{Kind: &clusterv1.Command_SetNodeStatus{SetNodeStatus: k}}
	case *clusterv1.LoseNode:
		return &clusterv1.Command{Kind: &clusterv1.Command_LoseNode{LoseNode: k}}
	case *clusterv1.SetNodeSchedulable:
		return &clusterv1.Command{Kind: &clusterv1.Command_SetNodeSchedulable{SetNodeSchedulable: k}}
	case *clusterv1.RemoveNode:
		return &clusterv1.Command{Kind: &clusterv1.Command_RemoveNode{RemoveNode: k}}
	case *clusterv1.CreateToken:
		return &clusterv1.Command{Kind: &clusterv1.Command_CreateToken{CreateToken: k}}
	case *clusterv1.RevokeToken:
		return &clusterv1.Command{Kind: &clusterv1.Command_RevokeToken{RevokeToken: k}}
	case *clusterv1.RetryDeadLetters:
		return &clusterv1.Command{Kind: &clusterv1.Command_RetryDeadLetters{RetryDeadLetters: k}}
	case *clusterv1.PurgeDeadLetters:
		return &clusterv1.Command{Kind: &clusterv1.Command_PurgeDeadLetters{PurgeDeadLetters: k}}
	case *clusterv1.BuryMessages:
		return &clusterv1.Command{Kind: &clusterv1.Command_BuryMessages{BuryMessages: k}}
	case *clusterv1.CollectGarbage:
		return &clusterv1.Command{Kind: &clusterv1.Command_CollectGarbage{CollectGarbage: k}}
	case *clusterv1.SetPendingReason:
		return &clusterv1.Command{Kind: &clusterv1.Command_SetPendingReason{SetPendingReason: k}}
	case *clusterv1.RemoveSession:
		return &clusterv1.Command{Kind: &clusterv1.Command_RemoveSession{RemoveSession: k}}
	case *clusterv1.CheckpointSession:
		return &clusterv1.Command{Kind: &clusterv1.Command_CheckpointSession{CheckpointSession: k}}
	case *clusterv1.MigrateSession:
		return &clusterv1.Command{Kind: &clusterv1.Command_MigrateSession{MigrateSession: k}}
	case *clusterv1.CancelMigration:
		return &clusterv1.Command{Kind: &clusterv1.Command_CancelMigration{CancelMigration: k}}
	case *clusterv1.PauseSession:
		return &clusterv1.Command{Kind: &clusterv1.Command_PauseSession{PauseSession: k}}
	case *clusterv1.ResumeSession:
		return &clusterv1.Command{Kind: &clusterv1.Command_ResumeSession{ResumeSession: k}}
	case *clusterv1.ForkSession:
		return &clusterv1.Command{Kind: &clusterv1.Command_ForkSession{ForkSession: k}}
	case *clusterv1.RewindSession:
		return &clusterv1.Command{Kind: &clusterv1.Command_RewindSession{RewindSession: k}}
	case *clusterv1.DrainNode:
		return &clusterv1.Command{Kind: &clusterv1.Command_DrainNode{DrainNode: k}}
	case *clusterv1.EndDrain:
		return &clusterv1.Command{Kind: &clusterv1.Command_EndDrain{EndDrain: k}}
	case *clusterv1.DeleteCheckpoint:
		return &clusterv1.Command{Kind: &clusterv1.Command_DeleteCheckpoint{DeleteCheckpoint: k}}
	}
	if c := talkCommand(m); c != nil {
		return c
	}
	return callCommand(m)
}

// machine is a store with a clock and a next index.
type machine struct {
	t testing.TB
	*Store
	now int64
}

func newMachine(t testing.TB, change ...func(*Limits)) *machine {
	l := DefaultLimits()
	for _, f := range change {
		f(&l)
	}
	return &machine{t: t, Store: New(l), now: 1_000_000 * second}
}

// do applies the commands as one entry.
func (m *machine) do(commands ...any) []Result {
	b := &clusterv1.Batch{Time: m.now}
	for _, c := range commands {
		b.Commands = append(b.Commands, cmd(c))
	}
	return m.Apply(m.Index()+1, b)
}

// ok applies one command that must succeed.
func (m *machine) ok(command any) Result {
	m.t.Helper()
	r := m.do(command)[0]
	if r.Err != nil {
		m.t.Fatalf("%T: %v", command, r.Err)
	}
	return r
}

// refused applies one command that must be refused with the kind, and must change nothing but index and time.
func (m *machine) refused(kind fault.Kind, command any) {
	m.t.Helper()
	_ = m.refusal(kind, command)
}

// refusal is refused for those who read the error.
func (m *machine) refusal(kind fault.Kind, command any) error {
	m.t.Helper()
	before := m.content()
	r := m.do(command)[0]
	if !fault.Is(r.Err, kind) {
		m.t.Fatalf("%T: got %v, want kind %q", command, r.Err, kind)
	}
	if !bytes.Equal(before, m.content()) {
		m.t.Fatalf("%T: was refused, yet changed the state", command)
	}
	return r.Err
}

// content is the snapshot as it would be at index and time 0.
func (m *machine) content() []byte {
	v := m.View()
	z := *v.meta
	z.index, z.time = 0, 0
	return persisted(m.t, &View{txn: v.txn, meta: &z, trees: v.trees})
}

func persisted(t testing.TB, v *View) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := v.Persist(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (m *machine) session(id string) *session.Session {
	m.t.Helper()
	s := m.View().Session(id)
	if s == nil {
		m.t.Fatalf("no session %s", id)
	}
	return s
}

func (m *machine) node(name string) *Node {
	m.t.Helper()
	m.ok(register(name, 1))
	return m.View().Node("id-" + name)
}

func register(name string, incarnation uint64) *clusterv1.RegisterNode {
	return &clusterv1.RegisterNode{
		NodeId: "id-" + name, Name: name, Address: "10.0.0.1:1", Version: "v1", Pid: 7, Incarnation: incarnation,
		Labels:       map[string]string{"zone": "a", "rack": "2"},
		Capabilities: &apiv1.Capabilities{CanSpawnSessions: true, CustomCapabilities: map[string]bool{"pty": true, "cgroup": false}},
	}
}

func spec(change ...func(*apiv1.SessionSpec)) *apiv1.SessionSpec {
	s := &apiv1.SessionSpec{Command: []string{"/bin/agent", "--loop"}, Env: map[string]string{"A": "1", "B": "2"}, Labels: map[string]string{"team": "x"}}
	for _, f := range change {
		f(s)
	}
	return s
}

func spawn(id, node string, change ...func(*apiv1.SessionSpec)) *clusterv1.SpawnSession {
	return &clusterv1.SpawnSession{SessionId: id, Spec: spec(change...), NodeId: node, Placement: "least sessions", Actor: "ann"}
}

func send(id, text string) *clusterv1.SendMessage {
	return &clusterv1.SendMessage{SessionId: id, Text: []byte(text)}
}

// facts numbers the facts after the node's last one.
func (m *machine) facts(node string, facts ...*nodev1.Fact) *clusterv1.ApplyFacts {
	n := m.View().Node("id-" + node)
	for i, f := range facts {
		f.Index = n.FactIndex + uint64(i) + 1
	}
	return &clusterv1.ApplyFacts{NodeId: n.ID, Incarnation: n.Incarnation, Facts: facts}
}

func started(id string, epoch uint32) *nodev1.Fact {
	return &nodev1.Fact{SessionId: id, Epoch: epoch, Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: 42}}}
}

func exited(id string, epoch uint32, code int32, outstanding uint64) *nodev1.Fact {
	cause := session.CauseCompleted
	if code != 0 {
		cause = session.CauseFailed
	}
	return &nodev1.Fact{SessionId: id, Epoch: epoch, Kind: &nodev1.Fact_Exited{Exited: &nodev1.Exited{
		Exit: &apiv1.Session_Exit{Code: code, Cause: cause}, OutputLine: 9, Outstanding: outstanding,
	}}}
}

func handed(id string, epoch uint32, sequence uint64) *nodev1.Fact {
	return &nodev1.Fact{SessionId: id, Epoch: epoch, Kind: &nodev1.Fact_MessageDelivered{MessageDelivered: &nodev1.MessageDelivered{Sequence: sequence}}}
}

func turn(id string, epoch uint32, sequence uint64, result string) *nodev1.Fact {
	return &nodev1.Fact{SessionId: id, Epoch: epoch, Kind: &nodev1.Fact_TurnEnded{TurnEnded: &nodev1.TurnEnded{Sequence: sequence, Result: []byte(result), OutputLine: sequence}}}
}

func declined(id string, epoch uint32, sequence uint64, cause string) *nodev1.Fact {
	return &nodev1.Fact{SessionId: id, Epoch: epoch, Kind: &nodev1.Fact_MessageRefused{MessageRefused: &nodev1.MessageRefused{Sequence: sequence, Cause: cause}}}
}

// smallLimits makes every bound be reached soon.
func smallLimits() Limits {
	l := DefaultLimits()
	l.Sessions, l.Nodes, l.Tokens = 150, 12, 8
	l.MailboxMessages, l.MailboxBytes, l.MessageBytes = 12, 400, 6000
	l.ResultsPerSession, l.ResultBytesPerSession = 4, 60
	l.DeadLetters, l.DeadLetterBytes = 60, 1500
	l.Events = 100
	l.IdempotencyKeys, l.IdempotencyMinKeep, l.IdempotencyKeep = 120, 20e9, 60e9
	l.CollectRows = 20
	l.Calls, l.KeptCalls, l.CallsPerClient, l.CallBytes, l.Clients, l.DeadCalls, l.DeadCallBytes = 25, 60, 12, 2000, 9, 8, 2500
	l.DeadCallsPerOwner, l.DeadCallBytesPerOwner = 5, 1500
	l.ResultKeep, l.DeadKeep, l.ClientKeep = 30e9, 90e9, 50e9
	l.Conversations, l.ConversationsPerOwner, l.ConversationMessages = 12, 6, 9
	l.ConversationBytes, l.ConversationAnswerBytes, l.ConversationStateBytes, l.ConversationKeep = 300, 70, 1500, 40e9
	return l
}

// history makes commands that fit what the state holds, mostly.
type history struct {
	rng   *rand.Rand
	now   int64
	count int
	// noCalls leaves calls out.
	noCalls bool
}

func newHistory(seed uint64) *history {
	return &history{rng: rand.New(rand.NewPCG(seed, 1)), now: 1_000_000 * second}
}

func pick[T any](h *history, l []T) (z T) {
	if len(l) == 0 {
		return z
	}
	return l[h.rng.IntN(len(l))]
}

// batch makes an entry of up to 16 commands.
func (h *history) batch(v *View) *clusterv1.Batch {
	h.now += h.rng.Int64N(2*second) - second/4 // now and then the clock of a new leader is behind
	b := &clusterv1.Batch{Time: h.now}
	for range 1 + h.rng.IntN(16) {
		c := cmd(h.command(v))
		if h.rng.IntN(8) == 0 { // a few are repetitions
			c.Once = &clusterv1.Once{Scope: fmt.Sprintf("%T", c.GetKind()), Key: fmt.Sprint(h.rng.IntN(100)), RequestHash: uint64(h.rng.IntN(8) / 7)}
		}
		b.Commands = append(b.Commands, c)
	}
	for range h.rng.IntN(12) {
		if h.noCalls {
			break
		}
		b.Commands = append(b.Commands, cmd(h.call(v)))
	}
	for range h.rng.IntN(4) {
		b.Commands = append(b.Commands, cmd(h.talk(v)))
	}
	return b
}

func (h *history) command(v *View) any {
	nodes := slices.Collect(v.Nodes())
	node := pick(h, nodes)
	if node == nil {
		node = &Node{ID: "id-none"}
	}
	// A session somewhere after a random id; ids are spread evenly.
	some := &session.Session{ID: "none", Spec: &session.Spec{}}
	for s := range v.Sessions(fmt.Sprintf("%04x", h.rng.IntN(1<<16))) {
		some = s
		break
	}
	h.count++
	n := h.rng.IntN(1000)
	switch {
	case n < 170:
		return h.spawn(node)
	case n < 210:
		return h.move(v, some)
	case n < 260:
		for s := range v.Pending() {
			if h.rng.IntN(4) > 0 {
				continue
			}
			return &clusterv1.PlaceSession{SessionId: s.ID, Epoch: s.Epoch - uint32(h.rng.IntN(20)/19), NodeId: node.ID, Placement: "best of 3"}
		}
		return &clusterv1.PlaceSession{SessionId: some.ID, Epoch: some.Epoch, NodeId: node.ID}
	case n < 310:
		return &clusterv1.TerminateSession{SessionId: some.ID, Grace: h.rng.Int64N(5*second) - 1, Cause: pick(h, []string{"", "expired", "evicted", "odd"}), Actor: "bob"}
	case n < 560:
		c := send(some.ID, string(bytes.Repeat([]byte{'x'}, h.rng.IntN(60))))
		c.Priority = apiv1.Priority_Level(h.rng.IntN(6))
		if h.rng.IntN(3) == 0 {
			c.IdempotencyKey, c.RequestHash = fmt.Sprint("m", h.rng.IntN(200)), uint64(h.rng.IntN(20)/19)
		}
		if h.rng.IntN(10) == 0 {
			c.Deadline = h.now + h.rng.Int64N(10*second) - second
		}
		return c
	case n < 820:
		return h.facts(v, node)
	case n < 860:
		name := fmt.Sprint("n", h.rng.IntN(8))
		c := register(name, node.Incarnation+uint64(h.rng.IntN(2)))
		c.NodeId = fmt.Sprint("id-", name, "-", h.rng.IntN(3))
		if o := v.Node(c.NodeId); o != nil {
			c.Incarnation = o.Incarnation + uint64(h.rng.IntN(3)) - uint64(h.rng.IntN(8)/7)
		}
		if h.rng.IntN(2) == 0 {
			c.Capabilities.MaxConcurrentSessions, c.Capabilities.CpuMilli, c.Capabilities.MemoryBytes = 20, 4000, 4000
		}
		return c
	case n < 880:
		return &clusterv1.SetNodeStatus{NodeId: node.ID, Status: apiv1.Node_Status(h.rng.IntN(6)), Reason: pick(h, []string{"", "slow", "hot"})}
	case n < 890:
		return &clusterv1.LoseNode{NodeId: node.ID, Incarnation: node.Incarnation, Reason: "lease ended"}
	case n < 905:
		return &clusterv1.SetNodeSchedulable{NodeId: node.ID, Schedulable: h.rng.IntN(3) > 0, Actor: "ann"}
	case n < 910:
		return &clusterv1.RemoveNode{NodeId: node.ID}
	default:
		return h.rare(v, some, n)
	}
}

func (h *history) rare(v *View, some *session.Session, n int) any {
	switch {
	case n < 920:
		hash := sha256.Sum256([]byte(fmt.Sprint(h.rng.IntN(3))))
		c := &clusterv1.CreateToken{Id: fmt.Sprint("t", h.rng.IntN(12)), Name: "token", Role: pick(h, []string{"admin", "node", "king"}), Hash: hash[:], OnlyFirst: h.rng.IntN(4) == 0}
		if h.rng.IntN(2) == 0 {
			c.ExpireTime = h.now + h.rng.Int64N(100*second)
		}
		return c
	case n < 925:
		return &clusterv1.RevokeToken{Id: fmt.Sprint("t", h.rng.IntN(12))}
	case n < 940:
		for d := range v.DeadLetters("", "", LetterKey{SessionID: some.ID}) {
			return &clusterv1.RetryDeadLetters{SessionId: d.SessionID, Sequence: d.Sequence * uint64(h.rng.IntN(2))}
		}
		return &clusterv1.RetryDeadLetters{SessionId: some.ID}
	case n < 950:
		return &clusterv1.PurgeDeadLetters{SessionId: some.ID, Sequence: uint64(h.rng.IntN(3)), Namespace: pick(h, []string{"", "default", "other"})}
	case n < 965:
		c := &clusterv1.BuryMessages{SessionId: some.ID, Cause: "deadline passed"}
		for m := range v.Messages(some.ID) {
			c.Sequences = append(c.Sequences, m.Sequence)
		}
		return c
	case n < 968:
		return h.move(v, some)
	case n < 975:
		return &clusterv1.CollectGarbage{Before: h.now - h.rng.Int64N(60*second), Limit: uint32(h.rng.IntN(30))}
	case n < 990:
		return &clusterv1.SetPendingReason{SessionId: some.ID, Epoch: some.Epoch, Reason: pick(h, []string{"no node has gpu", "all are full"})}
	case n < 999:
		return &clusterv1.RemoveSession{SessionId: some.ID}
	default:
		return &clusterv1.InitCluster{ClusterId: "c1"}
	}
}

func (h *history) spawn(node *Node) any {
	c := spawn(fmt.Sprintf("%04x-%d", h.rng.IntN(1<<16), h.count), "", func(s *apiv1.SessionSpec) {
		s.Restart = pick(h, []string{"", "never", "on-failure", "always"})
		s.Namespace = pick(h, []string{"", "other"})
		s.Priority = apiv1.Priority_Level(h.rng.IntN(5))
		s.CpuMilli, s.MemoryBytes = int64(h.rng.IntN(3)*100), int64(h.rng.IntN(3)*100)
		if h.rng.IntN(3) == 0 {
			s.Name = fmt.Sprint("name-", h.rng.IntN(40))
		}
		if h.rng.IntN(4) == 0 {
			s.Grace = durationpb.New(3e9)
		}
		if h.rng.IntN(40) == 0 {
			s.Command = nil
		}
		s.CheckpointEvery = pick(h, []string{"", "turn", "5m"})
		s.KeepCheckpoints = pick(h, []uint32{0, 1, 2, 3})
		if h.rng.IntN(3) == 0 {
			s.KeepCheckpointsFor = durationpb.New(time.Duration(1+h.rng.IntN(20)) * time.Second)
		}
	})
	if h.rng.IntN(8) == 0 { // imported
		c.Checkpoint = &apiv1.Session_Checkpoint{Sequence: uint64(h.rng.IntN(4)), Manifest: fmt.Sprintf("%064x", h.count), Turn: 2, OutputLine: 5, Bytes: 9, Chunks: 1}
	}
	if h.rng.IntN(4) > 0 {
		c.NodeId = node.ID
	}
	if h.rng.IntN(3) == 0 {
		c.IdempotencyKey, c.RequestHash = fmt.Sprint("k", h.rng.IntN(100)), uint64(h.rng.IntN(20)/19)
	}
	return c
}

// move makes one of the commands that move sessions.
func (h *history) move(v *View, some *session.Session) any {
	target := pick(h, slices.Collect(v.Nodes()))
	if target == nil {
		target = &Node{ID: "id-none"}
	}
	switch h.rng.IntN(12) {
	case 9:
		d := &clusterv1.DrainNode{NodeId: target.ID, Deadline: h.now + h.rng.Int64N(20*second) - second, Force: h.rng.IntN(2) == 0, Actor: "ann"}
		if h.rng.IntN(2) == 0 {
			d.Incarnation = target.Incarnation + uint64(h.rng.IntN(4)/3)
		}
		return d
	case 10:
		end := &clusterv1.EndDrain{NodeId: target.ID, State: uint32(1 + h.rng.IntN(4)), Reason: "no room"}
		if target.Drain != nil {
			end.Number = target.Drain.Number
		}
		return end
	case 11:
		return &clusterv1.PauseSession{SessionId: some.ID, Reason: "idle", Idle: &clusterv1.Idle{Epoch: some.Epoch, Turns: some.Turns}}
	case 0, 1, 2:
		return &clusterv1.MigrateSession{SessionId: some.ID, Epoch: some.Epoch, NodeId: target.ID, Cold: h.rng.IntN(2) == 0, Actor: "ann"}
	case 3:
		return &clusterv1.CancelMigration{SessionId: some.ID, Reason: "no"}
	case 4:
		return &clusterv1.PauseSession{SessionId: some.ID, Reason: "idle"}
	case 5:
		return &clusterv1.ResumeSession{SessionId: some.ID}
	case 6:
		return &clusterv1.ForkSession{SessionId: some.ID, NewSessionId: fmt.Sprintf("%04x-%d", h.rng.IntN(1<<16), h.count), Sequence: uint64(h.rng.IntN(3))}
	case 7:
		return &clusterv1.RewindSession{SessionId: some.ID, Sequence: uint64(h.rng.IntN(4))}
	default:
		return &clusterv1.CheckpointSession{SessionId: some.ID}
	}
}

// checkpoint makes the facts of one: captured and stored, one without the other, the last before a move, or a failure.
func (h *history) checkpoint(s *session.Session, epoch uint32) []*nodev1.Fact {
	seq := uint64(1)
	if head := s.Head(); head != nil {
		seq = head.Sequence + 1
	}
	if s.Captured != nil && h.rng.IntN(2) == 0 {
		return []*nodev1.Fact{checkpointed(s.ID, epoch, s.Captured.Sequence, s.Move)}
	}
	switch h.rng.IntN(8) {
	case 0:
		return []*nodev1.Fact{{SessionId: s.ID, Epoch: epoch, Kind: &nodev1.Fact_CheckpointFailed{CheckpointFailed: &nodev1.CheckpointFailed{
			Cause: "no room", Request: s.CheckpointRequest, Move: s.Move}}}}
	case 1, 2:
		return []*nodev1.Fact{captured(s.ID, epoch, seq, s.OutputLine)}
	default:
		facts := []*nodev1.Fact{captured(s.ID, epoch, seq, s.OutputLine), checkpointed(s.ID, epoch, seq, s.Move)}
		if s.Move != 0 && h.rng.IntN(2) == 0 {
			facts = append(facts, exited(s.ID, epoch, 1, 0))
		}
		return facts
	}
}

func captured(id string, epoch uint32, sequence, line uint64) *nodev1.Fact {
	return &nodev1.Fact{SessionId: id, Epoch: epoch, Kind: &nodev1.Fact_Captured{Captured: &nodev1.Captured{Sequence: sequence, OutputLine: line}}}
}

func checkpointed(id string, epoch uint32, sequence, move uint64) *nodev1.Fact {
	manifest := sha256.Sum256([]byte(fmt.Sprint(id, epoch, sequence)))
	return &nodev1.Fact{SessionId: id, Epoch: epoch, Kind: &nodev1.Fact_Checkpointed{Checkpointed: &nodev1.Checkpointed{
		Sequence: sequence, Manifest: manifest[:], Bytes: 1000, BytesSent: 10, Chunks: 3, Move: move, Rounds: 2, Keeps: []string{"messages", "workspace"},
	}}}
}

func (h *history) facts(v *View, node *Node) any {
	c := &clusterv1.ApplyFacts{NodeId: node.ID, Incarnation: node.Incarnation - uint64(h.rng.IntN(30)/29)}
	index := node.FactIndex
	if h.rng.IntN(10) == 0 && index > 2 {
		index -= 2 // sent again
	}
	for s := range v.SessionsOnNode(node.ID) {
		if h.rng.IntN(3) > 0 {
			continue
		}
		epoch := s.Epoch - uint32(h.rng.IntN(20)/19)
		var first uint64
		for m := range v.Messages(s.ID) {
			first = m.Sequence
			break
		}
		var facts []*nodev1.Fact
		switch n := h.rng.IntN(20); {
		case (s.Phase == session.Starting || s.Phase == session.Restoring) && n < 16:
			facts = append(facts, started(s.ID, epoch))
		case n < 5 && first > 0:
			facts = append(facts, handed(s.ID, epoch, first))
		case n < 14 && first > 0:
			facts = append(facts, handed(s.ID, epoch, first), turn(s.ID, epoch, first, string(bytes.Repeat([]byte{'r'}, h.rng.IntN(40)))))
		case n < 15 && first > 0:
			facts = append(facts, declined(s.ID, epoch, first, "not a line"))
		case n < 17:
			facts = append(facts, h.checkpoint(s, epoch)...)
		case n < 19:
			facts = append(facts, exited(s.ID, epoch, int32(h.rng.IntN(2)), first*uint64(h.rng.IntN(2))))
		}
		for _, f := range facts {
			index++
			f.Index = index
			c.Facts = append(c.Facts, f)
		}
		if len(c.Facts) > 12 {
			break
		}
	}
	return c
}
