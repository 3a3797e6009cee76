// What is wrong from outside: each has its answer and its close, and leaves nothing behind.
package socket

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// deep is JSON that nests so deep.
func deep(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// TestMalformedHellos: a frame instead of a hello, the word that answers it, and the close.
func TestMalformedHellos(t *testing.T) {
	w := start(t, nil)
	for name, c := range map[string]struct {
		frame string
		word  any
		close int
	}{
		"nothing":                  {"", "missing_hello", closeBadJSON},
		"no JSON":                  {"hello", "missing_hello", closeBadJSON},
		"half an object":           {`{"op":"hello"`, "missing_hello", closeBadJSON},
		"something behind it":      {`{"op":"hello"} {}`, "missing_hello", closeBadJSON},
		"an array":                 {`[{"op":"hello"}]`, "missing_hello", closeBadJSON},
		"a string":                 {`"hello"`, "missing_hello", closeBadJSON},
		"null":                     {`null`, "missing_hello", closeBadJSON},
		"a number":                 {`1`, "missing_hello", closeBadJSON},
		"invalid UTF-8":            {"{\"op\":\"hello\",\"token\":\"\xff\"}", "missing_hello", closeBadJSON},
		"deep nesting":             {`{"op":"hello","x":` + deep(100) + `}`, "missing_hello", closeBadJSON},
		"very deep nesting":        {deep(400_000), "missing_hello", closeBadJSON},
		"a byte order mark":        {"\ufeff{\"op\":\"hello\"}", "missing_hello", closeBadJSON},
		"a single quote":           {`{'op':'hello'}`, "missing_hello", closeBadJSON},
		"a comment":                {`{"op":"hello"/* */}`, "missing_hello", closeBadJSON},
		"a NUL":                    {"{\"op\":\"hello\"}\x00", "missing_hello", closeBadJSON},
		"NaN":                      {`{"op":"hello","x":NaN}`, "missing_hello", closeBadJSON},
		"call before hello":        {`{"op":"call_tool","request_id":"1","name":"echo"}`, "missing_hello", closeProtocol},
		"ping before hello":        {`{"op":"ping"}`, "missing_hello", closeProtocol},
		"no op":                    {`{"token":"alice"}`, "missing_hello", closeProtocol},
		"op is a number":           {`{"op":1,"token":"alice"}`, "missing_hello", closeProtocol},
		"op is null":               {`{"op":null,"token":"alice"}`, "missing_hello", closeProtocol},
		"op in capitals":           {`{"op":"HELLO","token":"alice"}`, "missing_hello", closeProtocol},
		"the key op in capitals":   {`{"OP":"hello","token":"alice"}`, "missing_hello", closeProtocol},
		"no token":                 {`{"op":"hello"}`, "unauthorized", closeUnauthorized},
		"an unknown token":         {`{"op":"hello","token":"mallory"}`, "unauthorized", closeUnauthorized},
		"a token with a newline":   {`{"op":"hello","token":"alice\n"}`, "unauthorized", closeUnauthorized},
		"a token with a space":     {`{"op":"hello","token":" alice"}`, "unauthorized", closeUnauthorized},
		"a token with a NUL":       {`{"op":"hello","token":"alice\u0000"}`, "unauthorized", closeUnauthorized},
		"a token that is a number": {`{"op":"hello","token":7}`, "unauthorized", closeUnauthorized},
		"a token that is a list":   {`{"op":"hello","token":["alice"]}`, "unauthorized", closeUnauthorized},
		"a long token":             {`{"op":"hello","token":"` + strings.Repeat("a", 5000) + `"}`, "unauthorized", closeUnauthorized},
		"a token in the wrong key": {`{"op":"hello","Token":"alice"}`, "unauthorized", closeUnauthorized},
		"too large":                {`{"op":"hello","token":"` + strings.Repeat("a", 1<<20) + `"}`, "missing_hello", closeTooLarge},
	} {
		p := w.dial(nil)
		p.raw(websocket.TextMessage, []byte(c.frame))
		m, code := p.read()
		if m == nil || m["op"] != "hello_ack" || m["ok"] != false || m["error"] != c.word {
			t.Errorf("%s: answered with %v, %d", name, m, code)
			continue
		}
		if m, code := p.read(); code != c.close {
			t.Errorf("%s: closed with %d (%v), want %d", name, code, m, c.close)
		}
	}
	p := w.dial(nil)
	p.raw(websocket.BinaryMessage, []byte(`{"op":"hello","token":"alice"}`))
	if m, code := p.read(); m["error"] != "missing_hello" {
		t.Errorf("binary: %v %d", m, code)
	}
	if m, code := p.read(); code != closeProtocol {
		t.Errorf("binary: %v %d", m, code)
	}
	if st := w.hub.Stats(); st.Clients != 0 || st.KeptBytes != 0 || st.Malformed == 0 {
		t.Errorf("left behind: %+v", st)
	}
}

// TestOddHellos: what is strange about a session_id or last_seq is put right.
func TestOddHellos(t *testing.T) {
	w := start(t, nil)
	for _, session := range []string{`""`, `"ab"`, `"` + strings.Repeat("a", 65) + `"`, `"a b c"`, `"../../x"`, `"ä-session"`, `7`, `null`, `{}`, `"a\nb"`} {
		p := w.dial(nil)
		p.raw(websocket.TextMessage, []byte(`{"op":"hello","token":"alice","last_seq":-1,"session_id":`+session+`}`))
		if m := p.next(); m["ok"] != true || len(m["session_id"].(string)) != 43 || m["resumed"] != nil {
			t.Errorf("%s: %v", session, m)
		}
	}
}

// TestMalformedFrames: a frame after the hello, the error that answers it, and the close; 0 when the connection goes on.
func TestMalformedFrames(t *testing.T) {
	w := start(t, func(o *Options) { o.Limits.ArgumentBytes = 1000 })
	call := func(fields string) string { return `{"op":"call_tool","request_id":"r",` + fields + `}` }
	for name, c := range map[string]struct {
		frame, op, code, field string
		id                     any
		close                  int
	}{
		"no JSON":                     {frame: "x", op: "error", code: codeInvalidRequest, close: closeBadJSON},
		"an array":                    {frame: "[]", op: "error", code: codeInvalidRequest, close: closeBadJSON},
		"null":                        {frame: "null", op: "error", code: codeInvalidRequest, close: closeBadJSON},
		"half":                        {frame: `{"op":"ping"`, op: "error", code: codeInvalidRequest, close: closeBadJSON},
		"two":                         {frame: `{"op":"ping"}{"op":"ping"}`, op: "error", code: codeInvalidRequest, close: closeBadJSON},
		"invalid UTF-8":               {frame: "{\"op\":\"ping\",\"x\":\"\xc3\x28\"}", op: "error", code: codeInvalidRequest, close: closeBadJSON},
		"deep":                        {frame: call(`"name":"echo","arguments":{"x":` + deep(65) + `}`), op: "error", code: codeInvalidRequest, close: closeBadJSON},
		"a lone surrogate's half":     {frame: `{"op":"ping","x":"\ud8"}`, op: "error", code: codeInvalidRequest, close: closeBadJSON},
		"hello again":                 {frame: `{"op":"hello","token":"alice"}`, op: "hello_ack", code: codeProtocol, close: closeProtocol},
		"no op":                       {frame: `{}`, op: "error", code: codeInvalidRequest, field: "op"},
		"op is an object":             {frame: `{"op":{}}`, op: "error", code: codeInvalidRequest, field: "op"},
		"unknown op":                  {frame: `{"op":"sudo","request_id":"r"}`, op: "error", code: codeProtocol, id: "r"},
		"an answer's op":              {frame: `{"op":"call_tool_res","request_id":"r"}`, op: "error", code: codeProtocol, id: "r"},
		"a long op":                   {frame: `{"op":"` + strings.Repeat("x", 10_000) + `"}`, op: "error", code: codeProtocol},
		"no request_id":               {frame: `{"op":"call_tool","name":"echo"}`, op: "call_tool_res", code: codeInvalidRequest, field: "request_id"},
		"request_id is empty":         {frame: `{"op":"call_tool","request_id":"","name":"echo"}`, op: "call_tool_res", code: codeInvalidRequest, field: "request_id"},
		"request_id is a number":      {frame: `{"op":"call_tool","request_id":5,"name":"echo"}`, op: "call_tool_res", code: codeInvalidRequest, field: "request_id"},
		"request_id is null":          {frame: `{"op":"call_tool","request_id":null,"name":"echo"}`, op: "call_tool_res", code: codeInvalidRequest, field: "request_id"},
		"request_id is long":          {frame: `{"op":"call_tool","request_id":"` + strings.Repeat("r", 129) + `","name":"echo"}`, op: "call_tool_res", code: codeInvalidRequest, field: "request_id"},
		"request_id has a newline":    {frame: `{"op":"call_tool","request_id":"a\nb","name":"echo"}`, op: "call_tool_res", code: codeInvalidRequest, field: "request_id"},
		"request_id is not ASCII":     {frame: `{"op":"call_tool","request_id":"ü","name":"echo"}`, op: "call_tool_res", code: codeInvalidRequest, field: "request_id"},
		"no name":                     {frame: call(`"arguments":{}`), op: "call_tool_res", code: codeInvalidRequest, field: "name", id: "r"},
		"name is a number":            {frame: call(`"name":1`), op: "call_tool_res", code: codeInvalidRequest, field: "name", id: "r"},
		"name is long":                {frame: call(`"name":"` + strings.Repeat("n", 1000) + `"`), op: "call_tool_res", code: codeInvalidRequest, field: "name", id: "r"},
		"unknown tool":                {frame: call(`"name":"rm"`), op: "call_tool_res", code: codeToolNotFound, id: "r"},
		"arguments are a list":        {frame: call(`"name":"echo","arguments":[]`), op: "call_tool_res", code: codeInvalidRequest, field: "arguments", id: "r"},
		"arguments are a string":      {frame: call(`"name":"echo","arguments":"{}"`), op: "call_tool_res", code: codeInvalidRequest, field: "arguments", id: "r"},
		"arguments are false":         {frame: call(`"name":"echo","arguments":false`), op: "call_tool_res", code: codeInvalidRequest, field: "arguments", id: "r"},
		"arguments are too large":     {frame: call(`"name":"echo","arguments":{"key":"` + strings.Repeat("x", 1000) + `"}`), op: "call_tool_res", code: codeInvalidRequest, field: "arguments", id: "r"},
		"an argument's type":          {frame: call(`"name":"echo","arguments":{"key":1}`), op: "call_tool_res", code: codeValidation, field: "key", id: "r"},
		"an argument is missing":      {frame: call(`"name":"session_get"`), op: "call_tool_res", code: codeValidation, field: "id", id: "r"},
		"an argument is empty":        {frame: call(`"name":"session_get","arguments":{"id":""}`), op: "call_tool_res", code: codeValidation, field: "id", id: "r"},
		"an argument nobody knows":    {frame: call(`"name":"session_get","arguments":{"id":"x","sudo":true}`), op: "call_tool_res", code: codeValidation, field: "sudo", id: "r"},
		"an argument is null":         {frame: call(`"name":"session_get","arguments":{"id":null}`), op: "call_tool_res", code: codeValidation, field: "id", id: "r"},
		"an argument not offered":     {frame: call(`"name":"session_migrate","arguments":{"id":"x","mode":"warp"}`), op: "call_tool_res", code: codeValidation, field: "mode", id: "r"},
		"an argument's item":          {frame: call(`"name":"session_spawn","arguments":{"command":["a",2]}`), op: "call_tool_res", code: codeValidation, field: "command[1]", id: "r"},
		"an argument's value":         {frame: call(`"name":"session_spawn","arguments":{"env":{"A":1}}`), op: "call_tool_res", code: codeValidation, field: "env.A", id: "r"},
		"an argument's fraction":      {frame: call(`"name":"session_list","arguments":{"limit":1.5}`), op: "call_tool_res", code: codeValidation, field: "limit", id: "r"},
		"an argument's size":          {frame: call(`"name":"session_list","arguments":{"limit":100000}`), op: "call_tool_res", code: codeValidation, field: "limit", id: "r"},
		"an argument is 1e400":        {frame: call(`"name":"session_list","arguments":{"limit":1e400}`), op: "call_tool_res", code: codeValidation, field: "limit", id: "r"},
		"a duration":                  {frame: call(`"name":"session_spawn","arguments":{"ttl":"-5s"}`), op: "call_tool_res", code: codeValidation, field: "ttl", id: "r"},
		"priority is odd":             {frame: call(`"name":"echo","priority":"asap"`), op: "call_tool_res", code: codeInvalidRequest, field: "priority", id: "r"},
		"priority is a number":        {frame: call(`"name":"echo","priority":0`), op: "call_tool_res", code: codeInvalidRequest, field: "priority", id: "r"},
		"durable in words":            {frame: call(`"name":"echo","durable":"yes"`), op: "call_tool_res", code: codeInvalidRequest, field: "durable", id: "r"},
		"durable where nothing is":    {frame: call(`"name":"echo","durable":true`), op: "call_tool_res", code: codeInvalidRequest, field: "durable", id: "r"},
		"a key that is a number":      {frame: call(`"name":"echo","key":7`), op: "call_tool_res", code: codeInvalidRequest, field: "key", id: "r"},
		"a long key":                  {frame: call(`"name":"echo","key":"` + strings.Repeat("k", 129) + `"`), op: "call_tool_res", code: codeInvalidRequest, field: "key", id: "r"},
		"a negative deadline":         {frame: call(`"name":"echo","deadline_ms":-1`), op: "call_tool_res", code: codeInvalidRequest, field: "deadline_ms", id: "r"},
		"no time at all":              {frame: call(`"name":"echo","deadline_ms":0`), op: "call_tool_res", code: codeInvalidRequest, field: "deadline_ms", id: "r"},
		"a fraction of a deadline":    {frame: call(`"name":"echo","deadline_ms":1.5`), op: "call_tool_res", code: codeInvalidRequest, field: "deadline_ms", id: "r"},
		"a deadline beyond all":       {frame: call(`"name":"echo","deadline_ms":9223372036854775807`), op: "call_tool_res", code: codeInvalidRequest, field: "deadline_ms", id: "r"},
		"a deadline beyond 64 bits":   {frame: call(`"name":"echo","deadline_ms":1e30`), op: "call_tool_res", code: codeInvalidRequest, field: "deadline_ms", id: "r"},
		"a deadline in words":         {frame: call(`"name":"echo","deadline_ms":"5s"`), op: "call_tool_res", code: codeInvalidRequest, field: "deadline_ms", id: "r"},
		"cancel without a request_id": {frame: `{"op":"cancel"}`, op: "cancelled", code: codeInvalidRequest, field: "request_id"},
		"cancel of nothing":           {frame: `{"op":"cancel","request_id":"none"}`, op: "cancelled", code: codeNotFound, id: "none"},
		"rotate without a token":      {frame: `{"op":"rotate_token","old":"alice"}`, op: "rotate_token_res", code: codeInvalidRequest, field: "new"},
		"rotate with a wrong one":     {frame: `{"op":"rotate_token","old":"bob","new":"alice-2"}`, op: "rotate_token_res", code: codeUnauthorized},
		"rotate to a newline":         {frame: `{"op":"rotate_token","old":"alice","new":"alice-2\n"}`, op: "rotate_token_res", code: codeUnauthorized},
		"rotate with a number":        {frame: `{"op":"rotate_token","old":1,"new":"alice-2"}`, op: "rotate_token_res", code: codeInvalidRequest, field: "old"},
	} {
		p := w.hello("alice", "")
		p.raw(websocket.TextMessage, []byte(c.frame))
		m, closed := p.read()
		e, _ := m["error"].(map[string]any)
		d, _ := e["details"].(map[string]any)
		field, _ := d["field"].(string)
		if m["op"] != c.op || code(m) != c.code || m["request_id"] != c.id || field != c.field || e["message"] == "" {
			t.Errorf("%s: answered with %v, %d", name, m, closed)
			continue
		}
		if c.close != 0 {
			if m, closed := p.read(); closed != c.close {
				t.Errorf("%s: closed with %d (%v), want %d", name, closed, m, c.close)
			}
			continue
		}
		p.send(map[string]any{"op": "ping", "request_id": "still"})
		if m := p.next(); m["op"] != "pong" || m["request_id"] != "still" {
			t.Errorf("%s: the connection went on with %v", name, m)
		}
		_ = p.ws.Close()
	}
	eventually(t, "all are gone", func() bool { return w.hub.Stats().Connections == 0 })
	if st := w.hub.Stats(); st.Clients != 0 || st.KeptBytes != 0 || st.InFlight != 0 || st.Calls != 0 {
		t.Errorf("left behind: %+v", st)
	}
}

func TestTooLargeFrames(t *testing.T) {
	w := start(t, nil)
	p := w.hello("alice", "")
	p.raw(websocket.TextMessage, bytes.Repeat([]byte(" "), 33<<20))
	if m, code := p.read(); code != closeTooLarge {
		t.Errorf("33 MiB: %v, closed with %d", m, code)
	}
	// A bomb: 64 MiB of spaces, deflated to some 64 KiB, in one frame.
	var bomb bytes.Buffer
	f, err := flate.NewWriter(&bomb, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	for range 64 {
		_, _ = f.Write(bytes.Repeat([]byte(" "), 1<<20))
	}
	_ = f.Flush()
	body := bytes.TrimSuffix(bomb.Bytes(), []byte{0, 0, 0xff, 0xff})
	p = w.hello("alice", "")
	frame := []byte{0x80 | 0x40 | websocket.TextMessage, 0x80 | 127}
	frame = binary.BigEndian.AppendUint64(frame, uint64(len(body)))
	frame = append(frame, 0, 0, 0, 0) // the mask
	if _, err := p.ws.NetConn().Write(append(frame, body...)); err != nil {
		t.Fatal(err)
	}
	if m, code := p.read(); code != closeTooLarge {
		t.Errorf("a bomb of %d bytes: %v, closed with %d", len(body), m, code)
	}
	// A binary frame, and one of a kind that is not there.
	p = w.hello("alice", "")
	p.raw(websocket.BinaryMessage, []byte(`{"op":"ping"}`))
	if m, code := p.read(); code != closeProtocol {
		t.Errorf("binary: %v, closed with %d", m, code)
	}
	p = w.hello("alice", "")
	_, _ = p.ws.NetConn().Write([]byte{0x80 | 0x7, 0x80, 0, 0, 0, 0})
	if m, code := p.read(); code != websocket.CloseProtocolError {
		t.Errorf("a frame of kind 7: %v, closed with %d", m, code)
	}
}

func TestSlowHellos(t *testing.T) {
	w := start(t, func(o *Options) { o.Limits.HelloTimeout = 50 * time.Millisecond })
	silent := w.dial(nil)
	drip := w.dial(nil)
	_, _ = drip.ws.NetConn().Write([]byte{0x81, 0x80 | 100, 0, 0, 0, 0, '{'}) // the beginning of a frame, and no more
	for name, p := range map[string]*peer{"silence": silent, "a drip": drip} {
		if m, _ := p.read(); m["ok"] != false || m["error"] != "missing_hello" {
			t.Errorf("%s: %v", name, m)
		}
		if m, code := p.read(); code != closeHelloTimeout {
			t.Errorf("%s: %v, closed with %d", name, m, code)
		}
	}
}

func TestOrigins(t *testing.T) {
	w := start(t, func(o *Options) { o.Origins = []string{"https://console.example.com"} })
	own := w.http.Listener.Addr().String()
	for origin, want := range map[string]bool{
		"": true, "https://console.example.com": true, "http://" + own: true, "https://" + own: true,
		"https://evil.example.com": false, "null": false, "https://console.example.com.evil.example": false, "http://localhost:1": false,
		"https://console.example.com:444": false, "http://" + own + "@evil.example": false, "file://": false,
	} {
		h := http.Header{}
		if origin != "" {
			h.Set("Origin", origin)
		}
		p, resp, err := w.tryDial(h)
		if (err == nil) != want || err != nil && (resp == nil || resp.StatusCode != http.StatusForbidden) {
			t.Errorf("origin %q: %v %v", origin, err, resp)
		}
		if p != nil {
			_ = p.ws.Close()
		}
	}
	// A server that is open to all is its own only by an address: a name may be made to point here by anybody.
	h := &Hub{o: Options{Open: true}}
	for host, want := range map[string]bool{"127.0.0.1:8079": true, "localhost:8079": true, "[::1]:8079": true, "rebound.example:8079": false} {
		r := &http.Request{Host: host, Header: http.Header{"Origin": {"http://" + host}}}
		if h.Allows(r) != want {
			t.Errorf("open, own origin %s: %v", host, !want)
		}
	}
}

func TestNotEvenAWebSocket(t *testing.T) {
	w := start(t, nil)
	for name, text := range map[string]string{
		"another version": "GET /mcp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
		"no key":          "GET /mcp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n",
		"a plain GET":     "GET /mcp HTTP/1.1\r\nHost: x\r\n\r\n",
		"a POST":          "POST /mcp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nContent-Length: 0\r\n\r\n",
	} {
		c, err := net.Dial("tcp", w.http.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(text))
		_ = c.SetReadDeadline(time.Now().Add(patience))
		b := make([]byte, 12)
		if _, err := c.Read(b); err != nil || !bytes.HasPrefix(b, []byte("HTTP/1.1 4")) {
			t.Errorf("%s: %q %v", name, b, err)
		}
		_ = c.Close()
	}
	eventually(t, "all are gone", func() bool { return w.hub.Stats().Connections == 0 })
}

func TestWhoKeepsBeingWrongIsSentAway(t *testing.T) {
	w := start(t, nil)
	p := w.hello("alice", "")
	for i := range maxRefusedInRow {
		p.send(map[string]any{"op": fmt.Sprint("nonsense-", i)})
		if m := p.next(); code(m) != codeProtocol {
			t.Fatalf("answered with %v", m)
		}
	}
	if m, code := p.read(); code != closeLimits {
		t.Errorf("%v, closed with %d", m, code)
	}
}
