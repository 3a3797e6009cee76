// Server streams that go on after an interruption: each is opened again from where it stopped, so that its reader sees
// neither a hole nor a double.

package client

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// stop carries an error of the reader through the loop that would otherwise repeat.
type stop struct{ err error }

func (s *stop) Error() string { return s.err.Error() }

// resume runs open until it returns nil, an error that no repetition can help, or a *stop; progress is for open to call
// whenever something arrived.
func (c *Client) resume(ctx context.Context, method string, open func(progress func()) error) error {
	r := c.newRetrier(method)
	for {
		err := open(r.progress)
		if err == nil {
			return nil
		}
		var s *stop
		if errors.As(err, &s) {
			return s.err
		}
		if err = r.pause(ctx, err); err != nil {
			return err
		}
	}
}

// Logs reads a session's output and calls emit with each line, in order. With follow it goes on until the session has
// ended and all is read, or ctx ends. After an interruption it reads on from the line after the last one. A line is
// emitted twice only when the session itself produced it twice: numbers may go back in a later epoch, and then a notice
// says what was withdrawn. emit's error ends it and is returned.
func (c *Client) Logs(ctx context.Context, req *apiv1.ReadLogsRequest, emit func(*apiv1.LogLine) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req = proto.CloneOf(req)
	opened, since := time.Now(), req.GetSince().AsDuration()
	var last uint64
	var epoch uint32
	return c.resume(ctx, apiv1.SessionService_ReadLogs_FullMethodName, func(progress func()) error {
		switch {
		case last > 0:
			req.FromLine, req.Since = last+1, nil
		case since > 0: // the span was meant from the first opening
			req.Since = durationpb.New(since + time.Since(opened))
		}
		s, err := c.Sessions.ReadLogs(ctx, req)
		if err != nil {
			return err
		}
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			progress()
			for _, l := range m.GetLines() {
				if n := l.GetNumber(); n > 0 {
					if n <= last && l.GetEpoch() <= epoch {
						continue
					}
					last, epoch = n, l.GetEpoch()
				}
				if err := emit(l); err != nil {
					return &stop{err}
				}
			}
		}
	})
}

// WatchSessions calls emit with every session that matches, then once with synced set, then with each change, until ctx
// ends. After an interruption only what has changed meanwhile is emitted, sessions that went away as removed. emit's
// error ends it and is returned. It holds 16 bytes and the id for each session that matches.
func (c *Client) WatchSessions(ctx context.Context, req *apiv1.WatchSessionsRequest, emit func(*apiv1.WatchSessionsResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	known := sessionSums{sums: map[string]uint64{}}
	synced := false
	return c.resume(ctx, apiv1.SessionService_WatchSessions_FullMethodName, func(progress func()) error {
		s, err := c.Sessions.WatchSessions(ctx, req)
		if err != nil {
			return err
		}
		seen := map[string]bool{} // in this opening; nil once it is synced
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return fault.New(fault.Unavailable, "the server ended the watch")
			}
			if err != nil {
				return err
			}
			progress()
			id := m.GetSession().GetId()
			switch {
			case m.GetSynced():
				for _, gone := range known.missing(seen) {
					r := &apiv1.WatchSessionsResponse{Session: &apiv1.Session{Id: gone}, Removed: true}
					if err := emit(r); err != nil {
						return &stop{err}
					}
				}
				seen = nil
				if synced {
					continue
				}
				synced = true
			case m.GetRemoved():
				delete(known.sums, id)
			default:
				if seen != nil {
					seen[id] = true
				}
				if !known.changed(id, m.GetSession()) {
					continue
				}
			}
			if err := emit(m); err != nil {
				return &stop{err}
			}
		}
	})
}

// sessionSums remembers what was emitted last of each session, as a checksum.
type sessionSums struct {
	sums map[string]uint64
	buf  []byte
}

// changed reports whether the session differs from what was emitted last, and remembers it.
func (k *sessionSums) changed(id string, s *apiv1.Session) bool {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(k.buf[:0], s)
	if err != nil {
		return true // it came off the wire, so it can be marshalled; emitting it is right in any case
	}
	k.buf = b
	sum := xxhash.Sum64(b)
	if old, ok := k.sums[id]; ok && old == sum {
		return false
	}
	k.sums[id] = sum
	return true
}

// missing forgets the sessions that were not seen, and returns their ids.
func (k *sessionSums) missing(seen map[string]bool) (gone []string) {
	if seen == nil {
		return nil
	}
	for id := range k.sums {
		if !seen[id] {
			gone = append(gone, id)
			delete(k.sums, id)
		}
	}
	return gone
}

// WatchEvents calls emit with each event after req.AfterIndex, or from now on when that is 0, until ctx ends. After an
// interruption it goes on behind the last event; several events may share an index, and none of them is left out or
// emitted twice. emit's error ends it and is returned.
func (c *Client) WatchEvents(ctx context.Context, req *apiv1.WatchEventsRequest, emit func(*apiv1.Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req = proto.CloneOf(req)
	if req.GetAfterIndex() == 0 {
		// "From now on" would mean another now after an interruption. The last event there is makes it a place.
		l, err := c.Events.ListEvents(ctx, &apiv1.ListEventsRequest{Namespace: req.GetNamespace(), Filter: req.GetFilter(), Limit: 1})
		if err != nil {
			return err
		}
		for _, e := range l.GetEvents() {
			req.AfterIndex = e.GetIndex()
		}
	}
	var last uint64 // the index of the last event
	var count int   // how many events of that index were emitted
	return c.resume(ctx, apiv1.EventService_WatchEvents_FullMethodName, func(progress func()) error {
		skip := 0
		if last > 1 {
			req.AfterIndex, skip = last-1, count // the server may have been cut off in the middle of an index
		}
		s, err := c.Events.WatchEvents(ctx, req)
		if err != nil {
			return err
		}
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return fault.New(fault.Unavailable, "the server ended the watch")
			}
			if err != nil {
				return err
			}
			progress()
			e := m.GetEvent()
			switch {
			case e.GetIndex() == last && skip > 0:
				skip--
				continue
			case e.GetIndex() == last:
				count++
			default:
				last, count, skip = e.GetIndex(), 1, 0
			}
			if err := emit(e); err != nil {
				return &stop{err}
			}
		}
	})
}
