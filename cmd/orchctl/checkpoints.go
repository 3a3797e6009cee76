// sessions checkpoints: which there are, what differs between two, and letting one go.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

func (a *app) checkpointsCommand() *cobra.Command {
	list := func(use string) *cobra.Command {
		c := a.command(use, "List the checkpoints that are kept of a session, oldest first", exactly(1), brief, a.listCheckpoints)
		c.ValidArgsFunction = a.completeSessions
		return c
	}
	c := list("checkpoints SESSION")
	c.Short = "List the checkpoints that are kept of a session; compare and delete them"
	c.AddCommand(list("list SESSION"), a.diffCommand(), a.deleteCheckpointCommand())
	return c
}

func (a *app) listCheckpoints(ctx context.Context, args []string) error {
	s, err := a.findSession(ctx, args[0]) // for what none of them holds
	if err != nil {
		return err
	}
	r, err := a.client.Sessions.ListCheckpoints(ctx, &apiv1.ListCheckpointsRequest{Namespace: s.GetNamespace(), Id: s.GetId()})
	if err != nil {
		return err
	}
	k := kind[*apiv1.Session_Checkpoint]{
		noun:    "checkpoints",
		columns: []string{"SEQUENCE", "AGE", "EPOCH", "TURN", "BYTES", "SENT", "REUSED", "CHUNKS", "KEEPS", "+LINE", "+MANIFEST"},
		row: func(k *apiv1.Session_Checkpoint) []string {
			return []string{
				number(k.GetSequence()), a.age(k.GetCreateTime()), number(k.GetEpoch()), number(k.GetTurn()), bytesText(k.GetBytes()), bytesText(k.GetBytesSent()),
				bytesText(k.GetBytesReused()), number(k.GetChunks()), keepsText(k), number(k.GetOutputLine()), k.GetManifest(),
			}
		},
		name: func(k *apiv1.Session_Checkpoint) string { return number(k.GetSequence()) },
	}
	if err := printList(a, k, r.GetCheckpoints(), r); err != nil {
		return err
	}
	if o := a.flags.output; o != "table" && o != "wide" {
		return nil
	}
	if lag := lagText(s.GetLag()); lag != "" {
		a.note("not in the last one: " + lag)
	}
	if why := s.GetCheckpointError(); why != "" {
		a.note("the next one could not be made: " + why)
	}
	return nil
}

func (a *app) diffCommand() *cobra.Command {
	c := a.command("diff SESSION [FROM] [TO]", "Show what files differ between two checkpoints of a session", between(1, 3), streams, func(ctx context.Context, args []string) error {
		req := &apiv1.DiffCheckpointsRequest{}
		for i, to := range []*uint64{&req.From, &req.To} {
			if len(args) < i+2 {
				break
			}
			s, sequence, err := a.findCheckpoint(ctx, args[0], []string{"FROM", "TO"}[i], args[i+1])
			if err != nil {
				return err
			}
			*to, req.Namespace, req.Id = sequence, s.GetNamespace(), s.GetId()
		}
		if req.Id == "" {
			s, err := a.findSession(ctx, args[0])
			if err != nil {
				return err
			}
			req.Namespace, req.Id = s.GetNamespace(), s.GetId()
		}
		return a.diff(ctx, req)
	})
	c.Long = `Show what files differ between two checkpoints of a session, each named by its sequence or by a time at which it was the newest. TO is the
newest when it is left out, and FROM the one before TO.

Files are compared by their chunks, which costs no reading of them; a file whose content was stored anew is shown as modified though it is
not. 'touched' is what has another mode or time only.`
	c.ValidArgsFunction = a.completeSessions
	return c
}

