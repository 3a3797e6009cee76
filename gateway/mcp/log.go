// Logs as resources: the last lines, or those from a number on.

package mcp

import (
	"cmp"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// The bounds of a log in one answer.
const (
	defaultLogLines = 1000
	maxLogLines     = 10_000
	maxLogBytes     = 1 << 20
)

// excerpt is a part of a log: the last lines of what it was given, or the first.
type excerpt struct {
	lines    []*apiv1.LogLine
	bytes    int
	maxLines int
	first    bool // which to keep
	more     bool // lines were left out behind the last one
}

// add takes a line, and reports whether it wants more.
func (x *excerpt) add(l *apiv1.LogLine) bool {
	if x.first && len(x.lines) > 0 && (len(x.lines) >= x.maxLines || x.bytes+len(l.GetText()) >= maxLogBytes) {
		x.more = true
		return false
	}
	x.lines, x.bytes = append(x.lines, l), x.bytes+len(l.GetText())+1
	drop := 0
	for !x.first && drop < len(x.lines)-1 && (len(x.lines)-drop > x.maxLines || x.bytes > maxLogBytes) {
		x.bytes -= len(x.lines[drop].GetText()) + 1
		x.lines[drop] = nil
		drop++
	}
	x.lines = x.lines[drop:]
	return true
}

// text is the excerpt as it is shown. What the cluster says about the log stands in lines of its own.
func (x *excerpt) text() string {
	var b strings.Builder
	for _, l := range x.lines {
		if l.GetStream() == apiv1.LogLine_NOTICE {
			b.WriteString("-- ")
		}
		b.WriteString(strings.ToValidUTF8(string(l.GetText()), "\uFFFD"))
		if !l.GetPartial() {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// numbers are those of the first and the last line, 0 when there are none.
func (x *excerpt) numbers() (first, last uint64) {
	for _, l := range x.lines {
		if n := l.GetNumber(); n > 0 {
			first, last = cmp.Or(first, n), n
		}
	}
	return first, last
}

// readLog reads a part of a log.
func (h *Handler) readLog(ctx context.Context, r *resource) (*sdk.ResourceContents, error) {
	s, err := h.sessions.GetSession(ctx, &apiv1.GetSessionRequest{Namespace: r.namespace, Id: r.id})
	if err != nil {
		return nil, err
	}
	id := s.GetSession().GetId()
	x := &excerpt{maxLines: int(cmp.Or(r.tail, defaultLogLines)), first: r.since > 0}
	from := r.since
	if known := s.GetSession().GetOutputLine(); !x.first && known > uint64(x.maxLines) {
		from = known - uint64(x.maxLines) + 1 // there may be newer ones, which push these out
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines, err := h.sessions.ReadLogs(ctx, &apiv1.ReadLogsRequest{Namespace: r.namespace, SessionId: id, FromLine: from})
	if err != nil {
		return nil, err
	}
	enough := false
	for {
		part, err := lines.Recv()
		if errors.Is(err, io.EOF) || enough && err != nil {
			break
		}
		if err != nil {
			return nil, err
		}
		for _, l := range part.GetLines() {
			if enough = enough || !x.add(l); enough {
				cancel() // the stream is read to its end
				break
			}
		}
	}
	first, last := x.numbers()
	next := max(last+1, r.since)
	meta := sdk.Meta{"session": id, "firstLine": first, "lastLine": last, "more": x.more, "next": r.with(logURI(id), "since", strconv.FormatUint(next, 10))}
	return &sdk.ResourceContents{Text: x.text(), MIMEType: "text/plain", Meta: meta}, nil
}
