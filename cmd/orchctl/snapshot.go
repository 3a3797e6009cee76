// cluster snapshot: the state of the whole cluster as one file.

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
)

func (a *app) snapshotCommand() *cobra.Command {
	return a.group("snapshot", "Save, look into and restore the state of the whole cluster", a.saveCommand(), a.inspectCommand(), a.restoreCommand())
}

func (a *app) saveCommand() *cobra.Command {
	c := a.command("save FILE|-", "Save the cluster's state to a file, which appears only when it is whole", exactly(1), streams, func(ctx context.Context, args []string) error {
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		progress, done := a.bar("saving", -1)
		defer done()
		if args[0] == "-" {
			_, err := cl.SaveSnapshot(ctx, io.MultiWriter(a.out(), progress))
			return err
		}
		f, err := renameio.NewPendingFile(args[0], renameio.WithPermissions(0o600))
		if err != nil {
			return fault.New(fault.Invalid, "write the snapshot: %w", err)
		}
		defer f.Cleanup() //nolint:errcheck // it is gone when it was renamed
		n, err := cl.SaveSnapshot(ctx, io.MultiWriter(f, progress))
		if err != nil {
			return err
		}
		if err := f.CloseAtomicallyReplace(); err != nil {
			return fmt.Errorf("write the snapshot: %w", err)
		}
		done()
		_, err = fmt.Fprintf(a.out(), "saved %s to %s\n", bytesText(n), args[0])
		return err
	})
	c.ValidArgsFunction = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
	return c
}

// snapshotSummary is what inspect prints as JSON.
type snapshotSummary struct {
	Version   uint32          `json:"version"`
	ClusterID string          `json:"clusterId"`
	Index     uint64          `json:"index"`
	Time      time.Time       `json:"time"`
	Rows      uint64          `json:"rows"`
	Bytes     int64           `json:"bytes"`
	Tables    []snapshotTable `json:"tables"`
}

type snapshotTable struct {
	Name  string `json:"name"`
	Rows  uint64 `json:"rows"`
	Bytes int64  `json:"bytes"`
}

func (a *app) inspectCommand() *cobra.Command {
	c := a.command("inspect FILE|-", "Check a snapshot file, without a server, and say what it holds", exactly(1), streams, func(_ context.Context, args []string) error {
		r, size, err := a.openFile(args[0], "snapshot")
		if err != nil {
			return err
		}
		defer r.Close()
		progress, done := a.bar("checking", size)
		defer done()
		found, err := state.InspectSnapshot(bufio.NewReaderSize(io.TeeReader(r, progress), 1<<20))
		if err != nil {
			return err
		}
		done()
		sum := snapshotSummary{Version: found.Version, ClusterID: found.ClusterID, Index: found.Index, Time: time.Unix(0, found.Time).UTC(), Rows: found.Rows, Bytes: found.Bytes}
		for _, t := range found.Tables {
			sum.Tables = append(sum.Tables, snapshotTable(t))
		}
		return a.printSummary(&sum)
	})
	c.ValidArgsFunction = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
	return c
}

func (a *app) printSummary(sum *snapshotSummary) error {
	if done, err := a.printWhole(sum, sum.ClusterID); done {
		return err
	}
	err := a.printFields([]field{
		{label: "Cluster", value: sum.ClusterID}, {label: "Index", value: number(sum.Index)}, {label: "Time", value: sum.Time.Format(time.RFC3339)},
		{label: "Version", value: number(sum.Version)}, {label: "Rows", value: number(sum.Rows)}, {label: "Size", value: bytesText(sum.Bytes)},
	})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(a.out()); err != nil {
		return err
	}
	k := kind[snapshotTable]{
		noun: "tables", columns: []string{"TABLE", "ROWS", "SIZE"},
		row:  func(t snapshotTable) []string { return []string{t.Name, number(t.Rows), bytesText(t.Bytes)} },
		name: func(t snapshotTable) string { return t.Name },
	}
	return printList(a, k, sum.Tables, nil)
}

func (a *app) restoreCommand() *cobra.Command {
	var yes bool
	c := a.command("restore FILE|-", "Replace the state of the whole cluster by a snapshot", exactly(1), streams, func(ctx context.Context, args []string) error {
		r, size, err := a.openFile(args[0], "snapshot")
		if err != nil {
			return err
		}
		defer r.Close()
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		if !yes && args[0] != "-" && isTerminal(a.stdin) {
			if err := a.confirm(fmt.Sprintf("This replaces the state of the whole cluster at %s. Type yes to go on: ", strings.Join(a.target.addresses, ","))); err != nil {
				return err
			}
		}
		progress, done := a.bar("restoring", size)
		defer done()
		answer, err := cl.RestoreSnapshot(ctx, io.TeeReader(r, progress))
		if err != nil {
			return err
		}
		done()
		return a.printDone(answer, number(answer.GetIndex()), fmt.Sprintf("restored %d sessions at index %d", answer.GetSessions(), answer.GetIndex()))
	})
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask on a terminal")
	c.ValidArgsFunction = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
	return c
}

// openFile opens a file, or standard input; size is -1 when it is not known.
func (a *app) openFile(name, what string) (r io.ReadCloser, size int64, err error) {
	if name == "-" {
		return io.NopCloser(a.stdin), -1, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, fault.New(fault.Invalid, "read the %s: %w; name a readable file", what, err)
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		_ = f.Close() // it was only looked at
		return nil, 0, fault.New(fault.Invalid, "read the %s %s: it is not a file; name one", what, name)
	}
	return f, st.Size(), nil
}

// confirm asks a person.
func (a *app) confirm(question string) error {
	if _, err := io.WriteString(a.stderr, question); err != nil {
		return err
	}
	line, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(line) != "yes" {
		return fault.New(fault.FailedPrecondition, "nothing was changed: the answer was not yes; give --yes to be not asked")
	}
	return nil
}
