// Servers that are known by names: the addresses behind them change, some of them or all at once.

package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/raft"

	"github.com/neolith/orchestrator/internal/fault"
)

// named is three servers on addresses of this machine's loopback, which find each other by names alone.
type named struct {
	*trio
	gossip, raft int // ports
	mu           sync.Mutex
	at           map[string]netip.Addr            // by name
	seen         map[string]map[string]netip.Addr // by whom, of whom
}

// seer notes where a server sees the others, from one start to the next: memberlist may still find somebody dead after it was shut down. Its own
// list may not be read while it changes.
type seer struct {
	memberlist.EventDelegate
	c    *named
	seen map[string]netip.Addr
}

func (s seer) NotifyJoin(n *memberlist.Node) {
	s.c.mu.Lock()
	a, _ := netip.AddrFromSlice(n.Addr)
	s.seen[n.Name] = a.Unmap()
	s.c.mu.Unlock()
	s.EventDelegate.NotifyJoin(n)
}

func (s seer) NotifyLeave(n *memberlist.Node) {
	s.c.mu.Lock()
	delete(s.seen, n.Name)
	s.c.mu.Unlock()
	s.EventDelegate.NotifyLeave(n)
}

// newNamed starts them on 127.0.0.first and the two behind it.
func newNamed(t *testing.T, first byte) *named {
	t.Helper()
	c := &named{gossip: freePort(t), raft: freePort(t), at: map[string]netip.Addr{}, seen: map[string]map[string]netip.Addr{}}
	c.move(first, "s1", "s2", "s3")
	c.trio = newTrio(t, c.tune)
	t.Cleanup(c.close)
	return c
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// move gives names other addresses.
func (c *named) move(first byte, names ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, name := range names {
		c.at[name] = netip.AddrFrom4([4]byte{127, 0, 0, first + byte(i)})
	}
}

// lookup is what a resolver does. "all" is a name that stands for all of them.
func (c *named) lookup(_ context.Context, name string) ([]netip.Addr, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if name == "all" {
		return []netip.Addr{c.at["s1"], c.at["s2"], c.at["s3"]}, nil
	}
	if a, ok := c.at[name]; ok {
		return []netip.Addr{a}, nil
	}
	return nil, errors.New("no such host")
}

func (c *named) dial(address string, timeout time.Duration) (net.Conn, error) {
	name, port, err := splitHostPort(address)
	if err != nil {
		return nil, err
	}
	found, err := c.lookup(context.Background(), name)
	if err != nil {
		return nil, err
	}
	return net.DialTimeout("tcp", joined(found[0], port), timeout)
}

func (c *named) tune(o *Options) {
	found, err := c.lookup(context.Background(), o.ID)
	if err != nil {
		c.t.Fatal(err)
	}
	if o.Listener, err = net.Listen("tcp", joined(found[0], c.raft)); err != nil {
		c.t.Fatal(err)
	}
	seen := map[string]netip.Addr{}
	c.mu.Lock()
	c.seen[o.ID] = seen
	c.mu.Unlock()
	o.Transport, o.Dial = nil, c.dial
	for i := range o.Servers {
		o.Servers[i].Address = raft.ServerAddress(net.JoinHostPort(string(o.Servers[i].ID), strconv.Itoa(c.raft)))
	}
	o.RaftAddress = net.JoinHostPort(o.ID, strconv.Itoa(c.raft))
	o.Autopilot = DefaultAutopilot()
	o.Stats = func(context.Context, string) (ServerStats, error) {
		return ServerStats{}, fault.New(fault.Unavailable, "nobody asks here")
	}
	o.Gossip = &GossipOptions{BindAddress: joined(found[0], c.gossip), Join: []string{net.JoinHostPort("all", strconv.Itoa(c.gossip))}, Lookup: c.lookup, tune: func(m *memberlist.Config) {
		m.Events = seer{m.Events, c, seen}
		m.ProbeInterval, m.ProbeTimeout, m.SuspicionMult, m.GossipInterval = 100*time.Millisecond, 50*time.Millisecond, 2, 20*time.Millisecond
	}}
}

// together waits until each knows all of them under their present addresses.
func (c *named) together() {
	c.t.Helper()
	for _, m := range c.servers {
		eventually(c.t, m.id+" knows all where they are", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return maps.Equal(c.seen[m.id], c.at)
		})
	}
}

// caughtUp waits until all have applied what the leader has.
func (c *named) caughtUp() {
	c.t.Helper()
	goal := c.leader(nil).node.AppliedIndex()
	for _, m := range c.servers {
		eventually(c.t, m.id+" has all entries", func() bool { return m.node.AppliedIndex() >= goal })
	}
}

