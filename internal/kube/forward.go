// Connections to a pod's port, through the API server.

package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/neolith/orchestrator/internal/fault"
)

const (
	// maxRefusalBytes bounds what a kubelet says about a connection that it could not make.
	maxRefusalBytes = 4 << 10
	// refusalWait is how long a connection that ended waits for the reason, which comes over a stream of its own.
	refusalWait = 250 * time.Millisecond
)

// Dial connects to one of the servers that are ready; the address is not looked at. It tries each of them once.
func (r *Reach) Dial(ctx context.Context, _ string) (net.Conn, error) {
	pods, err := r.pods(ctx)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, p := range pods {
		conn, err := r.dialPod(ctx, &p)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		failed = append(failed, fmt.Errorf("%s: %w", p.Metadata.Name, err))
	}
	return nil, fault.New(fault.Unavailable, "connect to a server's pod: %w", errors.Join(failed...))
}

// Close drops what is kept open for questions to the API server. Connections that Dial made are their users' to close.
func (r *Reach) Close() { r.api.close() }

// dialPod connects to one pod. client-go cannot be told to stop: a connection that is made after ctx has ended is
// closed by the goroutine that made it.
func (r *Reach) dialPod(ctx context.Context, p *pod) (net.Conn, error) {
	type made struct {
		conn net.Conn
		err  error
	}
	done := make(chan made)
	go func() {
		conn, err := open(r.api.config, r.api.url("pods/"+url.PathEscape(p.Metadata.Name)+"/portforward", nil), p)
		select {
		case done <- made{conn, err}:
		case <-ctx.Done():
			if err == nil {
				_ = conn.Close() // nobody wants it any more
			}
		}
	}()
	select {
	case m := <-done:
		return m.conn, m.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// open makes one tunnel and one connection in it: over a WebSocket, or over SPDY where the API server, or a proxy on the way, knows
// only that.
func open(config *rest.Config, u *url.URL, p *pod) (net.Conn, error) {
	web, err := portforward.NewSPDYOverWebsocketDialerForStreamingWithLogger(logr.Discard(), u, config)
	if err != nil {
		return nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	old := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	tunnel, protocol, err := portforward.NewFallbackDialerForStreaming(web, old, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}).Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, err
	}
	if protocol != portforward.PortForwardProtocolV1Name {
		_ = tunnel.Close() // it carried nothing
		return nil, fmt.Errorf("the API server speaks %q, not %q", protocol, portforward.PortForwardProtocolV1Name)
	}
	c, err := newConn(tunnel, p)
	if err != nil {
		_ = tunnel.Close() // it carried nothing
		return nil, err
	}
	return c, nil
}

// conn is a connection in a tunnel of its own.
type conn struct {
	tunnel  httpstream.Connection
	data    httpstream.Stream
	remote  address
	refused chan struct{} // closed once the other side has nothing more to say about errors
	why     error         // what it said, read after refused is closed
	closing sync.Once
	closed  error
}

// newConn opens the two streams of a forwarded connection: one for errors, one for bytes.
func newConn(tunnel httpstream.Connection, p *pod) (*conn, error) {
	port := p.grpcPort()
	headers := http.Header{}
	headers.Set("streamType", "error")
	headers.Set("port", port)
	headers.Set("requestID", "0")
	errorStream, err := tunnel.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("open the stream of errors: %w", err)
	}
	if err := errorStream.Close(); err != nil { // this side says nothing there
		return nil, fmt.Errorf("open the stream of errors: %w", err)
	}
	headers.Set("streamType", "data")
	data, err := tunnel.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("open the stream of bytes: %w", err)
	}
	c := &conn{tunnel: tunnel, data: data, remote: address(p.Metadata.Name + ":" + port), refused: make(chan struct{})}
	go c.listen(errorStream)
	return c, nil
}

// listen waits for what the other side says about errors, until the tunnel ends.
func (c *conn) listen(errorStream io.Reader) {
	b, _ := io.ReadAll(io.LimitReader(errorStream, maxRefusalBytes))
	if len(b) > 0 {
		c.why = errors.New(strings.TrimSpace(string(b)))
	}
	close(c.refused)
	if c.why != nil {
		_ = c.data.Reset() // readers come to know
	}
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.data.Read(b)
	return n, c.explain(err)
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.data.Write(b)
	return n, c.explain(err)
}

// explain gives the reason that the other side told for the end of the stream, where it told one.
func (c *conn) explain(err error) error {
	if err == nil {
		return nil
	}
	patience := time.NewTimer(refusalWait)
	defer patience.Stop()
	select {
	case <-c.refused:
		if c.why != nil {
			return c.why
		}
	case <-patience.C:
	}
	return err
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.closing.Do(func() {
		_ = c.data.Reset() // what was not sent is not wanted
		c.closed = c.tunnel.Close()
		<-c.refused
	})
	return c.closed
}

func (c *conn) LocalAddr() net.Addr  { return address("kubernetes") }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// Deadlines are for callers to keep; closing ends reads and writes.
func (c *conn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *conn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *conn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// address is a pod's, for people.
type address string

func (address) Network() string  { return "kubernetes" }
func (a address) String() string { return string(a) }
