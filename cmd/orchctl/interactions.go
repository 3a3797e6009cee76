// The record: what was called, said and answered, and what happened to sessions.

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// interactionsLimit is how many of the latest a list shows unless --limit says otherwise.
const interactionsLimit = 100

func (a *app) interactionsCommand() *cobra.Command {
	return a.group("interactions", "Read the record of what was called, said and answered", a.listInteractionsCommand(), a.exportInteractionsCommand())
}

// interactionFlags say which interactions are meant.
type interactionFlags struct {
	filter, session, kind, tool, since, until string
}

func (f *interactionFlags) add(a *app, c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.session, "session", "", "about this session: its id, the beginning of it, or its name")
	fl.StringVar(&f.kind, "kind", "", "tool-call, model-call, message, answer or session-event")
	fl.StringVar(&f.tool, "tool", "", "calls of this tool; of session events, the type")
	fl.StringVar(&f.since, "since", "", "that long ago or later, or from a time on: 10m, 2026-03-01T12:00:00Z")
	fl.StringVar(&f.until, "until", "", "before that long ago, or before a time")
	fl.StringVar(&f.filter, "filter", "", "terms joined by commas: status=ok|failed|cancelled|timed-out, caller=ROLE:NAME, request=ID, client=ID, provider=NAME, model=NAME")
	_ = c.RegisterFlagCompletionFunc("session", a.completeSessions) // it only refuses unknown flags
	a.complete(c, "kind", "tool-call", "model-call", "message", "answer", "session-event")
}

// query reads the flags.
func (f *interactionFlags) query(a *app) (*apiv1.InteractionQuery, error) {
	q := &apiv1.InteractionQuery{Namespace: a.flags.namespace, Session: f.session, Tool: f.tool}
	var err error
	if q.Since, err = a.instant("--since", f.since); err != nil {
		return nil, err
	}
	if q.Until, err = a.instant("--until", f.until); err != nil {
		return nil, err
	}
	if f.kind != "" {
		k, ok := apiv1.Interaction_Kind_value[enumName(f.kind)]
		if !ok || k == 0 {
			return nil, fault.New(fault.Invalid, "--kind: %q is none; use tool-call, model-call, message, answer or session-event", f.kind)
		}
		q.Kind = apiv1.Interaction_Kind(k)
	}
	for _, term := range split(f.filter) {
		key, value, ok := strings.Cut(term, "=")
		into := map[string]*string{"caller": &q.Caller, "request": &q.RequestId, "client": &q.ClientSessionId, "provider": &q.Provider, "model": &q.Model}[key]
		switch {
		case ok && into != nil && value != "":
			*into = value
		case ok && key == "status" && apiv1.Interaction_Status_value[enumName(value)] != 0:
			q.Status = apiv1.Interaction_Status(apiv1.Interaction_Status_value[enumName(value)])
		default:
			return nil, fault.New(fault.Invalid, "--filter: %q is not a term; use status=ok|failed|cancelled|timed-out, caller=ROLE:NAME, request=ID, client=ID, provider=NAME or model=NAME", term)
		}
	}
	return q, nil
}

// enumName is a word of the command line as the API has it.
func enumName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }

// enumWord is the reverse.
func enumWord(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "-")) }

// instant reads a time, or how long ago it was; nil when it is not given.
func (a *app) instant(flag, s string) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return timestamppb.New(a.now().Add(-d)), nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: %q is neither a span nor a time; write 10m, or 2026-03-01T12:00:00Z", flag, s)
	}
	return timestamppb.New(at), nil
}

