// tools: what programs and agents call through the client gateway, called by a person.

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/neolith/orchestrator/client/toolclient"
	"github.com/neolith/orchestrator/internal/fault"
)

func (a *app) toolsCommand() *cobra.Command {
	c := a.group("tools", "See and call the tools that clients have, through the client gateway", a.listToolsCommand(), a.callToolCommand())
	c.PersistentFlags().StringVar(&a.flags.gateway, "gateway", "", "client ports as host:port or URLs, separated by commas; any will do (ORCHCTL_GATEWAY, the context's, or those of the servers' addresses)")
	return c
}

// properties are the arguments of a tool, from its schema.
type properties struct {
	Properties map[string]struct {
		Type, Description string
	}
	Required []string
}

func propertiesOf(t *toolclient.Tool) (p properties) {
	_ = json.Unmarshal(t.InputSchema, &p) // a schema of another form has none that are known
	return p
}

// names are the arguments, those that must be given first; * marks them.
func (p properties) names() string {
	var must, may []string
	for name := range p.Properties {
		if slices.Contains(p.Required, name) {
			must = append(must, name+"*")
		} else {
			may = append(may, name)
		}
	}
	slices.Sort(must)
	slices.Sort(may)
	return strings.Join(append(must, may...), ",")
}

func (a *app) listToolsCommand() *cobra.Command {
	return a.command("list", "List the tools, with what they do", exactly(0), brief, func(ctx context.Context, _ []string) error {
		cl, err := a.gateway()
		if err != nil {
			return err
		}
		defer cl.Close()
		list, err := cl.ListTools(ctx)
		if err != nil {
			return err
		}
		if o := a.flags.output; o == "json" || o == "yaml" {
			raw, err := json.Marshal(map[string]any{"tools": list})
			if err != nil {
				return fault.New(fault.Internal, "print the tools: %w", err)
			}
			return a.printJSON(raw)
		}
		return printList(a, kind[toolclient.Tool]{
			noun: "tools", columns: []string{"NAME", "DOES", "+ARGUMENTS"},
			row: func(t toolclient.Tool) []string {
				does, _, _ := strings.Cut(t.Description, ". ")
				if a.flags.output == "wide" {
					does = t.Description
				}
				return []string{t.Name, strings.TrimSuffix(does, "."), propertiesOf(&t).names()}
			},
			name: func(t toolclient.Tool) string { return "tool/" + t.Name },
		}, list, nil)
	})
}

// toolCall are the flags of tools call.
type toolCall struct {
	args                         []string
	json, priority, requestID    string
	stream                       bool
	tool                         string
	streamed, streamedUnfinished bool // chunks were printed; the last had no line break
}

func (a *app) callToolCommand() *cobra.Command {
	var f toolCall
	c := a.command("call TOOL", "Call a tool and print its answer", exactly(1), waits, nil)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		h := waits
		if f.stream {
			h = streams
		}
		return a.runner(h, func(ctx context.Context, args []string) error { f.tool = args[0]; return a.callTool(ctx, &f) })(cmd, args)
	}
	c.Long = `Call a tool, as programs and agents do. 'orchctl tools list -o wide' shows the tools and their arguments; * marks those that must be given.

--arg gives one argument, by the type that the tool asks for: text as it is, numbers, true and false as they are written, and lists either
as JSON or by giving the flag several times. --json gives all of them as an object, "-" from standard input; --arg goes before it.

The answer is waited for as long as the call takes, 5 minutes unless --timeout is given. Interrupting the command cancels the call. With
--stream, what the tool streams is printed while it comes, before the answer: on standard output, or with -o json and yaml on standard error.

A call that is repeated with the same --session and --request-id has no second effect, and gets the answer of the first.`
	fl := c.Flags()
	fl.StringArrayVar(&f.args, "arg", nil, "an argument as NAME=VALUE")
	fl.StringVar(&f.json, "json", "", "all arguments as a JSON object, or - for standard input")
	fl.StringVar(&f.priority, "priority", "", "critical, high, normal or low")
	fl.StringVar(&f.requestID, "request-id", "", "a name for the call within its session")
	fl.StringVar(&a.flags.session, "session", "", "the client session that the call belongs to; a new one when not given")
	fl.BoolVar(&f.stream, "stream", false, "print what the tool streams while it comes")
	a.complete(c, "priority", "critical", "high", "normal", "low")
	c.ValidArgsFunction = a.completeTools
	return c
}

// maxArgumentBytes bounds the arguments from standard input.
const maxArgumentBytes = 32 << 20

