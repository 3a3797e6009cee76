// The specification is held to what the code does.

package http

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

func TestSpecification(t *testing.T) {
	text, err := os.ReadFile("../../docs/protocol/chunks.md")
	if err != nil {
		t.Fatal(err)
	}
	spec := strings.ReplaceAll(string(text), ",", "")
	for _, fact := range []string{
		fmt.Sprintf("`POST %smissing` | ids 32 bytes each at most %d |", Path, MissingMax),
		fmt.Sprintf("put records at most %d and %d MiB in all", BatchMax, PutBatchMaxBytes>>20),
		fmt.Sprintf("`POST %sget` | ids 32 bytes each at most %d |", Path, BatchMax),
		fmt.Sprintf("at most %d MiB + %d bytes", chunk.MaxContentBytes>>20, chunk.HeaderBytes),
		fmt.Sprintf("| %d | n | frame |", putRecordBytes), fmt.Sprintf("| %d | n | frame or error |", gotRecordBytes),
		fmt.Sprintf("| %.0f s then the connection", stallMax.Seconds()), fmt.Sprintf("| %.0f minutes |", requestMax.Minutes()),
		fmt.Sprintf("%d and %d by default", NewHandler(nil, HandlerOptions{}).opts.RequestsMax, NewHandler(nil, HandlerOptions{}).opts.RequestsPerClientMax),
	} {
		if !strings.Contains(spec, fact) {
			t.Errorf("docs/protocol/chunks.md does not say %q", fact)
		}
	}
	for kind, said := range kinds {
		if kind == fault.AlreadyExists || kind == fault.FailedPrecondition || kind == fault.Aborted || kind == fault.Unimplemented {
			continue // no store says that
		}
		if !strings.Contains(spec, said.code) || !strings.Contains(spec, fmt.Sprint(said.status)) {
			t.Errorf("docs/protocol/chunks.md does not explain %s (%d)", said.code, said.status)
		}
	}
	var result putResult
	for line := range strings.Lines(string(text)) {
		if example, ok := strings.CutPrefix(line, `    {"stored"`); ok {
			if err := json.Unmarshal([]byte(`{"stored"`+example), &result); err != nil || len(result.Failed) != 1 || *result.Failed[0].Index != 1 {
				t.Errorf("the example of a result: %+v, %v", result, err)
			}
		}
	}
	if result.Stored != 2 {
		t.Error("there is no example of a result")
	}
}
