// How measurements become a status, and that the documented table is the one in force.

package health

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// well is a machine that nothing is wrong with.
func well() Input {
	return Input{Sample: Sample{CPUPercent: 10, MemoryPercent: 40, DiskFreePercent: 60, DiskFreeBytes: 100 << 30}, ResponseTime: time.Millisecond}
}

func TestJudge(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Input)
		status apiv1.Node_Status
		reason string
	}{
		"well":                         {func(*Input) {}, apiv1.Node_HEALTHY, ""},
		"busy":                         {func(i *Input) { i.CPUSustained = 90 }, apiv1.Node_HEALTHY, ""},
		"very busy":                    {func(i *Input) { i.CPUSustained = 90.1 }, apiv1.Node_DEGRADED, "cpu is 90.1%, above 90%"},
		"full cores alone are no harm": {func(i *Input) { i.CPUSustained = 100 }, apiv1.Node_DEGRADED, "cpu"},
		"memory":                       {func(i *Input) { i.MemoryPercent = 91 }, apiv1.Node_DEGRADED, "memory is 91%"},
		"memory is gone":               {func(i *Input) { i.MemoryPercent = 97.5 }, apiv1.Node_UNHEALTHY, "memory is 97.5%, above 97%"},
		"slow answers":                 {func(i *Input) { i.ResponseTime = 10001 * time.Millisecond }, apiv1.Node_DEGRADED, "response time"},
		"no answers":                   {func(i *Input) { i.ResponseTime = 16 * time.Second }, apiv1.Node_UNHEALTHY, "response time is 16 s, above 15 s"},
		"disk":                         {func(i *Input) { i.DiskFreePercent = 4 }, apiv1.Node_DEGRADED, "disk free percent is 4%, below 5%"},
		"disk is full":                 {func(i *Input) { i.DiskFreePercent = 0.5 }, apiv1.Node_UNHEALTHY, "disk free percent"},
		"small disk is full":           {func(i *Input) { i.DiskFreeBytes = 255 << 20 }, apiv1.Node_UNHEALTHY, "disk free is 255 MiB, below 256 MiB"},
		"the worst decides":            {func(i *Input) { i.CPUSustained, i.MemoryPercent = 99, 99 }, apiv1.Node_UNHEALTHY, "memory"},
		"what is unknown is no harm": {func(i *Input) {
			*i = Input{Sample: Sample{Missing: map[Measure]bool{DiskPercent: true, DiskBytes: true}}}
		}, apiv1.Node_HEALTHY, ""},
	} {
		t.Run(name, func(t *testing.T) {
			in := well()
			tc.change(&in)
			v := Judge(Verdict{}, in)
			if v.Status != tc.status || !strings.Contains(v.Reason, tc.reason) || (v.Reason == "") != (tc.status == apiv1.Node_HEALTHY) {
				t.Errorf("got %s: %q", v.Status, v.Reason)
			}
		})
	}
}

func TestReasonNamesTheBoundThatHolds(t *testing.T) {
	in := well()
	var v Verdict
	for value, want := range []string{90: "", 91: "cpu is 91%, above 90%", 92: "cpu is 92%, above 90%"} {
		if want == "" {
			continue
		}
		in.CPUSustained = float64(value)
		if v = Judge(v, in); v.Reason != want {
			t.Errorf("got %q, want %q", v.Reason, want)
		}
	}
	in.CPUSustained = 87
	if v = Judge(v, in); v.Reason != "cpu is 87%, above 85%" {
		t.Errorf("on the way back: %q", v.Reason)
	}
}

