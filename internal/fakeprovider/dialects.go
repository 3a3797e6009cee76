// What the two dialects look like on the wire.

package fakeprovider

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// answer is what a model says, whatever the dialect.
type answer struct {
	text, reasoning, stop, model string
	in, out                      int
	noUsage                      bool
}

// words are the pieces of a stream: they make the text when put together.
func (a answer) words() []string { return strings.SplitAfter(a.text, " ") }

// event is one server-sent event.
type event struct {
	name  string
	data  any  // a string goes as it is, anything else as JSON
	piece bool // it holds a piece of the answer
}

type object = map[string]any

// dialect is how a provider speaks.
type dialect interface {
	name() string
	check(r *http.Request, body object) error
	last(body object) string
	whole(a answer) any
	events(a answer) []event
	failure(kind, text string) any
	streamFailure(kind string) event
}

// lastMessage is the text of the last message.
func lastMessage(body object) string {
	list, _ := body["messages"].([]any)
	if len(list) == 0 {
		return ""
	}
	m, _ := list[len(list)-1].(object)
	text, _ := m["content"].(string)
	return text
}

// checkBody refuses what both dialects refuse.
func checkBody(body object, roles string) error {
	if m, _ := body["model"].(string); m == "" {
		return errors.New("model: field required")
	}
	list, _ := body["messages"].([]any)
	if len(list) == 0 {
		return errors.New("messages: field required")
	}
	for i, m := range list {
		o, _ := m.(object)
		role, _ := o["role"].(string)
		if role == "" || !strings.Contains(roles, role) {
			return fmt.Errorf("messages[%d].role: %q is none of %s", i, role, roles)
		}
		if text, ok := o["content"].(string); !ok || text == "" {
			return fmt.Errorf("messages[%d].content: field required", i)
		}
	}
	return nil
}

// openAI is the dialect of chat completions.
type openAI struct{}

func (openAI) name() string            { return "openai" }
func (openAI) last(body object) string { return lastMessage(body) }

func (openAI) check(_ *http.Request, body object) error {
	return checkBody(body, "system user assistant")
}

func (openAI) usage(a answer) object {
	return object{"prompt_tokens": a.in, "completion_tokens": a.out, "total_tokens": a.in + a.out}
}

func (d openAI) whole(a answer) any {
	m := object{"role": "assistant", "content": a.text}
	if a.reasoning != "" {
		m["reasoning_content"] = a.reasoning
	}
	o := object{"id": "chatcmpl-fake", "object": "chat.completion", "model": a.model,
		"choices": []any{object{"index": 0, "message": m, "finish_reason": or(a.stop, "stop")}}}
	if !a.noUsage {
		o["usage"] = d.usage(a)
	}
	return o
}

func (d openAI) events(a answer) []event {
	chunk := func(delta object, finish any) object {
		return object{"id": "chatcmpl-fake", "object": "chat.completion.chunk", "model": a.model,
			"choices": []any{object{"index": 0, "delta": delta, "finish_reason": finish}}}
	}
	all := []event{{data: chunk(object{"role": "assistant", "content": ""}, nil)}}
	if a.reasoning != "" {
		all = append(all, event{data: chunk(object{"reasoning_content": a.reasoning}, nil)})
	}
	for _, word := range a.words() {
		all = append(all, event{data: chunk(object{"content": word}, nil), piece: true})
	}
	all = append(all, event{data: chunk(object{}, or(a.stop, "stop"))})
	if !a.noUsage {
		all = append(all, event{data: object{"id": "chatcmpl-fake", "choices": []any{}, "usage": d.usage(a)}})
	}
	return append(all, event{data: "[DONE]"})
}

func (openAI) failure(kind, text string) any {
	return object{"error": object{"message": text, "type": kind, "code": kind}}
}

func (d openAI) streamFailure(kind string) event {
	return event{data: d.failure(kind, "the script says so")}
}

// anthropic is the dialect of messages.
type anthropic struct{}

func (anthropic) name() string            { return "anthropic" }
func (anthropic) last(body object) string { return lastMessage(body) }

func (anthropic) check(r *http.Request, body object) error {
	if r.Header.Get("Anthropic-Version") == "" {
		return errors.New("anthropic-version: header is required")
	}
	if n, _ := body["max_tokens"].(float64); n < 1 {
		return errors.New("max_tokens: field required")
	}
	return checkBody(body, "user assistant")
}

func (anthropic) whole(a answer) any {
	content := []any{}
	if a.reasoning != "" {
		content = append(content, object{"type": "thinking", "thinking": a.reasoning})
	}
	content = append(content, object{"type": "text", "text": a.text})
	o := object{"id": "msg_fake", "type": "message", "role": "assistant", "model": a.model, "content": content, "stop_reason": or(a.stop, "end_turn")}
	if !a.noUsage {
		o["usage"] = object{"input_tokens": a.in, "output_tokens": a.out}
	}
	return o
}

func (anthropic) events(a answer) []event {
	message := object{"id": "msg_fake", "type": "message", "role": "assistant", "model": a.model, "content": []any{}}
	end := object{"type": "message_delta", "delta": object{"stop_reason": or(a.stop, "end_turn")}}
	if !a.noUsage {
		message["usage"] = object{"input_tokens": a.in, "output_tokens": 1}
		end["usage"] = object{"output_tokens": a.out}
	}
	all := []event{{name: "message_start", data: object{"type": "message_start", "message": message}}, {name: "ping", data: object{"type": "ping"}}}
	block := 0
	open := func(kind string) {
		all = append(all, event{name: "content_block_start", data: object{"type": "content_block_start", "index": block, "content_block": object{"type": kind}}})
	}
	piece := func(delta object, counts bool) {
		all = append(all, event{name: "content_block_delta", data: object{"type": "content_block_delta", "index": block, "delta": delta}, piece: counts})
	}
	shut := func() {
		all = append(all, event{name: "content_block_stop", data: object{"type": "content_block_stop", "index": block}})
		block++
	}
	if a.reasoning != "" {
		open("thinking")
		piece(object{"type": "thinking_delta", "thinking": a.reasoning}, false)
		shut()
	}
	open("text")
	for _, word := range a.words() {
		piece(object{"type": "text_delta", "text": word}, true)
	}
	shut()
	return append(all, event{name: "message_delta", data: end}, event{name: "message_stop", data: object{"type": "message_stop"}})
}

func (anthropic) failure(kind, text string) any {
	return object{"type": "error", "error": object{"type": kind, "message": text}}
}

func (d anthropic) streamFailure(kind string) event {
	return event{name: "error", data: d.failure(kind, "the script says so")}
}
