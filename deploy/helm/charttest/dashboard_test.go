// The dashboard and the autoscaler ask for metrics that there are.

package charttest

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// How the source names its metrics; a name without its prefix is one of these calls'.
var named = []struct {
	in, prefix string
	re         *regexp.Regexp
}{
	{"cmd/orchestrator", "", regexp.MustCompile(`"(orchestrator_[a-z0-9_]+)"`)},
	{"auth", "", regexp.MustCompile(`"(orchestrator_[a-z0-9_]+)"`)},
	{"cmd/orchestrator", "orchestrator_", regexp.MustCompile(`\bdesc\("([a-z0-9_]+)"`)},
	{"agent", "node_agent_", regexp.MustCompile(`\b(?:counter|gauge|histogram|read)\("([a-z0-9_]+)"`)},
	{"cmd/node-agent", "node_agent_", regexp.MustCompile(`\b(?:counter|gauge)\("([a-z0-9_]+)"`)},
}

// metricsOf are the names of all metrics in the source.
func metricsOf(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, n := range named {
		before := len(found)
		err := filepath.WalkDir(filepath.Join("../../..", n.in), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			for _, m := range n.re.FindAllSubmatch(b, -1) {
				found[n.prefix+string(m[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == before {
			t.Errorf("no metric in %s is named as in %s any more", n.in, n.re)
		}
	}
	return found
}

var metricName = regexp.MustCompile(`\b(orchestrator|node_agent)_[a-z0-9_]+\b`)

func TestDashboard(t *testing.T) {
	there := metricsOf(t)
	b, err := os.ReadFile(chartDir + "/files/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Title   string
			ID      int
			Type    string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("%s: its id is taken, or it leaves the page", p.Title)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s shows nothing", p.Title)
		}
		for _, q := range p.Targets {
			if strings.Count(q.Expr, "(") != strings.Count(q.Expr, ")") || strings.Count(q.Expr, "{") != strings.Count(q.Expr, "}") {
				t.Errorf("%s: brackets: %s", p.Title, q.Expr)
			}
			names := metricName.FindAllString(q.Expr, -1)
			if len(names) == 0 {
				t.Errorf("%s asks for nothing: %s", p.Title, q.Expr)
			}
			for _, name := range names {
				if !known(there, name) {
					t.Errorf("%s asks for %s, which there is not", p.Title, name)
				}
			}
		}
	}
	config := text(find(t, render(t, with("dashboard.enabled", true)), "ConfigMap", fullname+"-dashboard"), "data", "orchestrator.json")
	if !bytes.Equal(bytes.TrimSpace([]byte(config)), bytes.TrimSpace(b)) {
		t.Error("the ConfigMap holds something else than the file")
	}
}

// known knows a histogram by its parts, too.
func known(there map[string]bool, name string) bool {
	for _, suffix := range []string{"", "_bucket", "_count", "_sum"} {
		if base, ok := strings.CutSuffix(name, suffix); ok && there[base] {
			return true
		}
	}
	return false
}

func TestAutoscalerAsksForWhatThereIs(t *testing.T) {
	hpa := find(t, render(t, with("agent.autoscaling.enabled", true)), "HorizontalPodAutoscaler", fullname+"-agent")
	there := metricsOf(t)
	if name := text(hpa, "spec", "metrics", 0, "pods", "metric", "name"); !there[name] {
		t.Errorf("there is no metric %s", name)
	}
	// The other one is made by the adapter, as the README says.
	name := text(hpa, "spec", "metrics", 1, "external", "metric", "name")
	readme, err := os.ReadFile(chartDir + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(readme, []byte("as: "+name)) || !there[strings.TrimSuffix(name, "_pending")] {
		t.Errorf("the README does not say how the adapter makes %s", name)
	}
}
