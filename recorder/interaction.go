// The noun: one interaction, its bounds, and its id.

package recorder

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"time"
	"unicode/utf8"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder/redact"
)

// Kind says what an interaction is.
type Kind string

// The kinds.
const (
	ToolCall     Kind = "tool_call"
	ModelCall    Kind = "model_call"
	Message      Kind = "message"       // to a session
	Answer       Kind = "answer"        // of a session
	SessionEvent Kind = "session_event" // it was placed, moved, ended …
)

// Status says how an interaction ended.
type Status string

// The statuses.
const (
	OK        Status = "ok"
	Failed    Status = "error"
	Cancelled Status = "cancelled"
	TimedOut  Status = "timeout"
)

// Interaction is one thing that happened. Its JSON is what export writes.
type Interaction struct {
	// ID is unique for ever: one that is recorded twice is kept once. Made when empty; at most IDBytesMax printable ASCII characters.
	ID   string    `json:"id"`
	Time time.Time `json:"time"` // when it began, kept to the microsecond; now when zero
	Kind Kind      `json:"kind"`

	Namespace string `json:"namespace"`
	Session   string `json:"session,omitempty"`   // its id
	Epoch     uint64 `json:"epoch,omitempty"`     // of the session
	Client    string `json:"client,omitempty"`    // the session_id of the client that called, at the gateway
	RequestID string `json:"requestId,omitempty"` // the client's name for the call; of a message and its answer, the message's number
	Principal string `json:"principal,omitempty"` // who asked

	Tool     string `json:"tool,omitempty"` // of a session event, its type
	Provider string `json:"provider,omitempty"`
	Model    string `json:"model,omitempty"`

	TokensIn   int64         `json:"tokensIn,omitempty"`
	TokensOut  int64         `json:"tokensOut,omitempty"`
	CostMicros int64         `json:"costMicros,omitempty"`   // millionths of the currency that prices are configured in
	Latency    time.Duration `json:"latencyNanos,omitempty"` // kept to the microsecond

	Status Status `json:"status"`          // OK when empty
	Code   string `json:"code,omitempty"`  // of the error
	Error  string `json:"error,omitempty"` // for people

	Request  string `json:"request,omitempty"`
	Response string `json:"response,omitempty"`

	// The recorder fills in the rest.
	RequestBytes      int64 `json:"requestBytes,omitempty"` // as they were, unless whoever records says that there was more
	ResponseBytes     int64 `json:"responseBytes,omitempty"`
	RequestTruncated  bool  `json:"requestTruncated,omitempty"` // it was longer than what is kept
	ResponseTruncated bool  `json:"responseTruncated,omitempty"`
	Redactions        int   `json:"redactions,omitempty"` // secrets that were taken out
}

// Ended says how something ended that was done in a context.
func (i *Interaction) Ended(ctx context.Context, err error) {
	if err == nil {
		i.Status = OK
		return
	}
	i.Status, i.Code, i.Error = Failed, fault.KindOf(err).String(), err.Error()
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, context.DeadlineExceeded), fault.Is(err, fault.Timeout):
		i.Status = TimedOut
	case cause != nil:
		i.Status = Cancelled
	}
}

const (
	// IDBytesMax bounds an id that the caller gives.
	IDBytesMax = 128
	// LookedAtBytes is how much of a request or a response is looked at, whatever the settings; who has more need not hand it over.
	LookedAtBytes = payloadBytesMax + redact.Beyond
	// fieldBytesMax bounds each text beside the payloads; longer ones are cut.
	fieldBytesMax = 512
	// errorBytesMax bounds Error.
	errorBytesMax = 4 << 10
	// overheadBytes is what an interaction takes beside its texts, roughly.
	overheadBytes = 256
)

// check refuses what could never be found again.
func (i *Interaction) check() error {
	switch i.Kind {
	case ToolCall, ModelCall, Message, Answer, SessionEvent:
	default:
		return fault.New(fault.Invalid, "recorder: %.64q is not a kind of interaction", i.Kind).WithField("kind")
	}
	switch i.Status {
	case "", OK, Failed, Cancelled, TimedOut:
	default:
		return fault.New(fault.Invalid, "recorder: %.64q is not a status of an interaction", i.Status).WithField("status")
	}
	if len(i.ID) > IDBytesMax {
		return fault.New(fault.Invalid, "recorder: an id has %d bytes, more than %d", len(i.ID), IDBytesMax).WithField("id")
	}
	for n := range len(i.ID) {
		if i.ID[n] <= ' ' || i.ID[n] >= utf8.RuneSelf-1 {
			return fault.New(fault.Invalid, "recorder: the id %.64q has characters that are not printable ASCII", i.ID).WithField("id")
		}
	}
	if i.Namespace == "" {
		return fault.New(fault.Invalid, "recorder: an interaction has no namespace").WithField("namespace")
	}
	return nil
}

// complete fills in what may be left out.
func (i *Interaction) complete(now time.Time) {
	if i.Time.IsZero() {
		i.Time = now
	}
	i.Time = time.UnixMicro(i.Time.UnixMicro()).UTC() // Truncate takes a microsecond for it
	i.Latency = i.Latency.Truncate(time.Microsecond)
	if i.ID == "" {
		i.ID = newID(i.Time)
	}
	if i.Status == "" {
		i.Status = OK
	}
}

// texts are the short ones, each with its bound.
func (i *Interaction) texts() [10]*string {
	return [...]*string{&i.Namespace, &i.Session, &i.Client, &i.RequestID, &i.Principal, &i.Tool, &i.Provider, &i.Model, &i.Code, &i.Error}
}

// bytes is what an interaction takes in memory, and at most about what it takes in the spool.
func (i *Interaction) bytes() int64 {
	n := overheadBytes + len(i.ID) + len(i.Request) + len(i.Response)
	for _, t := range i.texts() {
		n += len(*t)
	}
	return int64(n)
}

// newID returns a UUID of version 7: ids made later sort later, which keeps the indexes of databases small.
func newID(t time.Time) string {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[8:], rand.Uint64()) // it is to be unique, and need not be a secret
	ms := uint64(t.UnixMilli())
	for i := range 6 {
		b[i] = byte(ms >> (40 - 8*i))
	}
	fraction := uint64(t.Nanosecond()%1e6) << 12 / 1e6 // twelve bits of a millisecond, before 62 that are random
	b[6] = 0x70 | byte(fraction>>8)
	b[7] = byte(fraction)
	b[8] = 0x80 | b[8]&0x3f
	var s [36]byte
	hex.Encode(s[0:], b[0:4])
	hex.Encode(s[9:], b[4:6])
	hex.Encode(s[14:], b[6:8])
	hex.Encode(s[19:], b[8:10])
	hex.Encode(s[24:], b[10:16])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}
