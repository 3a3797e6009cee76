// Importer: many goroutines' chunks on one stream, in steps, several steps under way at once.
//
//	Missing, Put, Commit ──► queue ──► owner ──► step ──► stream ──► server
//	        ▲                            │ ▲                           │
//	        └────────── result ──────────┘ └──── answers, in order ────┘
//
// One goroutine owns the stream and everything that waits. When a stream breaks, the steps that were not answered go out again on the
// next one: questions and chunks may be repeated freely, and a commit has its key.

package client

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// The bounds of an Importer.
const (
	// ImportStepBytes is how much of small frames goes into one step, and ImportStepIDs how many ids into one question.
	ImportStepBytes = 1 << 20
	ImportStepIDs   = 16384
	// ImportStepsInFlight is how many steps are on their way at once.
	ImportStepsInFlight = 4
	importQueueItems    = 64
)

// Importer brings chunks into the cluster, and makes a session of them. It is a serializer.Sink; its methods may be used by many goroutines.
// After an error that no repetition can help, such as a chunk that was refused, every call returns that error.
type Importer struct {
	c      *Client
	queue  chan *importItem
	ctx    context.Context // ends with Close, or with what Import was given
	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed chan struct{} // closed when err is set
	err    error
}

// importItem is one question, one chunk, or the commit.
type importItem struct {
	ctx    context.Context
	ids    []chunk.ID // asked about
	id     chunk.ID
	frame  []byte // to be put
	commit *apiv1.ImportSessionRequest_Commit
	result chan importResult // of one
}

type importResult struct {
	missing []chunk.ID
	session *apiv1.Session
}

// Import starts an import; Close ends it. It connects with the first call.
func (c *Client) Import(ctx context.Context) (*Importer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	im := &Importer{c: c, queue: make(chan *importItem, importQueueItems), failed: make(chan struct{})}
	im.ctx, im.cancel = context.WithCancel(ctx)
	im.wg.Go(func() { (&importLoop{im: im}).run() })
	return im, nil
}

// Close ends the import. Chunks that no session was made of are collected after a while.
func (im *Importer) Close() error {
	im.cancel()
	im.wg.Wait()
	return nil
}

// Missing returns those of ids that the cluster does not have. The others stay for hours.
func (im *Importer) Missing(ctx context.Context, ids []chunk.ID) (missing []chunk.ID, err error) {
	for len(ids) > 0 {
		some := ids[:min(len(ids), ImportStepIDs)]
		ids = ids[len(some):]
		r, err := im.do(ctx, &importItem{ids: some})
		if err != nil {
			return nil, err
		}
		missing = append(missing, r.missing...)
	}
	return missing, nil
}

// Put stores a chunk, which is durable when it returns.
func (im *Importer) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	// The caller may leave, and use the frame again, while it is still on its way.
	_, err := im.do(ctx, &importItem{id: id, frame: bytes.Clone(frame)})
	return err
}

// Commit makes the session, once all its chunks are stored. It is repeated under one key, c's or a new one, until ctx ends, or for the
// client's Timeout. c is not changed.
func (im *Importer) Commit(ctx context.Context, c *apiv1.ImportSessionRequest_Commit) (*apiv1.Session, error) {
	if c.GetIdempotencyKey() == "" {
		c = proto.CloneOf(c)
		c.IdempotencyKey = NewKey()
	}
	r, err := im.do(ctx, &importItem{commit: c})
	return r.session, err
}

// do hands an item to the owner and waits for its result.
func (im *Importer) do(ctx context.Context, it *importItem) (importResult, error) {
	it.ctx, it.result = ctx, make(chan importResult, 1)
	select {
	case im.queue <- it:
	case <-im.failed:
		return importResult{}, im.err
	case <-ctx.Done():
		return importResult{}, ctx.Err()
	case <-im.ctx.Done():
		return importResult{}, im.closed()
	}
	select {
	case r := <-it.result:
		return r, nil
	case <-im.failed:
		return importResult{}, im.err
	case <-ctx.Done():
		return importResult{}, ctx.Err()
	case <-im.ctx.Done():
		return importResult{}, im.closed()
	}
}

func (im *Importer) closed() error {
	return fault.New(fault.Aborted, "the import was ended: %w", im.ctx.Err())
}

// importLoop is the state of the owning goroutine.
type importLoop struct {
	im       *Importer
	stream   *importStream   // nil while there is none
	inFlight [][]*importItem // the items of each step that is not answered, oldest first
	pending  []*importItem   // to be sent, oldest first
	retry    *retrier
	notUntil time.Time // no new stream before
}

type (
	importStream = exchange[apiv1.ImportSessionRequest, apiv1.ImportSessionResponse]
	importAnswer = exchangeAnswer[apiv1.ImportSessionResponse]
)

func (l *importLoop) run() {
	defer l.closeStream()
	l.retry = l.im.c.newRetrier(apiv1.SessionService_ImportSession_FullMethodName)
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		if err := l.send(); err != nil {
			l.im.err = err
			close(l.im.failed)
			return
		}
		wait := time.Hour
		if len(l.pending) > 0 && len(l.inFlight) < ImportStepsInFlight {
			wait = max(time.Until(l.notUntil), time.Millisecond)
		}
		tick.Reset(wait)
		var answers chan importAnswer
		if l.stream != nil {
			answers = l.stream.answers
		}
		var err error
		select {
		case it := <-l.queue():
			l.pending = gather(append(l.pending, it), l.im.queue, importQueueItems)
		case a := <-answers:
			err = l.answered(a)
		case <-tick.C:
		case <-l.im.ctx.Done():
			return
		}
		if err != nil {
			l.im.err = err
			close(l.im.failed)
			return
		}
	}
}

