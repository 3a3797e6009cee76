// The agent's use of the node link.

package agent

import (
	"context"
	"os"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/nodelink"
)

// newLink makes the client. What it calls back goes, in order, to the supervisor, which takes it as fast as it can and
// until the client has ended; a supervisor that falls behind slows the link down, and nothing is lost.
func (a *Agent) newLink() (link, error) {
	return nodelink.NewClient(nodelink.ClientOptions{
		Servers: a.opts.Servers,
		Dial:    a.dial,
		Hello:   a.hello,
		OnAck: func(server string, ack *nodev1.HelloAck) {
			if a.opts.OnServers != nil {
				a.opts.OnServers(server, ack.GetServers())
			}
			a.in <- linkUp{server, ack}
		},
		OnFrame:  func(f *nodev1.Frame) { a.in <- f },
		OnDown:   func(err error) { a.in <- linkDown{err} },
		OnStream: a.serveStream,
		Logger:   a.log,
	})
}

// dial opens a link and remembers it for bounce.
func (a *Agent) dial(ctx context.Context, server string) (nodelink.Conn, error) {
	c, err := a.opts.Dial(ctx, server)
	if err != nil {
		return nil, err
	}
	a.connMu.Lock()
	a.conn = c
	a.connMu.Unlock()
	return c, nil
}

// bounce ends the link, so that the client dials again and says hello anew.
func (a *Agent) bounce(why string) {
	a.connMu.Lock()
	defer a.connMu.Unlock()
	if a.conn != nil {
		a.conn.Close(why)
	}
}

func pid() int32 { return int32(os.Getpid()) }
