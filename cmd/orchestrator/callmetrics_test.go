// The metrics of calls against a state that holds some.

package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/telemetry/metricstest"
)

func TestCallMetrics(t *testing.T) {
	r := newRecords(t)
	at := func() int64 { return int64(r.index) } // the time of the entry before
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.CollectorFunc(func(ch chan<- prometheus.Metric) { collectCalls(ch, r.store.View(), time.Unix(0, 5e9)) }))
	if text := metricstest.Text(t, registry); !strings.Contains(text, "orchestrator_calls_oldest_seconds 0\n") {
		t.Errorf("without calls:\n%s", text)
	}
	for i, priority := range []apiv1.Priority_Level{apiv1.Priority_LOW, apiv1.Priority_HIGH, apiv1.Priority_HIGH} {
		r.do(&clusterv1.Command{Kind: &clusterv1.Command_SubmitCall{SubmitCall: &clusterv1.SubmitCall{
			Key: &clusterv1.CallKey{Owner: "o", Session: fmt.Sprint("s", i%2), RequestId: fmt.Sprint(i)}, Tool: "chat", Priority: priority, Deadline: at() + 1e9, ServerId: "a",
			Begin: i > 0, Arguments: &clusterv1.Blob{Inline: []byte("12345"), SizeBytes: 5},
		}}})
	}
	metricstest.Lint(t, registry)
	text := metricstest.Text(t, registry)
	for _, want := range []string{
		`orchestrator_calls{priority="low",status="QUEUED"} 1`, `orchestrator_calls{priority="high",status="RUNNING"} 2`,
		`orchestrator_calls{priority="normal",status="DEAD"} 0`, "orchestrator_calls_bytes 15", "orchestrator_calls_clients 2",
		"orchestrator_calls_dead_dropped_total 0", "orchestrator_calls_oldest_seconds 4.99",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %s:\n%s", want, text)
		}
	}
}
