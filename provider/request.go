// What is asked of a model, and what comes back.

package provider

import (
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/neolith/orchestrator/internal/fault"
)

// Bounds of a request.
const (
	messagesMax     = 4096
	requestBytesMax = 8 << 20 // of all texts
	stopsMax        = 16
	tenantBytesMax  = 256
	stopBytesMax    = 256
)

// Role says who speaks.
type Role string

// The roles. A system message may stand anywhere; where the dialect has one place for it, all are joined there.
const (
	System    Role = "system"
	User      Role = "user"
	Assistant Role = "assistant"
)

// Message is one message of a conversation.
type Message struct {
	Role Role
	Text string
}

// Request is one call. The conversation is the caller's: a model is told what Messages says, and remembers nothing.
type Request struct {
	Tenant      string // the namespace whose budget it is
	Provider    string // the only provider to ask; empty lets the configuration's order decide
	Model       string // as in the configuration; empty takes each provider's first
	Messages    []Message
	MaxTokens   int      // of the answer; 0 takes the provider's setting
	Temperature *float64 // 0 to 2; nil leaves it to the provider
	TopP        *float64 // above 0, up to 1; nil leaves it to the provider
	Stop        []string // texts at which the answer ends

	// RepeatUnsure lets a call be tried elsewhere also when nobody knows whether it was worked on. It may be paid for twice.
	RepeatUnsure bool

	// PreferProvider is asked first, and PreferModel is what providers that have it are asked for, before those that do not: where
	// Provider and Model leave it open. A conversation goes on like that with whom it was held, and with others where that is gone.
	PreferProvider, PreferModel string
}

// Delta is a piece of an answer.
type Delta struct {
	Text      string
	Reasoning string // what a model thinks before it answers, where it says so
}

// Usage is what a call used.
type Usage struct {
	InputTokens  int
	OutputTokens int
	CachedTokens int  // of InputTokens, those that the provider had kept
	Estimated    bool // the provider did not say; it is reckoned from the length of the texts
}

// Tokens is all of them.
func (u Usage) Tokens() int { return u.InputTokens + u.OutputTokens }

// Why an answer ended. Other words are the provider's own.
const (
	StopEnd    = "stop"   // the model had said all, or came to a stop text
	StopLength = "length" // MaxTokens were reached
	StopFilter = "filter" // the provider withheld the rest
)

// Response is an answer.
type Response struct {
	Provider  string
	Endpoint  string // which of the provider's, such as moonshot/1
	Model     string // as in the configuration
	ID        string // the provider's name for the call
	Text      string
	Reasoning string
	Stop      string
	Usage     Usage
	CostUSD   float64
	Attempts  int // calls that were sent, this one included
	FirstByte time.Duration
	Took      time.Duration
}

// check refuses what no provider could answer.
func (r *Request) check() error {
	bad := func(field, format string, args ...any) error {
		return fault.New(fault.Invalid, "chat: %s: "+format, append([]any{field}, args...)...).WithField(field)
	}
	if r.Tenant == "" {
		return bad("tenant", "is empty; a call belongs to a namespace")
	}
	if len(r.Tenant) > tenantBytesMax {
		return bad("tenant", "is longer than %d bytes", tenantBytesMax)
	}
	if len(r.Messages) == 0 {
		return bad("messages", "is empty; give at least one message")
	}
	if len(r.Messages) > messagesMax {
		return bad("messages", "%d are more than %d; leave out the oldest", len(r.Messages), messagesMax)
	}
	bytes, spoken := 0, false
	for i, m := range r.Messages {
		field := fmt.Sprintf("messages[%d]", i)
		switch {
		case m.Role != System && m.Role != User && m.Role != Assistant:
			return bad(field, "role %.32q is not system, user or assistant", m.Role)
		case m.Text == "":
			return bad(field, "its text is empty")
		case !utf8.ValidString(m.Text):
			return bad(field, "its text is not UTF-8")
		}
		bytes += len(m.Text)
		spoken = spoken || m.Role != System
	}
	switch {
	case bytes > requestBytesMax:
		return bad("messages", "%d bytes are more than %d; leave out the oldest", bytes, requestBytesMax)
	case !spoken:
		return bad("messages", "are of role system only; say something to the model")
	case r.MaxTokens < 0 || r.MaxTokens > maxTokensLimit:
		return bad("max_tokens", "%d is not between 0 and %d", r.MaxTokens, maxTokensLimit)
	case r.Temperature != nil && !(*r.Temperature >= 0 && *r.Temperature <= 2):
		return bad("temperature", "%g is not between 0 and 2", *r.Temperature)
	case r.TopP != nil && !(*r.TopP > 0 && *r.TopP <= 1):
		return bad("top_p", "%g is not above 0 and at most 1", *r.TopP)
	case len(r.Stop) > stopsMax:
		return bad("stop", "%d texts are more than %d", len(r.Stop), stopsMax)
	}
	for i, s := range r.Stop {
		if s == "" || len(s) > stopBytesMax || !utf8.ValidString(s) {
			return bad(fmt.Sprintf("stop[%d]", i), "is empty, not UTF-8, or longer than %d bytes", stopBytesMax)
		}
	}
	return nil
}

// estimateTokens reckons how many tokens the messages are: about four bytes each, and what surrounds a message.
func (r *Request) estimateTokens() int {
	n := 0
	for _, m := range r.Messages {
		n += 4 + tokensOf(m.Text)
	}
	return n
}

// tokensOf reckons the tokens of a text.
func tokensOf(text string) int { return (len(text) + 3) / 4 }
