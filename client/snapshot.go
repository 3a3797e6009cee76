// The cluster's state as a file: save it, put it back.

package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// SnapshotPieceBytes is how much of a snapshot goes into one message.
const SnapshotPieceBytes = 256 << 10

// SaveSnapshot writes a snapshot of the cluster's state to w and returns its size in bytes. Until the first byte it is
// repeated like any read; what was written before a later failure is no snapshot.
func (c *Client) SaveSnapshot(ctx context.Context, w io.Writer) (written int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err = c.resume(ctx, apiv1.ClusterService_SaveSnapshot_FullMethodName, func(func()) error {
		s, err := c.Cluster.SaveSnapshot(ctx, &apiv1.SaveSnapshotRequest{})
		if err != nil {
			return err
		}
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil && written > 0 {
				return &stop{fmt.Errorf("the snapshot was interrupted after %d bytes: %w", written, err)}
			}
			if err != nil {
				return err
			}
			n, err := w.Write(m.GetData())
			written += int64(n)
			if err != nil {
				return &stop{fmt.Errorf("write the snapshot: %w", err)}
			}
		}
	})
	return written, err
}

// RestoreSnapshot replaces the state of the whole cluster by the snapshot that r holds. It is never repeated.
func (c *Client) RestoreSnapshot(ctx context.Context, r io.Reader) (*apiv1.RestoreSnapshotResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.Cluster.RestoreSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, SnapshotPieceBytes)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if err := s.Send(&apiv1.RestoreSnapshotRequest{Data: buf[:n]}); err != nil {
				if errors.Is(err, io.EOF) {
					break // the server has answered already; the answer says why
				}
				return nil, err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the snapshot: %w", err)
		}
	}
	return s.CloseAndRecv()
}