func (a *app) interactionKind() kind[*apiv1.Interaction] {
	return kind[*apiv1.Interaction]{
		noun: "interactions",
		columns: []string{
			"TIME", "KIND", "STATUS", "NAMESPACE", "SESSION", "CALLER", "WHAT", "TOOK", "TEXT",
			"+EPOCH", "+REQUEST-ID", "+CLIENT", "+TOKENS", "+COST", "+BYTES", "+REDACTED", "+ID",
		},
		row: func(i *apiv1.Interaction) []string {
			cost, took := "", ""
			if i.GetCostUsd() > 0 {
				cost = fmt.Sprintf("$%.4f", i.GetCostUsd())
			}
			if i.GetTookMs() > 0 {
				took = time.Duration(i.GetTookMs() * float64(time.Millisecond)).Round(10 * time.Microsecond).String()
			}
			return []string{
				i.GetTime().AsTime().Format("2006-01-02T15:04:05.000Z"), enumWord(i.GetKind().String()), enumWord(i.GetStatus().String()), i.GetNamespace(), i.GetSessionId(), i.GetCaller(),
				whatOf(i), took, excerpt(i),
				some(i.GetEpoch()), i.GetRequestId(), i.GetClientSessionId(), tokensText(i), cost, some(i.GetRequestBytes() + i.GetResponseBytes()), some(i.GetRedactions()), i.GetId(),
			}
		},
		name: func(i *apiv1.Interaction) string { return "interaction/" + i.GetId() },
		watched: map[string]int{
			"KIND": len("session-event"), "STATUS": len("cancelled"), "SESSION": sessionIDLength, "CALLER": len("operator:some-name"), "WHAT": len("session_checkpoint"), "TOOK": len("123.45ms"),
		},
	}
}

// whatOf is what was called: a tool, a model, or the type of an event.
func whatOf(i *apiv1.Interaction) string {
	if i.GetKind() == apiv1.Interaction_MODEL_CALL {
		return strings.Trim(i.GetProvider()+"/"+i.GetModel(), "/")
	}
	return i.GetTool()
}

func tokensText(i *apiv1.Interaction) string {
	if i.GetInputTokens() == 0 && i.GetOutputTokens() == 0 {
		return ""
	}
	return fmt.Sprintf("%d+%d", i.GetInputTokens(), i.GetOutputTokens())
}

// excerptChars is how much of a text a table shows.
const excerptChars = 60

// excerpt is what says most in a line: the error, or what was said.
func excerpt(i *apiv1.Interaction) string {
	text := first(i.GetError(), i.GetRequest(), i.GetResponse())
	text = strings.Join(strings.Fields(text[:min(len(text), 16*excerptChars)]), " ")
	if r := []rune(text); len(r) > excerptChars {
		return string(r[:excerptChars-1]) + "…"
	}
	return text
}

func (a *app) listInteractionsCommand() *cobra.Command {
	var f interactionFlags
	limit, watch := interactionsLimit, false
	c := a.command("list", "List what was recorded last, oldest first; of all namespaces unless -n names one", exactly(0), brief, func(ctx context.Context, _ []string) error {
		if limit < 0 {
			return fault.New(fault.Invalid, "--limit: %d is negative; 0 is for all", limit)
		}
		q, err := f.query(a)
		if err != nil {
			return err
		}
		if watch && q.GetUntil() != nil {
			return fault.New(fault.Invalid, "--until: what is watched has no end; leave out --until, or --watch")
		}
		cl, err := a.connect(ctx)
		if err != nil {
			return err
		}
		if watch {
			return a.watchInteractions(ctx, newRecordWatch(q, limit, cl.Record.ListInteractions))
		}
		answer := &apiv1.ListInteractionsResponse{}
		items, next, err := pages(limit, func(size int32, token string) ([]*apiv1.Interaction, string, error) {
			r, err := cl.Record.ListInteractions(ctx, &apiv1.ListInteractionsRequest{Query: q, PageSize: size, PageToken: token})
			for id, why := range r.GetMissing() {
				if answer.Missing == nil {
					answer.Missing = map[string]string{}
				}
				answer.Missing[id] = why
			}
			return r.GetInteractions(), r.GetNextPageToken(), err
		})
		if err != nil {
			return err
		}
		slices.Reverse(items)
		answer.Interactions, answer.NextPageToken = items, next
		a.noteMissing(answer.GetMissing())
		if next != "" {
			a.note(fmt.Sprintf("the last %d; --limit 0 shows all, and export writes them to a file", len(items)))
		}
		return printList(a, a.interactionKind(), items, answer)
	})
	c.Long = `List what was recorded: calls of tools and models, messages to sessions and their answers, and what happened to sessions. Secrets were taken out
before anything was kept. Needs a token of role operator.

With --watch it shows the last of them and goes on with what is recorded, one line each, until it is interrupted. A call is recorded when it
ends, so it may come after others that began later; one that took longer than 15 seconds comes within 20, and one longer than 15 minutes is only in the list.`
	c.Example = `  orchctl interactions list --session ledger --since 1h
  orchctl interactions list --kind tool-call --tool session_send --filter status=failed -o wide
  orchctl interactions list --watch --kind model-call -o json | jq .costUsd`
	f.add(a, c)
	c.Flags().IntVar(&limit, "limit", interactionsLimit, "show at most this many of the latest; 0 for all")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "go on with what is recorded")
	return c
}

