// Conversations that the cluster keeps, as their owners and admins see them; and their texts, which are in the state or, where they are
// long, in the chunk store.

package gateway

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/provider"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// textParallel is how many chunks of texts are moved at a time.
const textParallel = 8

// storeText keeps a text: in the blob itself when it has room for so many bytes, else in the chunk store.
func (o *Operations) storeText(ctx context.Context, text string, room int) (queue.Blob, error) {
	out := queue.Blob{Size: uint64(len(text))}
	if len(text) <= room || o.Chunks == nil && len(text) <= queue.InlineBytes {
		out.Inline = []byte(text)
		return out, nil
	}
	if o.Chunks == nil {
		return out, fault.New(fault.Unimplemented, "a text of %d bytes is not kept: %w", len(text), errNoStore)
	}
	frames := chunks.Cut([]byte(text))
	for _, f := range frames {
		out.Chunks = append(out.Chunks, f.ID)
	}
	if err := errors.Join(chunks.PutBatch(ctx, o.Chunks, frames, textParallel)...); err != nil {
		return out, fault.New(fault.KindOf(err), "a text of %d bytes cannot be stored: %w", len(text), err).WithRetry(talkRetry)
	}
	return out, nil
}

// conversationTexts returns the messages of a conversation, all that are in the chunk store at once.
func (o *Operations) conversationTexts(ctx context.Context, c *state.Conversation) ([]provider.Message, error) {
	failed := func(err error) error {
		kind := fault.KindOf(err)
		if kind == fault.NotFound || kind == fault.Invalid { // which is not what was asked for
			kind = fault.Internal
		}
		return fault.New(kind, "conversation %q cannot be read: %w", c.ID, err).WithRetry(talkRetry)
	}
	var ids []chunk.ID
	for _, m := range c.Messages {
		for _, id := range m.Text.Chunks {
			ids = append(ids, id)
		}
	}
	var frames [][]byte
	if len(ids) > 0 {
		if o.Chunks == nil {
			return nil, failed(errNoStore)
		}
		var errs []error
		if frames, errs = chunks.GetBatch(ctx, o.Chunks, ids, textParallel); errors.Join(errs...) != nil {
			return nil, failed(errors.Join(errs...))
		}
	}
	out := make([]provider.Message, len(c.Messages))
	for i, m := range c.Messages {
		text := m.Text.Inline
		for range m.Text.Chunks {
			var err error
			if text, err = chunk.Open(text, ids[0], frames[0]); err != nil {
				return nil, failed(err)
			}
			ids, frames = ids[1:], frames[1:]
		}
		if uint64(len(text)) != m.Text.Size {
			return nil, failed(fault.New(fault.Internal, "message %d has %d bytes, not %d", i, len(text), m.Text.Size))
		}
		out[i] = provider.Message{Role: provider.Role(m.Role), Text: string(text)}
	}
	return out, nil
}

// conversationProto describes a conversation without its messages.
func (o *Operations) conversationProto(c *state.Conversation) *apiv1.Conversation {
	return &apiv1.Conversation{
		Id: c.ID, Namespace: c.Namespace, Owner: c.Owner, Caller: c.Caller, Version: c.Version, MessageCount: uint32(len(c.Messages)),
		SizeBytes: c.SizeBytes(), Provider: c.Provider, Model: c.Model, CreateTime: pbconv.Time(c.CreateTime), UpdateTime: pbconv.Time(c.Time),
		ExpireTime: pbconv.Time(c.Time + int64(o.State.ConversationKeep())),
	}
}

// seesAll reports whether a caller sees the conversations of others in its namespaces.
func seesAll(who auth.Identity) bool { return who.Role.Has(auth.Administer) }

// ofOthers refuses an owner that is not the caller, unless it is an admin.
func ofOthers(who auth.Identity, owner string) error {
	if owner == "" || owner == who.Owner() || seesAll(who) {
		return nil
	}
	return fault.New(fault.PermissionDenied, "conversations of another owner: %s may not see them; ask an admin", who).WithField("owner")
}

