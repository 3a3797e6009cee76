// The nouns: a call, its key, its outcome, and a client's session.

package queue

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"github.com/neolith/orchestrator/session"
)

// Status is how far a call is. The numbers are those of snapshots.
type Status uint8

// The statuses.
const (
	Queued  Status = 1
	Running Status = 2
	Ended   Status = 3
	// Dead calls have ended without what they were for; they are kept longer, and can be retried.
	Dead Status = 4
)

var statusNames = [...]string{Queued: "QUEUED", Running: "RUNNING", Ended: "ENDED", Dead: "DEAD"}

// String returns the status as users see it.
func (s Status) String() string {
	if int(s) < len(statusNames) && statusNames[s] != "" {
		return statusNames[s]
	}
	return fmt.Sprintf("STATUS(%d)", uint8(s))
}

// Over reports whether the call has an outcome.
func (s Status) Over() bool { return s == Ended || s == Dead }

// Key names a call: request ids are unique within a session, sessions within their owner.
type Key struct{ Owner, Session, RequestID string }

// ClientKey names a client's session.
type ClientKey struct{ Owner, Session string }

// Client is whose call it is.
func (k Key) Client() ClientKey { return ClientKey{k.Owner, k.Session} }

// idHexDigits is how much of a key's hash people are shown: of the calls that are kept, hardly two have the same.
const idHexDigits = 12

// ID is the call's short name for people: the beginning of its key's hash.
func (k Key) ID() string {
	h := sha256.New()
	for _, part := range []string{k.Owner, k.Session, k.RequestID} {
		_, _ = io.WriteString(h, part) // a hash does not fail
		_, _ = h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))[:idHexDigits]
}

// Caller is as whom a call is made. It is no secret: a server that makes the call looks up whether it may still.
type Caller struct{ TokenID, Name, Role, Namespace string }

// Blob is bytes: in the state where they are at most InlineBytes, else chunks of the chunk store.
type Blob struct {
	Inline []byte
	Chunks [][32]byte
	Size   uint64 // bytes of the whole
}

// InlineBytes is the largest Blob that is kept in the state itself.
const InlineBytes = 64 << 10

// Outcome is how a call ended: outputs, cancelled, or an error with a code of the client gateway.
type Outcome struct {
	Outputs       Blob // JSON of the outputs
	Cancelled     bool
	Code, Message string
	RetryAfter    time.Duration
	Field         string
	// Passing outcomes are told and not kept: who asks again makes the call anew.
	Passing bool
}

// Call is a call as the replicated state holds it. Treat it as immutable. Times are Unix nanoseconds, 0 for never.
type Call struct {
	Key
	Caller      Caller
	Tool        string
	Arguments   Blob
	Priority    session.Priority
	RequestHash uint64
	Deadline    int64
	Server      string // that is to run it, or did last
	OrderKey    string
	Repeatable  bool
	Status      Status
	Attempt     uint32 // from 1, once it was begun or assigned
	NotBefore   int64
	Cancelling  bool
	CreateTime  int64
	BeginTime   int64
	EndTime     int64
	Outcome     *Outcome // once it is over
	Order       uint64   // among the results of its client, where it goes up by one; 0 before it is over
	LastError   string
	Number      uint64 // in the order in which the cluster took calls
	ModifyIndex uint64
}

// Namespace is what the call belongs to for people who look at calls: that of its caller, and the default one for callers that are bound
// to none.
func (c *Call) Namespace() string {
	if c.Caller.Namespace == "" {
		return session.DefaultNamespace
	}
	return c.Caller.Namespace
}

// Client is a client's session as the replicated state holds it. Treat it as immutable.
type Client struct {
	ClientKey
	Server    string // where it was last
	Order     uint64 // the last that was given to a result; of a new session, what its results begin behind
	Delivered uint64 // the last that the client took; of a new session its Order
	Time      int64  // when it was last opened or called
}
