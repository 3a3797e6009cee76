// Talking: a chat that is a turn of a conversation, which the cluster keeps.
//
// Any server asks the model, with all that was said before, as the state has it; the answer is told once the turn is committed. The turn
// names the version of the conversation that the model was told, so of two that were asked at once one is kept. Two at one server do not
// come so far: the second is refused before anything is paid for it.

package gateway

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"time"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
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
	said    []provider.Message // what is new
	leave   func()
}

// end lets the next turn begin.
func (t *talk) end() {
	if t != nil {
		t.leave()
	}
}

// beginTalk completes a request with what its conversation holds; nil for one that names none. The caller calls end when the turn is over.
func (o *Operations) beginTalk(ctx context.Context, who auth.Identity, namespace, id string, r *provider.Request) (*talk, error) {
	switch id {
	case "":
		return nil, nil
	case newConversation:
		id = newID()
	}
	if err := state.CheckConversationID(id); err != nil {
		return nil, err
	}
	if len(r.Messages) == 0 {
		return nil, fault.New(fault.Invalid, "chat: messages: is empty; say something").WithField("messages")
	}
	t := &talk{ops: o, key: state.ConversationKey{Namespace: namespace, Owner: who.Owner(), ID: id}, caller: who.String(), said: r.Messages}
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
	bytes := uint64(0)
	for _, m := range t.said {
		bytes += uint64(len(m.Text))
	}
	if err := t.ops.State.RoomForTurn(v, t.key, len(t.said)+1, bytes); err != nil {
		return err
	}
	c := v.Conversation(t.key)
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
	t.version = c.Version
	r.Messages = slices.Concat(before, t.said)
	r.PreferProvider, r.PreferModel = c.Provider, c.Model
	return nil
}

// keep commits the turn with its answer, and returns the conversation that has it, with its version. An answer without text is not
// kept, as no model can be told it; the conversation is as it was then.
func (t *talk) keep(ctx context.Context, got *provider.Response) (id string, version uint64, err error) {
	if t == nil || got.Text == "" {
		return "", 0, nil
	}
	if err := ctx.Err(); err != nil {
		return "", 0, err // the caller has gone, and was told nothing
	}
	turn := &clusterv1.KeepTurn{Key: t.key.Proto(), Caller: t.caller, Version: t.version, TurnId: rand.Text(), Provider: got.Provider, Model: got.Model}
	room := turnInlineBytes
	for _, m := range append(slices.Clone(t.said), provider.Message{Role: provider.Assistant, Text: got.Text}) {
		text, err := t.ops.storeText(ctx, m.Text, min(room, queue.InlineBytes))
		if err != nil {
			return "", 0, t.notKept(err)
		}
		room -= len(text.Inline)
		turn.Messages = append(turn.Messages, &clusterv1.ConversationMessage{Role: string(m.Role), Text: pbconv.BlobToProto(text)})
	}
	version, err = t.ops.commitTurn(ctx, turn)
	if err != nil {
		return "", 0, t.notKept(err)
	}
	return t.key.ID, version, nil
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
	err = o.atLeader(ctx, to, func(ctx context.Context) error {
		r, err := o.Node.Propose(ctx, command)
		if err == nil {
			err = r[0].Err
		}
		if err == nil {
			version = r[0].Conversation.Version
		}
		return err
	}, func(ctx context.Context, c clusterv1.RelayServiceClient) error {
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
	return version, err
}
