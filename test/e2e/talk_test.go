// Conversations with models in a real cluster: what was said and answered outlives the servers that heard it.

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fakeprovider"
)

// TestAConversationOutlivesItsServers talks at one server, which dies at once, goes on at another, and after all of them have died.
func TestAConversationOutlivesItsServers(t *testing.T) {
	fake := fakeprovider.New()
	c := startTrioWith(t, 0, map[string]any{"providers": map[string]any{"pools": []any{map[string]any{
		"name": "local", "dialect": "openai", "url": fake.Start(t) + "/v1", "models": []any{map[string]string{"name": "fast"}},
	}}}})
	long := strings.Repeat("it matters to the byte ", 8000) // for the chunk store
	said := []string{"system: be brief"}
	// talk says something at a server, and checks that the model was told all that was said before.
	talk := func(server int, prompt string) {
		t.Helper()
		arguments := map[string]any{"conversation_id": "plan", "prompt": prompt}
		if len(said) == 1 {
			delete(arguments, "prompt")
			arguments["messages"] = []any{map[string]string{"role": "system", "content": "be brief"}, map[string]string{"role": "user", "content": prompt}}
		}
		ws := connect(t, c.at(server, 4), nil, "", fmt.Sprint("talk-", server, "-", len(said)))
		defer ws.ws.Close()
		answer := ws.call("chat", arguments)
		if answer["conversationId"] != "plan" || answer["text"] != "echo: "+prompt {
			t.Fatalf("%.200v", answer)
		}
		said = append(said, "user: "+prompt)
		calls := fake.Calls()
		var told []string
		for _, m := range calls[len(calls)-1].Body["messages"].([]any) {
			m := m.(map[string]any)
			told = append(told, fmt.Sprintf("%s: %s", m["role"], m["content"]))
		}
		if !slices.Equal(told, said) {
			t.Fatalf("the model was told %d messages, of %d: %.300q", len(told), len(said), told)
		}
		said = append(said, "assistant: echo: "+prompt)
	}
	r, err := c.c.Cluster.GetStatus(t.Context(), &apiv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	leads := slices.IndexFunc([]string{"server-1", "server-2", "server-3"}, func(id string) bool { return id == r.GetLeader() })
	if leads < 0 {
		t.Fatalf("%s leads", r.GetLeader())
	}
	one, two := (leads+1)%3, (leads+2)%3
	talk(leads, "one")
	c.servers[leads].kill() // what it has answered is elsewhere
	talk(one, long)
	talk(two, "three")
	c.servers[one].kill()
	c.servers[two].kill()
	for i := range c.servers {
		c.servers[i].run()
	}
	for i := range c.servers {
		c.untilReady(i)
	}
	talk(leads, "four")
	c.until("the conversation is listed", func(ctx context.Context) bool {
		r, err := c.c.Models.ListConversations(ctx, &apiv1.ListConversationsRequest{Namespace: "default"})
		return err == nil && len(r.GetConversations()) == 1 && r.GetConversations()[0].GetMessageCount() == 9
	})
}