// diff prints the differences as they come.
func (a *app) diff(ctx context.Context, req *apiv1.DiffCheckpointsRequest) error {
	st, err := a.client.Sessions.DiffCheckpoints(ctx, req)
	if err != nil {
		return err
	}
	whole := &apiv1.DiffCheckpointsResponse{}
	k := diffKind()
	t := watchTable(a, k)
	for n := 0; ; {
		m, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return a.diffEnd(whole, n)
		}
		if err != nil {
			return err
		}
		if m.GetFrom() != nil {
			whole.From, whole.To = m.GetFrom(), m.GetTo()
		}
		n += len(m.GetChanges())
		switch a.flags.output {
		case "json", "yaml":
			whole.Changes = append(whole.Changes, m.GetChanges()...)
		case "name":
			for _, c := range m.GetChanges() {
				if _, err := fmt.Fprintln(a.out(), clean(k.name(c))); err != nil {
					return err
				}
			}
		default:
			for _, c := range m.GetChanges() {
				t.add(k.row(c))
			}
			if len(m.GetChanges()) > 0 {
				if err := t.flush(); err != nil {
					return err
				}
			}
		}
	}
}

// diffEnd prints what is printed as a whole, and says between which checkpoints it was.
func (a *app) diffEnd(whole *apiv1.DiffCheckpointsResponse, n int) error {
	switch a.flags.output {
	case "json", "yaml":
		return a.printMessage(whole)
	case "name":
		return nil
	}
	a.note(fmt.Sprintf("%s from checkpoint %d to %d", several(uint32(n), "change"), whole.GetFrom().GetSequence(), whole.GetTo().GetSequence()))
	return nil
}

func diffKind() kind[*apiv1.DiffCheckpointsResponse_Change] {
	size := func(typ string, n int64) string {
		switch typ {
		case "f":
			return bytesText(n)
		case "d":
			return "dir"
		case "l":
			return "link"
		}
		return ""
	}
	mode := func(typ string, m uint32) string {
		if typ == "" || typ == "l" {
			return ""
		}
		return fmt.Sprintf("%04o", m)
	}
	return kind[*apiv1.DiffCheckpointsResponse_Change]{
		noun:    "changes",
		columns: []string{"CHANGE", "TREE", "WAS", "IS", "+WAS-MODE", "+IS-MODE", "PATH"},
		row: func(c *apiv1.DiffCheckpointsResponse_Change) []string {
			return []string{
				strings.ToLower(c.GetKind().String()), c.GetRoot(), size(c.GetOldType(), c.GetOldBytes()), size(c.GetNewType(), c.GetNewBytes()),
				mode(c.GetOldType(), c.GetOldMode()), mode(c.GetNewType(), c.GetNewMode()), c.GetPath(),
			}
		},
		name:    func(c *apiv1.DiffCheckpointsResponse_Change) string { return c.GetRoot() + "/" + c.GetPath() },
		watched: map[string]int{"CHANGE": len("modified"), "TREE": len("workspace"), "WAS": len("1023.9KiB"), "IS": len("1023.9KiB")},
	}
}

func (a *app) deleteCheckpointCommand() *cobra.Command {
	var key string
	c := a.command("delete SESSION SEQUENCE...", "Let checkpoints of a session go; not the newest, which it goes on from", atLeast(2), brief, func(ctx context.Context, args []string) (err error) {
		if key != "" && len(args) > 2 {
			return fault.New(fault.Invalid, "--idempotency-key is for one checkpoint, not %d; leave it out, or name one", len(args)-1)
		}
		for _, text := range args[1:] {
			s, sequence, one := a.findCheckpoint(ctx, args[0], "SEQUENCE", text)
			if one == nil {
				one = a.deleteCheckpoint(ctx, s, sequence, key)
			}
			err = a.firstError(err, one, args[0]+" "+text)
		}
		return err
	})
	keyFlag(c, &key, "is the same request; for one checkpoint")
	c.ValidArgsFunction = a.completeSessions
	return c
}

func (a *app) deleteCheckpoint(ctx context.Context, s *apiv1.Session, sequence uint64, key string) error {
	r, err := a.client.Sessions.DeleteCheckpoint(ctx, &apiv1.DeleteCheckpointRequest{Namespace: s.GetNamespace(), Id: s.GetId(), Sequence: sequence, IdempotencyKey: key})
	if err != nil {
		return err
	}
	return a.printDone(r.GetSession(), number(sequence), fmt.Sprintf("session/%s keeps checkpoint %d no longer", s.GetId(), sequence))
}
