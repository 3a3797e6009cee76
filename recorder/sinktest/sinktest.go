// Package sinktest holds what every sink promises, as tests that each sink runs, and how fast it is.
package sinktest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder"
)

// Begin is the time of the first interaction that Some makes; each next one is a second later.
var Begin = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

// Some returns n interactions that differ in all that can be asked for.
func Some(n int) []recorder.Interaction {
	all := make([]recorder.Interaction, n)
	kinds := []recorder.Kind{recorder.ToolCall, recorder.ModelCall, recorder.Message, recorder.Answer, recorder.SessionEvent}
	statuses := []recorder.Status{recorder.OK, recorder.Failed, recorder.Cancelled, recorder.TimedOut}
	for i := range all {
		all[i] = recorder.Interaction{
			ID: fmt.Sprintf("id-%05d", i), Time: Begin.Add(time.Duration(i) * time.Second), Kind: kinds[i%len(kinds)], Namespace: fmt.Sprintf("ns-%d", i%2),
			Session: fmt.Sprintf("s-%d", i%3), Epoch: 1<<62 + uint64(i), Client: fmt.Sprintf("c-%d", i%6), RequestID: fmt.Sprintf("r-%d", i%7), Principal: fmt.Sprintf("p-%d", i%4),
			Tool: fmt.Sprintf("t-%d", i%5), Provider: fmt.Sprintf("v-%d", i%2), Model: fmt.Sprintf("m-%d", i%3), TokensIn: int64(i), TokensOut: 2, CostMicros: 3,
			Latency: 1500 * time.Microsecond, Status: statuses[i%len(statuses)], Code: "CODE", Error: "it 'failed' \\ \"so\"\n",
			Request: `{"text":"漢字 😀 $1 ? \\ ''"}`, Response: "line\nline\t\u0007", RequestBytes: 100, ResponseBytes: 200, RequestTruncated: i%2 == 0,
			ResponseTruncated: i%2 == 1, Redactions: i,
		}
	}
	return all
}

// Run runs the suite; open returns a new, empty sink each time.
func Run(t *testing.T, open func(t *testing.T) recorder.Sink) {
	for _, c := range []struct {
		name string
		test func(*testing.T, recorder.Sink)
	}{
		{"what is written is read", testRoundTrip},
		{"what is written twice is there once", testOnce},
		{"all of a batch or nothing", testAllOrNothing},
		{"pages", testPages},
		{"filters", testFilters},
		{"pages of large payloads", testLargePages},
		{"export", testExport},
		{"retention", testRetention},
		{"bad cursors", testBadCursor},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			defer func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}()
			c.test(t, s)
		})
	}
}

func write(t *testing.T, s recorder.Sink, all []recorder.Interaction) {
	t.Helper()
	if added, err := s.Write(t.Context(), all); err != nil || added != len(all) {
		t.Fatalf("%d of %d added, %v", added, len(all), err)
	}
}

// All lists everything that a query asks for.
func All(t testing.TB, s recorder.Sink, q recorder.Query) []recorder.Interaction {
	t.Helper()
	var all []recorder.Interaction
	for {
		page, next, err := s.List(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page...)
		if next == "" {
			return all
		}
		q.Cursor = next
	}
}

