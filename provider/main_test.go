// What the tests share: providers that misbehave on a network within the process, under simulated time.

package provider

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/internal/fakeprovider"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestMain(m *testing.M) {
	for _, v := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		_ = os.Unsetenv(v) // net/http reads them once
	}
	goleak.VerifyTestMain(m)
}

// world is some providers and the pools that call them.
type world struct {
	*Pools
	t     *testing.T
	net   *fakeprovider.Memory
	fakes map[string]*fakeprovider.Server
	stop  context.CancelFunc
	ran   chan error
}

// one is a provider "a" of a dialect with short names for what tests change.
func one(dialect string, change ...func(*PoolConfig)) PoolConfig {
	c := PoolConfig{Name: "a", Dialect: dialect, URL: "http://a", Models: []ModelConfig{{Name: "m"}}, CallTimeout: 2 * time.Minute}
	for _, f := range change {
		f(&c)
	}
	return c
}

// named makes another provider of the same kind.
func named(name string, c PoolConfig) PoolConfig { c.Name, c.URL = name, "http://"+name; return c }

// inBubble runs f with pools under simulated time. Every host that the configuration names has a fake provider.
func inBubble(t *testing.T, o Options, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: fakeprovider.NewMemory(), fakes: map[string]*fakeprovider.Server{}}
		defer w.net.Close()
		for _, p := range o.Config.Pools {
			for _, e := range p.withDefaults().Endpoints {
				host := strings.Split(strings.TrimPrefix(e.URL, "http://"), "/")[0]
				if w.fakes[host] == nil {
					w.fakes[host] = fakeprovider.New()
					w.net.Serve(host+":80", w.fakes[host])
				}
			}
		}
		if o.Config.AttemptsMax == 0 {
			o.Config.AttemptsMax = Defaults().AttemptsMax
		}
		o.Dial, o.ConfigKey = w.net.DialContext, "providers"
		var err error
		if w.Pools, err = New(o); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if w.stop != nil {
				w.stop()
				if err := <-w.ran; err != nil {
					t.Errorf("run: %v", err)
				}
			}
			if err := w.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			synctest.Wait() // what was in use is destroyed beside the pool's end
			if n := w.List(); len(n) > 0 && (n[0].Open != 0 || n[0].InUse != 0) {
				t.Errorf("closed, and %+v", n[0])
			}
		}()
		f(t, w)
	})
}

// run runs the pools until the test ends.
func (w *world) run() {
	ctx, cancel := context.WithCancel(w.t.Context())
	w.stop, w.ran = cancel, make(chan error, 1)
	go func() { w.ran <- w.Run(ctx) }()
	synctest.Wait()
}

// ask is a call with one message.
func ask(change ...func(*Request)) Request {
	r := Request{Tenant: "t", Messages: []Message{{User, "hello there"}}}
	for _, f := range change {
		f(&r)
	}
	return r
}

// stream collects a streamed answer.
func (w *world) stream(ctx context.Context, r Request) (*Response, string, error) {
	var b strings.Builder
	res, err := w.Stream(ctx, r, func(d Delta) error { b.WriteString(d.Text); return nil })
	return res, b.String(), err
}

// keyFile writes a key.
func keyFile(t *testing.T, key string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(name, []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// wantKind checks an error's kind, and that it is one line.
func wantKind(t *testing.T, err error, kind fault.Kind) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind {
		t.Errorf("want kind %s, got %v (%s)", kind, err, fault.KindOf(err))
	} else if strings.ContainsAny(err.Error(), "\n\r") {
		t.Errorf("more than a line: %q", err.Error())
	}
}

// settle waits until nothing goes on any more.
func (w *world) settle() { synctest.Wait() }

// logTo is a logger that writes text.
func logTo(b *strings.Builder) *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// each runs f for 0 to n-1 at once, and waits.
func (w *world) each(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}
