// The promise, row by row.
package exitcode

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/spf13/cobra"

	"github.com/neolith/orchestrator/internal/fault"
)

func TestOf(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{nil, Done},
		{errors.New("a disk is full"), Failed},
		{fault.New(fault.Internal, "x"), Failed},
		{fault.New(fault.Unimplemented, "x"), Failed},
		{fault.New(fault.Invalid, "x"), Usage},
		{fault.New(fault.NotFound, "x"), NotFound},
		{fmt.Errorf("wrapped: %w", fault.New(fault.NotFound, "x")), NotFound},
		{fault.New(fault.AlreadyExists, "x"), Refused},
		{fault.New(fault.PermissionDenied, "x"), Refused},
		{fault.New(fault.Exhausted, "x"), Refused},
		{fault.New(fault.Unavailable, "x"), Unreachable},
		{fault.New(fault.Timeout, "x"), Unreachable},
		{fmt.Errorf("call: %w", context.DeadlineExceeded), Unreachable},
		{context.Canceled, Failed},
	} {
		if got := Of(tc.err); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.err, got, tc.want)
		}
	}
}

// TestCobra: what cobra says of wrong usage is recognized, whatever version of it is built in.
func TestCobra(t *testing.T) {
	for _, args := range [][]string{{"--nonsense"}, {"-q"}, {"sub", "--number", "many"}, {"sub", "--number"}, {"sub", "extra"}, {"nothing"}, {"sub"}} {
		root := &cobra.Command{Use: "program", SilenceErrors: true, SilenceUsage: true}
		sub := &cobra.Command{Use: "sub", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return nil }}
		sub.Flags().Int("number", 0, "")
		if err := sub.MarkFlagRequired("number"); err != nil {
			t.Fatal(err)
		}
		root.AddCommand(sub)
		root.SetArgs(args)
		if err := root.Execute(); Of(err) != Usage {
			t.Errorf("%v: %v is %d", args, err, Of(err))
		}
	}
}
