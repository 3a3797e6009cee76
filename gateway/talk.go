// Talking: a chat that is a turn of a conversation, which the cluster keeps.
//
// Any server asks the model, with all that was said before, as the state has it; the answer is told once the turn is committed. The turn
// names the version of the conversation that the model was told, so of two that were asked at once one is kept. Two at one server do not
// come so far: the second is refused before anything is paid for it.

package gateway

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/provider"
	"github.com/neolith/orchestrator/queue"
)

const (
	// newConversation is the id with which a caller has the server make one.
	newConversation = "new"
	// turnInlineBytes is how much text one turn puts into the log; what is beyond goes into the chunk store.
	turnInlineBytes = 4 * queue.InlineBytes
	// keepWait is how long the commit of an answered turn may take, and talkRetry when to come back to a conversation that is busy.
	keepWait  = 20 * time.Second
	talkRetry = time.Second
)

// talks are the conversations in which this server asks a model now.
type talks struct {
	mu    sync.Mutex
	under map[state.ConversationKey]bool
}

// enter begins a turn, unless one is under way.
func (t *talks) enter(k state.ConversationKey) (leave func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.under[k] {
		return nil, fault.New(fault.Aborted, "conversation %q: a model is answering in it; wait for that answer, or use another conversation_id", k.ID).WithRetry(talkRetry)
	}
	t.under[k] = true
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.under, k)
	}, nil
}

// talk is one turn of a conversation; nil for a chat that is kept nowhere.
type talk struct {
	ops     *Operations
	key     state.ConversationKey
	caller  string
	version uint64             // that the model is told; 0 for a new conversation
	before  int                // messages that it has
	said    []provider.Message // what is new
	request string             // what it is known by when it comes again; empty for a request without a key
	kept    *apiv1.ChatAnswer  // of the same request, which came before; nil for one that is new
	leave   func()
}

// end lets the next turn begin.
func (t *talk) end() {
	if t != nil {
		t.leave()
	}
}

// repeated is the answer that was kept of the same request; nil where the model is to be asked.
func (t *talk) repeated() *apiv1.ChatAnswer {
	if t == nil {
		return nil
	}
	return t.kept
}

// requestOf is what a request is known by: hashes of its key, and of what it says.
func requestOf(key string, said []provider.Message) string {
	if key == "" {
		return ""
	}
	h := sha256.New()
	for _, m := range said {
		_, _ = fmt.Fprintf(h, "%s %d\n%s", m.Role, len(m.Text), m.Text) // a hash does not fail
	}
	return hashOfKey(key) + "-" + hex.EncodeToString(h.Sum(nil)[:16])
}

func hashOfKey(key string) string {
	h := sha256.Sum256([]byte(key))
	return hex.EncodeToString(h[:16])
}

// beginTalk completes a request with what its conversation holds; nil for one that names none. The caller calls end when the turn is over.
func (o *Operations) beginTalk(ctx context.Context, who auth.Identity, namespace string, req *apiv1.ChatRequest, r *provider.Request) (*talk, error) {
	id, key := req.GetConversationId(), req.GetIdempotencyKey()
	switch {
	case id == "":
		return nil, nil
	case id == newConversation && key != "": // so that it is the same one when the request comes again
		id = hashOfKey(who.Owner() + " " + key)
	case id == newConversation:
		id = newID()
	}
	if err := errors.Join(state.CheckConversationID(id), checkKey(key)); err != nil {
		return nil, fault.As(err)
	}
	if len(r.Messages) == 0 {
		return nil, fault.New(fault.Invalid, "chat: messages: is empty; say something").WithField("messages")
	}
	t := &talk{ops: o, key: state.ConversationKey{Namespace: namespace, Owner: who.Owner(), ID: id}, caller: who.String(), said: r.Messages, request: requestOf(key, r.Messages)}
	leave, err := o.talks.enter(t.key)
	if err != nil {
		return nil, err
	}
	t.leave = leave
	if err := t.recall(ctx, r); err != nil {
		leave()
		return nil, err
	}
	return t, nil
}

// recall has a request begin with what was said before.
func (t *talk) recall(ctx context.Context, r *provider.Request) error {
	v, err := t.ops.caughtUp(ctx)
	if err != nil {
		return fault.New(fault.KindOf(err), "conversation %q: %w", t.key.ID, err).WithRetry(talkRetry)
	}
	c := v.Conversation(t.key)
	if again, err := t.again(ctx, c); again || err != nil {
		return err
	}
	bytes := uint64(0)
	for _, m := range t.said {
		bytes += uint64(len(m.Text))
	}
	if err := t.ops.State.RoomForTurn(v, t.key, len(t.said)+1, bytes); err != nil {
		return err
	}
	if c == nil {
		return nil
	}
	for _, m := range t.said {
		if m.Role != provider.User {
			return fault.New(fault.Invalid, "conversation %q: it has %d messages already, and goes on with what its user says; give only that, and not a message of role %.32s, or begin another conversation", t.key.ID, len(c.Messages), m.Role).WithField("messages")
		}
	}
	before, err := t.ops.conversationTexts(ctx, c)
	if err != nil {
		return err
	}
	t.version, t.before = c.Version, len(c.Messages)
	r.Messages = slices.Concat(before, t.said)
	r.PreferProvider, r.PreferModel = c.Provider, c.Model
	return nil
}

