// What a call and an idle connection cost, beside a bare echo of the WebSocket library.
package socket

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/neolith/orchestrator/queue/dispatch/dispatchtest"
)

func BenchmarkCall(b *testing.B) {
	w := start(b, nil)
	p := w.hello("alice", "")
	i := 0
	for b.Loop() {
		i++
		p.call(fmt.Sprint(i), "echo", map[string]string{"key": "k"})
		for {
			_, data, err := p.ws.ReadMessage()
			if err != nil {
				b.Fatal(err)
			}
			if strings.Contains(string(data), "call_tool_res") {
				break
			}
		}
	}
}

func BenchmarkBareEcho(b *testing.B) {
	up := websocket.Upgrader{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, data, err := c.ReadMessage()
			if err != nil || c.WriteMessage(kind, data) != nil {
				return
			}
		}
	}))
	defer s.Close()
	ws, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(s.URL, "http"), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer ws.Close()
	message := []byte(`{"op":"call_tool","request_id":"1","name":"echo","arguments":{"key":"k"}}`)
	for b.Loop() {
		if ws.WriteMessage(websocket.TextMessage, message) != nil {
			b.Fatal("write")
		}
		if _, _, err := ws.ReadMessage(); err != nil {
			b.Fatal(err)
		}
	}
}

// An idle client costs the server at most 20 KB. The other ends here are bare sockets.
func TestIdleConnectionsAreSmall(t *testing.T) {
	idleConnectionsAreSmall(t, start(t, nil), false)
}

// So does one that the cluster knows, with what the cluster's state has of it.
func TestIdleConnectionsOfTheClusterAreSmall(t *testing.T) {
	idleConnectionsAreSmall(t, join(t, dispatchtest.New(), "server-1", nil).world, true)
}

func idleConnectionsAreSmall(t *testing.T, w *world, named bool) {
	t.Helper()
	const count, limit = 300, 20_000
	used := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := used()
	conns := make([]net.Conn, 0, count)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for i := range count {
		hello := `{"op":"hello","token":"alice"}`
		if named {
			hello = fmt.Sprintf(`{"op":"hello","token":"alice","session_id":"session-%d"}`, i)
		}
		c, err := net.Dial("tcp", w.http.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		_, _ = c.Write([]byte("GET /mcp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"))
		resp, err := http.ReadResponse(bufio.NewReaderSize(c, 512), nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%v %v", resp, err)
		}
		_ = resp.Body.Close()
		_, _ = c.Write(append([]byte{0x81, 0x80 | byte(len(hello)), 0, 0, 0, 0}, hello...))
		if n, err := c.Read(make([]byte, 512)); err != nil || n < 10 {
			t.Fatal(err)
		}
	}
	each := int64(used()-before) / count
	t.Logf("%d bytes for each of %d", each, count)
	if each > limit {
		t.Errorf("an idle client takes %d bytes, more than %d", each, limit)
	}
}
