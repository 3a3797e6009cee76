// Command shim is the process beside each session; see package shim. The node agent carries it inside and starts it.
package main

import (
	"os"

	"github.com/neolith/orchestrator/agent/shim"
)

func main() { os.Exit(shim.Main()) }
