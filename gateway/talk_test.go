// Conversations: a model is told what was said before, whichever server asks it; a turn is kept whole or not at all.

package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fakeprovider"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/provider"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// told is what a provider was told in its last call.
func told(f *fakeprovider.Server) (out []string) {
	calls := f.Calls()
	if len(calls) == 0 {
		return nil
	}
	messages, _ := calls[len(calls)-1].Body["messages"].([]any)
	for _, m := range messages {
		m := m.(map[string]any)
		text := fmt.Sprint(m["content"])
		if len(text) > 40 {
			text = fmt.Sprintf("%s… (%d)", text[:10], len(text))
		}
		out = append(out, fmt.Sprintf("%v: %s", m["role"], text))
	}
	return out
}

// got is what the cluster keeps of a conversation.
func (a *alone) got(ctx context.Context, id string) *apiv1.Conversation {
	a.t.Helper()
	r, err := apiv1.NewProviderServiceClient(a.conn).GetConversation(ctx, &apiv1.GetConversationRequest{Id: id})
	if err != nil {
		a.t.Fatal(err)
	}
	return r.GetConversation()
}

// spoken is a message of a conversation.
func spoken(id, text string) *apiv1.ChatRequest {
	return &apiv1.ChatRequest{ConversationId: id, Messages: says(text)}
}

// TestAConversationGoesOnAnywhere: at a follower, the leader, another follower, and after the first has died; whole and in pieces; with
// texts that are in the chunk store.
func TestAConversationGoesOnAnywhere(t *testing.T) {
	servers := startServers(t, 3)
	fakes := []*fakeprovider.Server{servers[0].asksModels(), servers[1].asksModels(), servers[2].asksModels()}
	token := servers[0].token(auth.Client, "films")
	films := func(i int) context.Context { return servers[i].as(token) }
	_, first, err := servers[1].chats(films(1), &apiv1.ChatRequest{ConversationId: "plan:1", Messages: append([]*apiv1.ChatMessage{{Role: "system", Text: "be brief"}}, says("one")...)})
	if err != nil || first.GetConversationId() != "plan:1" || first.GetConversationVersion() == 0 || first.GetText() != "echo: one" {
		t.Fatalf("%v, %v", first, err)
	}
	long := strings.Repeat("long text ", queue.InlineBytes/4)
	stream := spoken("plan:1", long)
	stream.Stream = true
	pieces, second, err := servers[0].chats(films(0), stream)
	if err != nil || len(pieces) < 2 || second.GetConversationId() != "plan:1" || second.GetConversationVersion() == first.GetConversationVersion() {
		t.Fatalf("%d pieces, %v, %v", len(pieces), second.GetConversationVersion(), err)
	}
	servers[1].stop()
	_, third, err := servers[2].chats(films(2), spoken("plan:1", "three"))
	if err != nil {
		t.Fatal(err)
	}
	answer := second.GetText()
	want := []string{
		"system: be brief", "user: one", "assistant: echo: one", fmt.Sprintf("user: long text … (%d)", len(long)),
		fmt.Sprintf("assistant: %s… (%d)", answer[:10], len(answer)), "user: three",
	}
	for i, n := range []int{4, 2, 6} {
		if got := told(fakes[i]); !slices.Equal(got, want[:n]) {
			t.Errorf("server %d told %q, want %q", i, got, want[:n])
		}
	}
	c := servers[2].got(films(2), "plan:1")
	if len(c.GetMessages()) != 7 || c.GetMessageCount() != 7 || c.GetMessages()[3].GetText() != long || c.GetMessages()[6].GetText() != "echo: three" ||
		c.GetVersion() != third.GetConversationVersion() || c.GetProvider() != "local" || c.GetModel() != "fast" || c.GetNamespace() != "films" ||
		c.GetExpireTime().AsTime().Sub(c.GetUpdateTime().AsTime()) != state.DefaultLimits().ConversationKeep {
		t.Errorf("%d messages: %s", len(c.GetMessages()), c.GetOwner())
	}
	kept := servers[0].ops.State.View().Conversation(state.ConversationKey{Namespace: "films", Owner: c.GetOwner(), ID: "plan:1"})
	if kept == nil || len(kept.Messages[3].Text.Chunks) == 0 || len(kept.Messages[1].Text.Inline) == 0 {
		t.Error("long texts are not in the chunk store, or short ones are")
	}
}