// queue is where items come from; nil while enough of them wait.
func (l *importLoop) queue() chan *importItem {
	if len(l.pending) >= importQueueItems {
		return nil
	}
	return l.im.queue
}

// send sends as many steps as may be under way. Its error ends the import.
func (l *importLoop) send() error {
	for len(l.pending) > 0 && len(l.inFlight) < ImportStepsInFlight && !time.Now().Before(l.notUntil) {
		items := l.cut()
		if len(items) == 0 {
			continue
		}
		l.inFlight = append(l.inFlight, items)
		if l.stream == nil {
			if err := l.open(); err != nil {
				return l.broken(err)
			}
		}
		// An error here comes again, with its reason, from the receiver.
		if err := l.stream.Send(stepOf(items)); err != nil {
			return nil
		}
	}
	return nil
}

// cut takes the items of the next step off the pending ones: those like the first one, as many as fit, without those whose callers
// have left. Others keep their order.
func (l *importLoop) cut() (items []*importItem) {
	var rest []*importItem
	bytes, ids := 0, 0
	for _, it := range l.pending {
		if it.ctx.Err() != nil {
			continue
		}
		if len(items) > 0 {
			first := items[0]
			if it.commit != nil || first.commit != nil || (it.ids != nil) != (first.ids != nil) || bytes+len(it.frame) > ImportStepBytes || ids+len(it.ids) > ImportStepIDs {
				rest = append(rest, it)
				continue
			}
		}
		items, bytes, ids = append(items, it), bytes+len(it.frame), ids+len(it.ids)
	}
	l.pending = rest
	return items
}

// stepOf is the message of a step.
func stepOf(items []*importItem) *apiv1.ImportSessionRequest {
	switch first := items[0]; {
	case first.commit != nil:
		return &apiv1.ImportSessionRequest{Step: &apiv1.ImportSessionRequest_Commit_{Commit: first.commit}}
	case first.ids != nil:
		m := &apiv1.ImportSessionRequest_Missing{}
		for _, it := range items {
			for i := range it.ids {
				m.Ids = append(m.Ids, it.ids[i][:])
			}
		}
		return &apiv1.ImportSessionRequest{Step: &apiv1.ImportSessionRequest_Missing_{Missing: m}}
	default:
		p := &apiv1.ImportSessionRequest_Put{}
		for _, it := range items {
			p.Chunks = append(p.Chunks, &apiv1.ChunkFrame{Id: it.id[:], Frame: it.frame})
		}
		return &apiv1.ImportSessionRequest{Step: &apiv1.ImportSessionRequest_Put_{Put: p}}
	}
}

// open opens a stream.
func (l *importLoop) open() (err error) {
	l.stream, err = openExchange(l.im.ctx, l.im.c.Sessions.ImportSession, ImportStepsInFlight)
	return err
}

func (l *importLoop) closeStream() {
	l.stream.close()
	l.stream = nil
}

// answered settles the oldest step. Its error ends the import.
func (l *importLoop) answered(a importAnswer) error {
	if a.err != nil {
		return l.broken(a.err)
	}
	if len(l.inFlight) == 0 || !fits(a.resp, l.inFlight[0][0]) {
		return l.broken(fault.New(fault.Unavailable, "the server's answer does not fit what it was asked"))
	}
	items := l.inFlight[0]
	l.inFlight = l.inFlight[1:]
	l.retry.progress()
	lacks := make(map[chunk.ID]bool, len(a.resp.GetMissing().GetIds()))
	for _, raw := range a.resp.GetMissing().GetIds() {
		if id, err := chunk.FromBytes(raw); err == nil {
			lacks[id] = true
		}
	}
	for _, it := range items {
		r := importResult{session: a.resp.GetSession()}
		for _, id := range it.ids {
			if lacks[id] {
				r.missing = append(r.missing, id)
			}
		}
		it.result <- r
	}
	return nil
}

// fits reports whether an answer is one to a step.
func fits(resp *apiv1.ImportSessionResponse, first *importItem) bool {
	switch {
	case first.commit != nil:
		return resp.GetSession() != nil
	case first.ids != nil:
		return resp.GetMissing() != nil
	default:
		return resp.GetStored() != nil
	}
}

// broken ends the stream. What was not answered is sent again after a while; the error when that cannot help.
func (l *importLoop) broken(err error) error {
	l.closeStream()
	var items []*importItem
	for _, step := range l.inFlight {
		items = append(items, step...)
	}
	l.inFlight, l.pending = nil, append(items, l.pending...)
	if errors.Is(err, context.Canceled) || l.im.ctx.Err() != nil {
		return err
	}
	if len(l.pending) == 0 {
		return nil // the server had waited long enough for more; there will be another stream when there is more
	}
	if fault.As(err) == nil { // also an end of the stream that the server gave no reason for
		err = fault.New(fault.Unavailable, "the import broke off: %w", err)
	}
	wait, err := l.retry.next(l.im.ctx, err)
	if err != nil {
		return err
	}
	l.retry.last = time.Now().Add(wait)
	l.notUntil = l.retry.last
	return nil
}
