// Commands and flags that are promised and not there yet: they say so, instead of being taken for a typing error.

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/neolith/orchestrator/internal/fault"
)

// later makes a command that says that it is not there yet, whatever it is given. It is not offered: not in help, and not
// by completion.
func (a *app) later(use, what string) *cobra.Command {
	c := a.command(use, "Not there yet: "+what, atLeast(0), brief, func(context.Context, []string) error { return notYet(what) })
	c.Hidden = true
	c.FParseErrWhitelist.UnknownFlags = true
	return c
}

// notYet is the answer of what is not there yet. It is a failure, not wrong usage: the command line may be right.
func notYet(what string) error {
	return fault.New(fault.Unimplemented, "%s: not in this release; docs/STATUS.md says what is, and what comes next", what)
}

// laterGroups are the commands that the model gateway will bring.
func (a *app) laterGroups() []*cobra.Command {
	return []*cobra.Command{a.later("providers list", "model providers")}
}
