// The parts that decide: inbox, facts, environment, directories. No clocks, no goroutines.

package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

// Whatever is offered, in whatever order and how often: each message is given once, and never after a more urgent one
// that was there first.
func TestInboxGivesEachMessageOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newInbox()
		offered, given := map[uint64]*apiv1.Message{}, map[uint64]bool{}
		var held []*apiv1.Message
		t.Repeat(map[string]func(*rapid.T){
			"offer": func(t *rapid.T) {
				seq := rapid.Uint64Range(1, 40).Draw(t, "sequence")
				m := offered[seq]
				if m == nil {
					m = msg(seq, apiv1.Priority_Level(rapid.IntRange(0, 4).Draw(t, "priority")))
					offered[seq] = m
				}
				if got := b.offer([]*apiv1.Message{m}); !slices.Equal(got, []uint64{seq}) {
					t.Fatalf("offer %d: took %v", seq, got)
				}
			},
			"take": func(t *rapid.T) {
				m := b.take()
				if m == nil {
					return
				}
				if given[m.GetSequence()] {
					t.Fatalf("message %d is given twice", m.GetSequence())
				}
				for _, seq := range b.sequences() {
					o := offered[seq]
					waiting := !slices.ContainsFunc(held, func(h *apiv1.Message) bool { return h.GetSequence() == seq }) && seq != m.GetSequence()
					if waiting && (urgency(o) < urgency(m) || urgency(o) == urgency(m) && seq < m.GetSequence()) {
						t.Fatalf("%d was given before %d", m.GetSequence(), seq)
					}
				}
				held = append(held, m)
			},
			"finish": func(t *rapid.T) {
				if len(held) == 0 {
					return
				}
				if !b.finish(held[0].GetSequence()) || b.finish(held[0].GetSequence()) {
					t.Fatalf("finish of %d is news once", held[0].GetSequence())
				}
				given[held[0].GetSequence()] = true
				held = held[1:]
			},
			"put back": func(t *rapid.T) {
				if len(held) > 0 {
					b.putBack(held[0])
					held = held[1:]
				}
			},
			"": func(t *rapid.T) {
				want := 0
				for seq := range offered {
					if !given[seq] {
						want++
					}
				}
				if got := len(b.sequences()); got != want {
					t.Fatalf("holds %d, want %d", got, want)
				}
			},
		})
	})
}

func TestInboxIsBounded(t *testing.T) {
	b := newInbox()
	var ms []*apiv1.Message
	for i := range maxInboxMessages + 5 {
		ms = append(ms, msg(uint64(i+1), normal))
	}
	same(t, "taken", len(b.offer(ms)), maxInboxMessages)
	b = newInbox()
	big := func(seq uint64) *apiv1.Message {
		return &apiv1.Message{Sequence: seq, Text: make([]byte, session.MaxMessageBytes)}
	}
	n := uint64(0)
	for ; len(b.offer([]*apiv1.Message{big(n + 1)})) == 1; n++ {
	}
	if n*session.MaxMessageBytes > maxInboxBytes || n < 16 {
		t.Errorf("took %d messages of %d bytes", n, session.MaxMessageBytes)
	}
	b.finish(b.take().GetSequence())
	same(t, "after one was finished", b.offer([]*apiv1.Message{big(n + 1)}), []uint64{n + 1})
}

func TestSequenceSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s sequenceSet
		has := map[uint64]bool{}
		for _, seq := range rapid.SliceOf(rapid.Uint64Range(1, 60)).Draw(t, "sequences") {
			if s.add(seq) == has[seq] {
				t.Fatalf("add %d: news is %t", seq, has[seq])
			}
			has[seq] = true
		}
		for seq := range uint64(62) {
			if s.has(seq) != has[seq] {
				t.Fatalf("has %d: %t", seq, s.has(seq))
			}
		}
		for i := 1; i < len(s.ranges); i++ {
			if s.ranges[i-1].last+1 >= s.ranges[i].first {
				t.Fatalf("ranges touch: %v", s.ranges)
			}
		}
	})
	var s sequenceSet
	for i := range uint64(maxFinishedRanges + 10) {
		s.add(2 * (i + 1))
	}
	same(t, "ranges", len(s.ranges), maxFinishedRanges)
	if s.has(2) || !s.has(2*(maxFinishedRanges+10)) {
		t.Error("the lowest range should be forgotten first")
	}
}

// Over links that come and go, a receiver that commits what follows on what it has gets every fact once, in order.
func TestFactLogLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l factLog
		committed, made, confirmed := uint64(0), uint64(0), uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"fact": func(*rapid.T) { made++; l.add(&nodev1.Fact{SessionId: fmt.Sprint(made)}) },
			"send": func(t *rapid.T) {
				b := l.batch()
				if len(b) == 0 {
					return
				}
				l.sentTo(b[len(b)-1].GetIndex())
				if rapid.Bool().Draw(t, "lost") {
					l.resend() // over the next link
					return
				}
				for _, f := range b {
					if f.GetIndex() == committed+1 {
						committed++
					}
					if f.GetSessionId() != fmt.Sprint(f.GetIndex()) {
						t.Fatalf("fact %s has number %d", f.GetSessionId(), f.GetIndex())
					}
				}
			},
			"ack": func(t *rapid.T) {
				confirmed = max(confirmed, rapid.Uint64Range(confirmed, committed).Draw(t, "index"))
				if !l.ack(confirmed) || l.ack(made+1) {
					t.Fatal("ack takes what was made, and nothing else")
				}
			},
			"": func(t *rapid.T) {
				if l.last() != made || l.committed != confirmed {
					t.Fatalf("last %d of %d, committed %d of %d", l.last(), made, l.committed, confirmed)
				}
			},
		})
		for l.resend(); len(l.batch()) > 0; {
			b := l.batch()
			l.sentTo(b[len(b)-1].GetIndex())
			for _, f := range b {
				if f.GetIndex() == committed+1 {
					committed++
				}
			}
		}
		if committed != made {
			t.Fatalf("%d of %d facts arrived", committed, made)
		}
	})
}

