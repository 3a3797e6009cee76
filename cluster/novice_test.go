// Who lost its disk has no say until it has caught up: not in the election that would cost what it had acknowledged.

package cluster

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// wipe gives a server that is stopped an empty disk, as one under the same name has whose volume was lost.
func (c *trio) wipe(m *member) {
	m.disk = raft.NewInmemStore()
	m.log, m.snaps = m.disk, raft.NewInmemSnapshotStore()
	m.tune = func(o *Options) { o.Servers = nil }
}

// cut separates two servers, or joins them again.
func (c *trio) cut(a, b *member, apart bool) {
	for _, p := range [][2]*member{{a, b}, {b, a}} {
		if apart {
			p[0].trans.Disconnect(raft.ServerAddress(p[1].id))
		} else {
			p[0].trans.Connect(raft.ServerAddress(p[1].id), p[1].trans.InmemTransport)
		}
	}
}

func TestAServerThatLostItsDiskElectsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTrio(t, nil)
		defer c.close()
		leader := c.leader(nil)
		var loser, behind *member
		for _, m := range c.servers {
			switch {
			case m == leader:
			case loser == nil:
				loser = m
			default:
				behind = m
			}
		}
		c.spawn(leader, "before")
		time.Sleep(time.Second)
		// One does not hear of what the other two have acknowledged; then one of these loses its disk, and the other its power.
		c.cut(leader, behind, true)
		c.cut(loser, behind, true)
		c.spawn(leader, "acknowledged")
		loser.stop()
		leader.stop()
		c.wipe(loser)
		c.start(loser)
		c.cut(loser, behind, false)
		time.Sleep(time.Minute)
		for _, m := range []*member{loser, behind} {
			if l, _ := m.node.Leader(); l.Self {
				t.Fatalf("%s leads, and does not have what was acknowledged", m.id)
			}
		}
		c.start(leader)
		after := c.leader(nil)
		if after != leader {
			t.Fatalf("%s leads, and does not have what was acknowledged", after.id)
		}
		c.spawn(leader, "after")
		c.agree(3)
		if loser.node.novice.is.Load() {
			t.Error("it has caught up, and has no say still")
		}
		// From now on it counts like any other.
		behind.stop()
		c.spawn(leader, "with the one that caught up")
		if err := leader.node.raft.LeadershipTransferToServer(raft.ServerID(loser.id), raft.ServerAddress(loser.id)).Error(); err != nil || c.leader(leader) != loser {
			t.Errorf("it cannot lead: %v", err)
		}
		c.start(behind)
		c.agree(4)
	})
}

func TestANoviceStaysOneAcrossAStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTrio(t, nil)
		defer c.close()
		leader := c.leader(nil)
		m := c.servers[0]
		if m == leader {
			m = c.servers[1]
		}
		m.stop()
		c.wipe(m)
		for _, o := range c.servers {
			if o != m {
				o.trans.mu.Lock()
				o.trans.down = true
				o.trans.mu.Unlock()
			}
		}
		for range 2 {
			c.start(m)
			if !m.node.novice.is.Load() {
				t.Error("it is none, and knows nothing")
			}
			m.stop()
		}
		for _, o := range c.servers {
			if o != m {
				o.trans.mu.Lock()
				o.trans.down = false
				o.trans.mu.Unlock()
			}
		}
		c.start(m)
		c.spawn(c.leader(nil), "one")
		c.agree(1)
		m.stop()
		c.start(m)
		if m.node.novice.is.Load() {
			t.Error("it had caught up, and is a novice again")
		}
	})
}

func TestANoviceThatWroteNothingRemainsOne(t *testing.T) {
	disk := raft.NewInmemStore()
	_, trans := raft.NewInmemTransport("s1")
	n, err := newNovice(trans, true, disk, disk, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer n.end()
	n.grow("it writes")
	if n.is.Load() {
		t.Error("it has grown, and is one still")
	}
	n.remain()
	again, err := newNovice(trans, false, disk, disk, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer again.end()
	if !n.is.Load() || !again.is.Load() {
		t.Error("it forgot that it has yet to catch up")
	}
}
