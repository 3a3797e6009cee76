// The README says what values.yaml says.

package charttest

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

func TestReadmeIsCurrent(t *testing.T) {
	program := os.Getenv("HELM_DOCS")
	if program == "" {
		t.Skip("HELM_DOCS does not name the program helm-docs; make chart-test builds it")
	}
	cmd := exec.CommandContext(t.Context(), program, "--chart-search-root", chartDir, "--sort-values-order", "file", "--dry-run", "--log-level", "error")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	want, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm-docs: %v: %s", err, &errs)
	}
	have, err := os.ReadFile(chartDir + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytes.TrimSpace(have), bytes.TrimSpace(want)) {
		t.Error("README.md is not what README.md.gotmpl and values.yaml make; run make chart-docs")
	}
}

var undocumented = regexp.MustCompile(`(?m)^\| (\S+) \| [a-z]+ \| .* \|  \|$`)

// Every value says what it is for.
func TestValuesAreDocumented(t *testing.T) {
	readme, err := os.ReadFile(chartDir + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range undocumented.FindAllSubmatch(readme, -1) {
		t.Errorf("%s has no comment in values.yaml that begins with --", m[1])
	}
	if !bytes.Contains(readme, []byte("| servers.replicas | int | `3` |")) {
		t.Error("the table of values looks otherwise than this test knows")
	}
}

// What the README shows, the chart has.
func TestReadmeNamesWhatThereIs(t *testing.T) {
	readme, err := os.ReadFile(chartDir + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range variants(t) {
		if name != "default" && !strings.Contains(string(readme), "`"+name+"-values.yaml`") {
			t.Errorf("the README does not say what %s-values.yaml is for", name)
		}
	}
}