func TestFactFramesAreBounded(t *testing.T) {
	var l factLog
	for range maxFactsPerFrame + 1 {
		l.add(&nodev1.Fact{})
	}
	same(t, "facts in a frame", len(l.batch()), maxFactsPerFrame)
	l = factLog{}
	for range 40 {
		l.add(&nodev1.Fact{Kind: &nodev1.Fact_TurnEnded{TurnEnded: &nodev1.TurnEnded{Result: make([]byte, session.MaxResultBytes)}}})
	}
	if n := len(l.batch()); n < 8 || n > 16 {
		t.Errorf("%d results of %d bytes in one frame", n, session.MaxResultBytes)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("AGENT_OWN", "secret of the agent")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "API_KEY"), []byte("k3y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "OUTSIDE")); err != nil {
		t.Fatal(err)
	}
	spec := &session.Spec{Name: "me", Protocol: session.ProtocolLines, Secrets: []string{"API_KEY"}, Env: []session.Pair{
		{Key: "LANG", Value: "C.UTF-8"}, {Key: "PATH", Value: "/opt/bin"}, {Key: "ORCH_NODE", Value: "forged"}}}
	env, err := environment("s1", "node-1", "/data/ws", 7, spec, dir)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the whole environment", env, []string{"API_KEY=k3y", "HOME=/data/ws", "LANG=C.UTF-8", "ORCH_NODE=node-1", "ORCH_SESSION_EPOCH=7",
		"ORCH_SESSION_ID=s1", "ORCH_SESSION_NAME=me", "ORCH_WORKSPACE=/data/ws", "PATH=/opt/bin", "TERM=dumb"})
	for name, remedy := range map[string]string{"MISSING": "put it into the file", "../x": "letters, digits", "OUTSIDE": "make it readable", "ORCH_X": "ORCH_"} {
		spec.Secrets = []string{name}
		if _, err := environment("s1", "node-1", "/data/ws", 7, spec, dir); err == nil || !strings.Contains(err.Error(), remedy) {
			t.Errorf("secret %s: %v", name, err)
		}
	}
	spec.Secrets = []string{"API_KEY"}
	if _, err := environment("s1", "node-1", "/data/ws", 7, spec, ""); err == nil || !strings.Contains(err.Error(), "set secrets_dir") {
		t.Errorf("without a secrets directory: %v", err)
	}
}

// A session may leave links behind; removing its directory follows none of them.
func TestRemovingFollowsNoLinks(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	write(t, filepath.Join(outside, "file"))
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	s, err := newStore(root, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.prepare(&record{Version: 1, SessionID: "s", Epoch: 1, Spec: []byte("{}")}, false); err != nil {
		t.Fatal(err)
	}
	ws := filepath.Join(dir, "sessions", "s", "workspace")
	write(t, filepath.Join(ws, "many", "deep", "file"))
	for name, to := range map[string]string{"dir": outside, "file": filepath.Join(outside, "file"), "self": "."} {
		if err := os.Symlink(to, filepath.Join(ws, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.discard("s"); err != nil {
		t.Fatal(err)
	}
	if err := s.emptyTrash(context.Background()); err != nil {
		t.Fatal(err)
	}
	exists(t, dir, "sessions/s", false)
	exists(t, outside, "file", true)
	if left, _ := os.ReadDir(filepath.Join(dir, "trash")); len(left) != 0 {
		t.Errorf("the trash holds %v", left)
	}
}

// TestDirectoriesOfOneInstant: an agent that finds several of one session to throw away, at one reading of its clock, begins all the same.
func TestDirectoriesOfOneInstant(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, place := range []string{"restoring", "staged", "sessions"} {
		write(t, filepath.Join(dir, place, "s", "workspace", "file"))
	}
	synctest.Test(t, func(t *testing.T) { // where the clock stands still
		s, err := newStore(root, dir)
		if err == nil {
			err = s.discard("s")
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if left, _ := os.ReadDir(filepath.Join(dir, "trash")); len(left) != 3 {
		t.Errorf("the trash holds %v", left)
	}
}

func TestDamagedDirectoriesAreBounded(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	s, err := newStore(root, dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxDamagedDirs + 3 {
		name := fmt.Sprint("s", i)
		write(t, filepath.Join(dir, "sessions", name, "session.json"))
		if _, err := s.setAside(name); err != nil {
			t.Fatal(err)
		}
	}
	left, err := s.names(damagedDir)
	if err != nil || len(left) != maxDamagedDirs || !strings.HasSuffix(left[len(left)-1], fmt.Sprint("-s", maxDamagedDirs+2)) {
		t.Errorf("kept %v, %v", left, err)
	}
}
