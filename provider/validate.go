// What is wrong with the settings of providers, with the key's path and the remedy.

package provider

import (
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/neolith/orchestrator/internal/config"
)

// Bounds of a configuration.
const (
	attemptsLimit  = 20
	poolsMax       = 64
	endpointsMax   = 64
	modelsMax      = 256
	budgetsMax     = 10_000
	slotsMax       = 1000
	waitingLimit   = 100_000
	weightMax      = 1000
	maxTokensLimit = 10_000_000
	perMinuteMax   = math.MaxInt32
	nameBytesMax   = 63
	modelBytesMax  = 256
)

// anyTenant is the budget of those that have none.
const anyTenant = "*"

// Validate says what is wrong with the configuration. Keys in its errors begin with prefix, which is where the configuration is in that
// of the program ("providers").
func (c Config) Validate(prefix string) error {
	if prefix != "" {
		prefix += "."
	}
	if c.AttemptsMax < 1 || c.AttemptsMax > attemptsLimit {
		return config.Bad(prefix+"attempts_max", "%d is not between 1 and %d", c.AttemptsMax, attemptsLimit)
	}
	if len(c.Pools) > poolsMax {
		return config.Bad(prefix+"pools", "%d providers are more than %d", len(c.Pools), poolsMax)
	}
	if len(c.Budgets) > budgetsMax {
		return config.Bad(prefix+"budgets", "%d budgets are more than %d", len(c.Budgets), budgetsMax)
	}
	names := map[string]int{}
	for i, p := range c.Pools {
		key := fmt.Sprintf("%spools[%d]", prefix, i)
		if first, twice := names[p.Name]; twice {
			return config.Bad(key+".name", "%q is the name of pools[%d], too; for several keys give one provider several endpoints", p.Name, first)
		}
		names[p.Name] = i
		if err := p.validate(key); err != nil {
			return err
		}
	}
	return c.validateBudgets(prefix)
}

func (c Config) validateBudgets(prefix string) error {
	tenants := map[string]bool{}
	for i, b := range c.Budgets {
		key := fmt.Sprintf("%sbudgets[%d]", prefix, i)
		switch {
		case b.Tenant == "":
			return config.Bad(key+".tenant", "is empty; give a namespace, or * for each that has no budget of its own")
		case tenants[b.Tenant]:
			return config.Bad(key+".tenant", "%q has a budget already; keep one", b.Tenant)
		case b.TokensPerDay < 0:
			return config.Bad(key+".tokens_per_day", "%d is negative; 0 does not limit them", b.TokensPerDay)
		case b.CostPerDay < 0:
			return config.Bad(key+".cost_per_day", "%g is negative; 0 does not limit it", b.CostPerDay)
		case b.TokensPerDay == 0 && b.CostPerDay == 0:
			return config.Bad(key, "limits nothing; give tokens_per_day or cost_per_day")
		}
		tenants[b.Tenant] = true
		if b.CostPerDay == 0 {
			continue
		}
		for j, p := range c.Pools {
			for _, m := range p.withDefaults().Models {
				if m.InputPrice == 0 || m.OutputPrice == 0 {
					return config.Bad(key+".cost_per_day", "cannot be kept: %spools[%d] (%s) gives no price of %s; give input_price and output_price of all its models", prefix, j, p.Name, m.Name)
				}
			}
		}
	}
	return nil
}

// validate checks one provider; key is its path.
func (c PoolConfig) validate(key string) error {
	if err := checkName(c.Name); err != "" {
		return config.Bad(key+".name", "%s", err)
	}
	isShipped := shipped(c.Name).Dialect != ""
	if len(c.Endpoints) > 0 && c.KeyFile != "" {
		return config.Bad(key+".key_file", "is given beside endpoints; give each endpoint its own key_file")
	}
	if len(c.Endpoints) > endpointsMax {
		return config.Bad(key+".endpoints", "%d are more than %d", len(c.Endpoints), endpointsMax)
	}
	d := c.withDefaults()
	switch d.Dialect {
	case OpenAI, Anthropic:
	case "":
		return config.Bad(key+".dialect", "is empty; say openai or anthropic, which of the two the API is compatible with")
	default:
		return config.Bad(key+".dialect", "%q is neither openai nor anthropic", c.Dialect)
	}
	if f := d.MaxTokensField; f != maxTokensName && (f != maxCompletionTokens || d.Dialect != OpenAI) {
		return config.Bad(key+".max_tokens_field", "%q is neither max_tokens nor, with dialect openai, max_completion_tokens", f)
	}
	for i, e := range d.Endpoints {
		at := fmt.Sprintf("%s.endpoints[%d]", key, i)
		if len(c.Endpoints) == 0 {
			at = key
		}
		if isShipped && e.KeyFile == "" {
			return config.Bad(at+".key_file", "is empty, and %s answers nobody without a key; name a file that holds it", c.Name)
		}
		if err := e.validate(at, c.Insecure); err != nil {
			return err
		}
	}
	if err := validateModels(key, d.Models); err != nil {
		return err
	}
	if err := d.validateNumbers(key); err != nil {
		return err
	}
	return d.validateTimes(key)
}

