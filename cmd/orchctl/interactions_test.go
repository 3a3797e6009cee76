// Reading the record: what is asked for, and what is written.

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInteractions(t *testing.T) {
	r := newRig(t)
	ids := func(line string) (out []string) {
		t.Helper()
		for id := range strings.FieldsSeq(r.must(line + " -o name")) {
			out = append(out, strings.TrimPrefix(id, "interaction/"))
		}
		return out
	}
	for line, want := range map[string]string{
		"interactions list":                                                       "e7.x 0001 m1.x a1.x 0002",
		"interactions list --limit 2":                                             "a1.x 0002", // the latest, oldest first
		"interactions list --limit 0":                                             "e7.x 0001 m1.x a1.x 0002",
		"interactions list -n team":                                               "0002",
		"interactions list --kind tool-call":                                      "0001",
		"interactions list --session ledgeraaaaaaaaaaaaaa --kind message":         "m1.x",
		"interactions list --tool session.running":                                "e7.x",
		"interactions list --filter caller=client:ci,request=r-2,model=kimi":      "0002",
		"interactions list --filter status=failed,provider=moonshot,client=web-1": "0002",
		"interactions list --since 2026-03-01T12:00:00.14Z":                       "a1.x 0002",
		"interactions list --until 2026-03-01T12:00:00.14Z":                       "e7.x 0001 m1.x",
	} {
		var short []string
		for _, id := range ids(line) {
			short = append(short, id[strings.LastIndexAny(id, "/-")+1:])
		}
		if got := strings.Join(short, " "); got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
	for line, want := range map[string]string{
		"interactions list --kind gossip":             "--kind",
		"interactions list --kind kind-unspecified":   "--kind",
		"interactions list --since yesterday":         "--since",
		"interactions list --until -5m":               "--until",
		"interactions list --limit -1":                "--limit",
		"interactions list --filter mood=good":        "--filter",
		"interactions list --filter status=splendid":  "--filter",
		"interactions list --filter caller":           "--filter",
		"interactions export --limit -1":              "--limit",
		"interactions export --kind nothing":          "--kind",
		"interactions export --to /no/such/directory": "no such file",
	} {
		if res := r.run(line); res.code != 2 || !strings.Contains(res.err, want) {
			t.Errorf("%s: %v", line, res)
		}
	}
}

func TestExportInteractions(t *testing.T) {
	r := newRig(t)
	lines := func(text string) (kinds []string) {
		t.Helper()
		for line := range strings.Lines(text) {
			var i struct{ Kind, ID string }
			if err := json.Unmarshal([]byte(line), &i); err != nil || i.ID == "" {
				t.Fatalf("%q: %v", line, err)
			}
			kinds = append(kinds, i.Kind)
		}
		return kinds
	}
	want := "SESSION_EVENT TOOL_CALL MESSAGE ANSWER MODEL_CALL"
	if got := lines(r.must("interactions export") + "\n"); strings.Join(got, " ") != want {
		t.Errorf("to standard output: %v", got)
	}
	file := filepath.Join(t.TempDir(), "x.jsonl")
	res := r.run("interactions export --to " + file)
	b, err := os.ReadFile(file)
	if res.code != 0 || res.out != "" || err != nil || strings.Join(lines(string(b)), " ") != want || !strings.Contains(res.err, "exported 5 interactions") {
		t.Errorf("to a file: %v, %v", res, err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v, %v", st.Mode(), err)
	}
	if res := r.run("interactions export --kind answer --to " + file); res.code != 4 {
		t.Errorf("over a file that is there: %v", res)
	}
	r.must("interactions export --kind answer --force --to " + file)
	if b, err := os.ReadFile(file); err != nil || strings.Join(lines(string(b)), " ") != "ANSWER" {
		t.Errorf("replaced: %s, %v", b, err)
	}
}
