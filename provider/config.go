// The settings of providers, and the configurations that are shipped.

package provider

import (
	"cmp"
	"slices"
	"time"
)

// The dialects.
const (
	OpenAI    = "openai"
	Anthropic = "anthropic"
)

// Config says which providers there are. Its zero value has none.
type Config struct {
	AttemptsMax int            `yaml:"attempts_max" help:"how many times a call is sent at most, over all providers"`
	Pools       []PoolConfig   `yaml:"pools" help:"the providers, in the order in which they are tried; moonshot and zhipuai need a key_file only"`
	Budgets     []BudgetConfig `yaml:"budgets" help:"what each tenant may spend in a day"`
}

// PoolConfig is one provider. What is zero has the default of the shipped configuration of that name, and otherwise the general one.
type PoolConfig struct {
	Name      string           `yaml:"name" help:"moonshot, zhipuai, or a name of your own with dialect and url"`
	Dialect   string           `yaml:"dialect" help:"openai: POST url/chat/completions; anthropic: POST url/v1/messages"`
	URL       string           `yaml:"url" help:"where the API is, such as https://api.moonshot.ai/v1"`
	KeyFile   string           `yaml:"key_file" help:"file with the key, which only this user may read; for several keys or URLs give endpoints"`
	Endpoints []EndpointConfig `yaml:"endpoints" help:"several keys or URLs, among which calls are balanced"`
	Models    []ModelConfig    `yaml:"models" help:"what it serves; the first is taken when a call names no model"`

	Min            int           `yaml:"min" help:"connections kept open"`
	Max            int           `yaml:"max" help:"connections at a time"`
	MaxInFlight    int           `yaml:"max_in_flight" help:"calls at a time; each needs a connection, so max where it is given"`
	IdleTimeout    time.Duration `yaml:"idle_timeout" help:"connections beyond min are closed when they have been idle for this long"`
	AcquireTimeout time.Duration `yaml:"acquire_timeout" help:"how long a call waits for its turn before the next provider is tried, or it is refused"`
	CreateRetry    time.Duration `yaml:"create_retry_interval" help:"how long to wait before a connection that failed is tried again"`
	WaitingMax     int           `yaml:"waiting_max" help:"calls that wait for a connection at a time; more are refused"`

	ConnectTimeout   time.Duration `yaml:"connect_timeout" help:"how long opening a connection may take"`
	FirstByteTimeout time.Duration `yaml:"first_byte_timeout" help:"how long a stream may take to begin"`
	StallTimeout     time.Duration `yaml:"stall_timeout" help:"how long a stream may be silent"`
	CallTimeout      time.Duration `yaml:"call_timeout" help:"how long a call may take in all"`
	HealthInterval   time.Duration `yaml:"health_interval" help:"how often each endpoint is asked whether it is well, by listing its models"`

	BreakerFailures int           `yaml:"breaker_failures" help:"failures in a row after which an endpoint is left alone"`
	BreakerOpen     time.Duration `yaml:"breaker_open" help:"for how long; then one call tries it"`

	RequestsPerMinute int `yaml:"requests_per_minute" help:"calls by each key in any minute; 0 leaves it to what the provider answers"`
	TokensPerMinute   int `yaml:"tokens_per_minute" help:"tokens by each key in any minute; 0 leaves it to what the provider answers"`
	MaxTokens         int `yaml:"max_tokens" help:"the longest answer where a call does not say, in tokens"`

	MaxTokensField string `yaml:"max_tokens_field" help:"what the API names that limit, with dialect openai: max_tokens, or max_completion_tokens for newer models of OpenAI"`

	CAFile   string `yaml:"ca_file" help:"authority of the provider's certificate; the system's when empty"`
	Insecure bool   `yaml:"insecure" help:"allow a key to be sent over plain http"`
}

// EndpointConfig is one key, or one URL, of a provider.
type EndpointConfig struct {
	URL     string `yaml:"url" help:"where the API is; the provider's url when empty"`
	KeyFile string `yaml:"key_file" help:"file with the key, which only this user may read"`
	Weight  int    `yaml:"weight" help:"its share of the calls (1)"`
}

