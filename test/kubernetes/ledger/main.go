// Command ledger is the session of the test: it keeps every entry in a file of its workspace and answers each with the sum so far.
//
//	ledger           reads entries, "NAME AMOUNT" a line
//	ledger print     prints the file
package main

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

// file is in the workspace, which is what checkpoints keep.
const file = "ledger.txt"

func main() {
	run := func() error { return keep(os.Stdin, os.Stdout) }
	if len(os.Args) > 1 && os.Args[1] == "print" {
		run = printAll
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "ledger:", err)
		os.Exit(1)
	}
}

// keep takes entries. What an earlier process of the session wrote is taken up.
func keep(in io.Reader, out io.Writer) error {
	sum, err := read()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
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
	b, err := os.ReadFile(file)
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

func printAll() error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(b)
	return err
}
