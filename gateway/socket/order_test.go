// By what calls run one after the other.
package socket

import (
	"encoding/json"
	"testing"

	"github.com/neolith/orchestrator/gateway/tools"
)

func TestOrderKeys(t *testing.T) {
	set := tools.New(nil)
	for _, c := range []struct{ tool, key, arguments, want string }{
		{"chat", "", `{"conversation_id":"talk"}`, "talk"}, {"chat", "mine", `{"conversation_id":"talk"}`, "mine"}, {"chat", "", `{"conversation_id":"new"}`, ""},
		{"chat", "", `{"prompt":"x"}`, ""}, {"chat", "", `{"conversation_id":7}`, ""}, {"session_send", "", `{"conversation_id":"talk"}`, ""}, {"session_send", "k", `{}`, "k"},
	} {
		tool, _ := set.Find(c.tool)
		call := toolCall{key: c.key, arguments: json.RawMessage(c.arguments), tool: tool}
		if got := call.orderKey(); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
	if a, b := orderKey("token a", "talk"), orderKey("token b", "talk"); a == b || a == "" || orderKey("token a", "") != "" {
		t.Errorf("two tokens have the keys %q and %q", a, b)
	}
}
