// Moves: how long a session answers nobody while it moves to another node, with a workspace that is written all the time.

package suite

import (
	"context"
	"fmt"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/testbed"
)

const (
	liveMoves = 50
	coldMoves = 10
	// workspaceTime is how long the session may take to make its workspace.
	workspaceTime = 2 * time.Minute

	maxBlackoutP50 = 100 // ms
	maxBlackoutP99 = 300 // ms
)

// busyWorkspace is a session that makes a workspace of 2,000 files and 100 MB that do not shrink, and then writes ten of
// them anew ten times a second, 5 MB/s, whether it is asked anything or not.
const busyWorkspace = `
if [ ! -d w ]; then mkdir w.new; for i in $(seq 2000); do head -c 50000 /dev/urandom > w.new/f$i; done; mv w.new w; fi
( n=0; while :; do n=$((n%90+1)); for k in 1 2 3 4 5 6 7 8 9 10; do head -c 50000 /dev/urandom > w/f$((n*20+k)); done; sleep 0.1; done ) &
while read -r line; do echo "$line"; done`

// Moves measures live and cold moves of one busy session among three nodes.
func (b *Bench) Moves(ctx context.Context) ([]*measure.Figure, error) {
	fig := func(name, unit string) *measure.Figure { return &measure.Figure{Part: "moves", Name: name, Unit: unit} }
	p50, p99 := fig("live: blackout p50", "ms"), fig("live: blackout p99", "ms")
	total, sent := fig("live: the whole move, p50", "ms"), fig("live: sent a move, p50", "MB")
	cold := fig("cold: blackout p50", "ms")
	o := testbed.ClusterOptions{
		Servers: 3, Nodes: spawnNodes, NodeProgram: b.o.NodeProgram,
		NodeSettings: map[string]any{"sessions": map[string]any{"end_on_stop": true}, "checkpoints": map[string]any{"serve": "127.0.0.1:0"}},
	}
	err := b.withCluster(ctx, o, func(c *testbed.Cluster) error {
		id, err := busySession(ctx, c)
		if err != nil {
			return err
		}
		for range spawnNodes { // until every node has been there once
			if _, err := move(ctx, c, id, "live"); err != nil {
				return err
			}
		}
		var blackouts, totals, bytes, colds measure.Series
		for n := range liveMoves {
			m, err := move(ctx, c, id, "live")
			if err != nil {
				return fmt.Errorf("live move %d: %w", n+1, err)
			}
			blackouts, totals = append(blackouts, m.GetBlackoutMs()), append(totals, m.GetTotalMs())
			bytes = append(bytes, float64(m.GetBytesSent())/1e6)
		}
		for n := range coldMoves {
			m, err := move(ctx, c, id, "cold")
			if err != nil {
				return fmt.Errorf("cold move %d: %w", n+1, err)
			}
			colds = append(colds, m.GetBlackoutMs())
		}
		b.logf("moves: blackout p50 %.1f ms, p99 %.1f ms; cold %.1f ms", blackouts.Median(), blackouts.Quantile(.99), colds.Median())
		p50.Runs, p99.Runs = measure.Series{blackouts.Median()}, measure.Series{blackouts.Quantile(.99)}
		total.Runs, sent.Runs, cold.Runs = measure.Series{totals.Median()}, measure.Series{bytes.Median()}, measure.Series{colds.Median()}
		p50.Note = fmt.Sprintf("%d live moves and %d cold ones, one after the other, among %d nodes", liveMoves, coldMoves, spawnNodes)
		return nil
	})
	if err != nil {
		return nil, err
	}
	p50.WantAtMost(maxBlackoutP50)
	p99.WantAtMost(maxBlackoutP99)
	return []*measure.Figure{p50, p99, total, sent, cold}, nil
}

// busySession starts the session, and returns its id once its workspace is there.
func busySession(ctx context.Context, c *testbed.Cluster) (string, error) {
	r, err := c.Admin().Sessions.SpawnSession(ctx, &apiv1.SpawnSessionRequest{Wait: true, Spec: &apiv1.SessionSpec{
		Name: "busy", Command: []string{"sh", "-c", busyWorkspace},
	}})
	if err != nil {
		return "", err
	}
	id := r.GetSession().GetId()
	ctx, cancel := context.WithTimeout(ctx, workspaceTime)
	defer cancel()
	_, err = c.Admin().Sessions.SendMessage(ctx, &apiv1.SendMessageRequest{SessionId: id, Text: []byte("ready"), Wait: true})
	return id, err
}

// move moves the session to some other node.
func move(ctx context.Context, c *testbed.Cluster, id, mode string) (*apiv1.Session_Migration, error) {
	ctx, cancel := context.WithTimeout(ctx, workspaceTime)
	defer cancel()
	r, err := c.Admin().Sessions.MigrateSession(ctx, &apiv1.MigrateSessionRequest{Id: id, Mode: mode, Wait: true})
	if err != nil {
		return nil, err
	}
	m := r.GetSession().GetMigration()
	if m.GetState() != apiv1.Session_Migration_DONE {
		return nil, fmt.Errorf("the move is %s: %s", m.GetState(), m.GetError())
	}
	return m, nil
}
