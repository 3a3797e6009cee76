// Command orchctl is the operator's and the user's tool: it speaks to a cluster through its public API and to nothing
// else.
//
// One file per group of commands; app.go runs them, connect.go decides where to go and as whom, output.go prints, exit.go
// says what an exit code means.
package main

import (
	"io"
	"os"
)

func main() { os.Exit(run(os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)) }

// run is the whole program, for tests too.
func run(args, environ []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return newApp(environ, stdin, stdout, stderr).execute(args)
}
