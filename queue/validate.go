// What a call may be: the bounds of its parts.

package queue

import (
	"strings"
	"unicode/utf8"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// The bounds of a call's parts.
const (
	MaxKeyBytes   = 256  // of each part of a key, and of an order key
	MaxNameBytes  = 256  // of a tool's name, a server's id, and each part of a caller
	maxBlobChunks = 4096 // of arguments or outputs
	MaxTextBytes  = 4096 // of an outcome's message; what is longer is cut
)

// Validate says what is wrong with a call that is to be taken.
func (c *Call) Validate(now int64) error {
	if err := c.Key.Validate(); err != nil {
		return err
	}
	for _, p := range []struct {
		field, text string
		may         bool // be empty
	}{
		{"tool", c.Tool, false}, {"server_id", c.Server, false}, {"caller.token_id", c.Caller.TokenID, true}, {"caller.name", c.Caller.Name, true},
		{"caller.role", c.Caller.Role, true}, {"caller.namespace", c.Caller.Namespace, true}, {"order_key", c.OrderKey, true},
	} {
		if err := checkText(p.field, p.text, MaxNameBytes, p.may); err != nil {
			return err
		}
	}
	switch {
	case c.Priority < session.Critical || c.Priority > session.Low:
		return fault.New(fault.Invalid, "call: %d is not a priority; use critical, high, normal or low", c.Priority).WithField("priority")
	case c.Deadline <= 0:
		return fault.New(fault.Invalid, "call: it has no deadline").WithField("deadline")
	case c.Deadline <= now:
		return fault.New(fault.Timeout, "call: its deadline has passed; it was not accepted")
	}
	return c.Arguments.Validate("arguments")
}

// Validate says what is wrong with a key.
func (k Key) Validate() error {
	if err := k.Client().Validate(); err != nil {
		return err
	}
	return checkText("key.request_id", k.RequestID, MaxKeyBytes, false)
}

// Validate says what is wrong with the name of a client's session.
func (k ClientKey) Validate() error {
	if err := checkText("key.owner", k.Owner, MaxKeyBytes, false); err != nil {
		return err
	}
	return checkText("key.session", k.Session, MaxKeyBytes, false)
}

// Validate says what is wrong with bytes: they are inline or in chunks, and few enough for either.
func (b *Blob) Validate(field string) error {
	switch {
	case len(b.Inline) > InlineBytes:
		return fault.New(fault.Invalid, "call: %s has %d bytes inline, more than %d; store them as chunks", field, len(b.Inline), InlineBytes).WithField(field)
	case len(b.Chunks) > maxBlobChunks:
		return fault.New(fault.Invalid, "call: %s has %d chunks, more than %d", field, len(b.Chunks), maxBlobChunks).WithField(field)
	case len(b.Chunks) > 0 && len(b.Inline) > 0:
		return fault.New(fault.Invalid, "call: %s has bytes both inline and in chunks", field).WithField(field)
	case len(b.Chunks) == 0 && b.Size != uint64(len(b.Inline)):
		return fault.New(fault.Invalid, "call: %s has %d bytes and says %d", field, len(b.Inline), b.Size).WithField(field)
	}
	return nil
}

// StateBytes is how many bytes of the call the replicated state holds that differ from call to call in their number.
func (c *Call) StateBytes() uint64 {
	n := c.Arguments.stateBytes() + len(c.LastError)
	if c.Outcome != nil {
		n += c.Outcome.Outputs.stateBytes() + len(c.Outcome.Message)
	}
	return uint64(n)
}

func (b *Blob) stateBytes() int { return len(b.Inline) + len(b.Chunks)*len([32]byte{}) }

func checkText(field, text string, maxBytes int, mayBeEmpty bool) error {
	if text == "" && mayBeEmpty {
		return nil
	}
	if text == "" || len(text) > maxBytes || strings.IndexByte(text, 0) >= 0 || !utf8.ValidString(text) {
		return fault.New(fault.Invalid, "call: %s is empty, over %d bytes, holds a NUL or is not UTF-8", field, maxBytes).WithField(field)
	}
	return nil
}
