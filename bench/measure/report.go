// Reports: all figures of one call, as a table and as JSON.

package measure

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/renameio/v2"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Report is what one call measured.
type Report struct {
	Time    time.Time `json:"time"`
	Commit  string    `json:"commit"`
	Command string    `json:"command"`
	Machine Machine   `json:"machine"`
	// LoadAfter is the machine's load when the last part was done.
	LoadAfter float64   `json:"loadAfter"`
	Figures   []*Figure `json:"figures"`
}

// Missed counts the figures that missed their target.
func (r *Report) Missed() int {
	n := 0
	for _, f := range r.Figures {
		if f.Target != "" && !f.Met {
			n++
		}
	}
	return n
}

// Table writes the report for people.
func (r *Report) Table(w io.Writer) {
	m := r.Machine
	fmt.Fprintf(w, "%s  commit %s\n%d cores, %s, %d MiB, Linux %s, %s, load %.1f before and %.1f after\n",
		r.Time.UTC().Format("2006-01-02 15:04 MST"), r.Commit, m.Cores, m.CPU, m.MemoryMiB, m.Kernel, m.Go, m.Load, r.LoadAfter)
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{"part", "figure", "median", "range", "p99", "raw limit or peer", "median", "p99", "ratio", "target", "verdict"})
	last := ""
	for _, f := range r.Figures {
		if last != "" && f.Part != last {
			t.AppendSeparator()
		}
		last = f.Part
		t.AppendRow(table.Row{
			f.Part, f.Name, Amount(f.Runs.Median(), f.Unit), f.rangeText(), p99Text(f.P99), f.RawName, f.rawText(), p99Text(f.RawP99),
			f.RatioText(), f.Target, f.Verdict(),
		})
	}
	fmt.Fprintln(w, t.Render())
	for _, f := range r.Figures {
		if f.Note != "" {
			fmt.Fprintf(w, "  %s, %s: %s\n", f.Part, f.Name, f.Note)
		}
	}
}

func (f *Figure) rangeText() string {
	if len(f.Runs) < 2 {
		return ""
	}
	return Amount(f.Runs.Quantile(0), "") + "–" + Amount(f.Runs.Quantile(1), "") + fmt.Sprintf(" (%d)", len(f.Runs))
}

func (f *Figure) rawText() string {
	if len(f.Raw) == 0 {
		return ""
	}
	return Amount(f.Raw.Median(), f.Unit)
}

// RatioText is the ratio to the raw limit; empty when there is none.
func (f *Figure) RatioText() string {
	if len(f.Raw) == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", f.Ratio())
}

func p99Text(s Series) string {
	if len(s) == 0 {
		return ""
	}
	return Amount(s.Median(), "ms")
}

// WriteFile writes the report as JSON.
func (r *Report) WriteFile(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	if err := renameio.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// ReadFile reads what WriteFile wrote.
func ReadFile(path string) (*Report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	r := &Report{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read the report %s: %w", path, err)
	}
	return r, nil
}

// Targets counts the figures that have a target.
func (r *Report) Targets() int {
	n := 0
	for _, f := range r.Figures {
		if f.Target != "" {
			n++
		}
	}
	return n
}