// ModelConfig is a model that a provider serves.
type ModelConfig struct {
	Name        string  `yaml:"name" help:"what calls name it; the same name at several providers makes one stand in for the other"`
	Upstream    string  `yaml:"upstream" help:"what the provider names it; name when empty"`
	InputPrice  float64 `yaml:"input_price" help:"US dollars for a million tokens in"`
	OutputPrice float64 `yaml:"output_price" help:"US dollars for a million tokens out"`
}

// BudgetConfig is what a tenant may spend in a day (UTC), on each server.
type BudgetConfig struct {
	Tenant       string  `yaml:"tenant" help:"a namespace, or * for each that has no budget of its own"`
	TokensPerDay int     `yaml:"tokens_per_day" help:"tokens, in and out; 0 does not limit them"`
	CostPerDay   float64 `yaml:"cost_per_day" help:"US dollars; 0 does not limit them; needs the prices of all models"`
}

// Defaults returns a configuration without providers.
func Defaults() Config { return Config{AttemptsMax: 4} }

// shipped are the configurations that come with the program. Models come and go; models overrides them.
func shipped(name string) PoolConfig {
	switch name {
	case "moonshot":
		return PoolConfig{Dialect: OpenAI, URL: "https://api.moonshot.ai/v1", Models: []ModelConfig{{Name: "kimi-k2.6"}},
			Min: 2, Max: 10, MaxInFlight: 6, IdleTimeout: 30 * time.Second, AcquireTimeout: 5 * time.Second, CreateRetry: 200 * time.Millisecond}
	case "zhipuai":
		return PoolConfig{Dialect: OpenAI, URL: "https://open.bigmodel.cn/api/paas/v4", Models: []ModelConfig{{Name: "glm-4.6"}},
			Min: 1, Max: 5, MaxInFlight: 4, IdleTimeout: 45 * time.Second, AcquireTimeout: 3 * time.Second, CreateRetry: 500 * time.Millisecond}
	}
	return PoolConfig{}
}

// withDefaults fills in what is zero.
func (c PoolConfig) withDefaults() PoolConfig {
	s := shipped(c.Name)
	c.Dialect, c.URL = cmp.Or(c.Dialect, s.Dialect), cmp.Or(c.URL, s.URL)
	if len(c.Models) == 0 {
		c.Models = s.Models
	}
	c.Models = slices.Clone(c.Models)
	for i, m := range c.Models {
		c.Models[i].Upstream = cmp.Or(m.Upstream, m.Name)
	}
	if c.Max == 0 { // whoever says how many connections there are means calls
		c.MaxInFlight = cmp.Or(c.MaxInFlight, s.MaxInFlight)
	}
	c.Max = max(cmp.Or(c.Max, s.Max, 10), 0)
	c.MaxInFlight = cmp.Or(c.MaxInFlight, c.Max)
	c.Min = cmp.Or(c.Min, min(cmp.Or(s.Min, 1), c.Max))
	c.IdleTimeout = cmp.Or(c.IdleTimeout, s.IdleTimeout, 30*time.Second)
	c.AcquireTimeout = cmp.Or(c.AcquireTimeout, s.AcquireTimeout, 5*time.Second)
	c.CreateRetry = cmp.Or(c.CreateRetry, s.CreateRetry, 200*time.Millisecond)
	c.WaitingMax = cmp.Or(c.WaitingMax, 10*c.Max)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 10*time.Second)
	c.FirstByteTimeout = cmp.Or(c.FirstByteTimeout, time.Minute)
	c.StallTimeout = cmp.Or(c.StallTimeout, time.Minute)
	c.CallTimeout = cmp.Or(c.CallTimeout, 10*time.Minute)
	c.HealthInterval = cmp.Or(c.HealthInterval, 30*time.Second)
	c.BreakerFailures = cmp.Or(c.BreakerFailures, 5)
	c.BreakerOpen = cmp.Or(c.BreakerOpen, 30*time.Second)
	c.MaxTokens = cmp.Or(c.MaxTokens, 4096)
	c.MaxTokensField = cmp.Or(c.MaxTokensField, maxTokensName)
	if len(c.Endpoints) == 0 {
		c.Endpoints = []EndpointConfig{{KeyFile: c.KeyFile}}
	}
	c.Endpoints = slices.Clone(c.Endpoints)
	for i, e := range c.Endpoints {
		c.Endpoints[i].URL, c.Endpoints[i].Weight = cmp.Or(e.URL, c.URL), cmp.Or(e.Weight, 1)
	}
	return c
}
