// The dialect of OpenAI's chat completions, with what moonshot and zhipuai add to it.

package provider

import (
	"encoding/json"
	"net/http"
)

type openAIDialect struct {
	maxTokensField string // what the API names the limit of an answer
}

func (openAIDialect) chatPath() string   { return "/chat/completions" }
func (openAIDialect) healthPath() string { return "/models" }

func (openAIDialect) authorize(h http.Header, key secret) {
	if !key.empty() {
		h.Set("Authorization", "Bearer "+key.reveal())
	}
}

// What the limit of an answer is called: everywhere, and by OpenAI's newer models.
const (
	maxTokensName       = "max_tokens"
	maxCompletionTokens = "max_completion_tokens"
)

type openAIMessage struct {
	Role    Role   `json:"role"`
	Content string `json:"content"`
}

func (d openAIDialect) encode(r *Request, model string, maxTokens int, stream bool) ([]byte, error) {
	type options struct {
		IncludeUsage bool `json:"include_usage"`
	}
	body := struct {
		Model         string          `json:"model"`
		Messages      []openAIMessage `json:"messages"`
		MaxTokens     int             `json:"max_tokens,omitempty"`
		MaxCompletion int             `json:"max_completion_tokens,omitempty"`
		Temperature   *float64        `json:"temperature,omitempty"`
		TopP          *float64        `json:"top_p,omitempty"`
		Stop          []string        `json:"stop,omitempty"`
		Stream        bool            `json:"stream,omitempty"`
		StreamOptions *options        `json:"stream_options,omitempty"`
	}{Model: model, MaxTokens: maxTokens, Temperature: r.Temperature, TopP: r.TopP, Stop: r.Stop, Stream: stream}
	if d.maxTokensField == maxCompletionTokens {
		body.MaxTokens, body.MaxCompletion = 0, maxTokens
	}
	if stream {
		body.StreamOptions = &options{IncludeUsage: true}
	}
	for _, m := range r.Messages {
		body.Messages = append(body.Messages, openAIMessage{m.Role, m.Text})
	}
	return json.Marshal(body)
}

type openAIUsage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Cached     int `json:"cached_tokens"` // moonshot
	Details    struct {
		Cached int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
}

func (u *openAIUsage) into(a *answer) {
	if u == nil || u.Prompt+u.Completion == 0 {
		return
	}
	a.hasUsage = true
	a.usage = Usage{InputTokens: atLeastNothing(u.Prompt), OutputTokens: atLeastNothing(u.Completion), CachedTokens: atLeastNothing(max(u.Cached, u.Details.Cached))}
}

type openAIPiece struct {
	Content   *string `json:"content"`
	Reasoning string  `json:"reasoning_content"`
}

func (p *openAIPiece) delta() Delta {
	if p == nil {
		return Delta{}
	}
	d := Delta{Reasoning: p.Reasoning}
	if p.Content != nil {
		d.Text = *p.Content
	}
	return d
}

// openAIAnswer is a whole answer, or a chunk of one.
type openAIAnswer struct {
	ID      string `json:"id"`
	Choices []struct {
		Message *openAIPiece `json:"message"`
		Delta   *openAIPiece `json:"delta"`
		Finish  string       `json:"finish_reason"`
		Usage   *openAIUsage `json:"usage"` // moonshot, in the last chunk
	} `json:"choices"`
	Usage *openAIUsage    `json:"usage"`
	Error json.RawMessage `json:"error"`
}

func (openAIDialect) decode(body []byte, a *answer) error {
	var o openAIAnswer
	if err := json.Unmarshal(body, &o); err != nil {
		return errNoAnswer
	}
	if len(o.Error) > 0 && string(o.Error) != "null" {
		if e := readError(body); e != nil {
			return e
		}
	}
	if len(o.Choices) == 0 || o.Choices[0].Message == nil {
		return errNoAnswer
	}
	a.id, a.stop, a.ended = oneLine(o.ID, 256), stopWord(o.Choices[0].Finish), true
	a.add(o.Choices[0].Message.delta())
	o.Usage.into(a)
	return nil
}

func (openAIDialect) event(e sseEvent, a *answer) (Delta, error) {
	if string(e.data) == "[DONE]" {
		a.ended = true
		return Delta{}, nil
	}
	var o openAIAnswer
	if err := json.Unmarshal(e.data, &o); err != nil {
		return Delta{}, errNoAnswer
	}
	if len(o.Error) > 0 && string(o.Error) != "null" {
		if err := readError(e.data); err != nil {
			return Delta{}, err
		}
	}
	if a.id == "" {
		a.id = oneLine(o.ID, 256)
	}
	o.Usage.into(a)
	if len(o.Choices) == 0 {
		return Delta{}, nil // usage alone
	}
	c := o.Choices[0]
	c.Usage.into(a)
	if c.Finish != "" {
		a.stop = stopWord(c.Finish)
	}
	return a.add(c.Delta.delta()), nil
}
