// Package ledger is what sessions of the demo and of the test on Kubernetes run: it keeps every entry in a file of its workspace, which is
// what checkpoints keep, and answers each with the sum so far. Whoever sent the entries can tell by the file whether one was lost or
// came twice.
package ledger

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// File is where entries are kept, in the workspace.
const File = "ledger.txt"

// Keep reads entries, "NAME AMOUNT" a line, until in ends. It appends each to its file and answers with the name and the sum so far. What an
// earlier process of the same session wrote is taken up.
func Keep(in io.Reader, out io.Writer) error {
	sum, err := read()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(File, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		name, amount, _ := strings.Cut(lines.Text(), " ")
		n, err := strconv.Atoi(amount)
		if err != nil {
			fmt.Fprintf(out, "refused %q\n", lines.Text())
			continue
		}
		sum += n
		if _, err := fmt.Fprintf(f, "%s %d\n", name, n); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s %d\n", name, sum)
	}
	return lines.Err()
}

func read() (sum int, err error) {
	b, err := os.ReadFile(File)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for line := range strings.Lines(string(b)) {
		_, amount, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, _ := strconv.Atoi(amount) // only numbers were written
		sum += n
	}
	return sum, err
}
