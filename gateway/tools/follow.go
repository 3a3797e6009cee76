// Following what a session writes while a call waits for it.

package tools

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// catchUpTime is how long lines that belong to an answer are waited for once it is there.
const catchUpTime = 2 * time.Second

// lines follows a session's output and hands its lines on.
type lines struct {
	api    api
	of     target
	chunk  func(ctx context.Context, text string) error
	next   atomic.Uint64 // the first line that was not handed on
	news   chan struct{} // holds one when there is a new line
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// follow begins behind the last line that the cluster knows. end must be called.
func follow(ctx context.Context, api api, of target, chunk func(ctx context.Context, text string) error) (*lines, error) {
	r, err := api.sessions.GetSession(ctx, &apiv1.GetSessionRequest{Namespace: of.Namespace, Id: of.ID})
	if err != nil {
		return nil, err
	}
	l := &lines{api: api, of: of, chunk: chunk, news: make(chan struct{}, 1)}
	l.of.ID = r.GetSession().GetId()
	l.next.Store(r.GetSession().GetOutputLine() + 1)
	ctx, l.cancel = context.WithCancel(ctx)
	l.work.Go(func() { l.run(ctx) })
	return l, nil
}

// run reads until ctx ends; a stream that breaks, as when the session moves, is opened again where it broke.
func (l *lines) run(ctx context.Context) {
	for pause := againFirst; ctx.Err() == nil; pause = min(2*pause, againMax) {
		l.read(ctx)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

func (l *lines) read(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := l.api.sessions.ReadLogs(ctx, &apiv1.ReadLogsRequest{Namespace: l.of.Namespace, SessionId: l.of.ID, FromLine: l.next.Load(), Follow: true})
	for err == nil {
		var r *apiv1.ReadLogsResponse
		if r, err = s.Recv(); err != nil {
			return
		}
		for _, line := range r.GetLines() {
			if line.GetNumber() < l.next.Load() {
				continue // a notice, which has no number, or one that was handed on
			}
			if line.GetStream() == apiv1.LogLine_STDOUT && l.hand(ctx, line) != nil {
				cancel() // nobody takes it; the stream is read to its end
				continue
			}
			l.next.Store(line.GetNumber() + 1)
			select {
			case l.news <- struct{}{}:
			default:
			}
		}
	}
}

func (l *lines) hand(ctx context.Context, line *apiv1.LogLine) error {
	text := strings.ToValidUTF8(string(line.GetText()), "\ufffd")
	if !line.GetPartial() {
		text += "\n"
	}
	return l.chunk(ctx, text)
}

// end waits for the lines that were written before now, as far as the cluster knows them, and ends the following.
func (l *lines) end(ctx context.Context) {
	defer l.work.Wait()
	defer l.cancel()
	ctx, cancel := context.WithTimeout(ctx, catchUpTime)
	defer cancel()
	r, err := l.api.sessions.GetSession(ctx, &apiv1.GetSessionRequest{Namespace: l.of.Namespace, Id: l.of.ID})
	if err != nil {
		return
	}
	for l.next.Load() <= r.GetSession().GetOutputLine() {
		select {
		case <-l.news:
		case <-ctx.Done():
			return
		}
	}
}
