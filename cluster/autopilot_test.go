// Autopilot with real gossip: a server that is dead for long leaves the cluster, unless too few would remain.

package cluster

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/neolith/orchestrator/internal/fault"
)

// pilots is three servers with discovery.
type pilots struct {
	*trio
	mu    sync.Mutex
	open  map[string]*Node              // by address
	lists map[string]*memberlist.Config // where each gossips: in the same place whenever it starts
}

// newPilots starts them with thresholds so short that a test can wait for them.
func newPilots(t *testing.T, minVoters uint, tune ...func(*Autopilot)) *pilots {
	t.Helper()
	p := &pilots{open: map[string]*Node{}, lists: map[string]*memberlist.Config{}}
	p.trio = newTrio(t, func(o *Options) {
		o.RaftAddress, o.LinkAddress = o.ID, o.ID
		o.Autopilot = Autopilot{Every: 100 * time.Millisecond, Stable: 200 * time.Millisecond, RemoveAfter: 1500 * time.Millisecond, RemoveLeftAfter: 500 * time.Millisecond, MinVoters: minVoters}
		for _, f := range tune {
			f(&o.Autopilot)
		}
		o.Stats = p.stats
		o.Gossip = &GossipOptions{BindAddress: "127.0.0.1:0", Join: p.seeds(), tune: func(c *memberlist.Config) {
			p.place(o.ID, c)
			c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult, c.GossipInterval = 100*time.Millisecond, 50*time.Millisecond, 2, 20*time.Millisecond
		}}
	}, func(m *member) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.open[m.id] = m.node
	})
	t.Cleanup(p.close)
	for _, m := range p.servers {
		eventually(t, m.id+" knows the others", func() bool { return len(m.node.gossip.members()) == 3 })
	}
	return p
}

// place gives a server the port that it had before, or memberlist chooses one and writes it into the settings.
func (p *pilots) place(id string, c *memberlist.Config) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if before := p.lists[id]; before != nil {
		c.BindPort, c.AdvertisePort = before.BindPort, before.BindPort
	}
	p.lists[id] = c
}

// seeds are where the servers gossip that run already.
func (p *pilots) seeds() (addresses []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.open {
		addresses = append(addresses, fmt.Sprint("127.0.0.1:", p.lists[id].BindPort))
	}
	return addresses
}

// stats asks a server, if it runs, as the gateway does.
func (p *pilots) stats(_ context.Context, address string) (ServerStats, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := p.open[address]; n != nil {
		return n.Stats(), nil
	}
	return ServerStats{}, fault.New(fault.Unavailable, "%s does not answer", address)
}

// kill stops a server without a goodbye.
func (p *pilots) kill(m *member) {
	p.mu.Lock()
	delete(p.open, m.id)
	p.mu.Unlock()
	m.stop()
}

// members is what a server holds to be one: those in raft's configuration, and in brackets those that only gossip.
func (p *pilots) members(m *member) string {
	p.t.Helper()
	list, err := m.node.Members()
	if err != nil {
		p.t.Fatal(err)
	}
	var words []string
	for _, x := range list {
		if x.InRaft {
			words = append(words, x.ID)
		} else {
			words = append(words, "("+x.ID+")")
		}
	}
	return strings.Join(words, " ")
}

// followers are the servers that run, but for the leader.
func (p *pilots) followers(leader *member) (out []*member) {
	for _, m := range p.servers {
		if m != leader && m.node != nil {
			out = append(out, m)
		}
	}
	return out
}

