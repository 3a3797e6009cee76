// Limits: every bound of the replicated state, with its unit in its name.

package state

import "time"

// Limits bounds the state. They are part of the state machine: servers with different limits would come to different
// states from the same log, so they are constants of a release and not settings of a server.
type Limits struct {
	// Sessions is how many sessions the state holds, ended ones that were not collected yet included.
	Sessions int
	// Nodes and Tokens bound their tables, in rows.
	Nodes, Tokens int

	// MailboxMessages and MailboxBytes (of texts) bound one session's messages that have not ended.
	MailboxMessages int
	MailboxBytes    uint64
	// MessageBytes bounds the texts of all mailboxes together.
	MessageBytes uint64
	// DeliveryAttempts is how often a message is handed to a process before it becomes a dead letter.
	DeliveryAttempts uint32

	// ResultsPerSession and ResultBytesPerSession bound the results kept for one session; the oldest go first.
	ResultsPerSession     int
	ResultBytesPerSession int

	// DeadLetters and DeadLetterBytes bound all dead letters together; beyond, the oldest are dropped, which is counted
	// and told by an event.
	DeadLetters     int
	DeadLetterBytes uint64

	// Calls is how many calls may wait or run. KeptCalls is how many are kept in all, with results and dead ones, and CallsPerClient how
	// many of one client's session, without dead ones. CallBytes bounds what those have in the state for a new call to be taken: the
	// results of those that were taken find room beyond it, at most Calls times queue.InlineBytes. Where there is no room,
	// results that were given to their clients give way, the oldest first; others never do before their time.
	Calls, KeptCalls, CallsPerClient int
	CallBytes                        uint64
	// Clients is how many clients' sessions are known; one without calls that was not here for ResultKeep gives way.
	Clients int
	// DeadCalls and DeadCallBytes bound dead calls, which take no room from the others; beyond, the oldest are dropped, which is counted
	// and told by an event. DeadCallsPerOwner and DeadCallBytesPerOwner bound those of one caller alike, so that nobody takes all the room.
	DeadCalls, DeadCallsPerOwner         int
	DeadCallBytes, DeadCallBytesPerOwner uint64
	// Collection removes results that ended ResultKeep ago, dead calls after DeadKeep, and clients that have neither and were not here for
	// ClientKeep.
	ResultKeep, DeadKeep, ClientKeep time.Duration

	// Conversations and ConversationsPerOwner are how many conversations are kept, in all and of one caller, and ConversationStateBytes
	// what they may have in the state for a turn to be taken. One has at most ConversationMessages; ConversationBytes bounds its texts
	// for a turn to be taken, and ConversationAnswerBytes the answer, which finds room beyond both bounds of bytes. Nothing gives way:
	// what is full refuses. Collection removes those whose last turn was ConversationKeep ago.
	Conversations, ConversationsPerOwner, ConversationMessages         int
	ConversationBytes, ConversationAnswerBytes, ConversationStateBytes uint64
	ConversationKeep                                                   time.Duration

	// Events is how many events are kept; the oldest go first.
	Events int

	// IdempotencyKeys bounds the table of keys. When it is full, keys older than IdempotencyMinKeep give way; when there
	// is none, requests that carry a new key are refused. Collection removes keys older than IdempotencyKeep. So keys
	// arrive for ever at IdempotencyKeys each IdempotencyMinKeep, which must be beyond what a server can take, and
	// IdempotencyMinKeep must be beyond the time for which a client repeats a call (30 s, client.DefaultTimeout).
	IdempotencyKeys    int
	IdempotencyMinKeep time.Duration
	IdempotencyKeep    time.Duration

	// FeedChanges and FeedBytes (of texts) bound how far a subscriber may fall behind.
	FeedChanges int
	FeedBytes   int

	// ReasonBytes cuts reasons, causes and exit messages; PlacementBytes cuts placement explanations.
	ReasonBytes    int
	PlacementBytes int

	// CollectRows is the most that one CollectGarbage removes when it names no limit.
	CollectRows int

	// RetryAfter is what a refusal for want of room tells the client to wait.
	RetryAfter time.Duration
}

// DefaultLimits returns the limits of this release.
func DefaultLimits() Limits {
	return Limits{
		Sessions:              2_000_000,
		Nodes:                 20_000,
		Tokens:                10_000,
		MailboxMessages:       10_000,
		MailboxBytes:          64 << 20,
		MessageBytes:          2 << 30,
		DeliveryAttempts:      4, // the first, and three retries
		ResultsPerSession:     64,
		ResultBytesPerSession: 256 << 10,
		DeadLetters:           10_000,
		DeadLetterBytes:       256 << 20,
		Calls:                 10_000,
		KeptCalls:             100_000,
		CallsPerClient:        1000,
		CallBytes:             256 << 20,
		Clients:               100_000,
		DeadCalls:             10_000,
		DeadCallBytes:         64 << 20,
		DeadCallsPerOwner:     1000,
		DeadCallBytesPerOwner: 8 << 20,
		ResultKeep:            10 * time.Minute,
		DeadKeep:              24 * time.Hour,
		ClientKeep:            time.Hour,
		Events:                10_000,

		Conversations:           100_000,
		ConversationsPerOwner:   10_000,
		ConversationMessages:    1000,
		ConversationBytes:       4 << 20,
		ConversationAnswerBytes: 1 << 20,
		ConversationStateBytes:  512 << 20,
		ConversationKeep:        24 * time.Hour,

		IdempotencyKeys:    1 << 20,
		IdempotencyMinKeep: 45 * time.Second,
		IdempotencyKeep:    time.Hour,
		FeedChanges:        4096,
		FeedBytes:          64 << 20,
		ReasonBytes:        1024,
		PlacementBytes:     2048,
		CollectRows:        1000,
		RetryAfter:         time.Second,
	}
}