// ListConversations returns a page of those that the caller sees.
func (s *providerService) ListConversations(ctx context.Context, req *apiv1.ListConversationsRequest) (*apiv1.ListConversationsResponse, error) {
	who, owner := caller(ctx), req.GetOwner()
	if err := ofOthers(who, owner); err != nil {
		return nil, err
	}
	ns, err := scope(ctx, req.GetNamespace())
	if err != nil {
		return nil, err
	}
	if !seesAll(who) {
		ns, owner = namespaceOr(ns, who), who.Owner()
	}
	after, err := parseConversation(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	out := &apiv1.ListConversationsResponse{}
	size := pageSize(req.GetPageSize())
	for c := range v.Conversations(ns, owner, after) {
		if owner != "" && c.Owner != owner {
			continue
		}
		if len(out.Conversations) == size {
			out.NextPageToken = conversationToken(out.Conversations[size-1])
			break
		}
		out.Conversations = append(out.Conversations, s.ops.conversationProto(c))
	}
	return out, nil
}

func conversationToken(c *apiv1.Conversation) string {
	return base64.RawURLEncoding.EncodeToString([]byte(c.GetNamespace() + "\x00" + c.GetOwner() + "\x00" + c.GetId()))
}

func parseConversation(token string) (state.ConversationKey, error) {
	if token == "" {
		return state.ConversationKey{}, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	parts := strings.Split(string(b), "\x00")
	if err != nil || len(parts) != 3 {
		return state.ConversationKey{}, fault.New(fault.Invalid, "page_token: is not one that a page gave").WithField("page_token")
	}
	return state.ConversationKey{Namespace: parts[0], Owner: parts[1], ID: parts[2]}, nil
}

// findConversation finds the one that a caller means: its own, or for an admin the one of another.
func findConversation(ctx context.Context, v *state.View, namespace, owner, id string) (state.ConversationKey, error) {
	who := caller(ctx)
	k := state.ConversationKey{Namespace: namespaceOr(namespace, who), Owner: owner, ID: id}
	if err := errors.Join(who.CheckNamespace(k.Namespace), ofOthers(who, owner)); err != nil {
		return k, fault.As(err)
	}
	if err := state.CheckConversationID(id); err != nil {
		return k, err
	}
	if k.Owner == "" {
		k.Owner = who.Owner()
		if v.Conversation(k) == nil && seesAll(who) {
			var owners []string
			for c := range v.ConversationsNamed(k.Namespace, id) {
				if owners = append(owners, c.Owner); len(owners) == 2 {
					return k, fault.New(fault.Invalid, "conversation %q: several owners have one in namespace %s, %q and %q among them; say whose", id, k.Namespace, owners[0], owners[1]).WithField("owner")
				}
				k.Owner = c.Owner
			}
		}
	}
	return k, nil
}

func noConversation(k state.ConversationKey) error {
	return fault.New(fault.NotFound, "conversation %q: there is none of %s in namespace %s; see `orchctl conversations list`", clip(k.ID), clip(k.Owner), k.Namespace)
}

// GetConversation returns a conversation with its messages.
func (s *providerService) GetConversation(ctx context.Context, req *apiv1.GetConversationRequest) (*apiv1.GetConversationResponse, error) {
	v, err := s.ops.fresh(ctx, apiv1.Consistency_LINEARIZABLE)
	if err != nil {
		return nil, err
	}
	k, err := findConversation(ctx, v, req.GetNamespace(), req.GetOwner(), req.GetId())
	if err != nil {
		return nil, err
	}
	c := v.Conversation(k)
	if c == nil {
		return nil, noConversation(k)
	}
	texts, err := s.ops.conversationTexts(ctx, c)
	if err != nil {
		return nil, err
	}
	out := s.ops.conversationProto(c)
	for _, m := range texts {
		out.Messages = append(out.Messages, &apiv1.ChatMessage{Role: string(m.Role), Text: m.Text})
	}
	return &apiv1.GetConversationResponse{Conversation: out}, nil
}

// DeleteConversation forgets a conversation. A turn of it that is under way is refused then.
func (s *providerService) DeleteConversation(ctx context.Context, req *apiv1.DeleteConversationRequest) (*apiv1.DeleteConversationResponse, error) {
	k, err := findConversation(ctx, s.ops.State.View(), req.GetNamespace(), req.GetOwner(), req.GetId())
	if err != nil {
		return nil, err
	}
	_, err = s.ops.oneOnce(ctx, apiv1.ProviderService_DeleteConversation_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_DropConversation{DropConversation: &clusterv1.DropConversation{Key: k.Proto()}}})
	if fault.Is(err, fault.NotFound) {
		return nil, noConversation(k)
	}
	return &apiv1.DeleteConversationResponse{}, err
}