// TestACallFromWithinIsItsCallers: what the gateway does for somebody whom it knows goes on with what that one began with its token.
func TestACallFromWithinIsItsCallers(t *testing.T) {
	a := startAlone(t)
	fake := a.asksModels()
	token := a.token(auth.Client, "films")
	if _, _, err := a.chats(a.as(token), spoken("c", "one")); err != nil {
		t.Fatal(err)
	}
	who, err := a.api.Identify(auth.Credential{Token: token})
	if err != nil {
		t.Fatal(err)
	}
	for _, ctx := range []context.Context{a.api.AsCaller(t.Context(), who), a.api.As(t.Context(), auth.Credential{Token: token})} {
		before := len(told(fake))
		st, err := apiv1.NewProviderServiceClient(a.api.Local()).Chat(ctx, spoken("c", "more"))
		if err != nil {
			t.Fatal(err)
		}
		if m, err := st.Recv(); err != nil || m.GetAnswer().GetConversationId() != "c" || len(told(fake)) != before+2 {
			t.Errorf("%v, %v, told %q", m, err, told(fake))
		}
	}
}

func TestAServerMakesAnID(t *testing.T) {
	a := startAlone(t)
	fake := a.asksModels()
	films := a.as(a.token(auth.Client, "films"))
	_, one, err := a.chats(films, spoken("new", "a"))
	_, two, err2 := a.chats(films, spoken("new", "b"))
	if err != nil || err2 != nil || len(one.GetConversationId()) < 16 || one.GetConversationId() == two.GetConversationId() {
		t.Fatalf("%v, %v, %v, %v", one, two, err, err2)
	}
	if _, _, err := a.chats(films, spoken(one.GetConversationId(), "c")); err != nil || !slices.Equal(told(fake), []string{"user: a", "assistant: echo: a", "user: c"}) {
		t.Errorf("%q, %v", told(fake), err)
	}
	if _, answer, err := a.chats(films, &apiv1.ChatRequest{Messages: says("x")}); err != nil || answer.GetConversationId() != "" || answer.GetConversationVersion() != 0 {
		t.Errorf("a chat that is kept nowhere: %v, %v", answer, err)
	}
}

// TestATurnThatComesAgain: the same request is the same turn, at another server too; the model is asked once.
func TestATurnThatComesAgain(t *testing.T) {
	servers := startServers(t, 2)
	a, b := servers[0], servers[1]
	fakes := []*fakeprovider.Server{a.asksModels(), b.asksModels()}
	token := a.token(auth.Client, "films")
	keyed := func(id, key, text string) *apiv1.ChatRequest {
		r := spoken(id, text)
		r.IdempotencyKey = key
		return r
	}
	for _, id := range []string{"c", "new"} {
		first := keyed(id, "k"+id, "one")
		first.Messages = append([]*apiv1.ChatMessage{{Role: "system", Text: "be brief"}}, first.GetMessages()...)
		asked := fakes[0].Count()
		_, answer, err := a.chats(a.as(token), first)
		if err != nil || answer.GetRepeated() {
			t.Fatal(answer, err)
		}
		first.Stream = true
		pieces, again, err := b.chats(b.as(token), first)
		if err != nil || !again.GetRepeated() || again.GetText() != answer.GetText() || strings.Join(pieces, "") != answer.GetText() || again.GetProvider() != "local" || again.GetModel() != "fast" ||
			again.GetConversationVersion() != answer.GetConversationVersion() || again.GetConversationId() != answer.GetConversationId() || again.GetConversationMessages() != 3 || answer.GetConversationMessages() != 3 || fakes[0].Count() != asked+1 || fakes[1].Count() != 0 {
			t.Errorf("%q, %v, %v; %d and %d calls", pieces, again, err, fakes[0].Count(), fakes[1].Count())
		}
	}
	if _, _, err := b.chats(b.as(token), keyed("c", "kc", "two")); status.Code(err) != codes.AlreadyExists {
		t.Errorf("another request with the key: %v", err)
	}
	if _, _, err := b.chats(b.as(token), keyed("c", strings.Repeat("k", 129), "two")); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a long key: %v", err)
	}
	// The same words under another key, or under none, are said again.
	for i, key := range []string{"other", ""} {
		if _, answer, err := a.chats(a.as(token), keyed("c", key, "one")); err != nil || answer.GetRepeated() || len(told(fakes[0])) != 4+2*i {
			t.Errorf("%v, %v, told %q", answer, err, told(fakes[0]))
		}
	}
}

