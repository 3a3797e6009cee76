// Package kubetest is as much of a Kubernetes API server as orchctl asks for, in memory: services, secrets and pods of one
// namespace, and forwarding to ports of pods, which are addresses on this machine.
package kubetest

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// Token is what callers have to show.
const Token = "kubetest-token"

// Pod is a pod of the servers.
type Pod struct {
	Name    string
	Ready   bool
	Gone    bool   // deleted, and not away yet
	Backend string // host:port on this machine that its port is; nobody listens there when empty
}

// Server is the API server. Its fields may be changed between calls, under Lock.
type Server struct {
	sync.Mutex
	Services  []map[string]any
	Secrets   map[string]map[string][]byte
	Pods      []Pod
	Forwarded []string // pods that connections were made to, and over what
	// NoWebSockets makes it one of an old release.
	NoWebSockets bool

	// Kubeconfig is a file with the way here.
	Kubeconfig string
	namespace  string
	http       *httptest.Server
	tunnels    sync.WaitGroup
}

// New starts one that ends with the test.
func New(t testing.TB, namespace string) *Server {
	t.Helper()
	s := &Server{Secrets: map[string]map[string][]byte{}, namespace: namespace}
	s.http = httptest.NewTLSServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		s.http.CloseClientConnections()
		s.http.Close()
		s.tunnels.Wait()
	})
	s.Kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: %q, insecure-skip-tls-verify: true}}]
