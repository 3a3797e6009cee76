// Playing one step of a script.

package fakeprovider

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// play is one call being answered.
type play struct {
	Step
	w    http.ResponseWriter
	r    *http.Request
	d    dialect
	call Call
	left bool // the client went away
}

func (p *play) run() {
	if p.Delay > 0 && !p.wait(p.Delay) {
		return
	}
	if p.Hang {
		p.hang()
		return
	}
	if p.DropConnection {
		panic(http.ErrAbortHandler)
	}
	for k, v := range p.Header {
		p.w.Header().Set(k, v)
	}
	if p.RetryAfter != "" {
		p.w.Header().Set("Retry-After", p.RetryAfter)
	}
	switch {
	case p.Status != 0 && p.Status != http.StatusOK:
		p.json(p.Status, p.d.failure(or(p.ErrorType, "scripted_error"), or(p.ErrorText, fmt.Sprintf("the script says %d", p.Status))))
	case p.Garbage && p.call.Stream:
		p.w.Header().Set("Content-Type", "text/event-stream")
		p.text("data: {\"choices\": [{\"delta\": 7\n\nevent: \x00\ndata: ]]]\n\n")
	case p.Garbage:
		p.text("<html><body>It works!</body></html>")
	case p.call.Stream:
		p.stream()
	default:
		p.whole()
	}
}

// wait waits; false when the client went away meanwhile.
func (p *play) wait(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-p.r.Context().Done():
		p.left = true
		return false
	}
}

// hang waits until the client goes away.
func (p *play) hang() {
	<-p.r.Context().Done()
	p.left = true
}

func (p *play) answer() answer {
	a := answer{text: p.Text, reasoning: p.Reasoning, stop: p.StopReason, model: p.call.Model, noUsage: p.NoUsage}
	if a.text == "" {
		a.text = "echo: " + p.d.last(p.call.Body)
	}
	a.in, a.out = p.InputTokens, p.OutputTokens
	if a.in == 0 {
		a.in = len(strings.Fields(p.d.last(p.call.Body)))
	}
	if a.out == 0 {
		a.out = len(strings.Fields(a.text))
	}
	return a
}

func (p *play) whole() {
	body := p.d.whole(p.answer())
	switch {
	case p.Cut:
		text, _ := json.Marshal(body) // of maps and strings: it cannot fail
		p.w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		p.text(string(text[:len(text)/2]))
		panic(http.ErrAbortHandler)
	case p.Stall:
		p.w.Header().Set("Content-Length", "1000")
		p.text("{")
		p.hang()
	default:
		p.json(http.StatusOK, body)
	}
}

func (p *play) stream() {
	p.w.Header().Set("Content-Type", "text/event-stream")
	events := p.d.events(p.answer())
	pieces := 0
	for _, e := range events {
		if e.piece {
			if p.Cut && pieces == p.CutAfter {
				panic(http.ErrAbortHandler)
			}
			if p.Stall && pieces == p.StallAfter {
				p.hang()
				return
			}
			if p.StreamError != "" && pieces == p.CutAfter {
				p.event(p.d.streamFailure(p.StreamError))
				return
			}
			if pieces++; p.Pause > 0 && !p.wait(p.Pause) {
				return
			}
		}
		if !p.event(e) {
			return
		}
	}
}

// event sends one event; false when the client is gone.
func (p *play) event(e event) bool {
	if p.r.Context().Err() != nil {
		p.left = true
		return false
	}
	text := ""
	if e.name != "" {
		text = "event: " + e.name + "\n"
	}
	data, ok := e.data.(string)
	if !ok {
		b, _ := json.Marshal(e.data) // of maps and strings: it cannot fail
		data = string(b)
	}
	return p.text(text + "data: " + data + "\n\n")
}

// text writes and flushes.
func (p *play) text(s string) bool {
	_, err := io.WriteString(p.w, s)
	if f, ok := p.w.(http.Flusher); ok {
		f.Flush()
	}
	if err != nil {
		p.left = true
	}
	return err == nil
}

func (p *play) json(status int, body any) {
	p.w.Header().Set("Content-Type", "application/json")
	p.w.WriteHeader(status)
	_ = json.NewEncoder(p.w).Encode(body) // the client may be gone
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
