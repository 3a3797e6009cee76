// Properties that every strategy has, and what distinguishes each.

package loadbalancer

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// drawCandidates draws nodes with different ids, many of them full, equal or odd.
func drawCandidates(t *rapid.T) []Candidate {
	ids := rapid.SliceOfNDistinct(rapid.StringMatching(`n[a-f0-9]{1,4}`), 0, 20, rapid.ID[string]).Draw(t, "ids")
	c := make([]Candidate, len(ids))
	for i, id := range ids {
		small := func(name string) int64 { return int64(rapid.IntRange(0, 3).Draw(t, name)) }
		c[i] = Candidate{
			NodeID: id, Name: "name-" + id, Sessions: uint32(small("sessions")), MaxSessions: uint32(small("max")),
			FreeCPUMilli: small("cpu"), TotalCPUMilli: 3, FreeMemoryBytes: small("memory"), TotalMemoryBytes: 3,
			Degraded: rapid.Bool().Draw(t, "degraded"), Weight: rapid.SampledFrom([]float64{0, 1, 2, 0.5, -1}).Draw(t, "weight"),
			ExtraCapabilities: int(small("extra")), Capabilities: rapid.SampledFrom([][]string{nil, {}, {"gpu"}, {"pty", "gpu"}}).Draw(t, "has"),
			Labels: []session.Pair{{Key: "zone", Value: rapid.SampledFrom([]string{"a", "b", strings.Repeat("long", 60)}).Draw(t, "zone")}},
		}
	}
	return c
}

func drawRequest(t *rapid.T) Request {
	return Request{
		Require:  rapid.SampledFrom([][]string{nil, {"gpu"}, {"gpu", "pty"}}).Draw(t, "require"),
		SpreadBy: rapid.SampledFrom([]string{"", "zone", "rack"}).Draw(t, "by"), CPUMilli: int64(rapid.IntRange(0, 2).Draw(t, "wantCPU")),
		MemoryBytes: int64(rapid.IntRange(0, 2).Draw(t, "wantMemory")), Seed: rapid.Uint64().Draw(t, "seed"),
	}
}

func TestProperties(t *testing.T) {
	for _, s := range strategies {
		t.Run(s.Name(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				req, c := drawRequest(t), drawCandidates(t)
				before := slices.Clone(c)
				best, why := s.Choose(req, c)

				room, healthy := 0, false
				for i := range c {
					if c[i].hasRoom(&req) {
						room++
						healthy = healthy || !c[i].Degraded
					}
				}
				switch {
				case room == 0 && best != -1:
					t.Fatalf("chose %+v without room", c[best])
				case room > 0 && (best < 0 || best >= len(c)):
					t.Fatalf("chose %d of %d, of which %d have room", best, len(c), room)
				case room > 0 && !c[best].hasRoom(&req):
					t.Fatalf("chose %+v without room", c[best])
				case room > 0 && healthy && c[best].Degraded:
					t.Fatal("chose a degraded node though a healthy one has room")
				}
				if why == "" || len(why) > WhyMaxBytes || strings.HasPrefix(why, s.Name()) || strings.ContainsAny(why, "\n\r") {
					t.Fatalf("explains itself by %q", why)
				}
				if again, whyAgain := s.Choose(req, c); again != best || whyAgain != why {
					t.Fatalf("chose %d (%s), then %d (%s)", best, why, again, whyAgain)
				}
				if !slices.EqualFunc(c, before, func(a, b Candidate) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
					t.Fatal("changed the candidates")
				}
				if s == (sampled{}) {
					return // positions are its lots
				}
				shuffled := rapid.Permutation(c).Draw(t, "order")
				other, otherWhy := s.Choose(req, shuffled)
				if best >= 0 && shuffled[other].NodeID != c[best].NodeID || otherWhy != why {
					t.Fatalf("chose %s (%s), in another order %s (%s)", c[best].NodeID, why, shuffled[other].NodeID, otherWhy)
				}
			})
		})
	}
}

