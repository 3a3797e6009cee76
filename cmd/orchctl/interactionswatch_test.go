// Watching the record: what comes is shown once, whenever it began, and a look reads no more than it may.

package main

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func interaction(id string, after time.Duration) *apiv1.Interaction {
	return &apiv1.Interaction{
		Id: id, Time: timestamppb.New(noon.Add(after)), Kind: apiv1.Interaction_TOOL_CALL, Status: apiv1.Interaction_OK, Namespace: "default",
		SessionId: "ledgeraaaaaaaaaaaaaa", Caller: "client:ci", Tool: "session_send", TookMs: 12, Request: `{"id":"ledger"}`,
	}
}

func TestWatchingInteractions(t *testing.T) {
	var got bytes.Buffer
	for _, form := range []string{"table", "wide", "json", "yaml", "name"} {
		r := newRig(t)
		res := r.watch("interactions list --watch --limit 2 -o "+form, func(out *tap) {
			out.wait(t, "the latest of those that are there", func(all string) bool {
				return strings.Contains(all, "01990000-0002") || strings.Contains(all, "moonshot")
			})
			r.c.Record(interaction("new-1", time.Second))
			if form == "table" {
				out.wait(t, "a row", func(all string) bool { return strings.Count(all, "\n") == 4 })
			} else {
				out.until(t, "new-1")
			}
			r.c.Record(interaction("new-0", -10*time.Second)) // it took a while
			r.c.Record(interaction("new-long", -time.Minute)) // and longer
			r.c.Record(interaction("new-before", -time.Hour)) // too long
			r.c.Record(interaction("new-2", 2*time.Second))
			if form == "table" {
				out.wait(t, "three rows", func(all string) bool { return strings.Count(all, "\n") == 7 })
			} else {
				out.until(t, "new-0")
				out.until(t, "new-long")
				out.until(t, "new-2")
			}
		})
		lines := strings.Split(res.out, "\n")
		if n := len(lines); form == "table" || form == "wide" || form == "name" { // these came in one look, or in three
			slices.Sort(lines[n-4 : n-1])
		}
		if form != "json" && form != "yaml" {
			fmt.Fprintf(&got, "-- %s --\n%s", form, strings.Join(lines, "\n"))
		} else if form == "json" {
			for _, id := range []string{"new-0", "new-1", "new-2", "new-long"} {
				if strings.Count(res.out, `"id":"`+id+`"`) != 1 {
					t.Errorf("%s is not there once:\n%s", id, res.out)
				}
			}
			if n := strings.Count(res.out, "\n"); n != 6 {
				t.Errorf("%d lines:\n%s", n, res.out)
			}
		}
		fmt.Fprintf(&got, "-- %s: exit code %d, standard error --\n%s", form, res.code, res.err)
	}
	golden(t, "interactions-watch", got.Bytes())
	r := newRig(t)
	if res := r.run("interactions list --watch --until 5m"); res.code != 2 || !strings.Contains(res.err, "--until") {
		t.Errorf("--until: %v", res)
	}
	if res := r.run("interactions list --watch --kind gossip"); res.code != 2 {
		t.Errorf("--kind: %v", res)
	}
	res := r.watch("interactions list --watch --kind message -o name", func(out *tap) {
		out.until(t, "m1.x")
		r.c.Record(interaction("a-call", time.Second))
		m := interaction("a-message", time.Second)
		m.Kind = apiv1.Interaction_MESSAGE
		r.c.Record(m)
		out.until(t, "a-message")
	})
	if res.code != 0 || strings.Contains(res.out, "a-call") || strings.Count(res.out, "\n") != 2 {
		t.Errorf("messages only: %v", res)
	}
}

// ledgerOf is a record that is read by pages, the latest first.
type ledgerOf struct {
	all  []*apiv1.Interaction
	read int
}

func (l *ledgerOf) fetch(_ context.Context, since time.Time, size int32, token string) (*apiv1.ListInteractionsResponse, error) {
	latestFirst := func(a, b *apiv1.Interaction) int { return b.GetTime().AsTime().Compare(a.GetTime().AsTime()) }
	if !slices.IsSortedFunc(l.all, latestFirst) {
		slices.SortFunc(l.all, latestFirst)
	}
	var found []*apiv1.Interaction
	for _, i := range l.all {
		if !i.GetTime().AsTime().Before(since) {
			found = append(found, i)
		}
	}
	from, _ := strconv.Atoi(token)
	to := min(from+int(size), len(found))
	out := &apiv1.ListInteractionsResponse{Interactions: found[from:to]}
	if to < len(found) {
		out.NextPageToken = strconv.Itoa(to)
	}
	l.read += to - from
	return out, nil
}

func (l *ledgerOf) watch(limit int) *recordWatch {
	return &recordWatch{fetch: l.fetch, limit: limit, seen: map[string]time.Time{}}
}