func eventually(t *testing.T, what string, yes func() bool) {
	t.Helper()
	giveUp := time.After(30 * time.Second)
	for !yes() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-giveUp:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func failed(m, dead *member) bool { return status(m, dead) == memberFailed }

// status is what gossip says of a server to another.
func status(m, of *member) string {
	g, _ := m.node.gossip.member(of.id)
	return g.Status
}

// without waits until all others have a server for none of theirs.
func (p *pilots) without(dead *member) {
	p.t.Helper()
	var left []string
	for _, m := range p.servers {
		if m != dead {
			left = append(left, m.id)
		}
	}
	for _, m := range p.servers {
		if m != dead { // gossip goes on remembering it on those that do not lead
			eventually(p.t, m.id+" has "+strings.Join(left, " ")+" as members", func() bool { return p.members(m) == strings.Join(left, " ") })
		}
	}
}

// back starts a server that was removed, and waits until it is one of them again.
func (p *pilots) back(m *member) {
	p.t.Helper()
	p.start(m)
	eventually(p.t, m.id+" is a voter again", func() bool {
		list, err := p.leader(nil).node.Members()
		for _, x := range list {
			if x.ID == m.id {
				return err == nil && x.Voter
			}
		}
		return false
	})
}

func TestADeadServerIsRemoved(t *testing.T) {
	for name, forgotten := range map[string]bool{"that gossip knows": false, "that gossip has forgotten": true} {
		t.Run(name, func(t *testing.T) {
			p := newPilots(t, 2)
			leader := p.leader(nil)
			p.spawn(leader, "before")
			dead := p.followers(leader)[0]
			began := time.Now()
			p.kill(dead)
			eventually(t, "its death is noticed", func() bool { return failed(leader, dead) })
			if forgotten { // as by a leader that has started since
				for _, m := range p.servers {
					if m != dead {
						m.node.gossip.forget(dead.id)
					}
				}
			}
			p.without(dead)
			if took := time.Since(began); took < leader.node.opts.Autopilot.RemoveAfter {
				t.Errorf("it was removed after %s already", took)
			}
			p.spawn(leader, "after")
			p.back(dead)
		})
	}
}

// TestAServerThatLeftIsRemovedSooner: for who is stopped in good order for good is not waited for as long as who died.
func TestAServerThatLeftIsRemovedSooner(t *testing.T) {
	p := newPilots(t, 2, func(a *Autopilot) { a.RemoveAfter = time.Hour })
	leader := p.leader(nil)
	left := p.followers(leader)[0]
	left.node.Leave(t.Context())
	p.kill(left)
	eventually(t, "it is known to have left", func() bool { // and may be removed by now, and forgotten
		s := status(leader, left)
		return s == memberLeft || s == ""
	})
	p.without(left)
	p.back(left)
}

func TestHowLongAServerIsGone(t *testing.T) {
	limits := Autopilot{RemoveAfter: 5 * time.Minute, RemoveLeftAfter: time.Minute}
	var p pilotInfo
	p.forget()
	now := time.Unix(0, 0)
	look := func(status string, after time.Duration, want bool) {
		t.Helper()
		now = now.Add(after)
		if got := p.goneTooLong(gossipMember{ID: "s", Status: status}, now, limits); got != want {
			t.Errorf("%s, after %s more: %t", status, after, got)
		}
	}
	look(memberFailed, 0, false)
	look(memberFailed, 5*time.Minute, false)
	look(memberFailed, 1, true)
	look(memberAlive, 0, false)
	look(memberFailed, time.Hour, false) // it was there meanwhile
	look(memberLeft, 4*time.Minute, false)
	look(memberLeft, time.Minute, false)
	look(memberLeft, 1, true)
	p.forget() // another one led meanwhile, and who knows what was then
	look(memberLeft, time.Hour, false)
	look(memberFailed, time.Minute, false)
}

// TestTheLeadershipGoesToOneThatStays: also where raft would choose another one, which is about to stop as well.
func TestTheLeadershipGoesToOneThatStays(t *testing.T) {
	p := newPilots(t, 3, func(a *Autopilot) { a.RemoveLeftAfter = time.Hour }) // who is removed is not known as leaving any more
	leader := p.leader(nil)
	followers := p.followers(leader)
	goes, stays := followers[0], followers[1]
	goes.node.Leave(t.Context())
	eventually(t, "it is known to leave", func() bool { return status(leader, goes) == memberLeft })
	leader.node.Leave(t.Context())
	if l, _ := leader.node.Leader(); l.Self || l.ID != stays.id {
		t.Errorf("%s leads, not %s", l.ID, stays.id)
	}
	p.spawn(p.leader(leader), "after")
}

// Nobody is removed where a majority is gone, or too few voters would remain.
func TestTooFewMayNotBecomeFewer(t *testing.T) {
	for name, c := range map[string]struct {
		minVoters uint
		dead      func(leader *member, followers []*member) []*member
	}{
		// The leader first: its successor, if there is one for a moment, waits as long again for the dead.
		"a majority is dead":         {1, func(l *member, f []*member) []*member { return []*member{l, f[0]} }},
		"the least number of voters": {3, func(_ *member, f []*member) []*member { return f[:1] }},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPilots(t, c.minVoters)
			leader := p.leader(nil)
			followers := p.followers(leader)
			left, dead := followers[1], c.dead(leader, followers)
			for _, m := range dead {
				p.kill(m)
			}
			for _, m := range dead {
				eventually(t, m.id+"'s death is noticed", func() bool { return failed(left, m) })
			}
			// As long as a removal would take, and as long again.
			pilot := left.node.opts.Autopilot
			enough := time.After(2 * (pilot.RemoveAfter + 4*pilot.Every))
			for waiting := true; waiting; {
				if got := p.members(left); got != "s1 s2 s3" {
					t.Fatalf("the members are %s", got)
				}
				select {
				case <-enough:
					waiting = false
				case <-time.After(50 * time.Millisecond):
				}
			}
			// The others come back to a cluster that they belong to.
			for _, m := range dead {
				p.start(m)
			}
			p.spawn(p.leader(nil), "after")
		})
	}
}
