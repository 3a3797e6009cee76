// The specification is held to what the code does.

package archive

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/serializer/chunk"
)

func TestSpecification(t *testing.T) {
	text, err := os.ReadFile("../../docs/protocol/archive.md")
	must(t, err)
	spec := strings.ReplaceAll(string(text), ",", "")
	for _, fact := range []string{
		fmt.Sprintf("| `%s` | at most %d MiB |", headerName, MaxHeaderBytes>>20), fmt.Sprintf("| `%s` and 64 hexadecimal digits | %d to %d |", chunkDir, chunk.HeaderBytes, chunk.MaxFrameBytes),
		fmt.Sprintf("| `%s` | at most %d KiB |", signatureName, MaxSignatureBytes>>10), fmt.Sprintf("At most %d chunks", MaxChunks),
		fmt.Sprintf("at most %d MiB which is", MaxWindowBytes>>20), fmt.Sprintf("more than %d MiB were decompressed they may be at most %d times", FreeBytes>>20, MaxRatio),
		fmt.Sprintf("raw blocks of up to %d KiB", zstdMaxBlock>>10), fmt.Sprintf("in place of\n%d or more zeros", shortRun), fmt.Sprintf("`version` | number | of this format: %d |", Version),
		"    algorithm ed25519\n", "    orchestrator session archive version 1\n",
	} {
		if !strings.Contains(spec, fact) {
			t.Errorf("docs/protocol/archive.md does not say %q", fact)
		}
	}
	// The header, put together from the table.
	h, items := small()
	name := chunkDir + items[1].id.String()
	var b [blockBytes]byte
	put := func(at int, s string) { copy(b[at:], s) }
	put(0, name)
	put(100, "0000600\x00")
	put(108, "0000000\x00")
	put(116, "0000000\x00")
	put(124, fmt.Sprintf("%011o\x00", len(items[1].frame)))
	put(136, fmt.Sprintf("%011o\x00", h.CreateTime.Unix()))
	put(148, "        ")
	put(156, "0")
	put(257, "ustar\x0000")
	put(329, "0000000\x00")
	put(337, "0000000\x00")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	put(148, fmt.Sprintf("%06o\x00 ", sum))
	if b != tarHeader(name, int64(len(items[1].frame)), h.CreateTime) {
		t.Error("a header is not what the table says")
	}
	if !strings.Contains(string(text), time.Unix(1_800_000_000, 0).UTC().Format(time.RFC3339)) {
		t.Error("the example of a time is another one")
	}
}