// TestATurnThatFails leaves the conversation as it was, whatever happened and how far it came.
func TestATurnThatFails(t *testing.T) {
	a := startAlone(t)
	fake := a.asksModels()
	films := a.as(a.token(auth.Client, "films"))
	if _, _, err := a.chats(films, spoken("c", "one")); err != nil {
		t.Fatal(err)
	}
	before := a.got(films, "c")
	request := func(text string, change func(*apiv1.ChatRequest)) *apiv1.ChatRequest {
		r := spoken("c", text)
		change(r)
		return r
	}
	nothing := func(*apiv1.ChatRequest) {}
	streamed := func(r *apiv1.ChatRequest) { r.Stream = true }
	for name, c := range map[string]struct {
		step *fakeprovider.Step // nil for a call that does not come so far
		req  *apiv1.ChatRequest
		want codes.Code
	}{
		"refused":             {&fakeprovider.Step{Status: 400}, request("x", nothing), codes.InvalidArgument},
		"garbage":             {&fakeprovider.Step{Garbage: true}, request("x", nothing), codes.Unavailable},
		"cut in the middle":   {&fakeprovider.Step{Cut: true, CutAfter: 1}, request("some more words", streamed), codes.Unavailable},
		"nothing said":        {nil, request("", func(r *apiv1.ChatRequest) { r.Messages = nil }), codes.InvalidArgument},
		"an empty message":    {nil, request("", nothing), codes.InvalidArgument},
		"a system prompt":     {nil, request("x", func(r *apiv1.ChatRequest) { r.Messages[0].Role = "system" }), codes.InvalidArgument},
		"all of it again":     {nil, request("x", func(r *apiv1.ChatRequest) { r.Messages = append(before.GetMessages(), says("x")...) }), codes.InvalidArgument},
		"an id that is none":  {nil, spoken("a b", "x"), codes.InvalidArgument},
		"an id that is long":  {nil, spoken(strings.Repeat("a", 129), "x"), codes.InvalidArgument},
		"no such model":       {nil, request("x", func(r *apiv1.ChatRequest) { r.Model = "none" }), codes.NotFound},
		"more than it may be": {nil, spoken("c", strings.Repeat("x", 4<<20)), codes.FailedPrecondition},
	} {
		asked := fake.Count()
		if c.step != nil {
			fake.Script(*c.step)
		}
		_, answer, err := a.chats(films, c.req)
		if status.Code(err) != c.want || answer != nil {
			t.Errorf("%s: %v, %v, want %s", name, answer, err, c.want)
		}
		if n := fake.Count() - asked; n != 0 && c.step == nil {
			t.Errorf("%s: the provider was asked %d times", name, n)
		}
	}
	// A client that leaves.
	fake.Script(fakeprovider.Step{Hang: true})
	ctx, cancel := context.WithCancel(films)
	ended := make(chan error, 1)
	go func() {
		_, _, err := a.chats(ctx, spoken("c", "x"))
		ended <- err
	}()
	a.eventually("the provider is asked", func() bool { return fake.Running() == 1 })
	cancel()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	a.eventually("the provider's call has ended", func() bool { return fake.Running() == 0 })
	after := a.got(films, "c")
	if after.GetVersion() != before.GetVersion() || len(after.GetMessages()) != 2 {
		t.Errorf("%v, and before %v", after, before)
	}
	a.eventually("the next turn is let in", func() bool {
		_, _, err := a.chats(films, spoken("c", "two"))
		return err == nil
	})
}

