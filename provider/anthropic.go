// The dialect of Anthropic's messages.

package provider

import (
	"encoding/json"
	"net/http"
	"strings"
)

// anthropicVersion is the version of the API that is spoken here.
const anthropicVersion = "2023-06-01"

type anthropicDialect struct{}

func (anthropicDialect) chatPath() string   { return "/v1/messages" }
func (anthropicDialect) healthPath() string { return "/v1/models" }

func (anthropicDialect) authorize(h http.Header, key secret) {
	h.Set("Anthropic-Version", anthropicVersion)
	if !key.empty() {
		h.Set("X-Api-Key", key.reveal())
	}
}

func (anthropicDialect) encode(r *Request, model string, maxTokens int, stream bool) ([]byte, error) {
	body := struct {
		Model       string          `json:"model"`
		System      string          `json:"system,omitempty"`
		Messages    []openAIMessage `json:"messages"` // the same in both
		MaxTokens   int             `json:"max_tokens"`
		Temperature *float64        `json:"temperature,omitempty"`
		TopP        *float64        `json:"top_p,omitempty"`
		Stop        []string        `json:"stop_sequences,omitempty"`
		Stream      bool            `json:"stream,omitempty"`
	}{Model: model, MaxTokens: maxTokens, Temperature: r.Temperature, TopP: r.TopP, Stop: r.Stop, Stream: stream}
	var system []string
	for _, m := range r.Messages {
		if m.Role == System {
			system = append(system, m.Text)
			continue
		}
		body.Messages = append(body.Messages, openAIMessage{m.Role, m.Text})
	}
	body.System = strings.Join(system, "\n\n")
	return json.Marshal(body)
}

type anthropicUsage struct {
	Input        int `json:"input_tokens"`
	Output       int `json:"output_tokens"`
	CacheCreated int `json:"cache_creation_input_tokens"`
	CacheRead    int `json:"cache_read_input_tokens"`
}

// into keeps the largest: a stream counts up, and its parts tell of parts.
func (u *anthropicUsage) into(a *answer) {
	if u == nil {
		return
	}
	a.hasUsage = a.hasUsage || u.Input+u.Output+u.CacheCreated+u.CacheRead > 0
	a.usage.InputTokens = max(a.usage.InputTokens, atLeastNothing(u.Input+u.CacheCreated+u.CacheRead))
	a.usage.OutputTokens = max(a.usage.OutputTokens, atLeastNothing(u.Output))
	a.usage.CachedTokens = max(a.usage.CachedTokens, atLeastNothing(u.CacheRead))
}

type anthropicMessage struct {
	ID      string `json:"id"`
	Type    string `json:"type"`
	Content []struct {
		Type     string `json:"type"`
		Text     string `json:"text"`
		Thinking string `json:"thinking"`
	} `json:"content"`
	Stop  string          `json:"stop_reason"`
	Usage *anthropicUsage `json:"usage"`
}

func (anthropicDialect) decode(body []byte, a *answer) error {
	var m anthropicMessage
	if err := json.Unmarshal(body, &m); err != nil {
		return errNoAnswer
	}
	if m.Type == "error" {
		if e := readError(body); e != nil {
			return e
		}
	}
	if m.Type != "message" {
		return errNoAnswer
	}
	a.id, a.stop, a.ended = oneLine(m.ID, 256), stopWord(m.Stop), true
	for _, c := range m.Content {
		a.add(Delta{Text: c.Text, Reasoning: c.Thinking})
	}
	m.Usage.into(a)
	return nil
}

func (anthropicDialect) event(e sseEvent, a *answer) (Delta, error) {
	var o struct {
		Type    string            `json:"type"`
		Message *anthropicMessage `json:"message"`
		Delta   struct {
			Type     string `json:"type"`
			Text     string `json:"text"`
			Thinking string `json:"thinking"`
			Stop     string `json:"stop_reason"`
		} `json:"delta"`
		Usage *anthropicUsage `json:"usage"`
	}
	if err := json.Unmarshal(e.data, &o); err != nil || o.Type == "" {
		return Delta{}, errNoAnswer
	}
	switch o.Type {
	case "error":
		if err := readError(e.data); err != nil {
			return Delta{}, err
		}
		return Delta{}, errNoAnswer
	case "message_start":
		if o.Message != nil {
			a.id = oneLine(o.Message.ID, 256)
			o.Message.Usage.into(a)
		}
	case "content_block_delta":
		return a.add(Delta{Text: o.Delta.Text, Reasoning: o.Delta.Thinking}), nil
	case "message_delta":
		if o.Delta.Stop != "" {
			a.stop = stopWord(o.Delta.Stop)
		}
		o.Usage.into(a)
	case "message_stop":
		a.ended = true
	}
	return Delta{}, nil // others (ping, and what may yet be invented) are to be passed over
}
