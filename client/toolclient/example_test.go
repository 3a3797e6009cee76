// The program that docs/guides/clients.md shows, run.
package toolclient_test

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/client/toolclient"
	"github.com/neolith/orchestrator/gateway/socket"
	"github.com/neolith/orchestrator/gateway/tools"
)

// guide begins: what follows stands in docs/guides/clients.md, word by word.

func talk(ctx context.Context, addresses []string, token string) error {
	c, err := toolclient.New(toolclient.Config{Addresses: addresses, Token: toolclient.StaticToken(token)})
	if err != nil {
		return err
	}
	defer c.Close()

	// A session that counts the lines that it is sent.
	r, err := c.Call(ctx, "session_spawn", map[string]any{
		"command": []string{"/bin/sh", "-c", "n=0; while read -r l; do n=$((n+1)); echo $n; done"}, "wait": true,
	})
	if err != nil {
		return err
	}
	var session struct{ ID, Phase string }
	if err := r.Decode(&session); err != nil {
		return err
	}
	fmt.Println("the session is", session.Phase)

	// The request id is the caller's: this call may be made again, also by a later process with the same session id, and the message is sent once.
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err = c.Call(ctx, "session_send", map[string]any{"id": session.ID, "message": "hello", "stream": true},
		toolclient.WithRequestID("greeting-1"), toolclient.WithPriority(toolclient.High),
		toolclient.OnChunk(func(p toolclient.Chunk) { fmt.Print("output: ", p.Text) }))
	if err != nil {
		return fmt.Errorf("%s: %w", toolclient.CodeOf(err), err) // such as NOT_FOUND
	}
	var turn struct{ Status, Result string }
	if err := r.Decode(&turn); err != nil {
		return err
	}
	fmt.Println("the answer is", turn.Result)
	return nil
}

// guide ends

func Example() {
	address, stop := example()
	defer stop()
	if err := talk(context.Background(), []string{address}, "orch_example"); err != nil {
		log.Print(err)
	}
	// Output:
	// the session is RUNNING
	// output: 1
	// the answer is 1
}

// stage are tools that answer as a cluster would.
type stage struct{ *tools.Set }

func (stage) Call(ctx context.Context, t *tools.Tool, c tools.Call) ([]tools.Output, error) {
	if t.Name == "session_spawn" {
		return []tools.Output{{Type: "text", Text: `{"id":"f00d","phase":"RUNNING"}`}}, nil
	}
	if err := c.Chunk(ctx, "1\n"); err != nil {
		return nil, err
	}
	return []tools.Output{{Type: "text", Text: `{"sequence":1,"status":"ACKED","result":"1"}`}}, nil
}

type anybody struct{}

func (anybody) Identify(auth.Credential) (auth.Identity, error) {
	return auth.Identity{Name: "somebody", Role: auth.Client}, nil
}

func (anybody) As(ctx context.Context, _ auth.Credential) context.Context { return ctx }

func (anybody) Recheck(who auth.Identity) (auth.Identity, error) { return who, nil }

func (anybody) AsCaller(ctx context.Context, _ auth.Identity) context.Context { return ctx }

// example is a gateway on a port.
func example() (address string, stop func()) {
	hub := socket.New(socket.Options{
		Server: "server-1", Tools: stage{tools.New(nil)}, Access: anybody{}, Ready: func() (bool, string) { return true, "" },
		Limits: socket.DefaultLimits(), Logger: slog.New(slog.DiscardHandler),
	})
	mux := http.NewServeMux()
	mux.Handle("/mcp", hub)
	hub.Handle(mux)
	s := httptest.NewServer(mux)
	return strings.TrimPrefix(s.URL, "http://"), func() {
		ctx, cancel := context.WithTimeout(context.Background(), 0)
		defer cancel()
		hub.Close(ctx)
		s.Close()
	}
}

// TestTheGuideShowsTheExample holds the guide to what is run here, and its table of settings to the defaults.
func TestTheGuideShowsTheExample(t *testing.T) {
	guide, err := os.ReadFile("../../docs/guides/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var code []string
	in := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "// guide begins"):
			in = true
		case line == "// guide ends":
			in = false
		case in:
			code = append(code, strings.ReplaceAll(line, "\t", "    "))
		}
	}
	shown := strings.ReplaceAll(string(guide), "\t", "    ")
	if text := strings.TrimSpace(strings.Join(code, "\n")); len(code) < 20 || !strings.Contains(shown, text) {
		t.Errorf("docs/guides/clients.md does not show the example as it is; it is\n%s", text)
	}
	for _, state := range []toolclient.State{toolclient.Connecting, toolclient.Connected, toolclient.Fallback, toolclient.Reconnecting, toolclient.Closed} {
		if !strings.Contains(shown, "`"+string(state)+"`") {
			t.Errorf("the guide does not tell of the state %s", state)
		}
	}
	config := reflect.TypeFor[toolclient.Config]()
	for i := range config.NumField() {
		if name := config.Field(i).Name; !strings.Contains(shown, "`"+name) {
			t.Errorf("the guide does not tell of Config.%s", name)
		}
	}
}