func nodes(n int) []Candidate {
	c := make([]Candidate, n)
	for i := range c {
		c[i] = Candidate{NodeID: fmt.Sprintf("n%04d", i), MaxSessions: 1000, TotalCPUMilli: 1000, FreeCPUMilli: 1000, TotalMemoryBytes: 1000, FreeMemoryBytes: 1000}
	}
	return c
}

func TestChoices(t *testing.T) {
	zone := func(v string) []session.Pair { return []session.Pair{{Key: "zone", Value: v}} }
	for _, c := range []struct {
		strategy, want, why string
		req                 Request
		candidates          []Candidate
	}{
		{"least-connections", "b", "has the fewest sessions (2); 1 of 3 have no room", Request{}, []Candidate{
			{NodeID: "a", Sessions: 3}, {NodeID: "b", Sessions: 2}, {NodeID: "c", Sessions: 1, MaxSessions: 1}}},
		{"least-connections", "b", "", Request{}, []Candidate{ // equal sessions: the least reserved
			{NodeID: "a", TotalCPUMilli: 4, FreeCPUMilli: 1}, {NodeID: "b", TotalCPUMilli: 4, FreeCPUMilli: 2}}},
		{"least-connections", "a", "has the fewest sessions (9); degraded, as no healthy node has room", Request{}, []Candidate{
			{NodeID: "a", Sessions: 9, Degraded: true}}},
		{"least-connections", "", "none of 2 candidates has room", Request{CPUMilli: 3, MemoryBytes: 1}, []Candidate{
			{NodeID: "a", FreeCPUMilli: 2, FreeMemoryBytes: 9}, {NodeID: "b", FreeCPUMilli: 9}}},
		{"least-connections", "", "no candidates", Request{}, nil},
		{"round-robin", "c", "its turn, number 2 of 2; 1 of 3 have no room", Request{Seed: 3}, []Candidate{
			{NodeID: "c"}, {NodeID: "b", Sessions: 1, MaxSessions: 1}, {NodeID: "a", Sessions: 70}}},
		{"weighted", "b", "has the fewest sessions (3) for its weight (4)", Request{}, []Candidate{
			{NodeID: "a", Sessions: 1}, {NodeID: "b", Sessions: 3, Weight: 4}}},
		{"capability-aware", "b", "has the fewest capabilities to spare (0)", Request{}, []Candidate{
			{NodeID: "a", ExtraCapabilities: 1}, {NodeID: "b", Sessions: 50}}},
		{"capability-aware", "c", "", Request{Require: []string{"gpu"}}, []Candidate{
			{NodeID: "a", Capabilities: []string{"pty"}}, {NodeID: "b", Capabilities: []string{}}, {NodeID: "c", Sessions: 9, Capabilities: []string{"pty", "gpu"}, ExtraCapabilities: 1}}},
		{"bin-pack", "b", "is the fullest (75%); 1 of 3 have no room", Request{CPUMilli: 1}, []Candidate{
			{NodeID: "a", TotalCPUMilli: 4, FreeCPUMilli: 2}, {NodeID: "b", TotalCPUMilli: 4, FreeCPUMilli: 1}, {NodeID: "c", TotalCPUMilli: 4}}},
		{"spread", "b", "is the emptiest (10% taken)", Request{}, []Candidate{
			{NodeID: "a", Sessions: 2, MaxSessions: 10}, {NodeID: "b", Sessions: 1, MaxSessions: 10}}},
		{"spread", "c", "zone=y has the fewest sessions (6); 1 of 4 have no room", Request{SpreadBy: "zone"}, []Candidate{
			{NodeID: "a", Labels: zone("x")}, {NodeID: "b", Sessions: 7, MaxSessions: 7, Labels: zone("x")},
			{NodeID: "c", Sessions: 2, Labels: zone("y")}, {NodeID: "d", Sessions: 4, Labels: zone("y")}}},
	} {
		s, err := Named(c.strategy)
		if err != nil {
			t.Fatal(err)
		}
		best, why := s.Choose(c.req, c.candidates)
		got := ""
		if best >= 0 {
			got = c.candidates[best].NodeID
		}
		if got != c.want || c.why != "" && why != c.why {
			t.Errorf("%s: chose %q: %s; want %q: %s", c.strategy, got, why, c.want, c.why)
		}
	}
}

