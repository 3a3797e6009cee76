// The limit: a server of the same library that sends back what it gets.

package clientload

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/websocket"

	"github.com/neolith/orchestrator/bench/testbed"
)

// EchoRole is the name of the helper that echoes.
const EchoRole = "echo"

// ServeEcho returns what the echo answers: where it listens.
func ServeEcho() testbed.Handlers {
	return testbed.Handlers{"start": testbed.Handle(startEcho)}
}

// startEcho listens until the process ends.
func startEcho(context.Context, struct{}) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	up := websocket.Upgrader{ReadBufferSize: 4096, WriteBufferSize: 4096}
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return // it has been answered
		}
		defer ws.Close()
		for {
			kind, data, err := ws.ReadMessage()
			if err != nil || ws.WriteMessage(kind, data) != nil {
				return
			}
		}
	})}
	go func() { _ = s.Serve(l) }() // it ends with the process
	return l.Addr().String(), nil
}
