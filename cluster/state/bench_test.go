// Benchmarks: what a batch costs, what a session weighs, how long a snapshot takes.
//
//	go test -run '^$' -bench . ./cluster/state
//	go test -run '^$' -bench Million -benchtime 1x ./cluster/state   (some 3 GB of memory)

package state

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// sessionID looks like the ids that the gateway makes: 26 letters, in order of time with a random end.
func sessionID(n int) string {
	return fmt.Sprintf("%014x%012x", n/50, (uint64(n)*0x9E3779B97F4A7C15)>>16&0xffffffffffff)
}

// runSessions brings sessions from first on to RUNNING on 1,000 nodes, 256 a batch: spawn with placement, then the fact.
func runSessions(tb testing.TB, s *Store, first, count int, named bool) {
	tb.Helper()
	const nodes, batch = 1000, 256
	index, now := s.Index(), int64(1e18)
	facts := make([]uint64, nodes)
	if index == 0 {
		b := &clusterv1.Batch{Time: now}
		for n := range nodes {
			b.Commands = append(b.Commands, cmd(register(fmt.Sprint("node-", n), 1)))
		}
		index++
		check(tb, s.Apply(index, b))
	}
	v := s.View()
	for n := range nodes {
		facts[n] = v.Node(fmt.Sprint("id-node-", n)).FactIndex
	}
	for at := first; at < first+count; at += batch {
		spawns, starts := &clusterv1.Batch{Time: now + int64(at)}, &clusterv1.Batch{Time: now + int64(at) + 1}
		for n := at; n < min(at+batch, first+count); n++ {
			c := spawn(sessionID(n), fmt.Sprint("id-node-", n%nodes), func(s *apiv1.SessionSpec) {
				s.CpuMilli, s.MemoryBytes, s.Restart = 100, 256<<20, "on-failure"
				if named {
					s.Name = fmt.Sprint("ledger-", n)
				}
			})
			c.Placement = fmt.Sprintf("node-%d: 12 sessions, the fewest of 1000; 3 full, 2 cordoned", n%nodes)
			spawns.Commands = append(spawns.Commands, cmd(c))
			facts[n%nodes]++
			f := started(c.SessionId, 1)
			f.Index = facts[n%nodes]
			starts.Commands = append(starts.Commands, cmd(&clusterv1.ApplyFacts{NodeId: c.NodeId, Incarnation: 1, Facts: []*nodev1.Fact{f}}))
		}
		check(tb, s.Apply(index+1, spawns))
		check(tb, s.Apply(index+2, starts))
		index += 2
	}
}

