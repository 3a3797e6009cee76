// Where turns begin and end, read from the log alone.

package process

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/outputlog"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// resultLineBytesMax bounds a line that may hold a JSON result; a longer one ends its turn truncated.
const resultLineBytesMax = 1 << 20

// turns follows a log and finds the ends of turns. It is for one goroutine.
type turns struct {
	protocol string
	epoch    uint32
	reader   *outputlog.Reader
	// given are the messages that the shim remembers, for those whose markers are no longer kept.
	given []shim.GivenInput
	// remembered asks the shim again, which knows of later messages too; nil, and an empty answer, leave given as it is.
	remembered func() []shim.GivenInput
	seen       map[uint64]bool

	open      uint64 // the message whose turn is under way
	result    []byte
	truncated bool
	line      uint64 // the last line read
	time      int64  // of the last record, Unix nanoseconds
	ended     []driver.Turn
}

func newTurns(s *driver.Start, from uint64, given []shim.GivenInput) (*turns, error) {
	r, err := outputlog.NewReader(LogDir(s.Dir), from)
	if err != nil {
		return nil, err
	}
	return &turns{protocol: s.Spec.Protocol, epoch: s.Epoch, reader: r, given: given, seen: make(map[uint64]bool)}, nil
}

// read goes on to the end of what is logged; the turns that ended are in t.ended. more says whether anything was new.
func (t *turns) read() (more bool, err error) {
	for {
		rec, err := t.reader.Next()
		if errors.Is(err, io.EOF) {
			return more, nil
		}
		if err != nil {
			return more, err
		}
		more = true
		t.step(&rec)
	}
}

// step takes one record.
func (t *turns) step(r *outputlog.Record) {
	if r.Kind == outputlog.Hole {
		t.hole(r)
		return
	}
	if r.Epoch != t.epoch {
		return
	}
	t.time = r.Time
	switch {
	case r.Kind == outputlog.Input:
		t.begin(r.Sequence())
	case r.IsLine():
		t.line = r.Number
		t.output(r)
	}
}

func (t *turns) begin(sequence uint64) {
	if t.seen[sequence] {
		return
	}
	if len(t.seen) > 2*shim.InputsMax { // only markers that come twice matter, and those are near each other
		clear(t.seen)
	}
	t.seen[sequence] = true
	if t.open != 0 { // its end was not seen: it was idle, or stood in lines that are no longer kept
		t.end(t.truncated || t.protocol != session.ProtocolRaw)
	}
	t.open, t.result, t.truncated = sequence, nil, false
}

// hole stands for lines that are no longer kept, and for the markers between them.
func (t *turns) hole(r *outputlog.Record) {
	t.truncated = true
	if t.remembered != nil {
		if now := t.remembered(); len(now) > 0 {
			t.given = now
		}
	}
	for _, g := range t.given {
		if g.Line+1 >= r.Number && g.Line <= r.Last {
			t.begin(g.Sequence)
			t.truncated = true
		}
	}
}

func (t *turns) output(r *outputlog.Record) {
	if t.open == 0 {
		return
	}
	switch t.protocol {
	case session.ProtocolLines:
		if r.Kind != outputlog.Stdout {
			return
		}
		t.keep(r.Data, session.MaxResultBytes)
		if !r.Partial {
			t.end(t.truncated)
		}
	case session.ProtocolJSON:
		if r.Kind != outputlog.Stdout {
			return
		}
		t.keep(r.Data, resultLineBytesMax)
		if !r.Partial {
			t.jsonLine()
		}
	case session.ProtocolRaw:
		t.keep(r.Data, session.MaxResultBytes)
		if !r.Partial {
			t.keep([]byte{'\n'}, session.MaxResultBytes)
		}
	}
}

func (t *turns) keep(b []byte, limit int) {
	room := limit - len(t.result)
	if len(b) > room {
		b, t.truncated = b[:room], true
	}
	t.result = append(t.result, b...)
}