// exportInteractionsFlags are those of export alone.
type exportInteractionsFlags struct {
	interactionFlags
	to                  string
	limit               int64
	force, allowMissing bool
}

func (a *app) exportInteractionsCommand() *cobra.Command {
	var f exportInteractionsFlags
	c := a.command("export", "Write the record as JSON lines, oldest first", exactly(0), streams, func(ctx context.Context, _ []string) error {
		return a.exportInteractions(ctx, &f)
	})
	c.Long = `Write what was recorded until now, oldest first, one JSON object a line: to standard output, or to a file that appears when it is whole.
It is refused while a server with a part of the record does not answer, unless --allow-missing is given.`
	c.Example = `  orchctl interactions export --since 24h --to yesterday.jsonl
  orchctl interactions export --kind model-call | jq -s 'map(.costUsd) | add'`
	f.add(a, c)
	fl := c.Flags()
	fl.StringVar(&f.to, "to", "", "write to this file, for its owner only")
	fl.Int64Var(&f.limit, "limit", 0, "write at most this many; 0 for all")
	fl.BoolVar(&f.force, "force", false, "replace a file that is there")
	fl.BoolVar(&f.allowMissing, "allow-missing", false, "go on without servers that do not answer")
	_ = c.MarkFlagFilename("to") // it only refuses unknown flags
	return c
}

func (a *app) exportInteractions(ctx context.Context, f *exportInteractionsFlags) error {
	if f.limit < 0 {
		return fault.New(fault.Invalid, "--limit: %d is negative; 0 is for all", f.limit)
	}
	q, err := f.query(a)
	if err != nil {
		return err
	}
	cl, err := a.connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := cl.Record.ExportInteractions(ctx, &apiv1.ExportInteractionsRequest{Query: q, Limit: f.limit, AllowMissing: f.allowMissing})
	if err != nil {
		return err
	}
	if f.to == "" {
		_, err := a.copyInteractions(stream.Recv, a.out(), nil)
		return err
	}
	var n int
	written := &countingWriter{}
	err = writeWhole(f.to, f.force, func(w io.Writer) error {
		progress := a.newProgress("exporting", true)
		defer progress.stop()
		written.w = w
		n, err = a.copyInteractions(stream.Recv, written, progress)
		return err
	})
	if err != nil {
		return err
	}
	a.note(fmt.Sprintf("exported %d interactions, %s, to %s", n, bytesText(written.n), f.to))
	return nil
}

// copyInteractions writes what comes, a line each.
func (a *app) copyInteractions(recv func() (*apiv1.ExportInteractionsResponse, error), w io.Writer, progress *progress) (n int, err error) {
	out := bufio.NewWriterSize(w, 64<<10)
	told := map[string]string{}
	for {
		r, err := recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return n, err
		}
		for id, why := range r.GetMissing() {
			if told[id] == "" {
				told[id] = why
				a.noteMissing(map[string]string{id: why})
			}
		}
		for _, i := range r.GetInteractions() {
			line, err := marshal(i)
			if err != nil {
				return n, err
			}
			if _, err := out.Write(append(line, '\n')); err != nil {
				return n, fmt.Errorf("write the record: %w", err)
			}
			n++
		}
		progress.say(fmt.Sprintf("exporting: %d interactions", n))
	}
	if err := out.Flush(); err != nil {
		return n, fmt.Errorf("write the record: %w", err)
	}
	return n, nil
}
