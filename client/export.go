// Export: a checkpoint's chunks, one after the other.

package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Export is a checkpoint on its way out of the cluster. It is for one goroutine.
type Export struct {
	open   *apiv1.ExportSessionResponse_Open
	stream apiv1.SessionService_ExportSessionClient
	cancel context.CancelFunc
	part   []*apiv1.ChunkFrame
	got    uint64
	err    error
}

// Export begins to take a checkpoint of a session out of the cluster; Close ends it. Until the first answer it is repeated like any read;
// when it breaks off later, it has to be begun anew.
func (c *Client) Export(ctx context.Context, req *apiv1.ExportSessionRequest) (*Export, error) {
	ctx, cancel := context.WithCancel(ctx)
	e := &Export{cancel: cancel}
	err := c.resume(ctx, apiv1.SessionService_ExportSession_FullMethodName, func(func()) error {
		s, err := c.Sessions.ExportSession(ctx, req)
		if err != nil {
			return err
		}
		m, err := s.Recv()
		if err != nil {
			return err
		}
		if m.GetOpen() == nil {
			return &stop{fault.New(fault.Internal, "export: the server did not say what it sends")}
		}
		e.open, e.part, e.stream = m.GetOpen(), m.GetChunks(), s
		return nil
	})
	if err != nil {
		cancel()
		return nil, err
	}
	return e, nil
}

// Open says which session and which checkpoint it is, and how many chunks come.
func (e *Export) Open() *apiv1.ExportSessionResponse_Open { return e.open }

// Close ends the export, wherever it is.
func (e *Export) Close() { e.cancel() }

// Next returns the next chunk: the one that names the manifest, the manifest's other parts, then those that it names. The frame is the
// caller's, who verifies it. It returns io.EOF when all have come.
func (e *Export) Next() (id chunk.ID, frame []byte, err error) {
	if e.err != nil {
		return id, nil, e.err
	}
	if id, frame, err = e.next(); err != nil {
		e.err = err
	}
	return id, frame, err
}

func (e *Export) next() (id chunk.ID, frame []byte, err error) {
	for len(e.part) == 0 {
		m, err := e.stream.Recv()
		if errors.Is(err, io.EOF) {
			if e.got != e.open.GetChunks() {
				return id, nil, fault.New(fault.Unavailable, "export: it ended after %d of %d chunks; export again", e.got, e.open.GetChunks())
			}
			return id, nil, io.EOF
		}
		if err != nil {
			return id, nil, fmt.Errorf("export: it broke off after %d of %d chunks: %w", e.got, e.open.GetChunks(), err)
		}
		e.part = m.GetChunks()
	}
	c := e.part[0]
	e.part = e.part[1:]
	if e.got++; e.got > e.open.GetChunks() {
		return id, nil, fault.New(fault.Internal, "export: more than the %d chunks that were announced", e.open.GetChunks())
	}
	if id, err = chunk.FromBytes(c.GetId()); err != nil {
		return id, nil, fault.New(fault.Internal, "export: %w", err)
	}
	return id, c.GetFrame(), nil
}
