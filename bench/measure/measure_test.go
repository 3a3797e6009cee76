// What figures say of their runs.

package measure

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLatencies(t *testing.T) {
	var l Latencies
	for i := 100; i >= 1; i-- {
		l = append(l, time.Duration(i)*time.Millisecond)
	}
	s := l.Summarize(2 * time.Second)
	if s.P50 != 50 || s.P99 != 99 || s.Max != 100 || s.PerSecond != 50 || s.Operations != 100 {
		t.Errorf("summary of 1…100 ms over 2 s: %+v", s)
	}
	if s := (Latencies{}).Summarize(time.Second); s.P99 != 0 || s.PerSecond != 0 {
		t.Errorf("summary of nothing: %+v", s)
	}
	if s := (Latencies{time.Second}).Summarize(0); s.P50 != 1000 || s.P99 != 1000 {
		t.Errorf("summary of one: %+v", s)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		s    Series
		want float64
	}{{nil, 0}, {Series{3}, 3}, {Series{9, 1, 5}, 5}, {Series{4, 1, 3, 2}, 2.5}} {
		if got := c.s.Median(); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.s, got, c.want)
		}
	}
}

// A ratio is taken within each run: a machine that was slow for one run was slow for both sides.
func TestRatioIsOfTheSameRun(t *testing.T) {
	f := Figure{Runs: Series{50, 500, 60}, Raw: Series{100, 1000, 100}}
	if got := f.Ratio(); got != 0.5 {
		t.Errorf("ratio %v, want 0.5", got)
	}
}

func TestTargets(t *testing.T) {
	fig := func(unit string, raw float64, runs ...float64) *Figure {
		f := &Figure{Unit: unit, Runs: runs}
		for range runs {
			f.Raw = append(f.Raw, raw)
		}
		return f
	}
	for _, c := range []struct {
		name string
		f    *Figure
		want func(*Figure)
		met  bool
	}{
		{"ratio met", fig("/s", 100, 50), func(f *Figure) { f.WantRatio(0.5) }, true},
		{"ratio missed", fig("/s", 100, 49), func(f *Figure) { f.WantRatio(0.5) }, false},
		{"or: by value", fig("/s", 1000, 300), func(f *Figure) { f.WantRatioOr(0.5, 300) }, true},
		{"or: by ratio", fig("/s", 400, 200), func(f *Figure) { f.WantRatioOr(0.5, 300) }, true},
		{"or: neither", fig("/s", 1000, 200), func(f *Figure) { f.WantRatioOr(0.5, 300) }, false},
		{"above raw met", fig("ms", 0.5, 1.5), func(f *Figure) { f.WantAboveRawAtMost(1) }, true},
		{"above raw missed", fig("ms", 0.5, 1.6), func(f *Figure) { f.WantAboveRawAtMost(1) }, false},
		{"at most", fig("ms", 0, 10), func(f *Figure) { f.WantAtMost(10) }, true},
		{"below", fig("ms", 0, 10), func(f *Figure) { f.WantBelow(10) }, false},
		{"at least", fig("/s", 0, 8000), func(f *Figure) { f.WantAtLeast(8000) }, true},
		{"none", fig("", 0, 0, 0), (*Figure).WantNone, true},
		{"one is not none", fig("", 0, 0, 1, 0), (*Figure).WantNone, false},
		{"nothing measured meets nothing", fig("ms", 0), func(f *Figure) { f.WantAtMost(10) }, false},
		{"nothing measured is not none", fig("", 0), (*Figure).WantNone, false},
	} {
		c.want(c.f)
		if c.f.Met != c.met {
			t.Errorf("%s: met is %v (target %s)", c.name, c.f.Met, c.f.Target)
		}
	}
}

func TestAmount(t *testing.T) {
	for _, c := range []struct {
		v    float64
		unit string
		want string
	}{{0.4567, "ms", "0.46 ms"}, {12.34, "ms", "12.3 ms"}, {8000, "/s", "8,000/s"}, {1234567, "B", "1,234,567 B"}, {0, "", "0"}, {20, "KB", "20 KB"}, {999.6, "/s", "1000/s"}} {
		if got := Amount(c.v, c.unit); got != c.want {
			t.Errorf("Amount(%v, %q) is %q, want %q", c.v, c.unit, got, c.want)
		}
	}
}

func TestReportSurvivesItsFile(t *testing.T) {
	f := &Figure{Part: "send", Name: "64 callers", Unit: "/s", RawName: "raft", Note: "plain text"}
	f.AddRun(100, 1.5)
	f.AddRaw(150, 1)
	f.WantRatio(0.5)
	missed := &Figure{Part: "nodes", Name: "memory", Unit: "KB", Runs: Series{21}}
	missed.WantAtMost(20)
	r := &Report{Time: time.Unix(0, 0), Commit: "abc", Machine: ThisMachine(), Figures: []*Figure{f, missed}}
	path := filepath.Join(t.TempDir(), "r.json")
	if err := r.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	back, err := ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var a, b bytes.Buffer
	r.Table(&a)
	back.Table(&b)
	if a.String() != b.String() {
		t.Errorf("the table changed with the file:\n%s\n%s", &a, &b)
	}
	if back.Missed() != 1 || !strings.Contains(b.String(), "MISSED") || !strings.Contains(b.String(), "plain text") {
		t.Errorf("table:\n%s", &b)
	}
}

func TestOwnProcess(t *testing.T) {
	end := time.Now().Add(30 * time.Millisecond)
	for time.Now().Before(end) { //nolint:revive // it burns processor time
	}
	cpu, err := CPUTime(os.Getpid())
	if err != nil || cpu <= 0 || cpu > time.Hour {
		t.Errorf("CPU time %v, %v", cpu, err)
	}
	if rss, err := RSS(os.Getpid()); err != nil || rss < 1<<20 {
		t.Errorf("RSS %d, %v", rss, err)
	}
	if _, err := RSS(1 << 30); err == nil {
		t.Error("a process that does not exist has memory")
	}
}
