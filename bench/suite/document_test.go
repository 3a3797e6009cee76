// The document says how each part was measured, and what of it was missed.

package suite

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/neolith/orchestrator/bench/measure"
)

func TestDocumentHasEveryPart(t *testing.T) {
	r := &measure.Report{Commit: "abc", Command: "bench all", Machine: measure.ThisMachine()}
	for _, part := range []string{"send", "spawn", "moves", "checkpoints", "forks", "nodeloss", "calls", "clients", "queue", "nodes", "state", "failover", "stability"} {
		f := &measure.Figure{Part: part, Name: "figure of " + part, Unit: "ms", Runs: measure.Series{3, 1, 2}, RawName: "raw", Raw: measure.Series{1, 1, 1}, Note: "note on " + part}
		f.WantAtMost(1)
		r.Figures = append(r.Figures, f)
	}
	path := filepath.Join(t.TempDir(), "performance.md")
	if err := WriteDocument(r, path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, f := range r.Figures {
		row := "| " + f.Name + " | 2 ms | 3: 1–3 |  | raw: 1 ms | 2.00 | ≤ 1 ms | **missed** |"
		if strings.Count(text, row) != 1 || strings.Count(text, f.Note) != 1 {
			t.Errorf("%s: the row or the note is not there once:\n%s", f.Part, text)
		}
	}
	if strings.Contains(text, "not measured") || !strings.Contains(text, "13 of 13 targets were missed") {
		t.Errorf("document:\n%s", text)
	}
}

func TestDocumentSaysWhatWasNotMeasured(t *testing.T) {
	path := filepath.Join(t.TempDir(), "performance.md")
	if err := WriteDocument(&measure.Report{}, path); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(path); strings.Count(string(b), "not measured in this report") != 13 {
		t.Errorf("document:\n%s", b)
	}
}
