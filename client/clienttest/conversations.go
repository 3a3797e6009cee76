// Conversations with models, as the fake cluster keeps them.

package clienttest

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// conversations are two that are there from the start, until they are deleted.
type conversations struct {
	mu   sync.Mutex
	kept []*apiv1.Conversation
}

func newConversations(now time.Time) *conversations {
	at := func(ago time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(-ago)) }
	return &conversations{kept: []*apiv1.Conversation{
		{
			Id: "plan", Namespace: "default", Owner: "token 4f2a", Caller: "client:ann", Version: 71, MessageCount: 3, SizeBytes: 41, Provider: "moonshot", Model: "kimi",
			CreateTime: at(2 * time.Hour), UpdateTime: at(time.Hour), ExpireTime: at(-23 * time.Hour),
			Messages: []*apiv1.ChatMessage{{Role: "system", Text: "be brief"}, {Role: "user", Text: "who holds\n\tthe record?"}, {Role: "assistant", Text: "nobody yet."}},
		},
		{
			Id: "support:17", Namespace: "default", Owner: "token 9c01", Caller: "client:shop", Version: 68, MessageCount: 2, SizeBytes: 9, Provider: "zhipuai", Model: "glm",
			CreateTime: at(3 * time.Hour), UpdateTime: at(3 * time.Hour), ExpireTime: at(-21 * time.Hour),
			Messages: []*apiv1.ChatMessage{{Role: "user", Text: "hello"}, {Role: "assistant", Text: "good"}},
		},
	}}
}

func (c *conversations) find(namespace, owner, id string) (int, error) {
	for i, k := range c.kept {
		if k.GetNamespace() == namespace && k.GetId() == id && (owner == "" || k.GetOwner() == owner) {
			return i, nil
		}
	}
	return 0, toStatus(fault.New(fault.NotFound, "conversation %q: there is none in namespace %s", id, namespace))
}

func (p *providers) ListConversations(_ context.Context, req *apiv1.ListConversationsRequest) (*apiv1.ListConversationsResponse, error) {
	p.talks.mu.Lock()
	defer p.talks.mu.Unlock()
	out := &apiv1.ListConversationsResponse{}
	for _, k := range p.talks.kept {
		if (req.GetNamespace() == "" || k.GetNamespace() == req.GetNamespace()) && (req.GetOwner() == "" || k.GetOwner() == req.GetOwner()) {
			c := proto.CloneOf(k)
			c.Messages = nil
			out.Conversations = append(out.Conversations, c)
		}
	}
	return out, nil
}

func (p *providers) GetConversation(_ context.Context, req *apiv1.GetConversationRequest) (*apiv1.GetConversationResponse, error) {
	p.talks.mu.Lock()
	defer p.talks.mu.Unlock()
	i, err := p.talks.find(req.GetNamespace(), req.GetOwner(), req.GetId())
	if err != nil {
		return nil, err
	}
	return &apiv1.GetConversationResponse{Conversation: p.talks.kept[i]}, nil
}

func (p *providers) DeleteConversation(_ context.Context, req *apiv1.DeleteConversationRequest) (*apiv1.DeleteConversationResponse, error) {
	p.talks.mu.Lock()
	defer p.talks.mu.Unlock()
	i, err := p.talks.find(req.GetNamespace(), req.GetOwner(), req.GetId())
	if err != nil {
		return nil, err
	}
	p.talks.kept = append(p.talks.kept[:i:i], p.talks.kept[i+1:]...)
	return &apiv1.DeleteConversationResponse{}, nil
}
