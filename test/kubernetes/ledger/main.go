// Command ledger is the session of the test: it keeps every entry in a file of its workspace and answers each with the sum so far.
//
//	ledger           reads entries, "NAME AMOUNT" a line
//	ledger print     prints the file
package main

import (
	"fmt"
	"os"

	"github.com/neolith/orchestrator/test/ledger"
)

func main() {
	run := func() error { return ledger.Keep(os.Stdin, os.Stdout) }
	if len(os.Args) > 1 && os.Args[1] == "print" {
		run = printAll
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "ledger:", err)
		os.Exit(1)
	}
}

func printAll() error {
	b, err := os.ReadFile(ledger.File)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(b)
	return err
}
