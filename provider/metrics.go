// What Prometheus is told of providers.

package provider

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/telemetry"
)

// histograms are the metrics that are observed as calls end; the others are read off the pools.
type histograms struct {
	call      *prometheus.HistogramVec
	firstByte *prometheus.HistogramVec
}

func newHistograms() *histograms {
	buckets := prometheus.ExponentialBuckets(0.01, 2, 16) // 10 ms to 5 min
	return &histograms{
		call: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "orchestrator", Name: "provider_call_seconds",
			Help: "Time of a call to a provider, from its slot on.", Buckets: buckets}, []string{"provider", "outcome"}),
		firstByte: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "orchestrator", Name: "provider_first_byte_seconds",
			Help: "Time until the first piece of an answer came, or the whole.", Buckets: buckets}, []string{"provider"}),
	}
}

func (h *histograms) register(r prometheus.Registerer, p *Pools) error {
	for _, c := range []prometheus.Collector{h.call, h.firstByte, prometheus.CollectorFunc(p.collect)} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("orchestrator_provider_"+name, help, labels, nil)
}

var (
	descSlots       = desc("slots", "Slots of a pool, each for one call at a time.", "provider", "state")
	descSlotsMax    = desc("slots_max", "Slots that a pool may have.", "provider")
	descConnections = desc("connections", "Connections to a provider.", "provider")
	descWaiting     = desc("waiting_calls", "Calls that wait: for a slot, or to be tried again.", "provider")
	descHealthy     = desc("healthy", "1 while a call would be taken.", "provider")
	descCalls       = desc("calls_total", "Calls that were sent, by what came of them.", "provider", "outcome")
	descLimited     = desc("rate_limited_total", "Calls that a provider refused by its rate limit.", "provider")
	descUnsure      = desc("unsure_total", "Calls of which nobody knows whether they took place.", "provider")
	descElsewhere   = desc("repeated_total", "Calls that failed and were tried elsewhere, or again.", "provider")
	descFull        = desc("full_total", "Calls that were not taken because all slots were busy.", "provider")
	descTokens      = desc("tokens_total", "Tokens, in and out.", "provider", "direction")
	descCost        = desc("cost_dollars_total", "What calls cost by the configured prices, in US dollars.", "provider")
	descBreaker     = desc("breaker_open", "1 while an endpoint's breaker is open, 0.5 while it is half open.", "provider", "endpoint")
	descBlocked     = desc("endpoint_blocked_seconds", "For how long an endpoint takes no calls: its breaker, a rate limit, its key.", "provider", "endpoint")
	descRefused     = desc("budget_refused_total", "Calls that a tenant's budget refused.")
)

// collect reads metrics off the pools. Tenants are no label: there may be any number of them.
func (p *Pools) collect(ch chan<- prometheus.Metric) {
	for _, s := range p.List() {
		telemetry.Gauge(ch, descSlots, s.Idle, s.Name, "idle")
		telemetry.Gauge(ch, descSlots, s.InUse, s.Name, "in_use")
		telemetry.Gauge(ch, descSlotsMax, s.Max, s.Name)
		telemetry.Gauge(ch, descConnections, s.Connections, s.Name)
		telemetry.Gauge(ch, descWaiting, s.Waiting, s.Name)
		telemetry.Gauge(ch, descHealthy, truth(s.Healthy), s.Name)
		telemetry.Counter(ch, descCalls, s.Answered, s.Name, "answered")
		telemetry.Counter(ch, descCalls, s.Sent-s.Answered, s.Name, "failed")
		telemetry.Counter(ch, descLimited, s.Limited, s.Name)
		telemetry.Counter(ch, descUnsure, s.Unsure, s.Name)
		telemetry.Counter(ch, descElsewhere, s.Elsewhere, s.Name)
		telemetry.Counter(ch, descFull, s.Full, s.Name)
		telemetry.Counter(ch, descTokens, s.InputTokens, s.Name, "in")
		telemetry.Counter(ch, descTokens, s.OutputTokens, s.Name, "out")
		telemetry.Counter(ch, descCost, s.CostUSD, s.Name)
		for _, e := range s.Endpoints {
			open := map[string]float64{"open": 1, "half-open": 0.5}[e.Breaker]
			telemetry.Gauge(ch, descBreaker, open, s.Name, e.Name)
			telemetry.Gauge(ch, descBlocked, e.BlockedFor.Round(time.Millisecond).Seconds(), s.Name, e.Name)
		}
	}
	p.budgets.mu.Lock()
	refused := p.budgets.refused
	p.budgets.mu.Unlock()
	telemetry.Counter(ch, descRefused, refused)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