// Each rule is left later than it is entered, and at the bound that it says.
func TestHysteresis(t *testing.T) {
	for _, r := range Rules() {
		t.Run(fmt.Sprint(r.Measure, " ", r.Status), func(t *testing.T) {
			set := func(value float64) Input {
				in := well()
				switch r.Measure {
				case CPU:
					in.CPUSustained = value
				case Memory:
					in.MemoryPercent = value
				case ResponseTime:
					in.ResponseTime = time.Duration(value * float64(time.Second))
				case DiskPercent:
					in.DiskFreePercent = value
				case DiskBytes:
					in.DiskFreeBytes = uint64(value * mebibyte)
				}
				return in
			}
			step := 0.01
			if r.Below {
				step = -0.01
			}
			atLeast := func(v Verdict) bool { return v.Status >= r.Status }
			var v Verdict
			if v = Judge(v, set(r.Leave)); atLeast(v) {
				t.Errorf("entered at %g", r.Leave)
			}
			if v = Judge(v, set(r.Enter)); atLeast(v) {
				t.Errorf("entered at %g", r.Enter)
			}
			if v = Judge(v, set(r.Enter+step)); !atLeast(v) {
				t.Errorf("not entered beyond %g", r.Enter)
			}
			if v = Judge(v, set(r.Leave+step)); !atLeast(v) {
				t.Errorf("left beyond %g", r.Leave)
			}
			if v = Judge(v, set(r.Leave)); atLeast(v) && v.Status == r.Status {
				t.Errorf("not left at %g", r.Leave)
			}
		})
	}
}

// The package's comment shows the table as it is.
func TestTableIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(doc)) {
		if strings.Contains(line, "DEGRADED  ") || strings.Contains(line, "UNHEALTHY  ") {
			rows++
		}
	}
	if rows != len(Rules()) {
		t.Errorf("the table has %d rows, and there are %d rules", rows, len(Rules()))
	}
	for _, r := range Rules() {
		found := false
		for line := range strings.Lines(string(doc)) {
			f := strings.Fields(line)
			if len(f) > 4 && strings.Contains(line, strings.TrimSuffix(string(r.Measure), " percent")) &&
				f[len(f)-3] == r.Status.String() && f[len(f)-2] == fmt.Sprint(r.Enter) && f[len(f)-1] == fmt.Sprint(r.Leave) {
				found = true
			}
		}
		if !found {
			t.Errorf("the table lacks %+v", r)
		}
	}
}

func TestMachineMeasures(t *testing.T) {
	m, err := NewMachine(context.Background(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := m.Sample(context.Background())
	if !s.Missing[CPU] || len(s.Missing) != 1 {
		t.Errorf("CPU use over no time means nothing: %+v", s)
	}
	m.before[0].at = m.before[0].at.Add(-2 * time.Second)
	s = m.Sample(context.Background())
	if len(s.Missing) != 0 || s.MemoryPercent <= 0 || s.MemoryPercent > 100 || s.DiskFreeBytes == 0 || s.CPUPercent < 0 || s.CPUPercent > 100 {
		t.Errorf("%+v", s)
	}
	m.dataDir = "/nowhere"
	if s := m.Sample(context.Background()); !s.Missing[DiskPercent] || !s.Missing[DiskBytes] {
		t.Errorf("a disk that cannot be measured: %+v", s)
	}
}

// CPU use is reported over the last interval, and judged over SustainedFor.
func TestSustainedCPU(t *testing.T) {
	at := time.Now()
	m := &Machine{before: []reading{{at: at}}}
	idle, total := 0.0, 0.0
	step := func(busy float64) Sample {
		at = at.Add(5 * time.Second)
		total += 10 // two cores
		idle += 10 * (1 - busy)
		var s Sample
		if !m.cpu(reading{at: at, total: total, idle: idle}, &s) {
			t.Fatal("not measured")
		}
		return s
	}
	for range 20 {
		step(0)
	}
	if s := step(1); s.CPUPercent < 99.9 || s.CPUSustained > 17 {
		t.Errorf("after 5 busy seconds of 30: %+v", s)
	}
	for range 4 {
		step(1)
	}
	if s := step(1); s.CPUSustained < 99.9 {
		t.Errorf("after 30 busy seconds: %+v", s)
	}
	if s := step(0); s.CPUPercent > 0.1 || s.CPUSustained < 80 {
		t.Errorf("after 25 busy seconds of 30: %+v", s)
	}
}
