// Which goroutines belong to which daemon: they inherit the label of who starts them.

package supervise

import (
	"bufio"
	"bytes"
	"encoding/json"
	"runtime/pprof"
	"strconv"
	"strings"
)

// label is the label of a daemon's goroutines, in profiles, too.
const label = "daemon"

// goroutinesByLabel counts the goroutines of each daemon.
func goroutinesByLabel() map[string]int {
	var text bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&text, 1); err != nil {
		return nil
	}
	return countGoroutines(&text)
}

// countGoroutines reads a profile of goroutines in its text form: a line "N @ …" for those with the same stack, and below it "# labels: {…}".
func countGoroutines(text *bytes.Buffer) map[string]int {
	out, n := map[string]int{}, 0
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if count, _, ok := strings.Cut(line, " @ "); ok {
			n, _ = strconv.Atoi(count) // 0 where it is no number, which belongs to nobody
			continue
		}
		if found, ok := strings.CutPrefix(line, "# labels: "); ok {
			labels := map[string]string{}
			if json.Unmarshal([]byte(found), &labels) == nil && labels[label] != "" {
				out[labels[label]] += n
			}
		}
	}
	return out
}
