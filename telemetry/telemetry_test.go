// The log's formats, lines of libraries, the registry, the version.

package telemetry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/creack/pty"

	"github.com/neolith/orchestrator/telemetry/metricstest"
)

func TestFormats(t *testing.T) {
	var buf bytes.Buffer
	NewLogger(&buf, LogAuto, slog.LevelInfo).Info("hello", "n", 1)
	var line map[string]any
	if err := json.Unmarshal(buf.Bytes(), &line); err != nil || line["msg"] != "hello" || line["n"] != 1.0 {
		t.Errorf("beside a terminal: %s, %v", &buf, err)
	}
	buf.Reset()
	NewLogger(&buf, LogText, slog.LevelInfo).Info("hello", "n", 1)
	if !strings.HasSuffix(buf.String(), " INF hello n=1\n") {
		t.Errorf("text without a terminal: %q", buf.String())
	}
	buf.Reset()
	var level slog.LevelVar
	l := NewLogger(&buf, LogJSON, &level)
	l.Debug("unseen")
	level.Set(slog.LevelDebug)
	l.Debug("seen")
	if strings.Contains(buf.String(), "unseen") || !strings.Contains(buf.String(), "seen") {
		t.Errorf("levels: %s", &buf)
	}
}

func TestTerminal(t *testing.T) {
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer tty.Close()
	read := func(log *slog.Logger) string {
		t.Helper()
		log.Info("hello")
		buf := make([]byte, 1024)
		n, err := master.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	t.Setenv("NO_COLOR", "")
	if got := read(NewLogger(tty, LogAuto, slog.LevelInfo)); !strings.Contains(got, "\x1b[") || !strings.Contains(got, "hello") {
		t.Errorf("on a terminal: %q", got)
	}
	t.Setenv("NO_COLOR", "1")
	if got := read(NewLogger(tty, LogAuto, slog.LevelInfo)); strings.Contains(got, "\x1b[") {
		t.Errorf("with NO_COLOR: %q", got)
	}
	if got := read(NewLogger(tty, LogJSON, slog.LevelInfo)); !strings.HasPrefix(got, "{") {
		t.Errorf("json on a terminal: %q", got)
	}
}

func TestLogFormatSetting(t *testing.T) {
	var f LogFormat
	if err := f.UnmarshalText([]byte("json")); err != nil || f != LogJSON {
		t.Errorf("%q, %v", f, err)
	}
	if err := f.UnmarshalText([]byte("xml")); err == nil || f != LogJSON {
		t.Errorf("%q, %v", f, err)
	}
}

func TestStdLogger(t *testing.T) {
	var buf bytes.Buffer
	l := StdLogger(slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelInfo})))
	for line, want := range map[string]string{
		"[WARN] memberlist: slow":       `level=WARN msg="memberlist: slow"`,
		"[ERR] memberlist: bad":         `level=ERROR msg="memberlist: bad"`,
		"[DEBUG] memberlist: chatter":   "",
		"[INFO]  serf: hello\n":         `level=INFO msg="serf: hello"`,
		"http: TLS handshake error: no": `level=INFO msg="http: TLS handshake error: no"`,
	} {
		buf.Reset()
		l.Print(line)
		if got := buf.String(); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%q became %q", line, got)
		}
	}
}

func TestRegistry(t *testing.T) {
	r := NewRegistry(Build{Version: "v1", Commit: "abc", Go: "go1"})
	h := MetricsHandler(r, slog.New(slog.DiscardHandler))
	for range 2 { // the handler's own metrics appear with the second
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		metricstest.LintText(t, w.Body.String())
		for _, want := range []string{`orchestrator_build_info{commit="abc",goversion="go1",version="v1"} 1`, "go_goroutines ", "process_resident_memory_bytes "} {
			if w.Code != 200 || !strings.Contains(w.Body.String(), want) {
				t.Errorf("%d, no %s", w.Code, want)
			}
		}
	}
	metricstest.Lint(t, r)
}

// The checker sees what promtool would complain of.
func TestLintFindsFaults(t *testing.T) {
	r := &recorder{TB: t}
	metricstest.LintText(r, "# HELP orchestrator_sessions_total Sessions.\n# TYPE orchestrator_sessions_total gauge\norchestrator_sessions_total 1\n")
	metricstest.LintText(r, "orchestrator_latency_milliseconds 1\n")
	metricstest.LintText(r, "}{\n")
	said := strings.Join(r.said, "\n")
	for _, want := range []string{"should not have \"_total\" suffix", "no help text", "cannot be read"} {
		if !strings.Contains(said, want) {
			t.Errorf("nothing about %q in\n%s", want, said)
		}
	}
}

type recorder struct {
	testing.TB
	said []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func TestBuild(t *testing.T) {
	for want, b := range map[string]Build{
		"v1 (0123456789ab, go1)":          {Version: "v1", Commit: "0123456789abcdef", Go: "go1"},
		"dev (0123456789ab+changes, go1)": {Version: "dev", Commit: "0123456789abcdef", Modified: true, Go: "go1"},
		"v1 (go1)":                        {Version: "v1", Go: "go1"},
		"v1 (abc, go1)":                   {Version: "v1", Commit: "abc", Go: "go1"},
	} {
		if got := b.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if b := ThisBuild(); b.Version == "" || b.Go == "" {
		t.Errorf("this build: %+v", b)
	}
}