// What is recorded late, within bounds, comes within ten looks, and nothing comes twice.
func TestWhatIsWatchedComesOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &ledgerOf{}
		w := l.watch(rapid.IntRange(0, 5).Draw(t, "limit"))
		now, n := time.Duration(0), 0
		due := map[string]int{} // by which look each is to have come
		record := func(late time.Duration) string {
			n++
			id := strconv.Itoa(n)
			l.all = append(l.all, interaction(id, now-late))
			return id
		}
		for range rapid.IntRange(0, 20).Draw(t, "there before") {
			record(time.Duration(rapid.IntRange(0, 3600).Draw(t, "seconds ago")) * time.Second)
		}
		came := map[string]bool{}
		looks := rapid.IntRange(1, 40).Draw(t, "looks")
		for look := range looks + watchDeepEvery {
			found, err := w.look(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range found.fresh {
				if came[i.GetId()] {
					t.Fatalf("%s came twice", i.GetId())
				}
				came[i.GetId()] = true
			}
			for id, by := range due {
				if look >= by && !came[id] {
					t.Fatalf("%s has not come by look %d", id, look)
				}
			}
			now += 2 * time.Second
			if look >= looks {
				continue
			}
			for range rapid.IntRange(0, 3).Draw(t, "new") {
				if rapid.Bool().Draw(t, "long") {
					due[record(time.Duration(rapid.IntRange(16, 800).Draw(t, "long, s"))*time.Second)] = look + watchDeepEvery
				} else {
					due[record(time.Duration(rapid.IntRange(0, 12).Draw(t, "late, s"))*time.Second)] = look + 1
				}
			}
		}
	})
}

// A look at a record that is read faster than it may be is bounded, and says so; what was skipped is not taken for new later.
func TestLooksAreBounded(t *testing.T) {
	l := &ledgerOf{}
	n := 0
	record := func(count int, at time.Duration) {
		for range count {
			n++
			l.all = append(l.all, interaction(strconv.Itoa(n), at+time.Duration(n)*time.Microsecond))
		}
	}
	look := func(w *recordWatch) *recordLook {
		t.Helper()
		l.read = 0
		found, err := w.look(context.Background())
		if err != nil || l.read > watchReads {
			t.Fatalf("it read %d: %v", l.read, err)
		}
		return found
	}
	record(8000, 0)
	w := l.watch(100)
	if found := look(w); len(found.fresh) != 100 || !found.cut || found.fresh[99].GetId() != "8000" {
		t.Errorf("first: %d, cut %v", len(found.fresh), found.cut)
	}
	for range watchDeepEvery + 1 { // what was there before stays unseen
		if found := look(w); len(found.fresh) != 0 {
			t.Fatalf("nothing came, and %d were shown", len(found.fresh))
		}
	}
	record(6000, time.Second)
	if found := look(w); len(found.fresh) != watchReads || !found.cut {
		t.Errorf("a burst: %d, cut %v", len(found.fresh), found.cut)
	}
	for i := range 14 {
		record(4000, time.Duration(i+2)*time.Second)
		look(w)
	}
	if len(w.seen) > watchRemembers {
		t.Errorf("it remembers %d", len(w.seen))
	}
	if found := look(w); len(found.fresh) != 0 {
		t.Errorf("what was forgotten came again: %d", len(found.fresh))
	}
	// All of what is there, where that is asked for.
	if found, err := l.watch(0).look(context.Background()); err != nil || len(found.fresh) != n || found.cut {
		t.Errorf("all: %d of %d, %v", len(found.fresh), n, err)
	}
}

// Servers come and go while they are watched: it is told once, and watched on. What is wrong for good ends it.
func TestWatchingWhileServersComeAndGo(t *testing.T) {
	l := &ledgerOf{}
	l.all = append(l.all, interaction("one", 0))
	answers := []error{nil, fault.New(fault.Unavailable, "nobody leads"), fault.New(fault.Timeout, "too slow"), nil, nil, fault.New(fault.PermissionDenied, "the token was revoked")}
	missing := []map[string]string{{"server-2": "gone"}, nil, nil, {"server-2": "gone", "server-3": "gone, too"}, {}, nil}
	var out, errs bytes.Buffer
	a := newApp(nil, strings.NewReader(""), &out, &errs)
	a.refresh, a.flags.output, a.flags.timeout = time.Millisecond, "name", time.Minute
	w := l.watch(10)
	looks := 0
	w.fetch = func(ctx context.Context, since time.Time, size int32, token string) (*apiv1.ListInteractionsResponse, error) {
		looks++
		if err := answers[looks-1]; err != nil {
			return nil, err
		}
		if looks == 4 {
			l.all = append(l.all, interaction("two", time.Second))
		}
		r, err := l.fetch(ctx, since, size, token)
		r.Missing = missing[looks-1]
		return r, err
	}
	if err := a.watchInteractions(t.Context(), w); !fault.Is(err, fault.PermissionDenied) {
		t.Errorf("it ended with %v", err)
	}
	const want = "server-2 did not answer: gone\nlooking again: nobody leads\nserver-3 did not answer: gone, too\nserver-2 answers again\nserver-3 answers again\n"
	if out.String() != "interaction/one\ninteraction/two\n" || errs.String() != want {
		t.Errorf("it printed %q and told\n%s", out.String(), errs.String())
	}
}
