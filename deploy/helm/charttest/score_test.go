// kube-score, and what it finds that is meant to be so.

package charttest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// meant are findings that stay, each with its reason. One that is found no more must go.
var meant = []struct {
	finding *regexp.Regexp
	why     string
}{
	{regexp.MustCompile(`ImagePullPolicy is not set to Always`),
		"tags of releases do not move, a digest may be given, and a pod must start again while the registry is away"},
	{regexp.MustCompile(`-server/.*\(orchestrator\) CPU limit is not set`),
		"a server that is throttled misses heartbeats: elections, and leases that end"},
	{regexp.MustCompile(`StatefulSet does not have a host podAntiAffinity set`),
		"topologySpreadConstraints spread the pods, over zones, too, and let five servers live on four machines"},
	{regexp.MustCompile(`-server/.*does not have a matching egress NetworkPolicy`),
		"what a server asks is DNS, other servers, and a bucket whose addresses nobody can say beforehand"},
	{regexp.MustCompile(`-(backup-[a-z]+|test)/.*does not have a matching egress NetworkPolicy`),
		"jobs ask DNS and the servers, and an uploader wherever backups go"},
}

func TestScore(t *testing.T) {
	program := os.Getenv("KUBE_SCORE")
	if program == "" {
		t.Skip("KUBE_SCORE does not name the program kube-score; make chart-test builds it")
	}
	used := make([]bool, len(meant))
	for name, v := range variants(t) {
		var file bytes.Buffer
		for _, o := range render(t, v) {
			doc, err := yaml.Marshal(o)
			if err != nil {
				t.Fatal(err)
			}
			file.WriteString("---\n")
			file.Write(doc)
		}
		for _, line := range score(t, program, &file) {
			explained := false
			for i, m := range meant {
				if m.finding.MatchString(line) {
					used[i], explained = true, true
				}
			}
			if !explained {
				t.Errorf("%s: %s", name, line)
			}
		}
	}
	for i, u := range used {
		if !u {
			t.Errorf("nothing is found any more of what is explained: %s", meant[i].finding)
		}
	}
}

// score returns what kube-score finds, a line each.
func score(t *testing.T, program string, objects *bytes.Buffer) (found []string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, "score", "--output-format", "ci", "--kubernetes-version", "v1.37", "-")
	cmd.Stdin = objects
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) { // 1: it found something
		t.Fatalf("kube-score: %v: %s", err, &errs)
	}
	lines := 0
	for line := range strings.Lines(string(out)) {
		lines++
		if strings.HasPrefix(line, "[CRITICAL]") || strings.HasPrefix(line, "[WARNING]") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	if lines == 0 {
		t.Fatalf("kube-score said nothing: %s", &errs)
	}
	return found
}
