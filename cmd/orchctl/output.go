// Printing: tables for people, the API's messages as JSON or YAML for programs, ids for shells.

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/neolith/orchestrator/internal/fault"
)

// kind says how things of one kind are printed.
type kind[T any] struct {
	noun    string   // in the plural
	columns []string // a "+" in front is for -o wide
	row     func(T) []string
	name    func(T) string
	// watched are the widths that columns have from the first row on where rows come one by one.
	watched map[string]int
}

// watchTable is a table whose rows come one by one: what may become wider later is wide at once.
func watchTable[T any](a *app, k kind[T]) *rows {
	t := newTable(a, k.columns)
	for i, name := range t.header {
		t.widths[i] = max(t.widths[i], k.watched[name])
	}
	return t
}

// printWhole prints what a file holds as a program reads it, or by its name; done reports whether that was asked for. People read fields instead.
func (a *app) printWhole(v any, name string) (done bool, err error) {
	switch a.flags.output {
	case "json", "yaml":
		raw, err := json.Marshal(v)
		if err != nil {
			return true, fault.New(fault.Internal, "print the summary: %w", err)
		}
		return true, a.printJSON(raw)
	case "name":
		_, err := fmt.Fprintln(a.out(), name)
		return true, err
	}
	return false, nil
}

// printList prints a list; answer is the API's message that held it.
func printList[T any](a *app, k kind[T], items []T, answer proto.Message) error {
	switch a.flags.output {
	case "json", "yaml":
		return a.printMessage(answer)
	case "name":
		for _, item := range items {
			if _, err := fmt.Fprintln(a.out(), k.name(item)); err != nil {
				return err
			}
		}
		return nil
	}
	if len(items) == 0 {
		a.note("no " + k.noun)
		return nil
	}
	t := newTable(a, k.columns)
	for _, item := range items {
		t.add(k.row(item))
	}
	return t.flush()
}

// printOne prints one thing: all its fields, one a line, as a table's form.
func printOne[T proto.Message](a *app, k kind[T], item T, fields []field) error {
	switch a.flags.output {
	case "json", "yaml":
		return a.printMessage(item)
	case "name":
		_, err := fmt.Fprintln(a.out(), k.name(item))
		return err
	}
	return a.printFields(fields)
}

// printDone says in a sentence what was done, or prints the message that came back.
func (a *app) printDone(answer proto.Message, name, sentence string) error {
	switch a.flags.output {
	case "json", "yaml":
		return a.printMessage(answer)
	case "name":
		_, err := fmt.Fprintln(a.out(), name)
		return err
	}
	_, err := fmt.Fprintln(a.out(), clean(sentence))
	return err
}

// field is one line of a thing's description.
type field struct {
	label, value string
	wide         bool // only with -o wide
}

func (a *app) printFields(fields []field) error {
	width := 0
	for _, f := range fields {
		width = max(width, len(f.label))
	}
	var b strings.Builder
	for _, f := range fields {
		if f.value == "" || f.wide && a.flags.output != "wide" {
			continue
		}
		fmt.Fprintf(&b, "%-*s  %s\n", width+1, f.label+":", a.paint(clean(f.value)))
	}
	_, err := io.WriteString(a.out(), b.String())
	return err
}

// marshal is the message as JSON on one line. The library varies its spacing on purpose; a program's output must not.
func marshal(m proto.Message) ([]byte, error) {
	raw, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, fault.New(fault.Internal, "print the answer as JSON: %w", err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return nil, fault.New(fault.Internal, "print the answer as JSON: %w", err)
	}
	return b.Bytes(), nil
}

// printMessage prints a message as JSON or YAML.
func (a *app) printMessage(m proto.Message) error {
	raw, err := marshal(m)
	if err != nil {
		return err
	}
	return a.printJSON(raw)
}

// printJSON prints a JSON text as -o asks for it.
func (a *app) printJSON(raw []byte) error {
	if a.flags.output == "yaml" {
		return a.printYAML(raw, "")
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return fault.New(fault.Internal, "print the answer as JSON: %w", err)
	}
	b.WriteByte('\n')
	_, err := a.out().Write(b.Bytes())
	return err
}

