// A node dies with all that ran on it: how long until its sessions answer elsewhere.

package suite

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/testbed"
	"github.com/neolith/orchestrator/internal/crash"
)

const (
	lostSessions = 100
	// leaseTime is the lease of a node by default, in seconds; from its end on the cluster has lossTime.
	leaseTime   = 12
	lossTime    = 3
	lossTimeout = 2 * time.Minute
)

// ledger is a session that remembers how many lines it was told, in a file.
const ledger = `n=$(cat n 2>/dev/null || echo 0); while read -r line; do n=$((n+1)); echo $n > n; echo "$n"; done`

// NodeLoss measures failover.
func (b *Bench) NodeLoss(ctx context.Context) ([]*measure.Figure, error) {
	p50 := &measure.Figure{Part: "nodeloss", Name: "node killed: p50 until its sessions answer", Unit: "s"}
	p99 := &measure.Figure{Part: "nodeloss", Name: "node killed: p99 until its sessions answer", Unit: "s"}
	wrong := &measure.Figure{Part: "nodeloss", Name: "sessions that did not go on from their checkpoint and mailbox", Unit: ""}
	o := testbed.ClusterOptions{
		Servers: 3, Nodes: spawnNodes, NodeProgram: b.o.NodeProgram,
		NodeSettings: map[string]any{"sessions": map[string]any{"end_on_stop": true}},
	}
	for run := range min(b.o.Runs, 3) {
		err := b.withCluster(ctx, o, func(c *testbed.Cluster) error {
			times, bad, err := loseNode(ctx, c)
			if err != nil {
				return err
			}
			p50.Runs, p99.Runs = append(p50.Runs, times.Median()), append(p99.Runs, times.Quantile(.99))
			wrong.Runs = append(wrong.Runs, float64(bad))
			b.logf("nodeloss: run %d: p50 %.2f s, p99 %.2f s", run+1, times.Median(), times.Quantile(.99))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	p99.WantAtMost(leaseTime + lossTime)
	wrong.WantNone()
	p50.Note = fmt.Sprintf("%d sessions on one node of %d, each with a checkpoint; one message is sent to each at the moment of the kill", lostSessions, spawnNodes)
	return []*measure.Figure{p50, p99, wrong}, nil
}

// loseNode has one node run sessions, kills all of it, and returns after how many seconds each session answered a message, and how many
// answered wrongly.
func loseNode(ctx context.Context, c *testbed.Cluster) (times measure.Series, wrong int, err error) {
	ctx, cancel := context.WithTimeout(ctx, lossTimeout)
	defer cancel()
	admin := c.Admin()
	for _, other := range []string{"node-2", "node-3"} {
		if _, err := admin.Nodes.CordonNode(ctx, &apiv1.CordonNodeRequest{Id: other}); err != nil {
			return nil, 0, err
		}
	}
	ids := make([]string, lostSessions)
	pids := make([]int, lostSessions)
	var all errgroup.Group
	all.SetLimit(16)
	for i := range ids {
		all.Go(func() (err error) {
			ids[i], pids[i], err = startLedger(ctx, c)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return nil, 0, err
	}
	for _, other := range []string{"node-2", "node-3"} {
		if _, err := admin.Nodes.UncordonNode(ctx, &apiv1.UncordonNodeRequest{Id: other}); err != nil {
			return nil, 0, err
		}
	}
	n, err := admin.Nodes.GetNode(ctx, &apiv1.GetNodeRequest{Id: "node-1"})
	if err != nil {
		return nil, 0, err
	}
	start := time.Now()
	if err := crash.Node(int(n.GetNode().GetPid()), pids); err != nil {
		return nil, 0, err
	}
	times = make(measure.Series, lostSessions)
	answers := make([]string, lostSessions)
	var asked errgroup.Group
	for i, id := range ids {
		asked.Go(func() error {
			r, err := admin.Sessions.SendMessage(ctx, &apiv1.SendMessageRequest{SessionId: id, Text: []byte("x"), Wait: true})
			times[i], answers[i] = time.Since(start).Seconds(), string(r.GetMessage().GetResult())
			return err
		})
	}
	if err := asked.Wait(); err != nil {
		return nil, 0, err
	}
	for _, a := range answers {
		if a != "2" { // the first is in the checkpoint
			wrong++
		}
	}
	return times, wrong, nil
}

// startLedger starts a session, has it count one line, and makes a checkpoint of it.
func startLedger(ctx context.Context, c *testbed.Cluster) (id string, pid int, err error) {
	admin := c.Admin()
	r, err := admin.Sessions.SpawnSession(ctx, &apiv1.SpawnSessionRequest{Wait: true, Spec: &apiv1.SessionSpec{
		Command: []string{"sh", "-c", ledger}, Restart: "on-failure",
	}})
	if err != nil {
		return "", 0, err
	}
	s := r.GetSession()
	if s.GetNode() != "node-1" {
		return "", 0, fmt.Errorf("session %s is on %s, not on the only node that takes sessions", s.GetId(), s.GetNode())
	}
	m, err := admin.Sessions.SendMessage(ctx, &apiv1.SendMessageRequest{SessionId: s.GetId(), Text: []byte("x"), Wait: true})
	if err != nil {
		return "", 0, err
	}
	if string(m.GetMessage().GetResult()) != "1" {
		return "", 0, errors.New("a new ledger did not count from 1")
	}
	_, err = admin.Sessions.CheckpointSession(ctx, &apiv1.CheckpointSessionRequest{Id: s.GetId(), Wait: true})
	return s.GetId(), int(s.GetPid()), err
}