// TestTwoTurnsAtOnce: at one server the second is refused before anything is paid; at two servers one of both is kept.
func TestTwoTurnsAtOnce(t *testing.T) {
	servers := startServers(t, 2)
	a, b := servers[0], servers[1]
	fake := a.asksModels()
	token := a.token(auth.Client, "films")
	films := a.as(token)
	fake.Script(fakeprovider.Step{Hang: true})
	ctx, cancel := context.WithCancel(films)
	ended := make(chan error, 1)
	go func() {
		_, _, err := a.chats(ctx, spoken("c", "x"))
		ended <- err
	}()
	a.eventually("the provider is asked", func() bool { return fake.Running() == 1 })
	_, _, err := a.chats(films, spoken("c", "y"))
	if f := fault.As(client.Fault(err)); f == nil || f.Kind != fault.Aborted || f.RetryAfter == 0 || fake.Count() != 1 {
		t.Errorf("%v, and the provider was asked %d times", err, fake.Count())
	}
	if _, _, err := a.chats(films, spoken("another", "y")); err != nil {
		t.Error(err)
	}
	cancel()
	<-ended
	who := auth.Identity{TokenID: "1", Name: "ann", Role: auth.Client, Namespace: "films"}
	begin := func(a *alone) *talk {
		t.Helper()
		talk, err := a.ops.beginTalk(t.Context(), who, "films", &apiv1.ChatRequest{ConversationId: "both"}, &provider.Request{Messages: []provider.Message{{Role: provider.User, Text: "hello"}}})
		if err != nil {
			t.Fatal(err)
		}
		return talk
	}
	for round := range 2 { // a new conversation, and one that goes on
		one, two := begin(a), begin(b)
		answer := &apiv1.ChatAnswer{}
		if err := two.keep(t.Context(), &provider.Response{}, answer); err != nil || answer.GetConversationId() != "" { // what has no text is not kept
			t.Error(answer, err)
		}
		if err := two.keep(t.Context(), &provider.Response{Text: "of b"}, answer); err != nil || answer.GetConversationId() != "both" || answer.GetConversationMessages() != uint32(2+2*round) {
			t.Fatal(answer, err)
		}
		if err := one.keep(t.Context(), &provider.Response{Text: "of a"}, answer); !fault.Is(err, fault.Aborted) || !strings.Contains(err.Error(), "ask again") {
			t.Errorf("the second was kept: %v", err)
		}
		one.end()
		two.end()
	}
	// What one server has committed the other one reads at once, leader or not.
	for range 20 {
		for _, s := range []*alone{b, a} {
			talk := begin(s)
			answer := &apiv1.ChatAnswer{}
			if err := talk.keep(t.Context(), &provider.Response{Text: "next"}, answer); err != nil || answer.GetConversationVersion() <= talk.version {
				t.Fatal(answer, err)
			}
			talk.end()
		}
	}
}

// failing is a chunk store that fails so many times.
type failing struct {
	chunks.Store
	times atomic.Int32
}

func (f *failing) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	if f.times.Add(-1) >= 0 {
		return fault.New(fault.Unavailable, "the disk is slow")
	}
	return f.Store.Put(ctx, id, frame)
}

