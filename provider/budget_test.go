// Budgets, what was spent, and its file.

package provider

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// write puts a line into a file that nobody else reads.
func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func priced(c *PoolConfig) { c.Models = []ModelConfig{{Name: "m", InputPrice: 10, OutputPrice: 20}} }

func TestBudgetOfTokens(t *testing.T) {
	o := Options{Config: Config{Pools: []PoolConfig{one(OpenAI)}, Budgets: []BudgetConfig{{Tenant: "t", TokensPerDay: 1000}}}}
	inBubble(t, o, func(t *testing.T, w *world) {
		fake := w.fakes["a"]
		fake.Usually(step{InputTokens: 100, OutputTokens: 200})
		few := func(r *Request) { r.MaxTokens = 250 }
		for i := range 3 {
			if _, err := w.Chat(t.Context(), ask(few)); err != nil {
				t.Fatalf("call %d: %v", i, err)
			}
		}
		_, err := w.Chat(t.Context(), ask(few))
		wantKind(t, err, fault.Exhausted)
		if e := fault.As(err); e.RetryAfter < 23*time.Hour || e.RetryAfter > 24*time.Hour || !strings.Contains(err.Error(), "tenant t has 100 of its 1000 tokens of today left") {
			t.Errorf("%v; come back in %s", err, e.RetryAfter)
		}
		if fake.Count() != 3 {
			t.Errorf("the provider saw %d", fake.Count())
		}
		other := ask(few, func(r *Request) { r.Tenant = "other" })
		if _, err := w.Chat(t.Context(), other); err != nil {
			t.Errorf("another tenant: %v", err)
		}
		if got := w.Spent(); len(got) != 2 || got[1] != (Spent{Tenant: "t", Calls: 3, InputTokens: 300, OutputTokens: 600}) {
			t.Errorf("%+v", got)
		}
		time.Sleep(24 * time.Hour)
		if _, err := w.Chat(t.Context(), ask(few)); err != nil {
			t.Errorf("tomorrow: %v", err)
		}
	})
}

// Calls at once cannot go beyond the budget together: each sets aside what it may need.
func TestBudgetIsNotOverdrawnAtOnce(t *testing.T) {
	o := Options{Config: Config{Pools: []PoolConfig{one(OpenAI, priced)}, Budgets: []BudgetConfig{{Tenant: "*", CostPerDay: 0.1}}}}
	inBubble(t, o, func(t *testing.T, w *world) {
		w.fakes["a"].Usually(step{Delay: time.Second, InputTokens: 1000, OutputTokens: 1000}) // 3 cents
		failed := w.together(10, func(r *Request) { r.MaxTokens = 1000 })
		if len(failed) != 6 {
			t.Errorf("%d of 10 were refused", len(failed)) // the question is short: 2 cents are set aside for each, and 4 go into a tenth
		}
		for _, err := range failed {
			wantKind(t, err, fault.Exhausted)
		}
		got := w.Spent()[0]
		if got.Calls != 4 || got.CostUSD < 0.119 || got.CostUSD > 0.121 {
			t.Errorf("%+v", got)
		}
		if s := w.List()[0]; s.CostUSD != got.CostUSD || s.InputTokens != 4000 {
			t.Errorf("%+v", s)
		}
	})
}

// What did not happen costs nothing; what may have happened, and what was cut, does.
func TestWhatFailedCalls(t *testing.T) {
	for _, c := range []struct {
		name  string
		step  step
		spent bool
	}{
		{"429", step{Status: 429, RetryAfter: "100"}, false}, {"400", step{Status: 400}, false}, {"500", step{Status: 500}, false},
		{"no answer", step{DropConnection: true}, true}, {"cut", step{Text: "one two three", Cut: true, CutAfter: 2}, true}, {"hang", step{Hang: true}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, Options{Config: Config{AttemptsMax: 1, Pools: []PoolConfig{one(Anthropic, priced)}}}, func(t *testing.T, w *world) {
				w.fakes["a"].Script(c.step)
				if _, _, err := w.stream(t.Context(), ask()); err == nil {
					t.Fatal("answered")
				}
				got := w.Spent()
				if c.spent != (len(got) == 1 && got[0].InputTokens > 0 && got[0].CostUSD > 0) {
					t.Errorf("%+v", got)
				}
				w.budgets.mu.Lock()
				defer w.budgets.mu.Unlock()
				if a := w.budgets.accounts["t"]; a.heldTokens != 0 || a.heldCost != 0 {
					t.Errorf("still held: %+v", a)
				}
			})
		})
	}
}

func TestSpentOutlivesARestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "spent.json")
	o := Options{SpendFile: file, Config: Config{Pools: []PoolConfig{one(OpenAI)}, Budgets: []BudgetConfig{{Tenant: "t", TokensPerDay: 1000}}}}
	few := func(r *Request) { r.MaxTokens = 500 }
	inBubble(t, o, func(t *testing.T, w *world) { // killed: only what Run wrote is there
		w.run()
		w.fakes["a"].Usually(step{InputTokens: 300, OutputTokens: 400})
		if _, err := w.Chat(t.Context(), ask(few)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(saveInterval + time.Second)
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), `"inputTokens":300`) {
			t.Errorf("%s, %v", text, err)
		}
	})
	inBubble(t, o, func(t *testing.T, w *world) {
		_, err := w.Chat(t.Context(), ask(few))
		wantKind(t, err, fault.Exhausted)
		time.Sleep(24 * time.Hour)
		if _, err := w.Chat(t.Context(), ask(few)); err != nil {
			t.Error(err)
		}
	})
	inBubble(t, o, func(t *testing.T, w *world) { // of tomorrow, which is not today
		if got := w.Spent(); len(got) != 0 {
			t.Errorf("%+v", got)
		}
	})
	write(t, file, "{")
	_, err := New(Options{SpendFile: file, Config: Defaults()})
	wantKind(t, err, fault.Invalid)
}
