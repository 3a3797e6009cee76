// A crowd of nodes that do what they are told, as far as a test lets them.

package leader

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/session"
)

// crowd is the nodes of a leader.
type crowd struct {
	t      *testing.T
	log    *soleLog
	hub    *soleHub
	l      *Leader
	nodes  []*crowdNode
	frozen map[string]bool // sessions that do not leave, though they were told to
	full   map[string]bool // sessions of which no checkpoint can be made
}

// crowdNode is one of them.
type crowdNode struct {
	name  string
	link  *fakeLink
	facts uint64
	told  map[string]*nodev1.DesiredSession // what was last told of a session
	leave []string                          // sessions that were told to leave, in that order

	drains []*nodev1.DrainState // what its agent was told of the drain that it asked for
}

func newCrowd(t *testing.T, log *soleLog, hub *soleHub, l *Leader, names ...string) *crowd {
	t.Helper()
	c := &crowd{t: t, log: log, hub: hub, l: l, frozen: map[string]bool{}, full: map[string]bool{}}
	for _, name := range names {
		c.nodes = append(c.nodes, &crowdNode{name: name, link: link(t, hub, name), told: map[string]*nodev1.DesiredSession{}})
	}
	return c
}

func (c *crowd) node(id string) *crowdNode {
	for _, n := range c.nodes {
		if "id-"+n.name == id {
			return n
		}
	}
	c.t.Fatalf("no node %s", id)
	return nil
}

// run spawns sessions on a node and has them run.
func (c *crowd) run(node string, change func(*apiv1.SessionSpec), ids ...string) {
	c.t.Helper()
	for _, id := range ids {
		spawn(c.t, c.log, id, "id-"+node, func(s *apiv1.SessionSpec) {
			s.CheckpointEvery, s.Restart = "5m", "always"
			if change != nil {
				change(s)
			}
		})
	}
	c.settle()
}

// listen takes in what the nodes were told.
func (c *crowd) listen() {
	synctest.Wait()
	for _, n := range c.nodes {
		for _, f := range n.link.take() {
			if d := f.GetDrainState(); d != nil {
				n.drains = append(n.drains, d)
			}
			for _, d := range f.GetDesired().GetSessions() {
				n.told[d.GetSessionId()] = d
				if d.GetAction() == nodev1.DesiredSession_LEAVE && !slices.Contains(n.leave, d.GetSessionId()) {
					n.leave = append(n.leave, d.GetSessionId())
				}
			}
		}
	}
}

// start has the nodes start what they were told to, and returns what that was.
func (c *crowd) start() (ids []string) {
	c.listen()
	for _, n := range c.nodes {
		var facts []*nodev1.Fact
		for id, d := range n.told {
			if d.GetAction() == nodev1.DesiredSession_RUN && !d.GetStarted() {
				delete(n.told, id)
				ids = append(ids, id)
				facts = append(facts, &nodev1.Fact{SessionId: id, Epoch: d.GetEpoch(), Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: 7}}})
			}
		}
		n.report(c, facts...)
	}
	return ids
}

// left has a session leave its node, or say that it cannot be saved.
func (c *crowd) left(n *crowdNode, id string) {
	d := n.told[id]
	n.leave = slices.DeleteFunc(n.leave, func(o string) bool { return o == id })
	if c.full[id] {
		n.report(c, &nodev1.Fact{SessionId: id, Epoch: d.GetEpoch(), Kind: &nodev1.Fact_CheckpointFailed{CheckpointFailed: &nodev1.CheckpointFailed{Cause: "no room", Move: d.GetMove()}}})
		return
	}
	manifest, seq := sha256.Sum256(fmt.Append(nil, id, d.GetEpoch())), d.GetCheckpointSequence()+1
	n.report(c,
		&nodev1.Fact{SessionId: id, Epoch: d.GetEpoch(), Kind: &nodev1.Fact_Captured{Captured: &nodev1.Captured{Sequence: seq}}},
		&nodev1.Fact{SessionId: id, Epoch: d.GetEpoch(), Kind: &nodev1.Fact_Checkpointed{Checkpointed: &nodev1.Checkpointed{Sequence: seq, Manifest: manifest[:], Move: d.GetMove()}}},
		&nodev1.Fact{SessionId: id, Epoch: d.GetEpoch(), Kind: &nodev1.Fact_Exited{Exited: &nodev1.Exited{Exit: &apiv1.Session_Exit{Cause: "evicted"}}}})
}

func (n *crowdNode) report(c *crowd, facts ...*nodev1.Fact) {
	if len(facts) == 0 {
		return
	}
	for _, f := range facts {
		n.facts++
		f.Index = n.facts
	}
	c.hub.frame(n.link, &nodev1.Frame{Payload: &nodev1.Frame_Facts{Facts: &nodev1.Facts{Incarnation: 1, Facts: facts}}})
	synctest.Wait()
}

// settle has the nodes do everything that they are told, until they are told nothing more.
func (c *crowd) settle() {
	for busy := true; busy; {
		busy = len(c.start()) > 0
		for _, n := range c.nodes {
			for _, id := range slices.Clone(n.leave) {
				if !c.frozen[id] {
					busy = true
					c.left(n, id)
				}
			}
		}
	}
}

// pass lets time pass: the nodes keep their leases, and do what they are told.
func (c *crowd) pass(d time.Duration) {
	for ; d > 0; d -= time.Second {
		time.Sleep(min(d, time.Second))
		c.beat()
		c.settle()
	}
}

func (c *crowd) beat() {
	for _, n := range c.nodes {
		c.hub.frame(n.link, &nodev1.Frame{Payload: &nodev1.Frame_Heartbeat{Heartbeat: &nodev1.Heartbeat{SentAt: 1}}})
	}
	synctest.Wait()
}

func (c *crowd) session(id string) *session.Session { return c.log.store.View().Session(id) }

// where asserts on which node a session runs.
func (c *crowd) where(id, node string) {
	c.t.Helper()
	if s := c.session(id); s.Phase != session.Running || s.NodeID != "id-"+node {
		c.t.Errorf("%s is %s on %s (%s), want RUNNING on %s", id, s.Phase, s.NodeID, s.Reason, node)
	}
}

func (c *crowd) phase(id string, want session.Phase) {
	c.t.Helper()
	if s := c.session(id); s.Phase != want {
		c.t.Errorf("%s is %s (%s), want %s", id, s.Phase, s.Reason, want)
	}
}

func (c *crowd) drain(node string, deadline time.Duration, force bool) {
	c.t.Helper()
	c.log.do(c.t, &clusterv1.Command{Kind: &clusterv1.Command_DrainNode{DrainNode: &clusterv1.DrainNode{
		NodeId: "id-" + node, Deadline: time.Now().Add(deadline).UnixNano(), Force: force,
	}}})
	synctest.Wait()
}

func (c *crowd) drained(node string) *state.Drain { return c.log.store.View().Node("id-" + node).Drain }

func (c *crowd) cordon(node string, cordoned bool) {
	c.t.Helper()
	c.log.do(c.t, &clusterv1.Command{Kind: &clusterv1.Command_SetNodeSchedulable{SetNodeSchedulable: &clusterv1.SetNodeSchedulable{NodeId: "id-" + node, Schedulable: !cordoned}}})
	synctest.Wait()
}

func (c *crowd) migrate(id, to string) {
	c.t.Helper()
	c.log.do(c.t, &clusterv1.Command{Kind: &clusterv1.Command_MigrateSession{MigrateSession: &clusterv1.MigrateSession{SessionId: id, Epoch: c.session(id).Epoch, NodeId: "id-" + to}}})
	synctest.Wait()
}