users: [{name: me, user: {token: %s}}, {name: nobody, user: {token: wrong}}]
contexts:
- {name: here, context: {cluster: here, user: me, namespace: %s}}
- {name: stranger, context: {cluster: here, user: nobody, namespace: %s}}
current-context: here
`, s.http.URL, Token, namespace, namespace)
	if err := os.WriteFile(s.Kubeconfig, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// AddRelease puts in what the chart makes: the client Service, and the Secrets that its annotations name. ca is nil for plain
// text.
func (s *Server) AddRelease(name, token string, ca []byte) {
	s.Lock()
	defer s.Unlock()
	full := name + "-orchestrator"
	annotations := map[string]string{}
	if token != "" {
		annotations["neolith.github.io/admin-token"] = full + "-admin-token/token"
		s.Secrets[full+"-admin-token"] = map[string][]byte{"token": []byte(token + "\n")}
	}
	if ca != nil {
		annotations["neolith.github.io/ca"] = full + "-ca/ca.crt"
		s.Secrets[full+"-ca"] = map[string][]byte{"ca.crt": ca}
	}
	s.Services = append(s.Services, map[string]any{
		"metadata": map[string]any{"name": full, "annotations": annotations, "labels": map[string]string{
			"app.kubernetes.io/part-of": "orchestrator", "app.kubernetes.io/component": "client", "app.kubernetes.io/instance": name,
		}},
		"spec": map[string]any{"selector": map[string]string{"app.kubernetes.io/instance": name, "app.kubernetes.io/component": "server"}},
	})
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+Token {
		refuse(w, http.StatusUnauthorized, "Unauthorized")
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/"+s.namespace+"/")
	if !ok {
		refuse(w, http.StatusForbidden, "you may not look into that namespace")
		return
	}
	kind, name, _ := strings.Cut(path, "/")
	switch {
	case path == "services":
		s.services(w, r.URL.Query().Get("labelSelector"))
	case path == "pods":
		s.pods(w)
	case kind == "secrets":
		s.Lock()
		data, ok := s.Secrets[name]
		s.Unlock()
		if !ok {
			refuse(w, http.StatusNotFound, fmt.Sprintf("secrets %q not found", name))
			return
		}
		answer(w, map[string]any{"data": data})
	case kind == "pods" && strings.HasSuffix(name, "/portforward"):
		s.forward(w, r, strings.TrimSuffix(name, "/portforward"))
	default:
		refuse(w, http.StatusNotFound, "the server could not find the requested resource")
	}
}

// services answers with those that have all labels of the selector.
func (s *Server) services(w http.ResponseWriter, selector string) {
	s.Lock()
	defer s.Unlock()
	items := []any{}
	for _, svc := range s.Services {
		labels := svc["metadata"].(map[string]any)["labels"].(map[string]string)
		match := true
		for part := range strings.SplitSeq(selector, ",") {
			k, v, _ := strings.Cut(part, "=")
			match = match && labels[k] == v
		}
		if match {
			items = append(items, svc)
		}
	}
	answer(w, map[string]any{"items": items})
}

func (s *Server) pods(w http.ResponseWriter) {
	s.Lock()
	defer s.Unlock()
	items := []any{}
	for _, p := range s.Pods {
		meta := map[string]any{"name": p.Name}
		if p.Gone {
			meta["deletionTimestamp"] = "2026-01-02T03:04:05Z"
		}
		status := "False"
		if p.Ready {
			status = "True"
		}
		items = append(items, map[string]any{
			"metadata": meta,
			"spec":     map[string]any{"containers": []any{map[string]any{"ports": []any{map[string]any{"name": "grpc", "containerPort": 8077}}}}},
			"status":   map[string]any{"conditions": []any{map[string]any{"type": "Ready", "status": status}}},
		})
	}
	answer(w, map[string]any{"items": items})
}

// forward carries connections to a pod's address, over a WebSocket or plain SPDY.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, name string) {
	s.Lock()
	backend, over := "", "spdy"
	for _, p := range s.Pods {
		if p.Name == name {
			backend = p.Backend
		}
	}
	if websocket.IsWebSocketUpgrade(r) {
		over = "websocket"
	}
	if over == "websocket" && s.NoWebSockets {
		s.Unlock()
		refuse(w, http.StatusBadRequest, "you must specify at least 1 query parameter")
		return
	}
	s.Forwarded = append(s.Forwarded, name+" "+over)
	s.Unlock()
	t := &tunnel{backend: backend, done: make(chan struct{})}
	var conn httpstream.Connection
	if over == "spdy" {
		w.Header().Set(httpstream.HeaderProtocolVersion, portforward.PortForwardProtocolV1Name)
		conn = spdy.NewResponseUpgrader().UpgradeResponse(w, r, t.stream)
	} else {
		up := websocket.Upgrader{Subprotocols: []string{"SPDY/3.1+" + portforward.PortForwardProtocolV1Name}}
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return // it was answered
		}
		conn, err = spdy.NewServerConnection(portforward.NewTunnelingConnection("kubetest", ws), t.stream)
		if err != nil {
			_ = ws.Close() // it was of no use
			return
		}
	}
	if conn == nil {
		return // it was answered
	}
	s.tunnels.Go(func() {
		<-conn.CloseChan()
		close(t.done)
		t.streams.Wait()
	})
}

// tunnel is one forwarded connection.
type tunnel struct {
	backend string
	done    chan struct{} // closed when the client has gone
	errors  httpstream.Stream
	streams sync.WaitGroup
}

// stream takes the two streams as they come: that of errors first.
func (t *tunnel) stream(st httpstream.Stream, replySent <-chan struct{}) error {
	if st.Headers().Get("port") != "8077" {
		return fmt.Errorf("port %q is not one of the pod", st.Headers().Get("port"))
	}
	if st.Headers().Get("streamType") == "error" {
		t.errors = st
		return nil
	}
	t.streams.Go(func() {
		<-replySent
		t.carry(st)
	})
	return nil
}

func (t *tunnel) carry(data httpstream.Stream) {
	conn, err := net.Dial("tcp", t.backend)
	if err != nil {
		_, _ = io.WriteString(t.errors, "error forwarding port 8077: connection refused")
		_ = t.errors.Close()
		_ = data.Reset()
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(data, conn)
		_ = data.Close()
	})
	both.Go(func() {
		_, _ = io.Copy(conn, data)
		_ = conn.Close()
	})
	both.Go(func() {
		<-t.done
		_ = conn.Close()
	})
	both.Wait()
	_ = data.Reset() // what still comes is for nobody, and would hold the tunnel up
	_ = t.errors.Close()
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // whoever asked may have gone
}

func refuse(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code})
}
