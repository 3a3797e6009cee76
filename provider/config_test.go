// What a configuration may be, what is refused, and how metrics look.

package provider

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/internal/config"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/telemetry/metricstest"
)

// server is a program's configuration with providers in it.
type server struct {
	Providers Config `yaml:"providers"`
}

// Validate implements config.Validator.
func (s *server) Validate() error { return s.Providers.Validate("providers") }

func load(t *testing.T, text string) (Config, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "c.yaml")
	write(t, name, text)
	l, err := config.Load(server{Providers: Defaults()}, config.Options{File: name, Environ: []string{}})
	if err != nil {
		return Config{}, err
	}
	var printed strings.Builder
	if err := l.Print(&printed); err != nil || !strings.Contains(printed.String(), "pools:") {
		t.Errorf("config print: %v: %s", err, &printed)
	}
	return l.Config.Providers, nil
}

func TestShippedConfigurations(t *testing.T) {
	c, err := load(t, `
providers:
  pools:
    - {name: moonshot, key_file: /k}
    - {name: zhipuai, max: 3, endpoints: [{key_file: /a}, {key_file: /b, url: "https://api.z.ai/api/paas/v4", weight: 2}]}
    - {name: local, dialect: anthropic, url: "http://10.0.0.7:8000", models: [{name: m, upstream: big}]}
`)
	if err != nil {
		t.Fatal(err)
	}
	m, z, l := c.Pools[0].withDefaults(), c.Pools[1].withDefaults(), c.Pools[2].withDefaults()
	if m.Min != 2 || m.Max != 10 || m.IdleTimeout != 30*time.Second || m.AcquireTimeout != 5*time.Second || m.CreateRetry != 200*time.Millisecond || m.MaxInFlight != 6 || m.URL != "https://api.moonshot.ai/v1" {
		t.Errorf("%+v", m)
	}
	if z.Min != 1 || z.Max != 3 || z.IdleTimeout != 45*time.Second || z.AcquireTimeout != 3*time.Second || z.CreateRetry != 500*time.Millisecond || z.MaxInFlight != 3 {
		t.Errorf("%+v", z)
	}
	if want := []EndpointConfig{{"https://open.bigmodel.cn/api/paas/v4", "/a", 1}, {"https://api.z.ai/api/paas/v4", "/b", 2}}; !reflect.DeepEqual(z.Endpoints, want) {
		t.Errorf("%+v", z.Endpoints)
	}
	if s := (PoolConfig{Name: "zhipuai"}).withDefaults(); s.Max != 5 || s.MaxInFlight != 4 {
		t.Errorf("%+v", s)
	}
	if l.Min != 1 || l.Max != 10 || l.MaxInFlight != 10 || l.Models[0].Upstream != "big" || l.Dialect != Anthropic {
		t.Errorf("%+v", l)
	}
	if c.AttemptsMax != 4 {
		t.Errorf("%+v", c)
	}
}

func TestRefusedConfigurations(t *testing.T) {
	const local = "{name: a, dialect: openai, url: 'http://localhost:1', models: [{name: m}]}"
	for _, c := range []struct{ text, want string }{
		{"attempts_max: 0", "providers.attempts_max: 0 is not between 1 and 20"},
		{"pools: [{name: moonshot}]", "providers.pools[0].key_file: is empty, and moonshot answers nobody without a key; name a file that holds it"},
		{"pools: [{name: zhipuai, endpoints: [{key_file: /a}, {weight: 1}]}]", "providers.pools[0].endpoints[1].key_file: is empty, and zhipuai"},
		{"pools: [" + local + ", " + local + "]", `providers.pools[1].name: "a" is the name of pools[0], too`},
		{"pools: [{name: 'A b'}]", `providers.pools[0].name: "A b" holds 'A'`},
		{"pools: [{name: a}]", "providers.pools[0].dialect: is empty; say openai or anthropic"},
		{"pools: [{name: a, dialect: gemini}]", `providers.pools[0].dialect: "gemini" is neither`},
		{"pools: [{name: a, dialect: openai}]", "providers.pools[0].url: is empty"},
		{"pools: [{name: a, dialect: openai, url: 'ftp://x'}]", `providers.pools[0].url: "ftp://x" is not https://host/path`},
		{"pools: [{name: a, dialect: openai, url: 'https://u:hush@x/'}]", "providers.pools[0].url: holds a user"},
		{"pools: [{name: a, dialect: openai, url: 'http://x', key_file: /k, models: [{name: m}]}]", "providers.pools[0].url: \"http://x\" would send the key in clear text"},
		{"pools: [{name: a, dialect: openai, url: 'http://x'}]", "providers.pools[0].models: is empty"},
		{"pools: [{name: a, dialect: openai, url: 'http://x', models: [{name: m}, {name: m}]}]", `providers.pools[0].models[1].name: "m" is there twice`},
		{"pools: [{name: a, dialect: openai, url: 'http://x', models: [{name: 'm n'}]}]", `providers.pools[0].models[0].name: "m n" holds a space`},
		{"pools: [{name: a, dialect: openai, url: 'http://x', models: [{name: m, input_price: -1}]}]", "providers.pools[0].models[0].input_price: a price is negative"},
		{"pools: [{name: moonshot, key_file: /k, endpoints: [{key_file: /k}]}]", "providers.pools[0].key_file: is given beside endpoints"},
		{"pools: [{name: moonshot, key_file: /k, min: 11}]", "providers.pools[0].min: 11 is above max (10)"},
		{"pools: [{name: moonshot, key_file: /k, max_in_flight: 11}]", "providers.pools[0].max_in_flight: 11 is above max (10), and each call needs a connection"},
		{"pools: [{name: moonshot, key_file: /k, max: -1}]", "providers.pools[0].max: 0 is not between 1 and 1000"},
		{"pools: [{name: moonshot, key_file: /k, idle_timeout: 1ms}]", "providers.pools[0].idle_timeout: 1ms is not between 1s and 1h0m0s"},
		{"pools: [{name: moonshot, key_file: /k, acquire: 1s}]", "providers.pools[0].acquire: unknown key"},
		{"pools: [{name: moonshot, key_file: /k, max_tokens_field: tokens}]", `providers.pools[0].max_tokens_field: "tokens" is neither`},
		{"budgets: [{tokens_per_day: 1}]", "providers.budgets[0].tenant: is empty"},
		{"budgets: [{tenant: a}]", "providers.budgets[0]: limits nothing"},
		{"budgets: [{tenant: a, tokens_per_day: 1}, {tenant: a, tokens_per_day: 1}]", `providers.budgets[1].tenant: "a" has a budget already`},
		{"budgets: [{tenant: a, cost_per_day: 1.5}]\n  pools: [" + local + "]", "providers.budgets[0].cost_per_day: cannot be kept: providers.pools[0] (a) gives no price of m"},
	} {
		_, err := load(t, "providers:\n  "+c.text+"\n")
		wantKind(t, err, fault.Invalid)
		if err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\ngot  %v\nwant %s", c.text, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("a secret is shown: %v", err)
		}
	}
}

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	open, two, empty := filepath.Join(dir, "open"), filepath.Join(dir, "two"), filepath.Join(dir, "empty")
	write(t, open, "hush-hush")
	write(t, two, "hush-hush\nmore")
	write(t, empty, " ")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{open: "chmod 600 it", two: "holds no single word", empty: "holds no single word", filepath.Join(dir, "none"): "no such file"} {
		_, err := New(Options{ConfigKey: "providers", Config: Config{AttemptsMax: 1, Pools: []PoolConfig{{Name: "moonshot", KeyFile: file}}}})
		wantKind(t, err, fault.Invalid)
		if err != nil && (!strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "providers.pools[0].key_file: ") || strings.Contains(err.Error(), "hush")) {
			t.Errorf("%v", err)
		}
	}
}