// again reports whether the request is the one that the last turn answered, and has its answer then.
func (t *talk) again(ctx context.Context, c *state.Conversation) (bool, error) {
	if c == nil || t.request == "" || c.Request == "" {
		return false, nil
	}
	key, _, _ := strings.Cut(t.request, "-")
	switch {
	case !strings.HasPrefix(c.Request, key+"-"):
		return false, nil
	case c.Request != t.request:
		return false, fault.New(fault.AlreadyExists, "conversation %q: the idempotency key was used for another request; use a new key", t.key.ID).WithField("idempotency_key")
	}
	last := *c
	last.Messages = c.Messages[len(c.Messages)-1:]
	texts, err := t.ops.conversationTexts(ctx, &last)
	if err != nil {
		return false, err
	}
	t.kept = &apiv1.ChatAnswer{Provider: c.Provider, Model: c.Model, Text: texts[0].Text, ConversationId: c.ID, ConversationVersion: c.Version, ConversationMessages: uint32(len(c.Messages)), Repeated: true}
	return true, nil
}

// keep commits the turn with its answer, and says in the answer which conversation has it. An answer without text is not kept, as no model
// can be told it; the conversation is as it was then.
func (t *talk) keep(ctx context.Context, got *provider.Response, answer *apiv1.ChatAnswer) error {
	if t == nil || got.Text == "" {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err // the caller has gone, and was told nothing
	}
	turn := &clusterv1.KeepTurn{Key: t.key.Proto(), Caller: t.caller, Version: t.version, TurnId: rand.Text(), Request: t.request, Provider: got.Provider, Model: got.Model}
	room := turnInlineBytes
	for _, m := range append(slices.Clone(t.said), provider.Message{Role: provider.Assistant, Text: got.Text}) {
		text, err := t.ops.storeText(ctx, m.Text, min(room, queue.InlineBytes))
		if err != nil {
			return t.notKept(err)
		}
		room -= len(text.Inline)
		turn.Messages = append(turn.Messages, &clusterv1.ConversationMessage{Role: string(m.Role), Text: pbconv.BlobToProto(text)})
	}
	version, err := t.ops.commitTurn(ctx, turn)
	if err != nil {
		return t.notKept(err)
	}
	answer.ConversationId, answer.ConversationVersion, answer.ConversationMessages = t.key.ID, version, uint32(t.before+len(turn.GetMessages()))
	return nil
}

// notKept is the error of an answer that nobody is told, as the next turn would not know it.
func (t *talk) notKept(err error) error {
	f := fault.As(err)
	switch {
	case f == nil:
		return fault.New(fault.Unavailable, "conversation %q: the model answered, but the answer could not be kept: %w", t.key.ID, err)
	case f.Kind == fault.Unavailable || f.Kind == fault.Timeout:
		return fault.New(f.Kind, "conversation %q: the model answered, and whether the answer was kept is not known: %w; see `orchctl conversations get`, and ask again if it was not", t.key.ID, err).WithRetry(talkRetry)
	default:
		return err
	}
}

// commitTurn has the leader commit a turn, again while nobody knows whether it was: the turn's id makes it once. It returns the
// conversation's version. What is under way when the caller goes is not cut off, as its outcome would be unknown.
func (o *Operations) commitTurn(ctx context.Context, turn *clusterv1.KeepTurn) (version uint64, err error) {
	command := &clusterv1.Command{Kind: &clusterv1.Command_KeepTurn{KeepTurn: turn}}
	to, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepWait)
	defer cancel()
	attempts := 0
	err = o.atLeader(ctx, to, func(ctx context.Context) error {
		attempts++
		r, err := o.Node.Propose(ctx, command)
		if err == nil {
			err = r[0].Err
		}
		if err == nil {
			version = r[0].Conversation.Version
		}
		return err
	}, func(ctx context.Context, c clusterv1.RelayServiceClient) error {
		attempts++
		r, err := c.CommitCalls(ctx, &clusterv1.CommitCallsRequest{Commands: []*clusterv1.Command{command}})
		switch {
		case err != nil:
			return err
		case len(r.GetCalls()) != 1:
			return fault.New(fault.Internal, "the leader gave %d results for one turn", len(r.GetCalls()))
		}
		version = r.GetCalls()[0].GetIndex()
		return refusalOf(r.GetCalls()[0])
	})
	if attempts > 1 && fault.Is(err, fault.Aborted) { // by another turn, which may have followed this one
		err = fault.New(fault.Unavailable, "%w", err)
	}
	return version, err
}
