// The life of a Client: dial, greet, receive, wait, again.

package nodelink

import (
	"context"
	"errors"
	"fmt"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// stableAfter is how long a link must have lasted for its loss to be the first failure, not one more of a row.
const stableAfter = 10 * time.Second

// Run keeps the node linked until ctx ends, then says goodbye. It returns nil. It may be called once.
func (c *Client) Run(ctx context.Context) error {
	defer c.finish()
	attempt, was := 0, Connecting
	for {
		server := c.nextServer()
		c.setState(was, server)
		c.events.emit(Event{Type: EventConnecting, Server: server, Attempt: attempt + 1})
		lasted, err := c.link(ctx, server, attempt)
		if ctx.Err() != nil {
			return nil
		}
		up := lasted > 0
		if up {
			c.downAt = time.Now()
		}
		if lasted >= stableAfter {
			attempt = 0
		}
		if !up {
			attempt++
			c.log.Warn("node link: attempt failed", "server", server, "attempt", attempt, "err", err)
			c.events.emit(Event{Type: EventError, Server: server, Attempt: attempt, Err: err})
		}
		was = c.afterLoss(server, attempt, up, err)
		delay := c.backoff(attempt)
		if superseded(err) {
			delay = max(delay, c.opts.SlowInterval)
		}
		c.events.emit(Event{Type: EventReconnecting, Server: server, Attempt: attempt, Delay: delay, Err: err})
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil
		}
	}
}

// afterLoss says loudly what is worth it, and returns the state until the next link.
func (c *Client) afterLoss(server string, attempt int, up bool, err error) State {
	state := Reconnecting
	if attempt >= c.opts.Attempts {
		state = Failed
	}
	c.setState(state, server)
	switch {
	case superseded(err):
		c.log.Error("node link: another agent runs with this node's identity; stop one of them, or give it a data directory of its own", "server", server, "retry_in", c.opts.SlowInterval)
	case attempt == c.opts.Attempts && !up:
		c.log.Error("node link: no server could be reached; trying on, slowly", "attempts", attempt, "every", c.opts.SlowInterval, "servers", c.ring, "err", err)
		c.events.emit(Event{Type: EventReconnectFailed, Server: server, Attempt: attempt, Err: err})
	}
	return state
}

func (c *Client) finish() {
	c.mu.Lock()
	c.closed, c.state, c.waiting = true, Disconnected, nil
	c.mu.Unlock()
	c.events.Close()
}

// link is one link from dial to end. It returns how long a leader had the node, 0 when none took it in.
func (c *Client) link(ctx context.Context, server string, attempt int) (lasted time.Duration, err error) {
	dialed, err := c.opts.Dial(ctx, server)
	if err != nil {
		return 0, err
	}
	conn := asCarrier(dialed)
	defer conn.wait()
	defer conn.Close("done")
	stop := context.AfterFunc(ctx, func() {
		_ = conn.Send(&nodev1.Frame{Payload: &nodev1.Frame_Goodbye{Goodbye: &nodev1.Goodbye{Reason: "the agent stops"}}}) // a courtesy
		conn.closeWith(CloseGoingAway, "the agent stops")
	})
	defer stop()
	ack, err := c.greet(conn, server)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	s := c.ack(conn, server, ack, c.links)
	c.log.Info("node link: connected", "server", server, "attempt", attempt+1, "cluster", ack.GetClusterId())
	c.opts.OnAck(server, ack)
	s, err = c.receive(conn, s)
	c.drop(s, err)
	c.log.Warn("node link: disconnected", "server", server, "after", time.Since(began).Round(time.Millisecond), "err", err)
	c.events.emit(Event{Type: EventDisconnected, Server: server, Err: err})
	c.opts.OnDown(err)
	return max(time.Since(began), 1), err
}

// greet says hello and waits for a leader to answer.
func (c *Client) greet(conn carrier, server string) (*nodev1.HelloAck, error) {
	c.links++
	hello := c.opts.Hello()
	hello.ProtocolMin, hello.ProtocolMax, hello.LinkNumber = ProtocolMin, ProtocolMax, c.links
	if err := conn.Send(&nodev1.Frame{Payload: &nodev1.Frame_Hello{Hello: hello}}); err != nil {
		return nil, fmt.Errorf("hello to %s: %w", server, err)
	}
	timer := time.AfterFunc(c.opts.HelloTimeout, func() { conn.closeWith(CloseNormal, "no hello_ack in time") })
	defer timer.Stop()
	for {
		f, err := conn.Recv(context.Background())
		if err != nil {
			if !timer.Stop() {
				return nil, fault.New(fault.Timeout, "hello to %s: no leader answered within %s", server, c.opts.HelloTimeout)
			}
			return nil, fmt.Errorf("hello to %s: %w", server, err)
		}
		switch p := f.GetPayload().(type) {
		case *nodev1.Frame_HelloAck:
			if v := p.HelloAck.GetProtocol(); v < ProtocolMin || v > ProtocolMax {
				err := violates(CloseProtocol, fault.FailedPrecondition, "the server answered in protocol version %d; this node speaks %d to %d", v, ProtocolMin, ProtocolMax)
				refuse(conn, err)
				return nil, err
			}
			return p.HelloAck, nil
		case *nodev1.Frame_Error:
			return nil, fmt.Errorf("hello to %s: %w", server, FromError(p.Error))
		case *nodev1.Frame_Goodbye:
			return nil, fault.New(fault.Unavailable, "hello to %s: %s", server, p.Goodbye.GetReason())
		}
		// Frames of an earlier leader may still be on their way; they are for a link that is not up.
	}
}

// receive hands on frames until the link ends. It returns the session that was up last.
func (c *Client) receive(conn carrier, s *session) (*session, error) {
	var said error // the reason that an error or goodbye frame gave
	for {
		f, err := conn.Recv(context.Background())
		if err != nil {
			if said != nil && !superseded(err) {
				err = errors.Join(said, err)
			}
			return s, err
		}
		c.events.emit(Event{Type: EventMessage, Server: s.server, Frame: f})
		switch p := f.GetPayload().(type) {
		case *nodev1.Frame_HelloAck:
			c.drop(s, fault.New(fault.Unavailable, "another leader took over: %w", ErrClosed))
			c.links++ // only to keep request ids apart
			s = c.ack(conn, s.server, p.HelloAck, c.links)
			c.log.Info("node link: another leader took over", "server", s.server)
			c.opts.OnAck(s.server, p.HelloAck)
			continue
		case *nodev1.Frame_FactsAck:
			c.mu.Lock()
			c.committed = max(c.committed, p.FactsAck.GetIndex())
			c.mu.Unlock()
		case *nodev1.Frame_Goodbye:
			said = fault.New(fault.Unavailable, "the server said goodbye: %s", p.Goodbye.GetReason())
			continue
		case *nodev1.Frame_Error:
			c.events.emit(Event{Type: EventError, Server: s.server, Frame: f, Err: FromError(p.Error)})
			if f.GetRequestId() == "" && p.Error.GetRequestType() == "" {
				said = FromError(p.Error)
				continue
			}
		}
		if s.req.Answer(f) || s.streams.Handle(f) {
			continue
		}
		c.opts.OnFrame(f)
	}
}
