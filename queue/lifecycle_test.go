// The lifecycle against its drawing, and the rules against the lifecycle.

package queue

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

func TestNext(t *testing.T) {
	may := map[Status]map[Event]Status{
		Queued:  {Begin: Running, Assign: Queued, End: Ended, GiveUp: Dead},
		Running: {Defer: Queued, Assign: Queued, End: Ended, GiveUp: Dead},
		Ended:   {Submit: Queued},
		Dead:    {Retry: Queued, Submit: Queued},
	}
	rows := 0
	for s := Queued; s <= Dead; s++ {
		for e := Begin; e <= Submit; e++ {
			want, ok := may[s][e]
			if ok {
				rows++
			} else {
				want = s
			}
			if got, can := Next(s, e); got != want || can != ok {
				t.Errorf("%s on %s: %s, %v; want %s, %v", s, e, got, can, want, ok)
			}
		}
	}
	if rows != len(Lifecycle) {
		t.Errorf("the lifecycle has %d rows, %d of them different", len(Lifecycle), rows)
	}
}

// TestTheDrawing: the package's comment names every status and event.
func TestTheDrawing(t *testing.T) {
	b, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	for s := Queued; s <= Dead; s++ {
		if !strings.Contains(string(b), s.String()) {
			t.Errorf("the drawing lacks %s", s)
		}
	}
	for e := Begin; e <= Submit; e++ {
		if !strings.Contains(string(b), e.String()) {
			t.Errorf("the drawing lacks %q", e)
		}
	}
}

// TestRulesKeepToTheLifecycle applies random rules: what they make of a call is in the lifecycle, and the call itself stays as it is.
func TestRulesKeepToTheLifecycle(t *testing.T) {
	type step struct {
		name   string
		events []Event
		apply  func(*Call, int64) (*Call, error)
	}
	steps := []step{
		{"begin", []Event{Begin}, func(c *Call, now int64) (*Call, error) { return c.Begin(c.Server, c.Attempt, now) }},
		{"defer", []Event{Defer, End}, func(c *Call, now int64) (*Call, error) { return c.Defer(c.Server, c.Attempt, now+5, "busy", now) }},
		{"end", []Event{End}, func(c *Call, now int64) (*Call, error) {
			return c.End(c.Server, c.Attempt, &Outcome{Code: "X"}, false, now)
		}},
		{"give up", []Event{GiveUp}, func(c *Call, now int64) (*Call, error) { return c.End(c.Server, c.Attempt, &Outcome{}, true, now) }},
		{"cancel", []Event{End}, func(c *Call, now int64) (*Call, error) { return c.Cancel(now) }},
		{"assign", []Event{Assign, GiveUp, End}, func(c *Call, now int64) (*Call, error) { return c.Assign("other", "it was lost", now) }},
		{"expire", []Event{End}, func(c *Call, now int64) (*Call, error) { return c.Expire(now) }},
		{"retry", []Event{Retry}, func(c *Call, now int64) (*Call, error) { return c.Retry("s", now+100, c.Number+1) }},
	}
	rapid.Check(t, func(t *rapid.T) {
		c := &Call{Key: Key{"o", "s", "r"}, Server: "s", Status: Queued, Number: 1, Repeatable: rapid.Bool().Draw(t, "repeatable"), Priority: session.Normal}
		for now := int64(1); now < 20; now++ {
			s := rapid.SampledFrom(steps).Draw(t, "step")
			before := *c
			n, err := s.apply(c, now)
			if !reflect.DeepEqual(*c, before) {
				t.Fatalf("%s changed the call itself", s.name)
			}
			if err != nil {
				if k := fault.KindOf(err); k != fault.Aborted && k != fault.FailedPrecondition {
					t.Fatalf("%s: %v", s.name, err)
				}
				continue
			}
			if n == c {
				continue
			}
			if n.Status != c.Status || n.Attempt != c.Attempt {
				if !slices.ContainsFunc(s.events, func(e Event) bool { to, ok := Next(c.Status, e); return ok && to == n.Status }) {
					t.Fatalf("%s made %s of %s", s.name, n.Status, c.Status)
				}
			} else if s.name != "cancel" || !n.Cancelling {
				t.Fatalf("%s made %+v of %+v", s.name, n, c)
			}
			if n.Attempt < c.Attempt || n.Status == Running && c.Status == Running && n.Attempt != c.Attempt {
				t.Fatalf("%s: attempt %d after %d", s.name, n.Attempt, c.Attempt)
			}
			if n.Status == Dead && c.Status == Running && s.name == "assign" && c.Repeatable {
				t.Fatal("what may be repeated was given up")
			}
			c = n
		}
	})
}