func TestRefusedRequests(t *testing.T) {
	inBubble(t, Options{Config: Config{Pools: []PoolConfig{one(OpenAI)}}}, func(t *testing.T, w *world) {
		big, bad := strings.Repeat("x", requestBytesMax), -0.1
		for name, change := range map[string]func(*Request){
			"no tenant":    func(r *Request) { r.Tenant = "" },
			"long tenant":  func(r *Request) { r.Tenant = strings.Repeat("x", 257) },
			"nothing":      func(r *Request) { r.Messages = nil },
			"many":         func(r *Request) { r.Messages = make([]Message, messagesMax+1) },
			"no role":      func(r *Request) { r.Messages[0].Role = "tool" },
			"no text":      func(r *Request) { r.Messages[0].Text = "" },
			"not UTF-8":    func(r *Request) { r.Messages[0].Text = "\xff" },
			"large":        func(r *Request) { r.Messages = append(r.Messages, Message{User, big}) },
			"only system":  func(r *Request) { r.Messages[0].Role = System },
			"tokens":       func(r *Request) { r.MaxTokens = -1 },
			"temperature":  func(r *Request) { r.Temperature = &bad },
			"top_p":        func(r *Request) { r.TopP = &bad },
			"many stops":   func(r *Request) { r.Stop = make([]string, stopsMax+1) },
			"an empty one": func(r *Request) { r.Stop = []string{""} },
		} {
			_, err := w.Chat(t.Context(), ask(change))
			if wantKind(t, err, fault.Invalid); err != nil && fault.As(err).Field == "" {
				t.Errorf("%s: names no field: %v", name, err)
			}
		}
		if n := w.fakes["a"].Count(); n != 0 {
			t.Errorf("%d were sent", n)
		}
	})
}

func TestMetrics(t *testing.T) {
	r := prometheus.NewRegistry()
	inBubble(t, Options{Metrics: r, Config: Config{Pools: []PoolConfig{one(OpenAI, priced)}}}, func(t *testing.T, w *world) {
		w.fakes["a"].Script(step{InputTokens: 1000, OutputTokens: 500}, step{Status: 400})
		_, _ = w.Chat(t.Context(), ask())
		_, _ = w.Chat(t.Context(), ask())
		metricstest.Lint(t, r)
		text := metricstest.Text(t, r)
		for _, want := range []string{
			`orchestrator_provider_calls_total{outcome="answered",provider="a"} 1`, `orchestrator_provider_calls_total{outcome="failed",provider="a"} 1`,
			`orchestrator_provider_tokens_total{direction="in",provider="a"} 1000`, `orchestrator_provider_cost_dollars_total{provider="a"} 0.02`,
			`orchestrator_provider_slots{provider="a",state="idle"} 1`, `orchestrator_provider_breaker_open{endpoint="a/1",provider="a"} 0`,
			`orchestrator_provider_call_seconds_count{outcome="failed",provider="a"} 1`, `orchestrator_provider_healthy{provider="a"} 1`,
		} {
			if !strings.Contains(text, want+"\n") {
				t.Errorf("no %s in\n%s", want, text)
			}
		}
	})
	if got := (&Pools{list: nil}).Models(); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
