// What pools are doing, for whoever watches them.

package provider

import (
	"time"
)

// Status is a provider at one instant.
type Status struct {
	Name    string
	Dialect string
	Models  []string
	Healthy bool // a call would be taken now

	Min, Max    int
	MaxInFlight int // calls at a time
	Open        int // slots: idle and in use
	Idle        int
	InUse       int
	Waiting     int // calls that wait: for a slot, or to be tried again
	Connections int // that are open

	// Breaker is closed, half-open or open: that of the endpoint that is best off.
	Breaker   string
	Endpoints []EndpointStatus

	Sent, Answered, Failed int64
	Limited                int64 // refused by the provider's rate limit
	Unsure                 int64 // of Failed, those of which nobody knows whether they took place
	Elsewhere              int64 // of Failed, those that were tried elsewhere, or again
	Full                   int64 // not taken, for all slots were busy
	InputTokens            int64
	OutputTokens           int64
	CachedTokens           int64
	CostUSD                float64
	LastError              string
	LastErrorTime          time.Time
}

// EndpointStatus is one endpoint at one instant.
type EndpointStatus struct {
	Name           string
	Host           string
	Weight         int
	InFlight       int
	Breaker        string
	Health         string // empty when well
	HealthTime     time.Time
	BlockedFor     time.Duration // 0 when it takes calls
	BlockedBecause string
	RequestsLeft   int64 // in this minute; -1 when not known
	TokensLeft     int64 // in this minute; -1 when not known
	Calls, Failed  int64
	LastError      string
	LastErrorTime  time.Time
}

// breakerRank orders breakers by how well off they are.
var breakerRank = map[string]int{"closed": 2, "half-open": 1, "open": 0}

// List returns all providers, in the order in which they are tried.
func (p *Pools) List() []Status {
	all := make([]Status, len(p.list))
	for i, one := range p.list {
		all[i] = one.status(time.Now())
	}
	return all
}

func (p *pool) status(now time.Time) Status {
	stat := p.slots.Stat()
	s := Status{Name: p.cfg.Name, Dialect: p.cfg.Dialect, Min: p.cfg.Min, Max: p.cfg.Max, MaxInFlight: p.cfg.MaxInFlight, Open: int(stat.TotalResources()), Idle: int(stat.IdleResources()),
		InUse: int(stat.AcquiredResources()), Waiting: int(p.waiting.Load()), Connections: int(p.connections.Load()), Breaker: "open"}
	for _, m := range p.cfg.Models {
		s.Models = append(s.Models, m.Name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.counts
	s.Sent, s.Answered, s.Failed, s.Limited, s.Unsure, s.Elsewhere, s.Full = c.sent, c.answered, c.failed, c.limited, c.unsure, c.elsewhere, c.full
	s.InputTokens, s.OutputTokens, s.CachedTokens, s.CostUSD = c.in, c.out, c.cached, c.costUSD
	s.LastError, s.LastErrorTime = c.lastError, c.lastErrorTime
	for _, l := range p.lanes {
		e := EndpointStatus{Name: l.name, Host: l.url.Host, Weight: l.weight, InFlight: l.inFlight, Breaker: l.breaker.State().String(), Health: l.health,
			HealthTime: l.healthTime, RequestsLeft: l.requests.room(now), TokensLeft: l.tokens.room(now), Calls: l.calls, Failed: l.failed,
			LastError: l.lastError, LastErrorTime: l.lastErrorTime}
		e.BlockedFor, e.BlockedBecause = l.wait(1, now)
		s.Healthy = s.Healthy || e.BlockedFor == 0
		if breakerRank[e.Breaker] > breakerRank[s.Breaker] {
			s.Breaker = e.Breaker
		}
		s.Endpoints = append(s.Endpoints, e)
		if l.lastErrorTime.After(s.LastErrorTime) {
			s.LastError, s.LastErrorTime = l.lastError, l.lastErrorTime
		}
	}
	return s
}

// Model is a model that can be asked.
type Model struct {
	Name        string
	Provider    string
	Upstream    string // what the provider names it
	Default     bool   // taken when a call to this provider names none
	InputPrice  float64
	OutputPrice float64 // US dollars for a million tokens; 0 when not given
}

// Models returns what can be asked, by provider in their order.
func (p *Pools) Models() []Model {
	var all []Model
	for _, one := range p.list {
		for i, m := range one.cfg.Models {
			all = append(all, Model{Name: m.Name, Provider: one.cfg.Name, Upstream: m.Upstream, Default: i == 0, InputPrice: m.InputPrice, OutputPrice: m.OutputPrice})
		}
	}
	return all
}

// Spent returns what tenants have spent today (UTC), by this server.
func (p *Pools) Spent() []Spent { return p.budgets.list(time.Now()) }

func (p *Pools) names() []string {
	var all []string
	for _, one := range p.list {
		all = append(all, one.cfg.Name)
	}
	return all
}

// modelNames are the models of a provider, or of all.
func (p *Pools) modelNames(provider string) []string {
	var all []string
	for _, m := range p.Models() {
		if provider == "" || provider == m.Provider {
			all = append(all, m.Name)
		}
	}
	return all
}
