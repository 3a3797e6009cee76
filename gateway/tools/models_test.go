// Asking models as a tool.

package tools

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// scripted is an API whose streams say what the script holds, and then end with err.
type scripted struct {
	fakeAPI
	says  []*apiv1.ChatResponse
	err   error
	asked *apiv1.ChatRequest
}

func (s *scripted) NewStream(ctx context.Context, _ *grpc.StreamDesc, _ string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return &scriptedStream{s: s, ctx: ctx}, nil
}

type scriptedStream struct {
	s   *scripted
	ctx context.Context
	at  int
}

func (st *scriptedStream) SendMsg(m any) error {
	st.s.asked = proto.CloneOf(m.(*apiv1.ChatRequest))
	return nil
}

func (st *scriptedStream) RecvMsg(m any) error {
	if st.at < len(st.s.says) {
		proto.Merge(m.(proto.Message), st.s.says[st.at])
		st.at++
		return nil
	}
	if st.s.err != nil {
		return st.s.err
	}
	return io.EOF
}

func (st *scriptedStream) CloseSend() error             { return nil }
func (st *scriptedStream) Context() context.Context     { return st.ctx }
func (st *scriptedStream) Header() (metadata.MD, error) { return nil, nil }
func (st *scriptedStream) Trailer() metadata.MD         { return nil }

func piece(text string) *apiv1.ChatResponse {
	return &apiv1.ChatResponse{Part: &apiv1.ChatResponse_Piece{Piece: &apiv1.ChatPiece{Text: text}}}
}

func TestChat(t *testing.T) {
	const answered fault.Kind = 255 // no failure
	whole := &apiv1.ChatResponse{Part: &apiv1.ChatResponse_Answer{Answer: &apiv1.ChatAnswer{Text: "good day", Provider: "local", Model: "fast", Stop: "stop", InputTokens: 2, OutputTokens: 3}}}
	const answer = `{"text":"good day","provider":"local","model":"fast","stop":"stop","inputTokens":2,"outputTokens":3}`
	kept := proto.CloneOf(whole)
	kept.GetAnswer().ConversationId = "plan:1"
	user := func(text string) []*apiv1.ChatMessage { return []*apiv1.ChatMessage{{Role: "user", Text: text}} }
	for name, c := range map[string]struct {
		arguments string
		says      []*apiv1.ChatResponse
		err       error
		want      *apiv1.ChatRequest
		chunks    string
		kind      fault.Kind
	}{
		"a prompt":           {`{"prompt":"hi"}`, []*apiv1.ChatResponse{whole}, nil, &apiv1.ChatRequest{Messages: user("hi")}, "", answered},
		"in pieces":          {`{"prompt":"hi","stream":true}`, []*apiv1.ChatResponse{piece("good "), piece("day"), whole}, nil, &apiv1.ChatRequest{Messages: user("hi"), Stream: true}, "good |day|", answered},
		"a conversation":     {`{"messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hi"}],"model":"fast","provider":"local","max_tokens":9}`, []*apiv1.ChatResponse{whole}, nil, &apiv1.ChatRequest{Model: "fast", Provider: "local", MaxTokens: 9, Messages: []*apiv1.ChatMessage{{Role: "system", Text: "be brief"}, {Role: "user", Text: "hi"}}}, "", answered},
		"one that is kept":   {`{"prompt":"hi","conversation_id":"plan:1"}`, []*apiv1.ChatResponse{kept}, nil, &apiv1.ChatRequest{Messages: user("hi"), ConversationId: "plan:1", IdempotencyKey: "one"}, "", answered},
		"nothing":            {`{}`, nil, nil, nil, "", fault.Invalid},
		"both":               {`{"prompt":"hi","messages":[{"role":"user","content":"hi"}]}`, nil, nil, nil, "", fault.Invalid},
		"no provider":        {`{"prompt":"hi"}`, nil, status.Error(codes.FailedPrecondition, "no model provider is configured"), &apiv1.ChatRequest{Messages: user("hi")}, "", fault.FailedPrecondition},
		"asked once":         {`{"prompt":"hi"}`, nil, status.Error(codes.Unavailable, "down"), &apiv1.ChatRequest{Messages: user("hi")}, "", fault.Unavailable},
		"it ends in between": {`{"prompt":"hi","stream":true}`, []*apiv1.ChatResponse{piece("good ")}, nil, &apiv1.ChatRequest{Messages: user("hi"), Stream: true}, "good |", fault.Internal},
	} {
		api := &scripted{says: c.says, err: c.err}
		set := New(api)
		tool, _ := set.Find("chat")
		if err := tool.Schema.Check(json.RawMessage(c.arguments)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var chunks strings.Builder
		out, err := set.Call(t.Context(), tool, Call{ID: "one", Arguments: json.RawMessage(c.arguments), Chunk: func(_ context.Context, text string) error {
			chunks.WriteString(text + "|")
			return nil
		}})
		switch {
		case c.kind != answered && !fault.Is(err, c.kind), c.kind == answered && (err != nil || len(out) != 1 || out[0].Text != answer && out[0].Text != strings.TrimSuffix(answer, "}")+`,"conversationId":"`+c.want.GetConversationId()+`"}`):
			t.Errorf("%s: %v, %v", name, out, err)
		case !proto.Equal(api.asked, c.want):
			t.Errorf("%s asked %v, want %v", name, api.asked, c.want)
		case chunks.String() != c.chunks:
			t.Errorf("%s: pieces %q", name, chunks.String())
		}
	}
}