func (a *app) callTool(ctx context.Context, f *toolCall) error {
	switch toolclient.Priority(f.priority) {
	case "", toolclient.Critical, toolclient.High, toolclient.Normal, toolclient.Low:
	default:
		return fault.New(fault.Invalid, "--priority: %q is not a priority; use critical, high, normal or low", f.priority)
	}
	arguments := map[string]any{}
	if f.json != "" {
		text := []byte(f.json)
		if f.json == "-" {
			var err error
			if text, err = io.ReadAll(io.LimitReader(a.stdin, maxArgumentBytes+1)); err != nil {
				return fmt.Errorf("read the arguments from standard input: %w", err)
			}
		}
		if err := json.Unmarshal(text, &arguments); err != nil || arguments == nil || len(text) > maxArgumentBytes {
			return fault.New(fault.Invalid, "--json: it is not a JSON object of at most %d bytes; write it as '{\"name\": \"value\"}'", maxArgumentBytes)
		}
	}
	cl, err := a.gateway()
	if err != nil {
		return err
	}
	defer cl.Close()
	if err := a.fillArguments(ctx, cl, f, arguments); err != nil {
		return err
	}
	opts := []toolclient.Option{toolclient.WithPriority(toolclient.Priority(f.priority)), toolclient.OnProgress(a.busy.say)}
	if f.requestID != "" {
		opts = append(opts, toolclient.WithRequestID(f.requestID))
	}
	if f.stream {
		opts = append(opts, toolclient.OnChunk(func(c toolclient.Chunk) { a.printChunk(f, c) }))
	}
	r, err := cl.Call(ctx, f.tool, arguments, opts...)
	if f.streamedUnfinished {
		_, _ = io.WriteString(a.streamTo(), "\n") // what comes next says whether it can be written to
	}
	if err != nil {
		return err
	}
	if r.Truncated && f.stream {
		a.note("parts of the stream were left out; the answer is whole")
	}
	return a.printAnswer(r)
}

// fillArguments adds those that were given one by one, by the types in the tool's schema, and the flags that are arguments.
func (a *app) fillArguments(ctx context.Context, cl *toolclient.Client, f *toolCall, arguments map[string]any) error {
	given := f.stream || len(f.args) > 0 || a.flags.set("namespace")
	if !given {
		return nil // the schema is of no use
	}
	var known properties
	list, err := cl.ListTools(ctx)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(list, func(t toolclient.Tool) bool { return t.Name == f.tool }); i >= 0 {
		known = propertiesOf(&list[i])
	}
	seen := map[string]bool{}
	for _, kv := range f.args {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			return fault.New(fault.Invalid, "--arg %q: write it as NAME=VALUE", kv)
		}
		typ := known.Properties[name].Type
		if err := addArgument(arguments, name, value, typ, seen[name]); err != nil {
			return err
		}
		seen[name] = true
	}
	if _, takes := known.Properties["stream"]; takes && f.stream {
		arguments["stream"] = true
	}
	if _, takes := known.Properties["namespace"]; takes && a.flags.set("namespace") && arguments["namespace"] == nil {
		arguments["namespace"] = a.flags.namespace
	}
	return nil
}

// addArgument reads one argument by its type; one of no known type is JSON where it is a number, true or false, a list or an object.
func addArgument(to map[string]any, name, value, typ string, again bool) error {
	var v any
	isJSON := json.Unmarshal([]byte(value), &v) == nil
	_, isText := v.(string)
	switch {
	case typ == "string", typ == "" && (!isJSON || isText || v == nil):
		v = value
	case typ == "array" && !strings.HasPrefix(strings.TrimSpace(value), "["):
		if list, ok := to[name].([]any); ok && again {
			v = append(list, value)
		} else {
			v = []any{value}
		}
		again = false
	case !isJSON:
		return fault.New(fault.Invalid, "--arg %s: %q is not of type %s, which the tool asks for; write it in JSON", name, value, typ)
	}
	if again {
		return fault.New(fault.Invalid, "--arg %s: is given twice, and takes one value; give it once", name)
	}
	to[name] = v
	return nil
}

// streamTo is where streams are printed: beside what programs read.
func (a *app) streamTo() io.Writer {
	if o := a.flags.output; o == "json" || o == "yaml" || o == "name" {
		return a.stderr
	}
	return a.out()
}

// printChunk prints what a tool streams.
func (a *app) printChunk(f *toolCall, c toolclient.Chunk) {
	if c.Again && f.streamed {
		a.note("the stream begins again, at another server")
	}
	_, _ = io.WriteString(a.streamTo(), c.Text) // the answer's printing says whether it can be written to
	f.streamed, f.streamedUnfinished = true, !strings.HasSuffix(c.Text, "\n")
}

// printAnswer prints a tool's answer, which is JSON from the cluster's own tools.
func (a *app) printAnswer(r *toolclient.Result) error {
	if a.flags.output == "name" {
		_, err := fmt.Fprintln(a.out(), "call/"+r.RequestID)
		return err
	}
	text := r.Text()
	if json.Valid([]byte(text)) {
		return a.printJSON([]byte(text))
	}
	if o := a.flags.output; o == "json" || o == "yaml" {
		raw, err := json.Marshal(map[string]any{"outputs": r.Outputs})
		if err != nil {
			return fault.New(fault.Internal, "print the answer: %w", err)
		}
		return a.printJSON(raw)
	}
	_, err := fmt.Fprintln(a.out(), strings.TrimSuffix(text, "\n"))
	return err
}

// completeTools offers the tools.
func (a *app) completeTools(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
	defer cancel()
	cl, err := a.gateway()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer cl.Close()
	var out []cobra.Completion
	list, _ := cl.ListTools(ctx) // what fails completes nothing
	for _, t := range list {
		does, _, _ := strings.Cut(t.Description, ". ")
		out = append(out, cobra.CompletionWithDesc(t.Name, does))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// The pauses of a command, which somebody waits for.
const (
	gatewayPauseMin = 100 * time.Millisecond
	gatewayPauseMax = time.Second
)
