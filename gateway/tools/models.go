// Tools that ask models, through the pools of the server that the caller is connected to.

package tools

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// maxPromptChars bounds one text of a conversation, and maxConversation how many there are.
const maxPromptChars, maxConversation = 1_000_000, 1000

func modelTools() []Tool { return []Tool{chatTool(), listModelsTool()} }

// said is the answer of chat.
type said struct {
	Text         string  `json:"text"`
	Reasoning    string  `json:"reasoning,omitempty"`
	Provider     string  `json:"provider"`
	Model        string  `json:"model"`
	Stop         string  `json:"stop"`
	InputTokens  uint64  `json:"inputTokens"`
	OutputTokens uint64  `json:"outputTokens"`
	CostUSD      float64 `json:"costUsd,omitempty"`
	// Where the cluster keeps the conversation.
	ConversationID       string `json:"conversationId,omitempty"`
	ConversationMessages uint32 `json:"conversationMessages,omitempty"`
	Repeated             bool   `json:"repeated,omitempty"`
}

func chatTool() Tool {
	return Tool{
		Name: "chat", AsksModels: true,
		Description: "Ask a language model of the providers that the server is configured with. Give a prompt, or the whole conversation as messages: a model remembers nothing. With a conversation_id the cluster keeps what is said, and the next prompt with it goes on there. Returns JSON with text, provider, model and tokens.",
		Schema: object(nil, map[string]*Schema{
			"prompt": text("what the user says, instead of messages", maxPromptChars),
			"messages": listOf("the conversation, oldest first", maxConversation, object([]string{"role", "content"}, map[string]*Schema{
				"role": oneOf("who speaks", "system", "user", "assistant"), "content": text("what is said", maxPromptChars),
			})),
			"provider": named("the only provider to ask; all are tried in their order when left out", 63), "model": named("a model's name; see list_models", 256),
			"conversation_id": named("keeps the conversation, and goes on with it when it is there, with a prompt alone: A-Z a-z 0-9 _ . : -; new makes an id, which the answer tells", 128),
			"namespace":       namespaceSchema(), "max_tokens": whole("the longest answer", 1, 10_000_000), "stream": flag("send the answer piece by piece", false),
		}),
		run: runChat, OrderKey: conversationOf,
	}
}

// conversationOf is the conversation that a chat belongs to; a new one belongs to none yet.
func conversationOf(arguments json.RawMessage) string {
	var a struct {
		ID string `json:"conversation_id"`
	}
	if json.Unmarshal(arguments, &a) != nil || a.ID == "new" {
		return ""
	}
	return a.ID
}

func runChat(ctx context.Context, api api, c *Call) ([]Output, error) {
	a, err := decode[struct {
		Prompt   string `json:"prompt"`
		Messages []struct {
			Role    string `json:"role"`
			Content string `json:"content"`
		} `json:"messages"`
		Provider     string `json:"provider"`
		Model        string `json:"model"`
		Conversation string `json:"conversation_id"`
		Namespace    string `json:"namespace"`
		MaxTokens    uint32 `json:"max_tokens"`
		Stream       bool   `json:"stream"`
	}](c)
	if err != nil {
		return nil, err
	}
	req := &apiv1.ChatRequest{Namespace: a.Namespace, Provider: a.Provider, Model: a.Model, MaxTokens: a.MaxTokens, Stream: a.Stream && c.Chunk != nil, ConversationId: a.Conversation}
	if a.Conversation != "" {
		req.IdempotencyKey = c.ID // the same call is the same turn
	}
	for _, m := range a.Messages {
		req.Messages = append(req.Messages, &apiv1.ChatMessage{Role: m.Role, Text: m.Content})
	}
	switch {
	case a.Prompt != "" && len(a.Messages) > 0:
		return nil, wrong("prompt", "and messages exclude each other; give one of them")
	case a.Prompt == "" && len(a.Messages) == 0:
		return nil, wrong("prompt", "is missing; give it, or messages")
	case a.Prompt != "":
		req.Messages = []*apiv1.ChatMessage{{Role: "user", Text: a.Prompt}}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := api.models.Chat(ctx, req)
	if err != nil {
		return nil, err
	}
	for {
		m, err := st.Recv()
		switch answer := m.GetAnswer(); {
		case errors.Is(err, io.EOF):
			return nil, fault.New(fault.Internal, "chat: the stream ended without an answer")
		case err != nil:
			return nil, err
		case answer != nil:
			return answerJSON(said{
				Text: answer.GetText(), Reasoning: answer.GetReasoning(), Provider: answer.GetProvider(), Model: answer.GetModel(), Stop: answer.GetStop(),
				InputTokens: answer.GetInputTokens(), OutputTokens: answer.GetOutputTokens(), CostUSD: answer.GetCostUsd(),
				ConversationID: answer.GetConversationId(), ConversationMessages: answer.GetConversationMessages(), Repeated: answer.GetRepeated(),
			})
		case m.GetPiece().GetText() != "":
			if err := c.Chunk(ctx, m.GetPiece().GetText()); err != nil {
				return nil, err
			}
		}
	}
}

func listModelsTool() Tool {
	return Tool{
		Name: "list_models", ReadOnly: true, AtOnce: true,
		Description: "List the language models that chat can ask, with their providers and prices (US dollars for a million tokens), as JSON.",
		Schema:      object(nil, map[string]*Schema{}),
		run: func(ctx context.Context, api api, _ *Call) ([]Output, error) {
			r, err := api.models.ListModels(ctx, &apiv1.ListModelsRequest{})
			if err != nil {
				return nil, err
			}
			return answer(r)
		},
	}
}
