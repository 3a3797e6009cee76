// Lists: pages, limits, filters of what the server does not filter, and watching by looking again.

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/neolith/orchestrator/internal/fault"
)

const (
	// listLimit is how many things a list shows unless --limit says otherwise.
	listLimit = 1000
	pageMax   = 1000
)

// listFlags are the flags of every list.
type listFlags struct {
	filter string
	limit  int
	watch  bool
}

func (l *listFlags) add(c *cobra.Command, filter string) {
	f := c.Flags()
	f.StringVar(&l.filter, "filter", "", filter)
	f.IntVar(&l.limit, "limit", listLimit, "show at most this many; 0 for all")
	f.BoolVarP(&l.watch, "watch", "w", false, "go on with what changes")
}

func (l *listFlags) check() error {
	if l.limit < 0 {
		return fault.New(fault.Invalid, "--limit: %d is negative; 0 is for all", l.limit)
	}
	return nil
}

func (a *app) allFlag(c *cobra.Command, all *bool) {
	c.Flags().BoolVarP(all, "all-namespaces", "A", false, "of every namespace that the token may see")
}

// scope is the namespace to look into; empty for all.
func (a *app) scope(all bool) string {
	if all {
		return ""
	}
	return a.namespace()
}

// pages collects items page by page, up to the limit; next is where more would begin.
func pages[T any](limit int, fetch func(size int32, token string) ([]T, string, error)) (items []T, next string, err error) {
	for {
		size := pageMax
		if limit > 0 {
			size = min(size, limit-len(items))
		}
		page, token, err := fetch(int32(size), next)
		if err != nil {
			return nil, "", err
		}
		items, next = append(items, page...), token
		if next == "" || limit > 0 && len(items) >= limit {
			return items, next, nil
		}
	}
}

// cutNote says that there is more than was shown.
func (a *app) cutNote(shown int, next string, total int64) {
	switch {
	case next == "":
	case total > 0:
		a.note(fmt.Sprintf("%d of %d shown; --limit 0 shows all", shown, total))
	default:
		a.note(fmt.Sprintf("the first %d shown; --limit 0 shows all", shown))
	}
}

// keep returns the first items that match, up to the limit.
func keep[T any](items []T, limit int, match func(T) bool) (out []T) {
	for _, item := range items {
		if match(item) && (limit == 0 || len(out) < limit) {
			out = append(out, item)
		}
	}
	return out
}

// show prints a list whose items are fetched into answer, once or again and again.
func show[T proto.Message](ctx context.Context, a *app, k kind[T], l *listFlags, fetch func() ([]T, error), answer proto.Message) error {
	if l.watch {
		return poll(ctx, a, k, fetch)
	}
	items, err := fetch()
	if err != nil {
		return err
	}
	return printList(a, k, items, answer)
}

// noteMissing names the servers that did not answer.
func (a *app) noteMissing(missing map[string]string) {
	for _, id := range slices.Sorted(maps.Keys(missing)) {
		a.note(fmt.Sprintf("%s did not answer: %s", id, missing[id]))
	}
}

// poll prints what there is and then, every refresh, what has changed in a row that people see. It is how things are
// watched for which the API has no stream.
func poll[T proto.Message](ctx context.Context, a *app, k kind[T], fetch func() ([]T, error)) error {
	t := watchTable(a, k)
	last := map[string]string{}
	tick := time.NewTicker(a.refresh)
	defer tick.Stop()
	for {
		items, err := fetch()
		if err != nil {
			return err
		}
		present := map[string]bool{}
		for _, item := range items {
			id, row := k.name(item), k.row(item)
			present[id] = true
			sum := k.sum(row)
			if last[id] == sum {
				continue
			}
			last[id] = sum
			if err := printChange(a, k, t, item, row); err != nil {
				return err
			}
		}
		for id := range last {
			if !present[id] {
				delete(last, id)
				a.note(id + " is gone")
			}
		}
		if err := t.flush(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sum is what of a row matters to somebody who watches: not the columns that change by themselves.
func (k kind[T]) sum(row []string) string {
	var b strings.Builder
	for i, cell := range row {
		switch strings.TrimPrefix(k.columns[i], "+") {
		case "AGE", "CPU", "MEMORY", "HEARTBEAT", "CONTACT", "APPLIED", "RTT", "LAG":
		default:
			b.WriteString(cell + "\x00")
		}
	}
	return b.String()
}

// printChange prints one changed thing of a watched list; table rows wait in t.
func printChange[T proto.Message](a *app, k kind[T], t *rows, item T, row []string) error {
	switch a.flags.output {
	case "json", "yaml":
		return a.printStreamed(item)
	case "name":
		_, err := fmt.Fprintln(a.out(), k.name(item))
		return err
	}
	t.add(row)
	return nil
}

// terms is a filter that is applied here, for lists that the server does not filter.
type terms []condition

type condition struct {
	key, value string
	not        bool
}

// parseTerms reads KEY=VALUE terms joined by commas; a value may end in *, != negates.
func parseTerms(filter string, keys ...string) (out terms, err error) {
	for _, s := range split(filter) {
		k, v, ok := strings.Cut(s, "=")
		k, not := strings.CutSuffix(k, "!")
		known := false
		for _, key := range keys {
			known = known || key == k
		}
		if !ok || !known {
			return nil, fault.New(fault.Invalid, "--filter: %q is not a term; use KEY=VALUE or KEY!=VALUE with KEY one of %s", s, strings.Join(keys, ", "))
		}
		out = append(out, condition{k, v, not})
	}
	return out, nil
}

// match reports whether all terms hold, by the values of the keys.
func (ts terms) match(values map[string]string) bool {
	for _, t := range ts {
		got := values[t.key]
		equal := strings.EqualFold(got, t.value)
		if prefix, ok := strings.CutSuffix(t.value, "*"); ok {
			equal = strings.HasPrefix(strings.ToLower(got), strings.ToLower(prefix))
		}
		if equal == t.not {
			return false
		}
	}
	return true
}

// unique is the only id that a prefix means.
func unique(noun, list, ref string, ids []string) (string, error) {
	switch len(ids) {
	case 1:
		return ids[0], nil
	case 0:
		return "", fault.New(fault.NotFound, "there is no %s %q; 'orchctl %s' shows those there are", noun, ref, list)
	default:
		return "", fault.New(fault.Invalid, "%q may mean %s; give more of it", ref, strings.Join(ids, " or "))
	}
}