// jsonLine ends the turn when the whole line in t.result is its result.
func (t *turns) jsonLine() {
	line, cut := t.result, t.truncated
	t.result, t.truncated = nil, false
	if !bytes.Contains(line, []byte(`"result"`)) {
		return
	}
	var m struct {
		Type string          `json:"type"`
		ID   string          `json:"id"`
		Text json.RawMessage `json:"text"`
	}
	if err := json.Unmarshal(line, &m); err != nil {
		if !cut || !cutResult(line, t.open) {
			return
		}
		t.keep(line, session.MaxResultBytes)
		t.end(true)
		return
	}
	if m.Type != "result" || m.ID != messageID(t.open) {
		return
	}
	var text string
	if len(m.Text) > 0 && json.Unmarshal(m.Text, &text) != nil {
		text = string(m.Text)
	}
	t.keep([]byte(text), session.MaxResultBytes)
	t.end(t.truncated)
}

// cutResult reports whether the head of a JSON object that is too long to be read whole says that it is the result of
// the message; its type and id must come before the long text.
func cutResult(head []byte, sequence uint64) bool {
	d := json.NewDecoder(bytes.NewReader(head))
	var key, typ, id string
	for depth := 0; ; {
		tok, err := d.Token()
		if err != nil {
			return typ == "result" && id == messageID(sequence)
		}
		switch v := tok.(type) {
		case json.Delim:
			if v == '{' || v == '[' {
				depth++
			} else {
				depth--
			}
			key = ""
		case string:
			switch {
			case depth != 1:
			case key == "":
				key = v
				continue
			case key == "type":
				typ = v
			case key == "id":
				id = v
			}
			key = ""
		default:
			key = ""
		}
	}
}

func (t *turns) end(truncated bool) {
	t.ended = append(t.ended, driver.Turn{Sequence: t.open, Result: t.result, Truncated: truncated, OutputLine: t.line})
	if n := len(t.ended) - turnsMax; n > 0 { // of an adopted log; live ones are taken away one by one
		t.ended = t.ended[n:]
	}
	t.open, t.result, t.truncated = 0, nil, false
}

// take returns the turns that ended since the last call.
func (t *turns) take() []driver.Turn {
	e := t.ended
	t.ended = nil
	return e
}

func messageID(sequence uint64) string { return "m-" + strconv.FormatUint(sequence, 10) }

// encodeMessage says what is written to the process for a message, or why it can never be.
func encodeMessage(protocol string, in *driver.Input) (b []byte, refused string) {
	switch protocol {
	case session.ProtocolLines:
		if bytes.ContainsAny(in.Text, "\n\r") {
			return nil, "it holds a line break, and the session's protocol is lines"
		}
		return append(append(make([]byte, 0, len(in.Text)+1), in.Text...), '\n'), ""
	case session.ProtocolJSON:
		b, err := json.Marshal(struct {
			ID       string `json:"id"`
			Sequence uint64 `json:"sequence"`
			Priority string `json:"priority"`
			Text     string `json:"text"`
		}{messageID(in.Sequence), in.Sequence, in.Priority.String(), string(in.Text)})
		if err != nil {
			return nil, "it cannot be written as JSON: " + err.Error()
		}
		return append(b, '\n'), ""
	case session.ProtocolRaw:
		return in.Text, ""
	default:
		return nil, fmt.Sprintf("the session's protocol is %s: it takes no messages", protocol)
	}
}

// kind gives a shim's refusal the kind that callers decide on.
func kind(err error) error {
	var e *shim.Error
	if !errors.As(err, &e) {
		return fault.New(fault.Unavailable, "process: %w", err)
	}
	k := map[shim.ErrorCode]fault.Kind{
		shim.CodeFull: fault.Exhausted, shim.CodeEnded: fault.FailedPrecondition, shim.CodeBrokenPipe: fault.FailedPrecondition,
		shim.CodeStartFailed: fault.FailedPrecondition, shim.CodeLog: fault.Unavailable, shim.CodeLapsed: fault.Aborted,
		shim.CodeInvalid: fault.Invalid, shim.CodeUnsupported: fault.Unimplemented,
	}[e.Code]
	return fault.New(k, "process: %w", err)
}
