// A session to try a cluster with, which needs nothing but this program on the node.

package main

import (
	"bufio"
	"fmt"

	"github.com/spf13/cobra"
)

// maxEchoBytes is the longest line that is answered: a message, and its line break.
const maxEchoBytes = 1 << 20

func echoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "echo",
		Short: "Answer each line with itself: a session to try a cluster with",
		Long: `echo answers each line on its standard input with the same line, until there are no more. As a session it shows that a
cluster runs, reaches and moves sessions, on nodes that have no other program.`,
		Example: "  orchctl sessions spawn --name try --wait -- /node-agent echo\n  orchctl sessions send try hello --wait",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lines := bufio.NewScanner(cmd.InOrStdin())
			lines.Buffer(nil, maxEchoBytes)
			for lines.Scan() {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), lines.Text()); err != nil {
					return fmt.Errorf("echo: %w", err)
				}
			}
			if err := lines.Err(); err != nil {
				return fmt.Errorf("echo: %w", err)
			}
			return nil
		},
	}
}
