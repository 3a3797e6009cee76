// Where a server can be reached: on loopback, or on a network within the process.

package fakeprovider

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// Start serves on loopback until the test ends, and returns the URL.
func (s *Server) Start(t testing.TB) string {
	t.Helper()
	h := httptest.NewUnstartedServer(s)
	h.Config.ErrorLog = log.New(io.Discard, "", 0) // of connections that were dropped on purpose
	h.Start()
	t.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
	})
	return h.URL
}

// IdleTime is when a server of a Memory closes a connection that nobody uses, as providers do.
const IdleTime = time.Minute

// Memory is a network within the process, of servers by their addresses (host:port). It knows nothing but goroutines and channels, so
// that it runs under simulated time. Close it before the bubble ends.
type Memory struct {
	mu      sync.Mutex
	hosts   map[string]*host
	dials   map[string]int
	refuse  map[string]bool
	open    int
	running sync.WaitGroup
}

type host struct {
	server *http.Server
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// NewMemory returns a network without servers.
func NewMemory() *Memory {
	return &Memory{hosts: map[string]*host{}, dials: map[string]int{}, refuse: map[string]bool{}}
}

// Serve puts a server at an address.
func (m *Memory) Serve(address string, s *Server) {
	h := &host{server: &http.Server{Handler: s, IdleTimeout: IdleTime, ErrorLog: log.New(io.Discard, "", 0)}, accept: make(chan net.Conn), closed: make(chan struct{})}
	m.mu.Lock()
	m.hosts[address] = h
	m.mu.Unlock()
	m.running.Add(1)
	go func() {
		defer m.running.Done()
		_ = h.server.Serve(h) // ends with Close
	}()
}

// Refuse makes dials to an address fail, or succeed again.
func (m *Memory) Refuse(address string, refuse bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse[address] = refuse
}

// Dials is how many connections to an address were asked for.
func (m *Memory) Dials(address string) int { m.mu.Lock(); defer m.mu.Unlock(); return m.dials[address] }

// Open is how many connections clients hold.
func (m *Memory) Open() int { m.mu.Lock(); defer m.mu.Unlock(); return m.open }

// DialContext is a net.Dialer's.
func (m *Memory) DialContext(ctx context.Context, _, address string) (net.Conn, error) {
	m.mu.Lock()
	m.dials[address]++
	h, refuse := m.hosts[address], m.refuse[address]
	m.mu.Unlock()
	if h == nil || refuse {
		return nil, &net.OpError{Op: "dial", Net: "memory", Err: errors.New("connection refused")}
	}
	ours, theirs := net.Pipe()
	select {
	case h.accept <- theirs:
		m.mu.Lock()
		m.open++
		m.mu.Unlock()
		return &client{Conn: ours, memory: m}, nil
	case <-h.closed:
	case <-ctx.Done():
	}
	return nil, &net.OpError{Op: "dial", Net: "memory", Err: errors.Join(errors.New("connection refused"), ctx.Err())}
}

// Close ends all servers and connections, and waits for them.
func (m *Memory) Close() {
	m.mu.Lock()
	hosts := m.hosts
	m.hosts = map[string]*host{}
	m.mu.Unlock()
	for _, h := range hosts {
		_ = h.server.Close()
	}
	m.running.Wait()
}

// client is a client's end, counted.
type client struct {
	net.Conn
	memory *Memory
	once   sync.Once
}

// Close implements net.Conn.
func (c *client) Close() error {
	c.once.Do(func() {
		c.memory.mu.Lock()
		defer c.memory.mu.Unlock()
		c.memory.open--
	})
	return c.Conn.Close()
}

// Accept implements net.Listener.
func (h *host) Accept() (net.Conn, error) {
	select {
	case c := <-h.accept:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *host) Close() error { h.once.Do(func() { close(h.closed) }); return nil }

// Addr implements net.Listener.
func (h *host) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "memory"} }