func (c EndpointConfig) validate(key string, insecure bool) error {
	u, err := url.Parse(c.URL)
	switch {
	case c.URL == "":
		return config.Bad(key+".url", "is empty; say where the API is, such as https://api.moonshot.ai/v1")
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return config.Bad(key+".url", "%q is not https://host/path", redactURL(c.URL))
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return config.Bad(key+".url", "holds a user, a query or a fragment; keys are in key_file, and the rest is added to the path")
	case u.Scheme == "http" && c.KeyFile != "" && !insecure && !loopback(u.Hostname()):
		return config.Bad(key+".url", "%q would send the key in clear text; use https, or say insecure: true", c.URL)
	case c.Weight < 0 || c.Weight > weightMax:
		return config.Bad(key+".weight", "%d is not between 1 and %d", c.Weight, weightMax)
	}
	return nil
}

func validateModels(key string, models []ModelConfig) error {
	if len(models) == 0 {
		return config.Bad(key+".models", "is empty; name at least one model that it serves")
	}
	if len(models) > modelsMax {
		return config.Bad(key+".models", "%d are more than %d", len(models), modelsMax)
	}
	seen := map[string]bool{}
	for i, m := range models {
		at := fmt.Sprintf("%s.models[%d]", key, i)
		switch {
		case m.Name == "" || len(m.Name) > modelBytesMax || len(m.Upstream) > modelBytesMax:
			return config.Bad(at+".name", "is empty, or longer than %d bytes", modelBytesMax)
		case strings.ContainsFunc(m.Name+m.Upstream, func(r rune) bool { return r <= ' ' || r == 0x7f }):
			return config.Bad(at+".name", "%q holds a space or a control character", m.Name)
		case seen[m.Name]:
			return config.Bad(at+".name", "%q is there twice", m.Name)
		case !(m.InputPrice >= 0) || !(m.OutputPrice >= 0):
			return config.Bad(at+".input_price", "a price is negative; give US dollars for a million tokens")
		}
		seen[m.Name] = true
	}
	return nil
}

// validateNumbers is called with defaults filled in.
func (c PoolConfig) validateNumbers(key string) error {
	for _, n := range []struct {
		name             string
		value, low, high int
	}{
		{"max", c.Max, 1, slotsMax}, {"min", c.Min, 0, slotsMax}, {"max_in_flight", c.MaxInFlight, 1, slotsMax}, {"waiting_max", c.WaitingMax, 1, waitingLimit},
		{"breaker_failures", c.BreakerFailures, 1, 1000}, {"requests_per_minute", c.RequestsPerMinute, 0, perMinuteMax},
		{"tokens_per_minute", c.TokensPerMinute, 0, perMinuteMax}, {"max_tokens", c.MaxTokens, 1, maxTokensLimit},
	} {
		if n.value < n.low || n.value > n.high {
			return config.Bad(key+"."+n.name, "%d is not between %d and %d", n.value, n.low, n.high)
		}
	}
	if c.Min > c.Max {
		return config.Bad(key+".min", "%d is above max (%d)", c.Min, c.Max)
	}
	if c.MaxInFlight > c.Max {
		return config.Bad(key+".max_in_flight", "%d is above max (%d), and each call needs a connection; raise max, too", c.MaxInFlight, c.Max)
	}
	return nil
}

// validateTimes is called with defaults filled in.
func (c PoolConfig) validateTimes(key string) error {
	for _, d := range []struct {
		name             string
		value, low, high time.Duration
	}{
		{"idle_timeout", c.IdleTimeout, time.Second, time.Hour}, {"acquire_timeout", c.AcquireTimeout, time.Millisecond, 10 * time.Minute},
		{"create_retry_interval", c.CreateRetry, 10 * time.Millisecond, time.Minute}, {"connect_timeout", c.ConnectTimeout, 10 * time.Millisecond, 5 * time.Minute},
		{"first_byte_timeout", c.FirstByteTimeout, 10 * time.Millisecond, time.Hour}, {"stall_timeout", c.StallTimeout, 10 * time.Millisecond, time.Hour},
		{"call_timeout", c.CallTimeout, 10 * time.Millisecond, 24 * time.Hour}, {"health_interval", c.HealthInterval, time.Second, 24 * time.Hour},
		{"breaker_open", c.BreakerOpen, 10 * time.Millisecond, time.Hour},
	} {
		if d.value < d.low || d.value > d.high {
			return config.Bad(key+"."+d.name, "%s is not between %s and %s", d.value, d.low, d.high)
		}
	}
	return nil
}

// checkName says what is wrong with a provider's name. It is a label of metrics and a word of commands.
func checkName(name string) string {
	if name == "" || len(name) > nameBytesMax {
		return fmt.Sprintf("%.64q is empty, or longer than %d bytes", name, nameBytesMax)
	}
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.' {
			return fmt.Sprintf("%q holds %q; use lower-case letters, digits, -, _ and .", name, r)
		}
	}
	return ""
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// redactURL is a URL without what may be a secret in it.
func redactURL(s string) string {
	if before, _, ok := strings.Cut(s, "?"); ok {
		s = before
	}
	if i := strings.LastIndex(s, "@"); i >= 0 {
		s = "…" + s[i:]
	}
	return s
}
