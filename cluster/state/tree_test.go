// Trees against a map: whatever is put and removed, every view goes on showing what it showed.

package state

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestTreesKeepTheirViews(t *testing.T) {
	type seen struct {
		view tree[int]
		rows map[string]*int
	}
	rapid.Check(t, func(t *rapid.T) {
		now := newTree[int]()
		model, taken := map[string]*int{}, []seen(nil)
		key := rapid.Custom(func(t *rapid.T) string { return fmt.Sprintf("%03d", rapid.IntRange(0, 400).Draw(t, "key")) })
		for range rapid.IntRange(1, 30).Draw(t, "entries") {
			for range rapid.IntRange(0, 60).Draw(t, "changes") {
				k := key.Draw(t, "k")
				if rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
					now.put(k, nil)
					delete(model, k)
					continue
				}
				row := new(int)
				now.put(k, row)
				model[k] = row
			}
			taken = append(taken, seen{now.view(), maps.Clone(model)})
		}
		for i, s := range taken {
			from, prefix := key.Draw(t, "from"), key.Draw(t, "prefix")[:rapid.IntRange(0, 3).Draw(t, "length")]
			var all, after, with []*int
			for _, k := range slices.Sorted(maps.Keys(s.rows)) {
				all = append(all, s.rows[k])
				if k >= from {
					after = append(after, s.rows[k])
				}
				if strings.HasPrefix(k, prefix) {
					with = append(with, s.rows[k])
				}
				if got := s.view.get(k); got != s.rows[k] {
					t.Fatalf("view %d: %s is another row", i, k)
				}
			}
			if s.view.get("none") != nil {
				t.Fatalf("view %d: it has what it was never given", i)
			}
			for name, c := range map[string]struct {
				walk func(func(*int) bool)
				want []*int
			}{
				"all":    {func(f func(*int) bool) { s.view.prefixed("", f) }, all},
				"from":   {func(f func(*int) bool) { s.view.from(from, f) }, after},
				"prefix": {func(f func(*int) bool) { s.view.prefixed(prefix, f) }, with},
			} {
				var got []*int
				c.walk(func(row *int) bool { got = append(got, row); return true })
				if !slices.Equal(got, c.want) {
					t.Fatalf("view %d, %s: %d rows, and not %d, or others", i, name, len(got), len(c.want))
				}
			}
		}
	})
}
