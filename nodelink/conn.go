// Package nodelink is the WebSocket between a node agent and the control plane, both ends of it.
//
// A node dials any server, says hello, and from then on both sides send frames (api/proto/orchestrator/node/v1). On a
// server, the Hub holds the sockets: on the leader it hands their frames to a Handler; on a follower it relays them to
// the leader over one batched stream, so that the leader sees every node's Link alike. docs/protocol/node-link.md is
// the specification.
package nodelink

import (
	"context"
	"errors"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

// The bounds of a link.
const (
	ProtocolMin       = 1
	ProtocolMax       = 1
	MaxFrameBytes     = 4 << 20
	SendQueueMax      = 1000     // frames
	SendQueueMaxBytes = 16 << 20 // of frames that wait; stream data may take half of either bound
	SubprotocolBinary = "orchestrator.node.v1+proto"
	SubprotocolJSON   = "orchestrator.node.v1+json"
	Path              = "/v1/link"
)

// ErrQueueFull is returned by Send when SendQueueMax frames or SendQueueMaxBytes wait; nothing was queued.
var ErrQueueFull = errors.New("nodelink: the send queue is full")

// ErrClosed is returned once a link is closed.
var ErrClosed = errors.New("nodelink: the link is closed")

// Conn is one link as frames, whoever carries them: a WebSocket, or memory in simulations.
type Conn interface {
	// Send queues a frame, which must not be changed any more. It does not block: ErrQueueFull or ErrClosed, or a
	// fault.Invalid for a frame that cannot be sent at all. Control frames arrive in the order in which they were sent,
	// and overtake stream_data and stream_close. move_progress finds no room as soon as others wait.
	Send(f *nodev1.Frame) error
	// Recv returns the next frame. One goroutine may call it. A link that has ended gives a *CloseError, which matches
	// ErrClosed; a WebSocket also ends when ctx does, for a frame cannot be read by halves.
	Recv(ctx context.Context) (*nodev1.Frame, error)
	// Close ends the link; the reason goes to the other side as far as the carrier can. It is idempotent.
	Close(reason string)
	// Done is closed when the link has ended.
	Done() <-chan struct{}
}

// Link is a node's link as the leader sees it, whichever server holds the socket.
type Link interface {
	// ID is unique in the life of the leader.
	ID() string
	// Hello is the frame that opened it.
	Hello() *nodev1.Hello
	// Server is the id of the server that holds the socket.
	Server() string
	// Send queues a frame to the node, as Conn.Send.
	Send(f *nodev1.Frame) error
	// Close ends it with one of the close codes.
	Close(code int, reason string)
}

// Handler is what a leader does with links. The calls for one link come in order, from one goroutine at a time: LinkUp,
// then frames, then LinkDown. They must not block.
type Handler interface {
	LinkUp(l Link)
	LinkFrame(l Link, f *nodev1.Frame)
	LinkDown(l Link, reason string)
}
