// Metrics and health over HTTP, for whoever watches the machine.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/neolith/orchestrator/telemetry"
)

const (
	readHeaderTimeout = 10 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = 2 * time.Minute
	shutdownTimeout   = 2 * time.Second
	maxHTTPHeader     = 16 << 10
)

// serveHTTP serves until ctx ends.
func (n *node) serveHTTP(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", n.health)
	mux.HandleFunc("GET /ready", n.ready)
	mux.Handle("GET /metrics", telemetry.MetricsHandler(n.registry, n.log))
	s := &http.Server{
		Handler: mux, ReadHeaderTimeout: readHeaderTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHTTPHeader, ErrorLog: telemetry.StdLogger(n.log),
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if err := s.Shutdown(end); err != nil {
			_ = s.Close() // readers that are too slow
		}
	})
	n.log.Info("metrics and health are served", "address", n.listener.Addr().String())
	err := s.Serve(n.listener)
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve metrics: %w", err)
}

// health says that the process is alive, and how it stands.
func (n *node) health(w http.ResponseWriter, _ *http.Request) { n.answer(w, http.StatusOK, "ok", "") }

// ready says whether sessions may be placed here: the node is linked and holds its lease, and stays.
func (n *node) ready(w http.ResponseWriter, _ *http.Request) {
	switch st := n.agent.Status(); {
	case st.Leaving:
		n.answer(w, http.StatusServiceUnavailable, "not ready", "the agent was told to stop, and its sessions go elsewhere")
	case !st.Linked:
		n.answer(w, http.StatusServiceUnavailable, "not ready", "no server is linked")
	case st.LeaseLeft == 0:
		n.answer(w, http.StatusServiceUnavailable, "not ready", "the node has no lease")
	default:
		n.answer(w, http.StatusOK, "ready", "")
	}
}

func (n *node) answer(w http.ResponseWriter, code int, status, reason string) {
	st := n.agent.Status()
	body := map[string]any{"status": status, "node": n.cfg.Name, "nodeId": n.agent.NodeID(), "linked": st.Linked,
		"leaseSeconds": st.LeaseLeft.Seconds(), "sessions": st.Sessions, "factsUnacked": st.FactsUnacked}
	if reason != "" {
		body["reason"] = reason
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client may have gone
}
