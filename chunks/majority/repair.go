// Repair: the copies that members lack, within a budget.

package majority

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"golang.org/x/time/rate"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// windowMax is how many chunks are asked about at a time.
const windowMax = 4 << 10

// Budget is what a repair may cost.
type Budget struct {
	// BytesPerSecond bounds the copying (8 MiB/s).
	BytesPerSecond int64
	// BytesMax ends a run; the next goes on with what is still lacking. 0 does not.
	BytesMax int64
}

// Repaired is what a run of repair found and did.
type Repaired struct {
	Checked             int64 // live chunks that members were asked about
	Copied, CopiedBytes int64
	Failed              int64 // copies that did not succeed
	Lost                int64 // chunks that no member has, when all of them answered
	Finished            bool  // every live chunk was asked about
}

// task is a chunk that some members lack.
type task struct {
	id       chunk.ID
	from, to []int // members that have it, and that lack it
	silent   int   // members that did not answer
}

// plan decides which copies are to be made: those of the chunks with the fewest copies first.
func plan(ids []chunk.ID, lacks []lack) []task {
	var tasks []task
	for _, id := range ids {
		t := task{id: id}
		for i, l := range lacks {
			switch {
			case l == nil:
				t.silent++
			case l.has(id):
				t.to = append(t.to, i)
			default:
				t.from = append(t.from, i)
			}
		}
		if len(t.to) > 0 {
			tasks = append(tasks, t)
		}
	}
	slices.SortStableFunc(tasks, func(a, b task) int { return cmp.Compare(len(a.from), len(b.from)) })
	return tasks
}

// Repair copies the live chunks that members lack. It ends when all were asked about, when the budget is spent, or with an error of
// live or of ctx; members that fail are counted.
func (s *Store) Repair(ctx context.Context, live chunks.Live, b Budget) (Repaired, error) {
	if err := s.begin(ctx, 1); err != nil {
		return Repaired{}, err
	}
	defer s.all.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	if b.BytesPerSecond <= 0 {
		b.BytesPerSecond = 8 << 20
	}
	r := repair{Store: s, budget: b, limiter: rate.NewLimiter(rate.Limit(b.BytesPerSecond), int(max(b.BytesPerSecond, chunk.MaxFrameBytes)))}
	window := make(map[chunk.ID]struct{}, windowMax)
	for id, err := range live(ctx) {
		if err != nil {
			return r.done, fmt.Errorf("chunks: repair: which chunks are live: %w", err)
		}
		window[id] = struct{}{}
		if len(window) < windowMax {
			continue
		}
		if more, err := r.window(ctx, window); !more || err != nil {
			return r.done, err
		}
		clear(window)
	}
	more, err := r.window(ctx, window)
	r.done.Finished = more && err == nil
	return r.done, err
}

// repair is one run.
type repair struct {
	*Store
	budget  Budget
	limiter *rate.Limiter
	done    Repaired
}

// window repairs some chunks; false when the budget is spent.
func (r *repair) window(ctx context.Context, window map[chunk.ID]struct{}) (bool, error) {
	ids := make([]chunk.ID, 0, len(window))
	for id := range window {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, chunks.Compare)
	lacks, _, err := r.survey(ctx, ids)
	if err != nil {
		return false, err
	}
	r.done.Checked += int64(len(ids))
	for _, t := range plan(ids, lacks) {
		if r.budget.BytesMax > 0 && r.done.CopiedBytes >= r.budget.BytesMax {
			return false, nil
		}
		if err := r.copy(ctx, t); err != nil {
			return false, err
		}
	}
	return true, nil
}

// copy makes the copies of one chunk. Its errors are those of ctx.
func (r *repair) copy(ctx context.Context, t task) error {
	var frame []byte
	for _, i := range t.from {
		var err error
		if frame, err = r.getFrom(ctx, r.members[i], t.id); err == nil {
			break
		}
		r.log.Warn("chunks: repair cannot read a chunk", "member", r.members[i].Name, "chunk", t.id.String(), "error", err)
	}
	if frame == nil {
		if len(t.from) == 0 && t.silent == 0 {
			r.done.Lost++
			r.log.Error("chunks: no store has a chunk that a checkpoint names", "chunk", t.id.String())
		} else {
			r.done.Failed += int64(len(t.to))
		}
		return ctx.Err()
	}
	for _, i := range t.to {
		if err := r.limiter.WaitN(ctx, len(frame)); err != nil {
			return err
		}
		if err := r.putTo(ctx, r.members[i], t.id, frame); err != nil {
			r.done.Failed++
			r.log.Warn("chunks: repair cannot write a chunk", "member", r.members[i].Name, "chunk", t.id.String(), "error", err)
			continue
		}
		r.done.Copied++
		r.done.CopiedBytes += int64(len(frame))
	}
	return ctx.Err()
}