func TestAllAddressesChangeAtOnce(t *testing.T) {
	c := newNamed(t, 11)
	c.spawn(c.leader(nil), "before")
	c.together()
	for _, m := range c.servers {
		m.stop()
	}
	c.move(21, "s2", "s3", "s1") // to others
	for _, m := range c.servers {
		c.start(m)
	}
	c.spawn(c.leader(nil), "after")
	c.caughtUp()
	c.together()

	// And to what were one another's.
	for _, m := range c.servers {
		m.stop()
	}
	c.move(21, "s1", "s2", "s3")
	for _, m := range c.servers {
		c.start(m)
	}
	c.spawn(c.leader(nil), "at last")
	c.caughtUp()
	c.together()
}

// TestAServerComesBackElsewhere: the others go on meanwhile, and soon find it where it is now, whether it said goodbye or not. Gossip by
// itself would tell them after half a minute.
func TestAServerComesBackElsewhere(t *testing.T) {
	c := newNamed(t, 41)
	c.together()
	for n, leaves := range []bool{true, false} {
		m := c.servers[n]
		if leaves {
			m.node.Leave(t.Context())
		}
		m.stop()
		c.move(51+byte(n), m.id)
		began := time.Now()
		c.start(m)
		c.together()
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("with a goodbye %t: it was found after %s", leaves, took)
		}
		c.spawn(c.leader(nil), fmt.Sprint("after ", n))
		c.caughtUp()
	}
}

func TestAdvertisedNames(t *testing.T) {
	own, old := netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("10.0.0.3")
	nowhere := errors.New("no such host")
	for name, c := range map[string]struct {
		address string
		answers func(waited time.Duration) ([]netip.Addr, error)
		want    string // or
		kind    fault.Kind
		after   time.Duration
	}{
		"none":           {address: "", want: ""},
		"an address":     {address: "192.0.2.1:8075", want: "192.0.2.1:8075"},
		"nonsense":       {address: "server-1", kind: fault.Invalid},
		"a name":         {address: "s:8075", want: "10.0.0.7:8075", answers: func(time.Duration) ([]netip.Addr, error) { return []netip.Addr{old, own}, nil }},
		"not known yet":  {address: "s:8075", want: "10.0.0.7:8075", after: 30 * time.Second, answers: soon(30*time.Second, nil, nowhere, own)},
		"still the old":  {address: "s:8075", want: "10.0.0.7:8075", after: 5 * time.Second, answers: soon(5*time.Second, []netip.Addr{old}, nil, own)},
		"meant for ever": {address: "s:8075", want: "10.0.0.3:8075", after: 10 * time.Second, answers: soon(time.Hour, []netip.Addr{old}, nil, own)},
		"never known":    {address: "s:8075", kind: fault.Unavailable, after: time.Minute, answers: soon(time.Hour, nil, nowhere, own)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				r := resolver{own: func(a netip.Addr) bool { return a == own }, log: slog.New(slog.DiscardHandler), lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
					if host != "s" {
						t.Errorf("looked up %q", host)
					}
					return c.answers(time.Since(began))
				}}
				got, err := r.advertised(t.Context(), c.address)
				if got != c.want || (err != nil) != (c.kind != 0) || err != nil && fault.KindOf(err) != c.kind {
					t.Errorf("got %q, %v; want %q, %v", got, err, c.want, c.kind)
				}
				if took := time.Since(began); took != c.after {
					t.Errorf("it took %s, not %s", took, c.after)
				}
			})
		})
	}
}

// soon answers one thing at first, and the address later.
func soon(after time.Duration, first []netip.Addr, err error, then netip.Addr) func(time.Duration) ([]netip.Addr, error) {
	return func(waited time.Duration) ([]netip.Addr, error) {
		if waited < after {
			return first, err
		}
		return []netip.Addr{then}, nil
	}
}

func TestAdvertisedNamesAreGivenUpWithTheServer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	lookup := func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }
	if _, err := ResolveAdvertised(ctx, "s:1", "0.0.0.0:1", lookup, slog.New(slog.DiscardHandler)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestWhereGossipListens(t *testing.T) {
	for bind, want := range map[string][]bool{ // at 127.0.0.1, 127.0.0.2, 192.0.2.1
		"127.0.0.1:8075": {true, false, false},
		"192.0.2.1:8075": {false, false, true}, // whether there is such an address is found out by listening
		"0.0.0.0:8075":   {true, true, false},
		":8075":          {true, true, false},
	} {
		at := listensAt(bind)
		for i, a := range []string{"127.0.0.1", "127.0.0.2", "192.0.2.1"} {
			if got := at(netip.MustParseAddr(a)); got != want[i] {
				t.Errorf("who listens on %s does so at %s: %t", bind, a, got)
			}
		}
	}
}

func TestPeersAreLookedUp(t *testing.T) {
	lookup := func(_ context.Context, host string) ([]netip.Addr, error) {
		if host == "all" {
			return []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, nil
		}
		return nil, fmt.Errorf("no such host")
	}
	got, errs := resolve(t.Context(), lookup, []string{"all:1", "gone:1", "10.0.0.1:1", "10.0.0.1:2", "nonsense"})
	if want := []string{"10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:1", "[fd00::1]:1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if len(errs) != 2 {
		t.Errorf("what was not found: %v", errs)
	}
}
