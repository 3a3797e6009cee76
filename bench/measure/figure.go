// Figures: one measured thing, run by run, with what it is compared to.

package measure

import (
	"fmt"
	"slices"
)

// Series is one value for each run.
type Series []float64

// Median is the middle value, or the mean of the middle two; 0 without values.
func (s Series) Median() float64 {
	if len(s) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(s))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// Quantile is the nearest-rank quantile; 0 without values.
func (s Series) Quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(s))[rank(len(s), q)]
}

// Figure is one measured thing.
type Figure struct {
	// Part is the subcommand that measured it, Name says what, Unit in what: "/s", "ms", "s", "B", "KB", "% core".
	Part string `json:"part"`
	Name string `json:"name"`
	Unit string `json:"unit"`
	// Runs has one value for each run; P99 the 99th percentile of its operations in milliseconds, where it has operations.
	Runs Series `json:"runs"`
	P99  Series `json:"p99Ms,omitempty"`
	// Raw is the limit or the peer that RawName names, in the same unit, run by run.
	RawName string `json:"rawName,omitempty"`
	Raw     Series `json:"raw,omitempty"`
	RawP99  Series `json:"rawP99Ms,omitempty"`
	// Target says what is asked for; empty when the figure is there for information. Met is the verdict.
	Target string `json:"target,omitempty"`
	Met    bool   `json:"met"`
	Note   string `json:"note,omitempty"`
}

// Ratio is the median of the runs' ratios to the raw limit; 0 when there is none.
func (f *Figure) Ratio() float64 {
	var r Series
	for i := range min(len(f.Runs), len(f.Raw)) {
		if f.Raw[i] != 0 {
			r = append(r, f.Runs[i]/f.Raw[i])
		}
	}
	return r.Median()
}

// AddRun adds a run by its rate or latency and its 99th percentile.
func (f *Figure) AddRun(value, p99 float64) {
	f.Runs, f.P99 = append(f.Runs, value), append(f.P99, p99)
}

// AddRaw adds the raw limit of a run.
func (f *Figure) AddRaw(value, p99 float64) {
	f.Raw, f.RawP99 = append(f.Raw, value), append(f.RawP99, p99)
}

// WantRatio asks for a ratio of at least least.
func (f *Figure) WantRatio(least float64) {
	f.Target, f.Met = fmt.Sprintf("≥ %.0f %% of raw", least*100), f.Ratio() >= least
}

// WantRatioOr asks for a ratio of at least ratio, or a median of at least value: whichever is lower.
func (f *Figure) WantRatioOr(ratio, value float64) {
	f.Target = fmt.Sprintf("≥ %s or ≥ %.0f %% of raw", Amount(value, f.Unit), ratio*100)
	f.Met = f.Runs.Median() >= value || f.Ratio() >= ratio
}

// WantAtLeast asks for a median of at least value.
func (f *Figure) WantAtLeast(value float64) {
	f.Target, f.Met = "≥ "+Amount(value, f.Unit), f.Runs.Median() >= value
}

// WantAtMost asks for a median of at most value.
func (f *Figure) WantAtMost(value float64) {
	f.Target, f.Met = "≤ "+Amount(value, f.Unit), len(f.Runs) > 0 && f.Runs.Median() <= value
}

// WantBelow asks for a median below value.
func (f *Figure) WantBelow(value float64) {
	f.Target, f.Met = "< "+Amount(value, f.Unit), len(f.Runs) > 0 && f.Runs.Median() < value
}

// WantAboveRawAtMost asks that the median exceeds the raw one by at most extra.
func (f *Figure) WantAboveRawAtMost(extra float64) {
	f.Target = "≤ raw + " + Amount(extra, f.Unit)
	f.Met = len(f.Runs) > 0 && len(f.Raw) > 0 && f.Runs.Median() <= f.Raw.Median()+extra
}

// WantNone asks that every run gave 0.
func (f *Figure) WantNone() {
	f.Target, f.Met = "0", len(f.Runs) > 0 && f.Runs.Quantile(1) == 0
}

// Verdict is "met", "missed", or "–" for a figure without a target.
func (f *Figure) Verdict() string {
	switch {
	case f.Target == "":
		return "–"
	case f.Met:
		return "met"
	default:
		return "MISSED"
	}
}

// Amount writes a value with its unit, in three significant digits or whole numbers.
func Amount(v float64, unit string) string {
	text := ""
	switch a := max(v, -v); {
	case a >= 1000:
		text = thousands(int64(v + 0.5))
	case a >= 100 || v == float64(int64(v)):
		text = fmt.Sprintf("%.0f", v)
	case a >= 10:
		text = fmt.Sprintf("%.1f", v)
	default:
		text = fmt.Sprintf("%.2f", v)
	}
	switch unit {
	case "":
		return text
	case "/s":
		return text + unit
	}
	return text + " " + unit
}

func thousands(n int64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return thousands(n/1000) + fmt.Sprintf(",%03d", n%1000)
}
