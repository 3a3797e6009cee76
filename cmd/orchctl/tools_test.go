// Tools by hand: against a real gateway whose tools are the test's.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/gateway/socket"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/fault"
)

// parlour are two tools: greet says its arguments back, in pieces when it is asked to; refuse does.
type parlour struct{}

func (parlour) List() []tools.Tool {
	text := func(what string) *tools.Schema { return &tools.Schema{Type: "string", Description: what} }
	return []tools.Tool{
		{Name: "greet", Description: "Greet somebody. As often as one likes.", Schema: &tools.Schema{
			Type: "object", Required: []string{"name"}, Properties: map[string]*tools.Schema{
				"name": text("whom"), "times": {Type: "integer"}, "loud": {Type: "boolean"}, "stream": {Type: "boolean"}, "namespace": text("where"),
				"words": {Type: "array", Items: text("a word")}, "env": {Type: "object", Values: text("a value")},
			},
		}},
		{Name: "refuse", Description: "Refuse.", Schema: &tools.Schema{Type: "object"}},
	}
}

func (p parlour) Find(name string) (*tools.Tool, bool) {
	for _, t := range p.List() {
		if t.Name == name {
			return &t, true
		}
	}
	return nil, false
}

func (parlour) Call(ctx context.Context, t *tools.Tool, c tools.Call) ([]tools.Output, error) {
	if t.Name == "refuse" {
		return nil, fault.New(fault.NotFound, "session %q: there is none; 'sessions list' shows those there are", "x")
	}
	var a struct {
		Name   string
		Stream bool
	}
	if err := json.Unmarshal(c.Arguments, &a); err != nil {
		return nil, err
	}
	if a.Stream {
		for _, part := range []string{"good ", "morning"} {
			if err := c.Chunk(ctx, part); err != nil {
				return nil, err
			}
		}
	}
	if a.Name == "plain" {
		return []tools.Output{{Type: "text", Text: "not JSON"}}, nil
	}
	return []tools.Output{{Type: "text", Text: `{"greeted":` + string(c.Arguments) + `}`}}, nil
}

// porter lets in who shows the token, or none.
type porter struct{ token string }

func (p porter) Identify(c auth.Credential) (auth.Identity, error) {
	if c.Token != p.token {
		return auth.Identity{}, fault.New(fault.Unauthenticated, "token: is unknown here")
	}
	return auth.Identity{Name: "somebody", Role: auth.Client}, nil
}

func (porter) Recheck(who auth.Identity) (auth.Identity, error) { return who, nil }

func (porter) As(ctx context.Context, _ auth.Credential) context.Context { return ctx }

func (porter) AsCaller(ctx context.Context, _ auth.Identity) context.Context { return ctx }

// gatewayAt is a gateway on a port; token is what it wants to be shown.
func gatewayAt(t *testing.T, token string) (address string) {
	t.Helper()
	hub := socket.New(socket.Options{
		Server: "server-1", Tools: parlour{}, Access: porter{token}, Ready: func() (bool, string) { return true, "" }, Limits: socket.DefaultLimits(),
		Logger: slog.New(slog.DiscardHandler),
	})
	mux := http.NewServeMux()
	mux.Handle("/mcp", hub)
	hub.Handle(mux)
	s := httptest.NewServer(mux)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 0)
		defer cancel()
		hub.Close(ctx)
		s.Close()
	})
	return strings.TrimPrefix(s.URL, "http://")
}

func TestGoldenTools(t *testing.T) {
	r := newRig(t)
	r.env = append(r.env, "ORCHCTL_GATEWAY="+gatewayAt(t, ""))
	goldenForms(t, r, "tools-list", "tools list")
	goldenForms(t, r, "tools-call", "tools call greet --request-id r-1 --session story --json '{\"name\":\"Ada\",\"times\":1}' --arg times=2 --arg loud=true --arg words=a --arg words=b -n team")
	goldenForms(t, r, "tools-call-stream", "tools call greet --request-id r-2 --stream --arg name=Ada")
	goldenForms(t, r, "tools-call-plain", "tools call greet --request-id r-3 --arg name=plain")
	var refused bytes.Buffer
	for _, line := range []string{
		"tools call refuse", "tools call nonesuch", "tools call greet --arg name", "tools call greet --arg name=a --arg name=b", "tools call greet --arg name=x --arg times=two",
		"tools call greet --json [1]", "tools call greet --json null", "tools call greet --priority urgent", "tools call greet", "tools call", "tools call greet --request-id 'a b'", "tools call greet --session no --arg name=x",
		"tools list --gateway nowhere",
	} {
		res := r.run(line)
		fmt.Fprintf(&refused, "$ orchctl %s\n%s%sexit code %d\n", line, res.out, res.err, res.code)
	}
	golden(t, "tools-refused", refused.Bytes())
}

func TestToolsFromStandardInput(t *testing.T) {
	r := newRig(t)
	r.env = append(r.env, "ORCHCTL_GATEWAY="+gatewayAt(t, ""))
	if res := r.runIn("tools call greet --json - -o json", strings.NewReader(`{"name":"Bob","env":{"A":"1"}}`)); res.code != 0 || !strings.Contains(res.out, `"A": "1"`) {
		t.Errorf("%+v", res)
	}
	if res := r.run("__complete tools call gr"); !strings.HasPrefix(res.out, "greet\tGreet somebody\n") {
		t.Errorf("completion: %+v", res)
	}
}

// Where the gateway is: a flag, the environment, the context, or the API's port plus two. A context's token is for its own hosts.
func TestWhereTheGatewayIs(t *testing.T) {
	address := gatewayAt(t, "orch_secret")
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, env: []string{"HOME=" + t.TempDir()}}
	beside := "127.0.0.1:" + strconv.Itoa(n-gatewayStep)
	r.must("context set dev --addr " + beside + " --token orch_secret --use")
	r.must("tools list")
	r.must("tools list --gateway " + address)
	r.must("context set far --addr 127.0.0.1:1 --token orch_secret --gateway " + address)
	r.must("tools list --context far")
	if res := r.run("tools list --gateway localhost:" + port); res.code != 2 || !strings.Contains(res.err, "no host of context dev") {
		t.Errorf("a host that is not the context's: %+v", res)
	}
	r.must("tools list --token orch_secret --gateway localhost:" + port)
	if res := r.run("tools list --token orch_wrong"); res.code != 4 || strings.Contains(res.err, "orch_wrong") {
		t.Errorf("a wrong token: %+v", res)
	}
	if res := r.run("tools list --addr 127.0.0.1:2"); res.code != 5 {
		t.Errorf("nobody there: %+v", res)
	}
	if res := r.run("context set bad --addr 127.0.0.1:1 --gateway nowhere"); res.code != 2 || !strings.Contains(res.err, "host:port") {
		t.Errorf("a gateway that is none: %+v", res)
	}
}