// TestAnAnswerIsKeptInTheEnd: a store that fails for a while takes no answer away; one that goes on failing leaves the conversation alone.
func TestAnAnswerIsKeptInTheEnd(t *testing.T) {
	a := startAlone(t)
	a.asksModels()
	store := &failing{Store: a.store}
	a.ops.Chunks = store
	films := a.as(a.token(auth.Client, "films"))
	long := strings.Repeat("word ", queue.InlineBytes/5+1)
	store.times.Store(2)
	if _, _, err := a.chats(films, spoken("c", long)); err != nil {
		t.Error(err)
	}
	before := a.got(films, "c")
	who := auth.Identity{TokenID: strings.TrimPrefix(before.GetOwner(), "token "), Role: auth.Client, Namespace: "films"}
	ctx, cancel := context.WithCancel(t.Context())
	talk, err := a.ops.beginTalk(ctx, who, "films", &apiv1.ChatRequest{ConversationId: "c"}, &provider.Request{Messages: []provider.Message{{Role: provider.User, Text: "more"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer talk.end()
	store.times.Store(1 << 30)
	kept := make(chan error, 1)
	answer := &apiv1.ChatAnswer{}
	go func() { kept <- talk.keep(ctx, &provider.Response{Text: long}, answer) }()
	a.eventually("it was tried", func() bool { return store.times.Load() < 1<<30-1 })
	cancel() // the caller goes: it is not tried for ever
	if err := <-kept; !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "could not be kept") || answer.GetConversationId() != "" {
		t.Errorf("%v, %v", answer, err)
	}
	if after := a.got(films, "c"); after.GetVersion() != before.GetVersion() {
		t.Errorf("%v", after)
	}
}

// talkers are clients of two namespaces that have conversations of the same names, and who else may be curious.
type talkers struct {
	*alone // a follower
	models apiv1.ProviderServiceClient

	ann, bob, films, viewer string // tokens
	owner                   string // whose bob's are
}

func startTalkers(t *testing.T) *talkers {
	servers := startServers(t, 2)
	a, follower := servers[0], servers[1]
	follower.asksModels()
	k := &talkers{
		alone: follower, models: apiv1.NewProviderServiceClient(follower.conn),
		ann: a.token(auth.Client, "films"), bob: a.token(auth.Client, "films"),
		films: a.token(auth.Admin, "films"), viewer: a.token(auth.Viewer, "films"),
	}
	for _, c := range []struct{ token, id string }{{k.ann, "shared"}, {k.ann, "anns"}, {k.bob, "shared"}, {a.token(auth.Client, "books"), "shared"}} {
		if _, _, err := k.chats(k.as(c.token), spoken(c.id, c.id)); err != nil {
			t.Fatal(err)
		}
	}
	k.owner = k.got(k.as(k.bob), "shared").GetOwner()
	return k
}

// list is what somebody sees, page by page.
func (k *talkers) list(token string, req *apiv1.ListConversationsRequest) (ids []string) {
	k.t.Helper()
	for {
		r, err := k.models.ListConversations(k.as(token), req)
		if err != nil {
			k.t.Fatal(err)
		}
		for _, c := range r.GetConversations() {
			ids = append(ids, c.GetNamespace()+"/"+c.GetId())
			if len(c.GetMessages()) > 0 || c.GetMessageCount() != 2 || c.GetCaller() != "client:client" {
				k.t.Errorf("%v", c)
			}
		}
		if req.PageToken = r.GetNextPageToken(); req.PageToken == "" {
			slices.Sort(ids)
			return ids
		}
	}
}

// TestWhoSeesConversations: everybody its own, admins all of their namespaces.
func TestWhoSeesConversations(t *testing.T) {
	k := startTalkers(t)
	for name, c := range map[string]struct {
		got  []string
		want string
	}{
		"ann":              {k.list(k.ann, &apiv1.ListConversationsRequest{}), "films/anns films/shared"},
		"bob":              {k.list(k.bob, &apiv1.ListConversationsRequest{Namespace: "films"}), "films/shared"},
		"an admin":         {k.list(k.films, &apiv1.ListConversationsRequest{PageSize: 1}), "films/anns films/shared films/shared"},
		"of one":           {k.list(k.films, &apiv1.ListConversationsRequest{Owner: k.owner}), "films/shared"},
		"the cluster's":    {k.list(k.admin, &apiv1.ListConversationsRequest{}), "books/shared films/anns films/shared films/shared"},
		"of one, of all":   {k.list(k.admin, &apiv1.ListConversationsRequest{Owner: k.owner, PageSize: 1}), "films/shared"},
		"in one namespace": {k.list(k.admin, &apiv1.ListConversationsRequest{Namespace: "books"}), "books/shared"},
	} {
		if strings.Join(c.got, " ") != c.want {
			t.Errorf("%s sees %q, want %q", name, c.got, c.want)
		}
	}
}

// TestWhoMayTouchConversations: reading and deleting one's own, and another's.
func TestWhoMayTouchConversations(t *testing.T) {
	k := startTalkers(t)
	get := func(token, namespace, id, owner string) codes.Code {
		_, err := k.models.GetConversation(k.as(token), &apiv1.GetConversationRequest{Namespace: namespace, Id: id, Owner: owner})
		return status.Code(err)
	}
	remove := func(token, id, owner, key string) codes.Code {
		_, err := k.models.DeleteConversation(k.as(token), &apiv1.DeleteConversationRequest{Id: id, Owner: owner, IdempotencyKey: key})
		return status.Code(err)
	}
	_, listed := k.models.ListConversations(k.as(k.ann), &apiv1.ListConversationsRequest{Owner: k.owner})
	_, token := k.models.ListConversations(k.as(k.ann), &apiv1.ListConversationsRequest{PageToken: "?"})
	_, look := k.models.ListConversations(k.as(k.viewer), &apiv1.ListConversationsRequest{})
	for name, c := range map[string][2]codes.Code{
		"her own":                    {get(k.ann, "", "anns", ""), codes.OK},
		"another's":                  {get(k.bob, "", "anns", ""), codes.NotFound},
		"another's by owner":         {get(k.ann, "", "shared", k.owner), codes.PermissionDenied},
		"a list of another's":        {status.Code(listed), codes.PermissionDenied},
		"an odd page":                {status.Code(token), codes.InvalidArgument},
		"a viewer":                   {status.Code(look), codes.PermissionDenied},
		"of another namespace":       {get(k.films, "books", "shared", ""), codes.PermissionDenied},
		"an admin":                   {get(k.films, "", "anns", ""), codes.OK},
		"an admin, of several":       {get(k.films, "", "shared", ""), codes.InvalidArgument},
		"an admin, by owner":         {get(k.films, "", "shared", k.owner), codes.OK},
		"no id":                      {get(k.ann, "", "", ""), codes.InvalidArgument},
		"none":                       {get(k.ann, "", "none", ""), codes.NotFound},
		"deleting another's":         {remove(k.bob, "anns", "", ""), codes.NotFound},
		"deleting another's, named":  {remove(k.ann, "shared", k.owner, ""), codes.PermissionDenied},
		"deleting by an admin":       {remove(k.films, "shared", k.owner, ""), codes.OK},
		"what was deleted":           {get(k.bob, "", "shared", ""), codes.NotFound},
		"what others have of a name": {get(k.ann, "", "shared", ""), codes.OK},
	} { // they are asked for in the order in which they are written
		if c[0] != c[1] {
			t.Errorf("%s: %s, want %s", name, c[0], c[1])
		}
	}
	for i, want := range []codes.Code{codes.OK, codes.OK, codes.NotFound} { // a deletion, its repetition, and another one
		if got := remove(k.ann, "anns", "", []string{"k", "k", ""}[i]); got != want {
			t.Errorf("deletion %d: %s, want %s", i, got, want)
		}
	}
}

// TestFailoverKeepsTheConversation: with its provider gone another one goes on with it; and back, and with another model.
func TestFailoverKeepsTheConversation(t *testing.T) {
	a := startAlone(t)
	one, two := fakeprovider.New(), fakeprovider.New()
	pool := func(name string, f *fakeprovider.Server, models ...string) provider.PoolConfig {
		c := provider.PoolConfig{Name: name, Dialect: provider.OpenAI, URL: f.Start(t) + "/v1"}
		for _, m := range models {
			c.Models = append(c.Models, provider.ModelConfig{Name: m})
		}
		return c
	}
	cfg := provider.Defaults()
	cfg.Pools = []provider.PoolConfig{pool("one", one, "big"), pool("two", two, "small", "large")}
	a.asks(cfg)
	films := a.as(a.token(auth.Client, "films"))
	chat := func(req *apiv1.ChatRequest) *apiv1.ChatAnswer {
		t.Helper()
		_, answer, err := a.chats(films, req)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	is := func(answer *apiv1.ChatAnswer, provider, model string, f *fakeprovider.Server, messages int) {
		t.Helper()
		if answer.GetProvider() != provider || answer.GetModel() != model || len(told(f)) != messages {
			t.Errorf("%s/%s was told %q", answer.GetProvider(), answer.GetModel(), told(f))
		}
	}
	named := spoken("c", "first")
	named.Provider, named.Model = "two", "large"
	is(chat(named), "two", "large", two, 1)
	is(chat(spoken("c", "as before")), "two", "large", two, 3)
	two.Script(fakeprovider.Step{Status: 503}, fakeprovider.Step{Status: 503}, fakeprovider.Step{Status: 503})
	is(chat(spoken("c", "it is gone")), "one", "big", one, 5)
	is(chat(spoken("c", "and stays there")), "one", "big", one, 7)
	back := spoken("c", "another model")
	back.Model = "small"
	is(chat(back), "two", "small", two, 9)
}

// TestAFullConversation is refused before anything is asked.
func TestAFullConversation(t *testing.T) {
	a := startAlone(t)
	fake := a.asksModels()
	films := a.as(a.token(auth.Client, "films"))
	full := &apiv1.ChatRequest{ConversationId: "c"}
	for i := range state.DefaultLimits().ConversationMessages - 1 {
		full.Messages = append(full.Messages, &apiv1.ChatMessage{Role: []string{"user", "assistant"}[i%2], Text: strings.Repeat("x", 1000)})
	}
	if _, _, err := a.chats(films, full); err != nil {
		t.Fatal(err)
	}
	if c := a.got(films, "c"); len(c.GetMessages()) != 1000 || c.GetMessages()[998].GetText() != full.GetMessages()[998].GetText() {
		t.Errorf("%d messages", len(c.GetMessages()))
	}
	if b := a.ops.State.View().Stats().ConversationBytes; b > turnInlineBytes+1000*32 {
		t.Errorf("%d bytes of one turn are in the state", b)
	}
	if _, _, err := a.chats(films, spoken("c", "one more")); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "begin another one") || fake.Count() != 1 {
		t.Errorf("%v, and the provider was asked %d times", err, fake.Count())
	}
}

// TestReadIndex: for servers alone, from the leader alone.
func TestReadIndex(t *testing.T) {
	servers := startServers(t, 3)
	for i, a := range servers {
		peer := metadata.AppendToOutgoingContext(a.as(""), peerKey, "secret")
		r, err := clusterv1.NewRelayServiceClient(a.conn).GetReadIndex(peer, &clusterv1.GetReadIndexRequest{})
		if want := i == 0; (err == nil) != want || want && r.GetIndex() == 0 || !want && status.Code(err) != codes.Unavailable {
			t.Errorf("server %d: %v, %v", i, r, err)
		}
	}
	for _, role := range []auth.Role{auth.Admin, auth.Client} {
		if _, err := clusterv1.NewRelayServiceClient(servers[0].conn).GetReadIndex(servers[0].as(servers[0].token(role, "")), &clusterv1.GetReadIndexRequest{}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", role, err)
		}
	}
}

// asks gives a server the providers of a configuration.
func (a *alone) asks(cfg provider.Config) {
	a.t.Helper()
	pools, err := provider.New(provider.Options{Config: cfg, ConfigKey: "providers", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = pools.Run(ctx) }()
	a.t.Cleanup(func() {
		cancel()
		<-ended
		if err := pools.Close(); err != nil {
			a.t.Error(err)
		}
	})
	a.ops.Providers = pools
}