// printYAML prints a JSON text as a YAML document, with the order of its fields.
func (a *app) printYAML(raw []byte, before string) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil { // JSON is YAML
		return fault.New(fault.Internal, "print the answer as YAML: %w", err)
	}
	unflow(&doc)
	var b bytes.Buffer
	b.WriteString(before)
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(&doc); err != nil {
		return fault.New(fault.Internal, "print the answer as YAML: %w", err)
	}
	_, err := a.out().Write(b.Bytes())
	return err
}

// unflow makes blocks of {} and [], and leaves quotes only where a text would be read as something else.
func unflow(n *yaml.Node) {
	n.Style = 0
	if len(n.Content) == 0 && (n.Kind == yaml.MappingNode || n.Kind == yaml.SequenceNode) {
		n.Style = yaml.FlowStyle
	}
	for _, c := range n.Content {
		unflow(c)
	}
}

// printStreamed prints one message of a stream: a JSON object a line, or a YAML document.
func (a *app) printStreamed(m proto.Message) error {
	raw, err := marshal(m)
	if err != nil {
		return err
	}
	if a.flags.output == "yaml" {
		return a.printYAML(raw, "---\n")
	}
	_, err = a.out().Write(append(raw, '\n'))
	return err
}

// rows is a table in the style of kubectl. It may be flushed several times; columns never get narrower.
type rows struct {
	a       *app
	keep    []int // the columns that are shown
	header  []string
	widths  []int
	pending [][]string
	headed  bool
}

func newTable(a *app, columns []string) *rows {
	t := &rows{a: a}
	for i, c := range columns {
		name, wide := strings.CutPrefix(c, "+")
		if wide && a.flags.output != "wide" {
			continue
		}
		t.keep, t.header, t.widths = append(t.keep, i), append(t.header, name), append(t.widths, len(name))
	}
	return t
}

func (t *rows) add(cells []string) {
	row := make([]string, len(t.keep))
	for i, from := range t.keep {
		if row[i] = clean(cells[from]); row[i] == "" {
			row[i] = "-"
		}
		t.widths[i] = max(t.widths[i], text.StringWidthWithoutEscSequences(row[i]))
		row[i] = t.a.paint(row[i])
	}
	t.pending = append(t.pending, row)
}

// render is what is pending, as text.
func (t *rows) render() string {
	w := table.NewWriter()
	style := table.StyleDefault
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "   "
	style.Options = table.OptionsNoBordersAndSeparators
	style.Format.Header = text.FormatDefault
	w.SetStyle(style)
	w.SuppressTrailingSpaces()
	configs := make([]table.ColumnConfig, len(t.widths))
	for i, width := range t.widths {
		configs[i] = table.ColumnConfig{Number: i + 1, WidthMin: width}
	}
	w.SetColumnConfigs(configs)
	all := t.pending
	if !t.headed {
		all = append([][]string{t.header}, all...)
	}
	for _, cells := range all {
		row := make(table.Row, len(cells))
		for i, c := range cells {
			row[i] = c
		}
		w.AppendRow(row)
	}
	t.headed, t.pending = true, nil
	return w.Render() + "\n"
}

func (t *rows) flush() error {
	if len(t.pending) == 0 {
		return nil
	}
	_, err := io.WriteString(t.a.out(), t.render())
	return err
}

// colors of the words that say how something is.
var colors = map[string]text.Color{
	"RUNNING": text.FgGreen, "COMPLETED": text.FgGreen, "HEALTHY": text.FgGreen, "ok": text.FgGreen, "ACKED": text.FgGreen,
	"PENDING": text.FgYellow, "STARTING": text.FgYellow, "TERMINATING": text.FgYellow, "PAUSING": text.FgYellow, "PAUSED": text.FgYellow, "MIGRATING": text.FgYellow,
	"RESTORING": text.FgYellow, "DEGRADED": text.FgYellow, "warn": text.FgYellow, "QUEUED": text.FgYellow,
	"FAILED": text.FgRed, "UNHEALTHY": text.FgRed, "OFFLINE": text.FgRed, "fail": text.FgRed, "DEAD": text.FgRed,
	"LEADER": text.Bold,
}

// paint colours a word, on a terminal that wants colours.
func (a *app) paint(word string) string {
	c, ok := colors[word]
	if !ok || a.getenv("NO_COLOR") != "" || a.getenv("TERM") == "dumb" || !isTerminal(a.stdout) {
		return word
	}
	return c.EscapeSeq() + word + text.Reset.EscapeSeq()
}
