// How far a transfer is: a bar on a terminal, lines elsewhere, nothing with --quiet.

package main

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// transfer counts bytes on their way. Its methods may be called by several goroutines.
type transfer struct {
	text  string
	total int64 // -1 when it is not known
	bytes atomic.Int64

	mu    sync.Mutex
	out   io.Writer // the bar
	lines *progress // where there is no terminal
	said  time.Time
	began time.Time
	every time.Duration
	end   func()
}

// transfer begins to show how many of so many bytes are there; done ends it.
func (a *app) transfer(text string, total int64) *transfer {
	t := &transfer{text: text, total: total, began: time.Now(), every: a.patience}
	if isTerminal(a.stderr) {
		t.out, t.end = a.bar(text, total)
		return t
	}
	t.lines = a.newProgress(text, true)
	t.out, t.end = io.Discard, t.lines.stop
	return t
}

// Write counts bytes that went through it.
func (t *transfer) Write(p []byte) (int, error) {
	t.add(int64(len(p)))
	return len(p), nil
}

// add counts bytes.
func (t *transfer) add(n int64) {
	bytes := t.bytes.Add(n)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lines == nil {
		if b, ok := t.out.(interface{ Add64(n int64) error }); ok {
			_ = b.Add64(n) // decoration
		}
		return
	}
	if time.Since(t.said) < t.every {
		return
	}
	t.said = time.Now()
	t.lines.say(t.line(bytes))
}

// at says how far it is where the whole amount is told, too.
func (t *transfer) at(bytes, total int64) {
	t.mu.Lock()
	if total > t.total {
		t.total = total
		if b, ok := t.out.(interface{ ChangeMax64(total int64) }); ok {
			b.ChangeMax64(total)
		}
	}
	t.mu.Unlock()
	if more := bytes - t.bytes.Load(); more > 0 {
		t.add(more)
	}
}

func (t *transfer) line(bytes int64) string {
	line := fmt.Sprintf("%s: %s", t.text, bytesText(bytes))
	seconds := time.Since(t.began).Seconds()
	if t.total > 0 {
		line += fmt.Sprintf(" of %s", bytesText(t.total))
	}
	if seconds >= rateAfter.Seconds() && bytes > 0 {
		line += fmt.Sprintf(", %s/s", bytesText(int64(float64(bytes)/seconds)))
		if t.total > bytes {
			line += ", " + secondsText(time.Duration(seconds*float64(t.total-bytes)/float64(bytes)*float64(time.Second))) + " left"
		}
	}
	return line
}

// done ends it. It may be called again.
func (t *transfer) done() { t.end() }