func testRoundTrip(t *testing.T, s recorder.Sink) {
	want := append(Some(10), recorder.Interaction{ID: "bare", Time: Begin.Add(time.Hour), Kind: recorder.Message, Namespace: "x", Status: recorder.OK})
	write(t, s, want)
	if got := All(t, s, recorder.Query{OldestFirst: true}); !slices.Equal(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

func testOnce(t *testing.T, s recorder.Sink) {
	first := Some(20)
	write(t, s, first[:12])
	changed := Some(20)
	for i := range changed {
		changed[i].Response = "another"
	}
	if added, err := s.Write(t.Context(), append(changed[8:], changed[15:]...)); err != nil || added != 8 {
		t.Fatalf("%d were new, %v; want 8, also when a batch names one twice", added, err)
	}
	got := All(t, s, recorder.Query{OldestFirst: true})
	if len(got) != 20 || got[9].Response != first[9].Response || got[12].Response != "another" {
		t.Fatalf("%d are there, and %+v", len(got), got)
	}
}

func testAllOrNothing(t *testing.T, s recorder.Sink) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Write(ctx, Some(3)); err == nil {
		t.Fatal("written though nobody waits")
	}
	if got := All(t, s, recorder.Query{}); len(got) != 0 {
		t.Fatalf("%d of a batch that failed", len(got))
	}
}

func testPages(t *testing.T, s recorder.Sink) {
	all := Some(50)
	for i := range all {
		all[i].Time = Begin.Add(time.Duration(i/7) * time.Second) // several at the same time
	}
	write(t, s, all)
	for _, oldest := range []bool{false, true} {
		var got []string
		q := recorder.Query{Limit: 7, OldestFirst: oldest}
		for pages := 1; ; pages++ {
			page, next, err := s.List(t.Context(), q)
			if err != nil || len(page) > 7 {
				t.Fatalf("%d in a page, %v", len(page), err)
			}
			for _, i := range page {
				got = append(got, i.ID)
			}
			if q.Cursor = next; next == "" {
				if pages != 8 {
					t.Errorf("%d pages", pages)
				}
				break
			}
		}
		if !oldest {
			slices.Reverse(got)
		}
		if len(got) != 50 || !slices.IsSorted(got) {
			t.Errorf("oldest first %v: %v", oldest, got)
		}
	}
}

// testLargePages: a page has a megabyte or so, and one interaction in any case; all come in the end.
func testLargePages(t *testing.T, s recorder.Sink) {
	const count = 12
	all := Some(count)
	for i := range all {
		all[i].Request = strings.Repeat("x", []int{10, 300 << 10, 1 << 20}[i%3])
	}
	write(t, s, all)
	for _, oldest := range []bool{true, false} {
		got, pages := 0, 0
		for q := (recorder.Query{OldestFirst: oldest}); ; pages++ {
			page, next, err := s.List(t.Context(), q)
			if err != nil || len(page) == 0 {
				t.Fatalf("%d, %v", len(page), err)
			}
			bytes := 0
			for _, i := range page {
				bytes += len(i.Request) + len(i.Response)
			}
			if len(page) > 1 && bytes > 1<<20 {
				t.Errorf("%d bytes on a page of %d", bytes, len(page))
			}
			got += len(page)
			if q.Cursor = next; next == "" {
				break
			}
		}
		if got != count || pages < count/3 {
			t.Errorf("%d on %d pages", got, pages)
		}
	}
}

func testFilters(t *testing.T, s recorder.Sink) {
	all := Some(60)
	write(t, s, all)
	for name, c := range map[string]struct {
		q    recorder.Query
		fits func(i int) bool
	}{
		"namespace": {recorder.Query{Namespace: "ns-1"}, func(i int) bool { return i%2 == 1 }},
		"session":   {recorder.Query{Session: "s-2"}, func(i int) bool { return i%3 == 2 }},
		"kind":      {recorder.Query{Kind: recorder.ModelCall}, func(i int) bool { return i%5 == 1 }},
		"status":    {recorder.Query{Status: recorder.TimedOut}, func(i int) bool { return i%4 == 3 }},
		"principal": {recorder.Query{Principal: "p-0"}, func(i int) bool { return i%4 == 0 }},
		"client":    {recorder.Query{Client: "c-5"}, func(i int) bool { return i%6 == 5 }},
		"request":   {recorder.Query{RequestID: "r-6"}, func(i int) bool { return i%7 == 6 }},
		"tool":      {recorder.Query{Tool: "t-4"}, func(i int) bool { return i%5 == 4 }},
		"provider":  {recorder.Query{Provider: "v-0"}, func(i int) bool { return i%2 == 0 }},
		"model":     {recorder.Query{Model: "m-1"}, func(i int) bool { return i%3 == 1 }},
		"since":     {recorder.Query{Since: all[10].Time}, func(i int) bool { return i >= 10 }},
		"until":     {recorder.Query{Until: all[10].Time}, func(i int) bool { return i < 10 }},
		"several":   {recorder.Query{Namespace: "ns-0", Session: "s-0", Since: all[20].Time, Until: all[40].Time}, func(i int) bool { return i%6 == 0 && i >= 20 && i < 40 }},
		"nothing":   {recorder.Query{Namespace: "'; DROP TABLE interactions; --"}, func(int) bool { return false }},
	} {
		var want, got []string
		for i := range all {
			if c.fits(i) {
				want = append(want, all[i].ID)
			}
		}
		c.q.OldestFirst, c.q.Limit = true, 4 // several pages
		for _, i := range All(t, s, c.q) {
			got = append(got, i.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func testExport(t *testing.T, s recorder.Sink) {
	all := Some(recorder.PageMax + 5)
	write(t, s, all)
	for _, limit := range []int{0, 3, recorder.PageMax + 2} {
		var out bytes.Buffer
		n, err := recorder.Export(t.Context(), s, recorder.Query{OldestFirst: true, Limit: limit}, &out)
		want := len(all)
		if limit > 0 {
			want = limit
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if err != nil || n != want || len(lines) != want {
			t.Fatalf("limit %d: %d exported, %d lines, %v", limit, n, len(lines), err)
		}
		var last recorder.Interaction
		if err := json.Unmarshal([]byte(lines[want-1]), &last); err != nil || last != all[want-1] {
			t.Fatalf("%v, %s", err, lines[want-1])
		}
	}
}

func testRetention(t *testing.T, s recorder.Sink) {
	all := Some(100)
	write(t, s, all)
	if n, err := s.Prune(t.Context(), recorder.Retention{}); n != 0 || err != nil {
		t.Fatalf("%d removed though nothing is bounded, %v", n, err)
	}
	if n, err := s.Prune(t.Context(), recorder.Retention{Before: all[40].Time}); n != 40 || err != nil {
		t.Fatalf("%d removed, %v", n, err)
	}
	if got := All(t, s, recorder.Query{OldestFirst: true}); len(got) != 60 || got[0].ID != all[40].ID {
		t.Fatalf("%d are left", len(got))
	}
}

func testBadCursor(t *testing.T, s recorder.Sink) {
	for _, bad := range []string{"x", "%%%", "MTIz"} {
		if _, _, err := s.List(t.Context(), recorder.Query{Cursor: bad}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// BenchmarkWrite measures how fast a sink takes batches of 1,000 interactions of 1 KB each.
func BenchmarkWrite(b *testing.B, s recorder.Sink) {
	batch := Some(1000)
	for n := range batch {
		batch[n].Request, batch[n].Response = strings.Repeat("x", 500), strings.Repeat("y", 500)
	}
	round := 0
	for b.Loop() {
		round++
		for n := range batch {
			batch[n].ID, batch[n].Time = fmt.Sprintf("%08d-%d", round, n), Begin.Add(time.Duration(round*len(batch)+n)*100*time.Microsecond)
		}
		if _, err := s.Write(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*len(batch))/b.Elapsed().Seconds(), "records/s")
}
