// The clients: idle ones, and those that call.

package clientload

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"github.com/neolith/orchestrator/bench/measure"
	"github.com/neolith/orchestrator/bench/testbed"
	"github.com/neolith/orchestrator/client"
)

// Role is the name of the helper.
const Role = "clients"

// sourceAddresses is how many addresses clients dial from: a listener's port has some 28,000 for each.
const sourceAddresses = 64

// IdleArgs say how many clients to connect, and by how many dialers at once.
type IdleArgs struct {
	Access  testbed.Access
	Count   int
	Dialers int
}

// CallArgs say what is called: Tool with empty arguments by Clients, each on a WebSocket of its own and waiting for each answer.
type CallArgs struct {
	Access       testbed.Access
	Clients      int
	Tool         string
	Durable      bool
	Warm, Length time.Duration
}

// EchoArgs say where the echo is, and the message that it is sent.
type EchoArgs struct {
	Address      string
	Clients      int
	Warm, Length time.Duration
}

// fleet is the clients that are idle.
type fleet struct {
	mu    sync.Mutex
	conns []*websocket.Conn
	lost  atomic.Int64
}

// Serve returns what the helper answers.
func Serve() testbed.Handlers {
	f := &fleet{}
	return testbed.Handlers{
		"idle": testbed.Handle(f.idle),
		"lost": testbed.Handle(func(context.Context, struct{}) (int64, error) { return f.lost.Load(), nil }),
		"call": testbed.Handle(call),
		"echo": testbed.Handle(echo),
	}
}

// dialer connects WebSockets from one of the source addresses.
func dialer(from int, config *tls.Config) *websocket.Dialer {
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 2, byte(from%sourceAddresses+1))}}
	return &websocket.Dialer{NetDialContext: d.DialContext, TLSClientConfig: config, HandshakeTimeout: time.Minute, ReadBufferSize: 512, WriteBufferSize: 512}
}

// greeter says hello at a server's gateway.
type greeter struct {
	url   string
	hello []byte
	tls   *tls.Config
}

func newGreeter(a testbed.Access) (*greeter, error) {
	if len(a.Clients) == 0 {
		return nil, errors.New("there is no server to connect to")
	}
	g := &greeter{url: "ws://" + a.Clients[0] + "/mcp"}
	if a.Node.CA != "" {
		var err error
		if g.tls, err = (client.TLSFiles{CA: a.Node.CA}).Load(); err != nil {
			return nil, err
		}
		g.url = "wss://" + a.Clients[0] + "/mcp"
	}
	var err error
	g.hello, err = json.Marshal(map[string]string{"op": "hello", "token": a.Token})
	return g, err
}

// greet connects and says hello.
func (g *greeter) greet(ctx context.Context, from int) (*websocket.Conn, error) {
	ws, _, err := dialer(from, g.tls).DialContext(ctx, g.url, nil) //nolint:bodyclose // the library has read it
	if err != nil {
		return nil, err
	}
	if err := ws.WriteMessage(websocket.TextMessage, g.hello); err != nil {
		return nil, errors.Join(err, ws.Close())
	}
	_, data, err := ws.ReadMessage()
	if err == nil && !bytes.Contains(data, []byte(`"ok":true`)) {
		err = fmt.Errorf("hello was answered with %s", data)
	}
	if err != nil {
		return nil, errors.Join(err, ws.Close())
	}
	return ws, nil
}

// idle connects clients and keeps them; the summary is of their connecting, from the dial to the hello_ack.
func (f *fleet) idle(ctx context.Context, a IdleArgs) (measure.Summary, error) {
	g, err := newGreeter(a.Access)
	if err != nil {
		return measure.Summary{}, err
	}
	s := measure.Each(a.Dialers, a.Count, func(i int) error {
		ws, err := g.greet(ctx, i)
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.conns = append(f.conns, ws)
		f.mu.Unlock()
		return nil
	})
	if s.Errors > 0 {
		return s, fmt.Errorf("%d of %d clients did not connect: %s", s.Errors, a.Count, s.FirstError)
	}
	for _, ws := range f.conns {
		go func() { // it answers pings until the process ends
			for {
				if _, _, err := ws.NextReader(); err != nil {
					f.lost.Add(1)
					return
				}
			}
		}()
	}
	return s, nil
}

// call has clients call a tool, each one call after the other.
func call(ctx context.Context, a CallArgs) (measure.Summary, error) {
	g, err := newGreeter(a.Access)
	if err != nil {
		return measure.Summary{}, err
	}
	conns := make([]*websocket.Conn, a.Clients)
	for i := range conns {
		if conns[i], err = g.greet(ctx, i); err != nil {
			return measure.Summary{}, err
		}
		defer conns[i].Close()
	}
	callers := make([]caller, a.Clients)
	for i := range callers {
		callers[i].ws = conns[i]
	}
	return measure.ClosedLoop(a.Clients, a.Warm, a.Length, func(i int) error { return callers[i].call(a) }), nil
}

// caller makes calls on one WebSocket. What it writes and reads has one place each: the load has no part in what is measured but for what must be.
type caller struct {
	ws     *websocket.Conn
	number int64
	out    []byte
	in     bytes.Buffer
}

// appendRequest writes a call.
func appendRequest(b []byte, id int64, a CallArgs) []byte {
	b = strconv.AppendInt(append(b, `{"op":"call_tool","request_id":"`...), id, 10)
	b = append(append(b, `","name":"`...), a.Tool...)
	b = append(b, `","arguments":{}`...)
	if !a.Durable {
		b = append(b, `,"durable":false`...)
	}
	return append(b, '}')
}

// read returns the next message, which is good until the one behind it is read.
func (c *caller) read() ([]byte, error) {
	_, r, err := c.ws.NextReader()
	if err != nil {
		return nil, err
	}
	c.in.Reset()
	_, err = c.in.ReadFrom(r)
	return c.in.Bytes(), err
}

// call makes a call and waits for its result.
func (c *caller) call(a CallArgs) error {
	c.number++
	c.out = appendRequest(c.out[:0], c.number, a)
	if err := c.ws.WriteMessage(websocket.TextMessage, c.out); err != nil {
		return err
	}
	for {
		data, err := c.read()
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(data, []byte(`{"op":"call_tool_res"`)) {
			continue
		}
		if bytes.Contains(data, []byte(`"error":`)) {
			return fmt.Errorf("the call was answered with %s", data)
		}
		return nil
	}
}

// echo has clients send what a call looks like to the echo, each one after the other.
func echo(ctx context.Context, a EchoArgs) (measure.Summary, error) {
	callers := make([]caller, a.Clients)
	for i := range callers {
		ws, _, err := dialer(i, nil).DialContext(ctx, "ws://"+a.Address+"/", nil) //nolint:bodyclose // the library has read it
		if err != nil {
			return measure.Summary{}, err
		}
		callers[i].ws = ws
		defer ws.Close()
	}
	message := appendRequest(nil, 12345, CallArgs{Tool: "list_models"})
	return measure.ClosedLoop(a.Clients, a.Warm, a.Length, func(i int) error {
		c := &callers[i]
		if err := c.ws.WriteMessage(websocket.TextMessage, message); err != nil {
			return err
		}
		_, err := c.read()
		return err
	}), nil
}
