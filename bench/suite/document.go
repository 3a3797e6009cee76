// The document: a report with how everything in it was measured.

package suite

import (
	"bytes"
	_ "embed"
	"fmt"
	"strings"
	"text/template"

	"github.com/google/renameio/v2"

	"github.com/neolith/orchestrator/bench/measure"
)

//go:embed document.md.tmpl
var documentTemplate string

// WriteDocument writes a report as Markdown.
func WriteDocument(r *measure.Report, path string) error {
	t, err := template.New("document").Funcs(template.FuncMap{"table": markdownTable, "notes": notes}).Parse(documentTemplate)
	if err != nil {
		return fmt.Errorf("read the document's template: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, r); err != nil {
		return fmt.Errorf("write the document: %w", err)
	}
	if err := renameio.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write the document: %w", err)
	}
	return nil
}

// markdownTable is the figures of one part.
func markdownTable(r *measure.Report, part string) string {
	var b strings.Builder
	for _, f := range r.Figures {
		if f.Part != part {
			continue
		}
		if b.Len() == 0 {
			b.WriteString("| figure | median | runs | p99 | raw limit or peer | ratio | target | verdict |\n|---|---|---|---|---|---|---|---|\n")
		}
		p99, raw := "", ""
		if len(f.P99) > 0 {
			p99 = measure.Amount(f.P99.Median(), "ms")
		}
		if len(f.Raw) > 0 {
			raw = fmt.Sprintf("%s: %s", f.RawName, measure.Amount(f.Raw.Median(), f.Unit))
			if len(f.RawP99) > 0 {
				raw += ", p99 " + measure.Amount(f.RawP99.Median(), "ms")
			}
		}
		verdict := f.Verdict()
		if f.Target != "" && !f.Met {
			verdict = "**missed**"
		}
		fmt.Fprintf(&b, "| %s | %s | %d: %s–%s | %s | %s | %s | %s | %s |\n", f.Name, measure.Amount(f.Runs.Median(), f.Unit),
			len(f.Runs), measure.Amount(f.Runs.Quantile(0), ""), measure.Amount(f.Runs.Quantile(1), ""), p99, raw, f.RatioText(), f.Target, verdict)
	}
	if b.Len() == 0 {
		return "(not measured in this report)\n"
	}
	return b.String()
}

// notes are what is to be said of the figures of one part.
func notes(r *measure.Report, part string) string {
	var b strings.Builder
	for _, f := range r.Figures {
		if f.Part == part && f.Note != "" {
			fmt.Fprintf(&b, "- %s: %s\n", f.Name, f.Note)
		}
	}
	return b.String()
}
