// What tenants may spend, and what they have spent, by the day.

package provider

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// tenantsMax bounds the tenants that are kept for a day.
const tenantsMax = 100_000

// Spent is what a tenant has spent in a day, by this server.
type Spent struct {
	Tenant       string  `json:"tenant"`
	Calls        int64   `json:"calls"`
	InputTokens  int64   `json:"inputTokens"`
	OutputTokens int64   `json:"outputTokens"`
	CostUSD      float64 `json:"costUsd"`
}

func (s *Spent) tokens() int64 { return s.InputTokens + s.OutputTokens }

// account is a tenant's day.
type account struct {
	Spent
	heldTokens int64 // set aside for calls under way
	heldCost   float64
}

// budgets keeps the accounts of one day.
type budgets struct {
	limits map[string]BudgetConfig

	mu       sync.Mutex
	day      string
	accounts map[string]*account
	refused  int64
	changed  bool
}

func newBudgets(list []BudgetConfig) *budgets {
	b := &budgets{limits: map[string]BudgetConfig{}, accounts: map[string]*account{}}
	for _, l := range list {
		b.limits[l.Tenant] = l
	}
	return b
}

// dayOf names the day of an instant.
func dayOf(now time.Time) string { return now.UTC().Format(time.DateOnly) }

// nextDay is how long the day lasts.
func nextDay(now time.Time) time.Duration {
	return now.UTC().Truncate(24 * time.Hour).Add(24 * time.Hour).Sub(now)
}

// turn begins a new day when there is one. Called with mu held.
func (b *budgets) turn(now time.Time) {
	if day := dayOf(now); day != b.day {
		b.day, b.accounts, b.changed = day, map[string]*account{}, true
	}
}

// hold is what is set aside for one call.
type hold struct {
	b      *budgets
	a      *account
	tokens int64
	cost   float64
}

// reserve sets aside what a call can cost at most, or refuses it.
func (b *budgets) reserve(tenant string, tokens int64, cost float64, now time.Time) (*hold, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn(now)
	a := b.accounts[tenant]
	if a == nil {
		if len(b.accounts) >= tenantsMax {
			b.refused++
			return nil, fault.New(fault.Exhausted, "chat: %d tenants have called models today, and no more can be kept account of; come back tomorrow (UTC)", tenantsMax).WithRetry(nextDay(now))
		}
		a = &account{Spent: Spent{Tenant: tenant}}
		b.accounts[tenant] = a
	}
	limit, ok := b.limits[tenant]
	if !ok {
		limit = b.limits[anyTenant]
	}
	if err := limit.check(a, tokens, cost, now); err != nil {
		b.refused++
		return nil, err
	}
	a.heldTokens += tokens
	a.heldCost += cost
	return &hold{b, a, tokens, cost}, nil
}

// check refuses what would go beyond the budget.
func (c BudgetConfig) check(a *account, tokens int64, cost float64, now time.Time) error {
	const remedy = "; it is taken again at 00:00 UTC, or at once with a larger %s of the budget"
	if limit := int64(c.TokensPerDay); limit > 0 && a.tokens()+a.heldTokens+tokens > limit {
		return fault.New(fault.Exhausted, "chat: tenant %s has %d of its %d tokens of today left, and this call may need %d"+remedy, a.Tenant,
			max(limit-a.tokens()-a.heldTokens, 0), limit, tokens, "tokens_per_day").WithRetry(nextDay(now))
	}
	if limit := c.CostPerDay; limit > 0 && a.CostUSD+a.heldCost+cost > limit {
		return fault.New(fault.Exhausted, "chat: tenant %s has $%.4f of its $%.2f of today left, and this call may cost $%.4f"+remedy, a.Tenant,
			max(limit-a.CostUSD-a.heldCost, 0), limit, cost, "cost_per_day").WithRetry(nextDay(now))
	}
	return nil
}

// spend adds what one attempt used. A call that outlives its day is of the day in which it ended.
func (h *hold) spend(u Usage, cost float64, now time.Time) {
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	h.b.turn(now)
	a := h.a
	if current := h.b.accounts[a.Tenant]; current != nil {
		a = current
	} else {
		a = &account{Spent: Spent{Tenant: a.Tenant}}
		h.b.accounts[a.Tenant] = a
	}
	a.InputTokens += int64(u.InputTokens)
	a.OutputTokens += int64(u.OutputTokens)
	a.CostUSD += cost
	a.Calls++
	h.b.changed = true
}

// release gives back what was set aside.
func (h *hold) release() {
	h.b.mu.Lock()
	defer h.b.mu.Unlock()
	h.a.heldTokens -= h.tokens
	h.a.heldCost -= h.cost
}

// list returns what was spent today, by tenant.
func (b *budgets) list(now time.Time) []Spent {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn(now)
	all := make([]Spent, 0, len(b.accounts))
	for _, a := range b.accounts {
		if a.Calls > 0 {
			all = append(all, a.Spent)
		}
	}
	slices.SortFunc(all, func(x, y Spent) int { return cmp.Compare(x.Tenant, y.Tenant) })
	return all
}
