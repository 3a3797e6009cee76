// The session of the demo: a ledger that keeps every entry in a file of its workspace and answers with the running sum.

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// ledgerFile is in the workspace.
const ledgerFile = "ledger.txt"

// ledger reads entries, a line each: a name and an amount. It appends each to its file and answers with the name and the
// sum so far. What an earlier process of the same session wrote is taken up.
func ledger(in io.Reader, out io.Writer) error {
	sum, err := readLedger()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(ledgerFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
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

func readLedger() (sum int, err error) {
	b, err := os.ReadFile(ledgerFile)
	if os.IsNotExist(err) {
		return 0, nil
	}
	for line := range strings.Lines(string(b)) {
		_, amount, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, _ := strconv.Atoi(amount)
		sum += n
	}
	return sum, err
}