func TestNamed(t *testing.T) {
	for _, name := range Names() {
		if s, err := Named(name); err != nil || s.Name() != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Named(Default); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"", "fastest", strings.Repeat("x", 300)} {
		_, err := Named(name)
		if !fault.Is(err, fault.Invalid) || len(err.Error()) > 250 ||
			!strings.HasSuffix(err.Error(), "use least-connections, round-robin, weighted, capability-aware, bin-pack, spread, sampled") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// place runs n sessions through a strategy and returns how many each node got.
func place(t *testing.T, s Strategy, c []Candidate, n int) []uint32 {
	t.Helper()
	for i := range n {
		best, why := s.Choose(Request{Seed: uint64(i)}, c)
		if best < 0 {
			t.Fatalf("session %d: %s", i, why)
		}
		c[best].Sessions++
		c[best].FreeCPUMilli--
	}
	got := make([]uint32, len(c))
	for i := range c {
		got[i] = c[i].Sessions
	}
	return got
}

// How sessions fall on nodes over many choices.
func TestDistribution(t *testing.T) {
	for _, name := range []string{"round-robin", "least-connections", "spread"} {
		s, _ := Named(name)
		if got := place(t, s, nodes(10), 200); slices.Min(got) != 20 || slices.Max(got) != 20 {
			t.Errorf("%s: %d", name, got)
		}
	}
	c := nodes(3)
	c[1].Weight, c[2].Weight = 2, 3
	if got := place(t, weighted{}, c, 600); !slices.Equal(got, []uint32{100, 200, 300}) {
		t.Errorf("weighted 1:2:3: %d", got)
	}
	c = nodes(4)
	for i := range c {
		c[i].MaxSessions = 50
	}
	if got := place(t, binPack{}, c, 100); slices.Max(got) != 50 || slices.Min(got) != 0 {
		t.Errorf("bin-pack fills one after the other: %d", got)
	}
	// 10,000 sessions on 1,000 nodes, 10 each on average: a blind draw would give one of them more than 20.
	got := place(t, sampled{}, nodes(1000), 10000)
	if slices.Max(got) > 12 {
		t.Errorf("the fullest node has %d", slices.Max(got))
	}
}

// Ties fall differently with the seed, so that idle clusters do not fill from one end.
func TestTiesSpread(t *testing.T) {
	c, hits := nodes(10), make([]int, 10)
	for seed := range uint64(10000) {
		best, _ := leastConnections{}.Choose(Request{Seed: seed}, c)
		hits[best]++
	}
	if slices.Min(hits) < 850 || slices.Max(hits) > 1150 {
		t.Errorf("ties fall %d", hits)
	}
}

// One allocation, the explanation, however many candidates there are.
func TestAllocations(t *testing.T) {
	for _, s := range []Strategy{leastConnections{}, weighted{}, capabilityAware{}, binPack{}, sampled{}, roundRobin{}} {
		for _, n := range []int{1, 1000} {
			c := nodes(n)
			if got := testing.AllocsPerRun(100, func() { s.Choose(Request{Seed: 7}, c) }); got > 1 {
				t.Errorf("%s: %v allocations for %d candidates", s.Name(), got, n)
			}
		}
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, s := range strategies {
		for _, n := range []int{10, 1000} {
			c := nodes(n)
			for i := range c {
				c[i].Sessions = uint32(mix(uint64(i)) % 900)
			}
			b.Run(fmt.Sprintf("%s/%d", s.Name(), n), func(b *testing.B) {
				b.ReportAllocs()
				for i := range b.N {
					s.Choose(Request{Seed: uint64(i), SpreadBy: "zone"}, c)
				}
			})
		}
	}
}
