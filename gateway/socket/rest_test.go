// That a connection at rest has little on its stack, and misses nothing, with TLS and without.
package socket

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// secured is the hub on a port with TLS.
func (w *world) secured() *httptest.Server {
	mux := http.NewServeMux()
	mux.Handle("/mcp", w.hub)
	s := httptest.NewTLSServer(mux)
	w.t.Cleanup(s.Close)
	return s
}

// over says hello at a port, with TLS or without.
func (w *world) over(s *httptest.Server) (*peer, net.Conn) {
	w.t.Helper()
	scheme := "ws"
	if s.TLS != nil {
		scheme = "wss"
	}
	d := websocket.Dialer{HandshakeTimeout: patience, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	ws, resp, err := d.Dial(scheme+"://"+s.Listener.Addr().String()+"/mcp", nil)
	if err != nil {
		w.t.Fatalf("dial: %v", err)
	}
	_ = resp.Body.Close()
	w.t.Cleanup(func() { _ = ws.Close() })
	p := &peer{w.t, ws}
	p.send(map[string]any{"op": "hello", "token": "alice"})
	if m := p.next(); m["ok"] != true {
		w.t.Fatalf("hello was answered with %v", m)
	}
	return p, ws.NetConn()
}

// frameOf is a message of text as a client sends it, with a mask that changes nothing.
func frameOf(opcode byte, text string) []byte {
	b := []byte{0x80 | opcode, 0x80 | byte(len(text)), 0, 0, 0, 0}
	if len(text) > 125 {
		b = []byte{0x80 | opcode, 0x80 | 126, byte(len(text) >> 8), byte(len(text)), 0, 0, 0, 0}
	}
	return append(b, text...)
}

// Whatever comes at once, in one record of TLS, whole or by half, with pongs in between, is read to its end, and the next message, too.
func TestNothingIsMissedAtRest(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) {
			w := start(t, nil)
			s := w.http
			if secure {
				s = w.secured()
			}
			p, conn := w.over(s)
			const rounds, burst = 20, 30
			n := 0
			for round := range rounds {
				var all []byte
				for range burst {
					n++
					all = append(all, frameOf(websocket.TextMessage, fmt.Sprintf(`{"op":"call_tool","request_id":"%d","name":"echo","arguments":{"key":"k%0*d"}}`, n, 1+n%150, n))...)
					all = append(all, frameOf(websocket.PongMessage, "still here"[:n%10])...)
				}
				half := len(all) * round / rounds
				for _, part := range [][]byte{all[:half], all[half:]} {
					if _, err := conn.Write(part); err != nil {
						t.Fatal(err)
					}
				}
				for range burst {
					if m := p.until("call_tool_res"); text(m) == "" {
						t.Fatalf("%v", m)
					}
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 0)
			defer cancel()
			w.hub.Close(ctx) // it is at rest, and hears that it is to end
			if m, code := p.read(); code != websocket.CloseGoingAway {
				t.Errorf("the end of the server was told by %v, %d", m, code)
			}
		})
	}
}

// A pong that is none, by its size or without a mask, ends the connection as it would elsewhere.
func TestBadPongs(t *testing.T) {
	for _, bad := range [][]byte{{0x8a, 0x00}, {0x8a, 0xfe, 0, 200}, {0xca, 0x80, 0, 0, 0, 0}, {0x0a, 0x80, 0, 0, 0, 0}} {
		p, conn := start(t, nil).hello("alice", ""), net.Conn(nil)
		conn = p.ws.NetConn()
		if _, err := conn.Write(append(bad, bytes.Repeat([]byte{0}, 210)...)); err != nil {
			t.Fatal(err)
		}
		if m, code := p.read(); m != nil || code == 0 {
			t.Errorf("% x was taken: %v", bad, m)
		}
	}
}

// Who says nothing, but for its pongs, has a small stack.
func TestStacksAtRest(t *testing.T) {
	if raceDetected {
		t.Skip("frames are larger under the race detector")
	}
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %v", secure), func(t *testing.T) {
			w := start(t, nil)
			s := w.http
			if secure {
				s = w.secured()
			}
			stacks := func() uint64 {
				var m runtime.MemStats
				for range 4 { // each collection halves a stack at most
					runtime.GC()
				}
				runtime.ReadMemStats(&m)
				return m.StackInuse
			}
			const count, limit = 200, 6 << 10
			before := stacks()
			for i := range count {
				p, conn := w.over(s)
				p.call("1", "echo", map[string]string{"key": "k"})
				p.until("call_tool_res")
				if _, err := conn.Write(frameOf(websocket.PongMessage, "")); err != nil {
					t.Fatal(i, err)
				}
			}
			var each int64
			giveUp := time.Now().Add(patience)
			for {
				if each = (int64(stacks()) - int64(before)) / count; each <= limit || time.Now().After(giveUp) {
					break
				}
			}
			t.Logf("%d bytes of stack for each", each)
			if each > limit {
				t.Errorf("a connection at rest has %d bytes of stack, more than %d", each, limit)
			}
		})
	}
}
