// The HTTP ports: node links, and clients with health and metrics.

package main

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	chunkhttp "github.com/neolith/orchestrator/chunks/http"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/telemetry"
)

const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHTTPHeader     = 16 << 10
)

func (s *server) httpServers(tlsConfig *tls.Config) (link, user *http.Server) {
	linkMux := http.NewServeMux()
	linkMux.Handle(nodelink.Path, s.hub)
	linkMux.Handle(chunkhttp.Path, s.chunkHandler())
	userMux := http.NewServeMux()
	userMux.HandleFunc("GET /health", s.health)
	userMux.HandleFunc("GET /ready", s.ready)
	userMux.Handle("GET /metrics", telemetry.MetricsHandler(s.registry, s.log))
	s.handleGateway(userMux)
	serverOf := func(h http.Handler) *http.Server {
		return &http.Server{
			Handler: h, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHTTPHeader,
			ErrorLog: telemetry.StdLogger(s.log),
		}
	}
	if tlsConfig != nil {
		// A WebSocket begins as HTTP/1.1.
		c := tlsConfig.Clone()
		c.NextProtos = []string{"http/1.1"}
		s.listeners.link, s.listeners.client = tls.NewListener(s.listeners.link, c), tls.NewListener(s.listeners.client, c)
	}
	return serverOf(linkMux), serverOf(userMux)
}

// health says whether the server is alive: a restart would help when it is not.
func (s *server) health(w http.ResponseWriter, _ *http.Request) {
	if why := s.pulse.wedged(); why != "" {
		answer(w, http.StatusServiceUnavailable, map[string]any{"status": "wedged", "server": s.cfg.Name, "reason": why})
		return
	}
	answer(w, http.StatusOK, map[string]any{"status": "ok", "server": s.cfg.Name})
}

// ready says whether this server can serve: it leads with its state complete, or knows who does and has caught up; and it goes on
// doing so.
func (s *server) ready(w http.ResponseWriter, _ *http.Request) {
	l, _ := s.node.Leader()
	body := map[string]any{"server": s.cfg.Name, "leader": l.ID, "appliedIndex": s.node.AppliedIndex()}
	ok, why := s.isReady()
	if ok {
		body["status"] = "ready"
		answer(w, http.StatusOK, body)
		return
	}
	body["status"], body["reason"] = "not ready", why
	answer(w, http.StatusServiceUnavailable, body)
}

// isReady says whether this server can serve, and why not.
func (s *server) isReady() (ok bool, why string) {
	l, _ := s.node.Leader()
	switch {
	case s.stopping.Load():
		return false, "the server is stopping"
	case serving(l) != healthv1.HealthCheckResponse_SERVING:
		return false, "the cluster has no leader that this server knows"
	case !s.level.found():
		return false, "the server has not caught up with the leader since it started"
	case s.daemons.Failing() != "":
		return false, s.daemons.Failing()
	default:
		return true, ""
	}
}

func serving(l cluster.Leader) healthv1.HealthCheckResponse_ServingStatus {
	if (l.Self && l.Ready) || (!l.Self && l.Address != "") {
		return healthv1.HealthCheckResponse_SERVING
	}
	return healthv1.HealthCheckResponse_NOT_SERVING
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may have gone
}
