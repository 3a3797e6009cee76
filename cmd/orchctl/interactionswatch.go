// interactions list --watch: what is recorded from now on, found by looking again.

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// The record is in the order in which things began, and a call is recorded when it ends: what is new need not be the latest. So each look
// reads again what began shortly before the latest, every tenth one what began long before it, and what was seen is left out.
const (
	watchOverlap   = 15 * time.Second
	watchLong      = 15 * time.Minute
	watchDeepEvery = 10
	// watchReads is how many interactions a look reads at most, but for the first one.
	watchReads = 5000
	// watchRemembers is how many interactions are known to have been seen; what began before the earliest of them is not shown any more.
	watchRemembers = 50_000
)

// recordWatch is what a watcher of the record knows.
type recordWatch struct {
	fetch  func(ctx context.Context, since time.Time, size int32, token string) (*apiv1.ListInteractionsResponse, error)
	since  time.Time // the user's; zero for none
	limit  int       // how many of those that are there already are wanted; 0 for all
	seen   map[string]time.Time
	latest time.Time
	floor  time.Time // what began before it is not shown: whether it was seen is not known
	looks  int
}

// newRecordWatch watches what a query asks for.
func newRecordWatch(q *apiv1.InteractionQuery, limit int, list func(context.Context, *apiv1.ListInteractionsRequest, ...grpc.CallOption) (*apiv1.ListInteractionsResponse, error)) *recordWatch {
	w := &recordWatch{limit: limit, seen: map[string]time.Time{}}
	if q.GetSince() != nil {
		w.since = q.GetSince().AsTime()
	}
	w.fetch = func(ctx context.Context, since time.Time, size int32, token string) (*apiv1.ListInteractionsResponse, error) {
		asked := proto.CloneOf(q)
		if !since.IsZero() {
			asked.Since = timestamppb.New(since)
		}
		return list(ctx, &apiv1.ListInteractionsRequest{Query: asked, PageSize: size, PageToken: token})
	}
	return w
}

// recordLook is what a look found.
type recordLook struct {
	fresh   []*apiv1.Interaction // oldest first
	cut     bool                 // there was more than it reads
	missing map[string]string
}

// look reads what may be new.
func (w *recordWatch) look(ctx context.Context) (*recordLook, error) {
	first, since := w.looks == 0, w.floor
	if back := w.latest.Add(-watchOverlap); !w.latest.IsZero() {
		if w.looks%watchDeepEvery == 0 {
			back = w.latest.Add(-watchLong)
		}
		since = later(since, back)
	}
	since = later(since, w.since)
	out := &recordLook{missing: map[string]string{}}
	var read []*apiv1.Interaction // the latest first
	for token := ""; ; {
		page, err := w.fetch(ctx, since, pageMax, token)
		if err != nil {
			return nil, err
		}
		maps.Copy(out.missing, page.GetMissing())
		read, token = append(read, page.GetInteractions()...), page.GetNextPageToken()
		if token == "" {
			break
		}
		if w.enough(first, read) {
			out.cut = true
			break
		}
	}
	w.looks++
	w.take(out, read, first)
	return out, nil
}

// enough reports whether a look has read as much as it may.
func (w *recordWatch) enough(first bool, read []*apiv1.Interaction) bool {
	if len(read) == 0 {
		return false
	}
	if !first {
		return len(read) >= watchReads
	}
	// What is wanted, and what the next deep look will read again.
	long := read[0].GetTime().AsTime().Sub(read[len(read)-1].GetTime().AsTime()) > watchLong
	return w.limit > 0 && len(read) >= w.limit && (long || len(read) >= watchReads)
}

// take notes what was read, and keeps what is new in it.
func (w *recordWatch) take(out *recordLook, read []*apiv1.Interaction, first bool) {
	before := w.latest
	for _, i := range read {
		at := i.GetTime().AsTime()
		w.latest = later(w.latest, at)
		if _, known := w.seen[i.GetId()]; !known && !at.Before(w.floor) {
			out.fresh = append(out.fresh, i)
		}
		w.seen[i.GetId()] = at
	}
	if len(read) > 0 && out.cut {
		oldest := read[len(read)-1].GetTime().AsTime()
		if first {
			w.floor = oldest
		}
		out.cut = first || oldest.After(before) // else only what was seen, or calls that took long, may be missing
	}
	if first && w.limit > 0 && len(out.fresh) > w.limit {
		out.fresh, out.cut = out.fresh[:w.limit], true
	}
	slices.Reverse(out.fresh)
	w.forget()
}

// forget lets go of what no look reads again, and of the earliest where there is too much.
func (w *recordWatch) forget() {
	long := w.latest.Add(-watchLong)
	maps.DeleteFunc(w.seen, func(_ string, at time.Time) bool { return at.Before(long) })
	if len(w.seen) <= watchRemembers {
		return
	}
	times := slices.SortedFunc(maps.Values(w.seen), time.Time.Compare)
	w.floor = later(w.floor, times[len(times)-watchRemembers/2])
	maps.DeleteFunc(w.seen, func(_ string, at time.Time) bool { return at.Before(w.floor) })
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// watchInteractions prints what is there, and what comes, until it is interrupted.
func (a *app) watchInteractions(ctx context.Context, w *recordWatch) error {
	k := a.interactionKind()
	t := watchTable(a, k)
	tick := time.NewTicker(a.refresh)
	defer tick.Stop()
	missing, away := map[string]string{}, false
	for {
		lookCtx, cancel := context.WithTimeout(ctx, a.flags.timeout)
		first := w.looks == 0
		found, err := w.look(lookCtx)
		cancel()
		switch {
		case err == nil:
			away = false
			a.noteChanges(missing, found.missing)
			missing = found.missing
			if err := a.printFound(k, t, found, first); err != nil {
				return err
			}
		case first || ctx.Err() != nil || !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Timeout):
			return err
		case !away: // leaders come and go
			away = true
			a.note("looking again: " + err.Error())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *app) printFound(k kind[*apiv1.Interaction], t *rows, found *recordLook, first bool) error {
	switch {
	case found.cut && first:
		a.note(fmt.Sprintf("the last %d, and what comes; --limit 0 shows all", len(found.fresh)))
	case found.cut:
		a.note(fmt.Sprintf("more than %d began since the last look, and the latest are shown; narrow it by --session, --kind or --filter, or export them", watchReads))
	}
	for _, i := range found.fresh {
		if err := printChange(a, k, t, i, k.row(i)); err != nil {
			return err
		}
	}
	return t.flush()
}

// noteChanges tells which servers' parts of the record have come to be missing, and which are there again.
func (a *app) noteChanges(was, is map[string]string) {
	now := map[string]string{}
	for id, why := range is {
		if _, known := was[id]; !known {
			now[id] = why
		}
	}
	a.noteMissing(now)
	for _, id := range slices.Sorted(maps.Keys(was)) {
		if _, still := is[id]; !still {
			a.note(id + " answers again")
		}
	}
}
