// Package metricstest applies the rules of `promtool check metrics` in tests.
package metricstest

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// Lint reports what promtool would, of the metrics in a registry.
func Lint(t testing.TB, g prometheus.Gatherer) {
	t.Helper()
	LintText(t, Text(t, g))
}

// LintText reports what promtool would, of the body of a /metrics answer.
func LintText(t testing.TB, text string) {
	t.Helper()
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Errorf("/metrics cannot be read: %v", err)
	}
	for _, p := range problems {
		t.Errorf("metric %s: %s", p.Metric, p.Text)
	}
}

// Text returns the body of a /metrics answer for a registry.
func Text(t testing.TB, g prometheus.Gatherer) string {
	t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(g, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("/metrics answers %d: %s", w.Code, bytes.TrimSpace(w.Body.Bytes()))
	}
	return w.Body.String()
}