func check(tb testing.TB, results []Result) {
	tb.Helper()
	for _, r := range results {
		if r.Err != nil {
			tb.Fatal(r.Err)
		}
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkSend64(b *testing.B) {
	for _, keyed := range []bool{false, true} {
		b.Run(fmt.Sprintf("keyed=%v", keyed), func(b *testing.B) {
			s := New(DefaultLimits())
			const sessions, mail = 10_000, 64
			runSessions(b, s, 0, sessions, false)
			n := 0
			for b.Loop() {
				batch := &clusterv1.Batch{Time: int64(2e18) + int64(n)*1e7}
				for range mail {
					c := send(sessionID(n*7919%sessions), "a message of some thirty-two bytes")
					if keyed {
						c.IdempotencyKey = fmt.Sprint("key-", n)
					}
					batch.Commands = append(batch.Commands, cmd(c))
					n++
				}
				check(b, s.Apply(s.Index()+1, batch))
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/send")
		})
	}
}

func BenchmarkTurn64(b *testing.B) {
	s := New(DefaultLimits())
	const sessions, turns = 10_000, 64
	runSessions(b, s, 0, sessions, false)
	n, at := 0, 0
	next := make([]uint64, sessions)
	for b.Loop() {
		sends, ends := &clusterv1.Batch{Time: int64(2e18)}, &clusterv1.Batch{Time: int64(2e18)}
		v := s.View()
		for range turns {
			i := at * 7919 % sessions
			at++
			id := sessionID(i)
			sends.Commands = append(sends.Commands, cmd(send(id, "a message of some thirty-two bytes")))
			next[i]++
			node := v.Node(fmt.Sprint("id-node-", i%1000))
			f, g := handed(id, 1, next[i]), turn(id, 1, next[i], "a result of some thirty-two bytes.")
			f.Index, g.Index = node.FactIndex+1, node.FactIndex+2
			ends.Commands = append(ends.Commands, cmd(&clusterv1.ApplyFacts{NodeId: node.ID, Incarnation: 1, Facts: []*nodev1.Fact{f, g}}))
			n++
		}
		check(b, s.Apply(s.Index()+1, sends))
		check(b, s.Apply(s.Index()+1, ends))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/turn")
}

func BenchmarkSpawnToRunning(b *testing.B) {
	s := New(DefaultLimits())
	n := 0
	const step = 1024
	for b.Loop() {
		if n+step > 1_000_000 {
			b.StopTimer()
			s, n = New(DefaultLimits()), 0
			b.StartTimer()
		}
		runSessions(b, s, n, step, true)
		n += step
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*step), "ns/session")
}

// BenchmarkMemory tells what a running session weighs, without and with a name.
func BenchmarkMemory(b *testing.B) { weigh(b, 100_000) }

// BenchmarkMillion is the same at the size that the state is made for.
func BenchmarkMillion(b *testing.B) { weigh(b, 1_000_000) }

func weigh(b *testing.B, sessions int) {
	for _, named := range []bool{false, true} {
		b.Run(fmt.Sprintf("named=%v", named), func(b *testing.B) {
			for b.Loop() {
				snapshot := weighFilled(b, sessions, named)
				weighRestored(b, sessions, snapshot)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// cpu is the processor time that this process has used: on a busy machine it says more than the clock.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// timed reports the seconds of f by the clock and by the processors.
func timed(b *testing.B, what string, f func()) {
	start, used := time.Now(), cpu(b)
	f()
	b.ReportMetric(time.Since(start).Seconds(), "s/"+what)
	b.ReportMetric((cpu(b) - used).Seconds(), "cpu-s/"+what)
}

// weighFilled and weighRestored are functions of their own, so that nothing of the one is alive in the other.
//
//go:noinline
func weighFilled(b *testing.B, sessions int, named bool) []byte {
	before := heap()
	s := New(DefaultLimits())
	timed(b, "fill", func() { runSessions(b, s, 0, sessions, named) })
	b.ReportMetric(float64(heap()-before)/float64(sessions), "B/session")
	var snapshot []byte
	timed(b, "persist", func() { snapshot = persisted(b, s.View()) })
	b.ReportMetric(float64(len(snapshot))/float64(sessions), "snapshot-B/session")
	return snapshot
}

//go:noinline
func weighRestored(b *testing.B, sessions int, snapshot []byte) {
	before := heap()
	s := New(DefaultLimits())
	timed(b, "restore", func() {
		if err := s.Restore(bytes.NewReader(snapshot)); err != nil {
			b.Fatal(err)
		}
	})
	b.ReportMetric(float64(heap()-before)/float64(sessions), "restored-B/session")
	runtime.KeepAlive(s)
}

// BenchmarkLoseNode loses a node with 10,000 sessions, each with a message at its process: one entry.
func BenchmarkLoseNode(b *testing.B) {
	const sessions = 10_000
	for b.Loop() {
		b.StopTimer()
		m := newMachine(b)
		m.node("a")
		var spawns, sends []any
		for n := range sessions {
			spawns = append(spawns, spawn(sessionID(n), "id-a", restart("always", 5)))
			sends = append(sends, send(sessionID(n), "a message"))
		}
		check(b, m.do(spawns...))
		check(b, m.do(sends...))
		var facts []*nodev1.Fact
		for n := range sessions {
			facts = append(facts, handed(sessionID(n), 1, 1))
		}
		m.ok(m.facts("a", facts...))
		b.StartTimer()
		m.ok(&clusterv1.LoseNode{NodeId: "id-a", Incarnation: 1})
	}
}

func BenchmarkPersist(b *testing.B) {
	s := New(DefaultLimits())
	runSessions(b, s, 0, 20_000, true)
	v := s.View()
	for b.Loop() {
		if err := v.Persist(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*20_000), "ns/session")
}

func BenchmarkRestore(b *testing.B) {
	s := New(DefaultLimits())
	runSessions(b, s, 0, 20_000, true)
	snapshot := persisted(b, s.View())
	for b.Loop() {
		if err := s.Restore(bytes.NewReader(snapshot)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*20_000), "ns/session")
}

func BenchmarkView(b *testing.B) {
	s := New(DefaultLimits())
	runSessions(b, s, 0, 10_000, true)
	b.Run("Session", func(b *testing.B) {
		for b.Loop() {
			s.View().Session(sessionID(77))
		}
	})
	b.Run("SessionByName", func(b *testing.B) {
		for b.Loop() {
			s.View().SessionByName("default", "ledger-77")
		}
	})
}

// BenchmarkQueue is what one server does for messages from the send to the ack: 256 sessions on eight nodes, 75 messages an entry, each
// entry decoded from the log.
func BenchmarkQueue(b *testing.B) {
	s := New(DefaultLimits())
	const sessions, nodes, mail = 256, 8, 75
	setUp := &clusterv1.Batch{Time: 1e18}
	for n := range nodes {
		setUp.Commands = append(setUp.Commands, cmd(register(fmt.Sprint("node-", n), 1)))
	}
	facts, next, text := make([]uint64, nodes), make([]uint64, sessions), make([]byte, 256)
	for i := range sessions {
		setUp.Commands = append(setUp.Commands, cmd(spawn(sessionID(i), fmt.Sprint("id-node-", i%nodes))))
	}
	apply := func(batch *clusterv1.Batch) {
		data, err := proto.Marshal(batch)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		var got clusterv1.Batch
		if err := proto.Unmarshal(data, &got); err != nil {
			b.Fatal(err)
		}
		results := s.Apply(s.Index()+1, &got)
		b.StopTimer()
		check(b, results)
	}
	ends := func(from, to int, fact func(id string, i int) *nodev1.Fact) *clusterv1.Batch {
		batch := &clusterv1.Batch{Time: 2e18 + int64(s.Index())*1e6}
		for n := range nodes {
			c := &clusterv1.ApplyFacts{NodeId: fmt.Sprint("id-node-", n), Incarnation: 1}
			for at := from; at < to; at++ {
				if i := at % sessions; i%nodes == n {
					f := fact(sessionID(i), i)
					facts[n]++
					f.Index = facts[n]
					c.Facts = append(c.Facts, f)
				}
			}
			batch.Commands = append(batch.Commands, cmd(c))
		}
		return batch
	}
	b.StopTimer()
	apply(setUp)
	apply(ends(0, sessions, func(id string, _ int) *nodev1.Fact { return started(id, 1) }))
	b.ReportAllocs()
	b.ResetTimer()
	at := 0
	for range b.N {
		sends := &clusterv1.Batch{Time: 2e18 + int64(s.Index())*1e6}
		for n := at; n < at+mail; n++ {
			c := send(sessionID(n%sessions), string(text))
			c.IdempotencyKey = fmt.Sprintf("%026d", n)
			sends.Commands = append(sends.Commands, cmd(c))
		}
		apply(sends)
		apply(ends(at, at+mail, func(id string, i int) *nodev1.Fact {
			next[i]++
			return turn(id, 1, next[i], string(text[:16]))
		}))
		at += mail
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*mail), "ns/message")
}
