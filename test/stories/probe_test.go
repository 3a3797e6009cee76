// What a server answers besides its API: health, readiness and metrics over HTTP, health and reflection over gRPC.
package stories

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/neolith/orchestrator/telemetry/metricstest"
)

// get asks over HTTP and prints the answer, which must have the status.
func get(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "get", args, 2)
	hc := &http.Client{Timeout: 10 * time.Second}
	defer hc.CloseIdleConnections()
	r, err := hc.Get(args[1])
	ts.Check(err)
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	ts.Check(err)
	_, err = ts.Stdout().Write(body)
	ts.Check(err)
	if strconv.Itoa(r.StatusCode) != args[0] {
		ts.Fatalf("%s: %s, want %s\n%s", args[1], r.Status, args[0], body)
	}
}

// post sends a JSON text over HTTP as the caller that the environment names, and prints the answer, which must have the status.
func post(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "post", args, 3)
	token := ts.Getenv("ORCHCTL_TOKEN")
	if file := ts.Getenv("ORCHCTL_TOKEN_FILE"); token == "" && file != "" {
		token = strings.TrimSpace(ts.ReadFile(file))
	}
	hc := &http.Client{Timeout: patience}
	defer hc.CloseIdleConnections()
	r, err := http.NewRequest(http.MethodPost, args[1], strings.NewReader(args[2]))
	ts.Check(err)
	r.Header.Set("Authorization", "Bearer "+token)
	answer, err := hc.Do(r)
	ts.Check(err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	ts.Check(err)
	_, err = ts.Stdout().Write(body)
	ts.Check(err)
	if strconv.Itoa(answer.StatusCode) != args[0] {
		ts.Fatalf("%s: %s, want %s\n%s", args[1], answer.Status, args[0], body)
	}
}

// goodMetrics holds the last standard output against the rules of Prometheus.
func goodMetrics(t *testing.T) func(ts *testscript.TestScript, neg bool, args []string) {
	return func(ts *testscript.TestScript, neg bool, _ []string) {
		refuseNot(ts, neg)
		metricstest.LintText(t, ts.ReadFile("stdout"))
	}
}

// rpc prints what the gRPC port answers about itself: its health, or with a token the services it has.
func rpc(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "rpc", args, 1)
	conn, err := grpc.NewClient(ts.Getenv("GRPC"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	ts.Check(err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if args[0] == "health" {
		r, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
		ts.Check(err)
		_, err = io.WriteString(ts.Stdout(), r.GetStatus().String()+"\n")
		ts.Check(err)
		return
	}
	if len(args) > 1 {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(ts.ReadFile(args[1])))
	}
	s, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	ts.Check(err)
	// A refusal may come before the question is sent; Recv says which.
	_ = s.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}})
	r, err := s.Recv()
	if err != nil {
		_, err = io.WriteString(ts.Stdout(), err.Error()+"\n")
		ts.Check(err)
		return
	}
	for _, svc := range r.GetListServicesResponse().GetService() {
		_, err = io.WriteString(ts.Stdout(), svc.GetName()+"\n")
		ts.Check(err)
	}
}

// often asks over HTTP many times at once, as the caller that the environment names, and prints the status of each answer. A number takes the
// place of %d in a line of the header ("Name: value").
func often(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "often", args, 3)
	times, err := strconv.Atoi(args[0])
	ts.Check(err)
	token := strings.TrimSpace(ts.ReadFile(ts.Getenv("ORCHCTL_TOKEN_FILE")))
	hc := &http.Client{Timeout: 10 * time.Second}
	defer hc.CloseIdleConnections()
	said := make(chan string, times)
	for i := range times {
		go func() {
			name, value, _ := strings.Cut(strings.ReplaceAll(args[2], "%d", strconv.Itoa(i)), ": ")
			r, err := http.NewRequest(http.MethodGet, args[1], nil)
			if err != nil {
				said <- err.Error()
				return
			}
			r.Header.Set(name, value)
			r.Header.Set("Authorization", "Bearer "+token)
			answer, err := hc.Do(r)
			if err != nil {
				said <- err.Error()
				return
			}
			_ = answer.Body.Close()
			said <- answer.Status
		}()
	}
	for range times {
		_, err := io.WriteString(ts.Stdout(), <-said+"\n")
		ts.Check(err)
	}
}
