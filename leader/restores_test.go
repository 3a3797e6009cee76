// Starting again after a loss: the most urgent first, at a rate, and so many at once on a node.

package leader

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

// lose lets the lease of the first node end while the others keep theirs, and returns when that was.
func (c *crowd) lose() time.Time {
	c.t.Helper()
	lost := c.nodes[0]
	c.nodes = c.nodes[1:]
	for range 200 {
		time.Sleep(100 * time.Millisecond)
		c.beat()
		if c.log.store.View().Node("id-" + lost.name).Lost {
			return time.Now()
		}
	}
	c.t.Fatal("the node is not lost")
	return time.Time{}
}

// TestFailoverIsUrgentFirstAndAtARate: a second's worth at once, then so many a second; critical sessions before all others,
// whatever the order in which they came.
func TestFailoverIsUrgentFirstAndAtARate(t *testing.T) {
	limit := func(o *Options) { o.Restores = RestoreLimits{PerSecond: 10, PerNode: 1000} }
	reigningWith(t, limit, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1", "node-2", "node-3")
		for i := range 60 {
			priority := []apiv1.Priority_Level{apiv1.Priority_LOW, apiv1.Priority_NORMAL, apiv1.Priority_CRITICAL}[i%3]
			c.run("node-1", func(s *apiv1.SessionSpec) { s.Priority = priority }, fmt.Sprintf("s%02d", i))
		}
		began := c.lose()
		var order []string
		for len(order) < 60 && time.Since(began) < time.Minute {
			order = append(order, c.start()...)
			if most := 10 + int(10*time.Since(began).Seconds()) + 1; len(order) > most {
				t.Fatalf("%d are started after %s, more than %d", len(order), time.Since(began), most)
			}
			if time.Since(began).Truncate(tickEvery) == 3*time.Second {
				if s := c.session("s57"); !strings.HasPrefix(s.Reason, "waits for its turn: at most 10 sessions start again in a second") {
					t.Errorf("a session that waits says %q", s.Reason)
				}
			}
			time.Sleep(tickEvery / 2)
			c.beat()
		}
		took := time.Since(began)
		if len(order) != 60 || took < 4500*time.Millisecond || took > 6*time.Second {
			t.Errorf("%d are started after %s, want 60 after 5s", len(order), took)
		}
		rank := func(id string) session.Priority { return c.session(id).Spec.Priority }
		if !slices.IsSortedFunc(order, func(a, b string) int { return int(rank(a)) - int(rank(b)) }) {
			t.Errorf("started in the order %v", order)
		}
	})
}

// TestANodeRestoresSoManyAtOnce: the next one is placed as soon as one runs; first starts do not wait for it.
func TestANodeRestoresSoManyAtOnce(t *testing.T) {
	limit := func(o *Options) { o.Restores = RestoreLimits{PerSecond: 1000, PerNode: 3} }
	reigningWith(t, limit, func(t *testing.T, log *soleLog, hub *soleHub, l *Leader) {
		c := newCrowd(t, log, hub, l, "node-1", "node-2")
		for i := range 10 {
			c.run("node-1", nil, fmt.Sprint("s", i))
		}
		c.lose()
		n := c.nodes[0]
		c.listen()
		if len(n.told) != 3 {
			t.Fatalf("%d are being restored at once", len(n.told))
		}
		time.Sleep(3 * time.Second)
		c.beat()
		c.listen()
		if s := c.session("s9"); len(n.told) != 3 || s.Phase != session.Pending || !strings.HasPrefix(s.Reason, "waits for its turn") {
			t.Errorf("%d are being restored after a while; s9 is %s: %s", len(n.told), s.Phase, s.Reason)
		}
		spawn(t, log, "new", "", nil)
		c.listen()
		if len(n.told) != 4 {
			t.Errorf("a first start waits for restores: %d", len(n.told))
		}
		for range 4 { // without a tick in between
			if len(c.start()) == 0 {
				t.Fatal("nobody is restored when another one runs")
			}
		}
		for i := range 10 {
			c.where(fmt.Sprint("s", i), "node-2")
		}
		if len(l.present.restores.on) != 0 || len(l.present.restores.count) != 0 {
			t.Errorf("counted as being restored: %v", l.present.restores.on)
		}
	})
}
