// That messages are written as encoding/json writes them.
package socket

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/neolith/orchestrator/gateway/tools"
)

func FuzzEncode(f *testing.F) {
	for _, s := range []string{"", "a", `a"b\c`, "line\nline\r\t\x00\x7f", "<b>&", "é\u2028\u2029\U0001F600", "\xff", `{"models":[{"name":"a"}]}`, "\"", "\\", "\n\n"} {
		f.Add(s, s, uint64(len(s)), int64(len(s))*123, len(s)%2 == 0)
	}
	f.Fuzz(func(t *testing.T, s, other string, n uint64, ms int64, yes bool) {
		outputs := []tools.Output{{Type: "text", Text: s}, {Type: s, Text: other}}
		raw := appendOutputs(nil, outputs)
		if want, _ := json.Marshal(outputs); string(raw) != string(want) {
			t.Fatalf("%s rather than %s", raw, want)
		}
		if got := string(appendOutputs(nil, nil)); got != "[]" {
			t.Errorf("no outputs are %s", got)
		}
		timeout := float64(uint64(ms)%86_400_000) / 1000
		for _, m := range []message{
			{Op: s},
			{Op: "call_tool_ack", RequestID: s, Seq: n, Name: other, Accepted: yes, Timeout: timeout},
			{Op: "call_tool_res", RequestID: s, Seq: n, Outputs: raw, FromCache: yes, FromInflight: !yes, Order: n / 2},
			{Op: "call_tool_res", Outputs: json.RawMessage{}},
			{Op: "progress", RequestID: other, Message: s}, {Op: "stream_chunk", Chunk: s, Seq: n}, {Op: "stream_complete", Truncated: yes},
			{Op: "call_tool_res", RequestID: s, Error: failed(codeInternal, other)}, {Op: "hello_ack", OK: &yes, SessionID: s, Server: other, Resumed: yes},
		} {
			want, err := json.Marshal(&m)
			if err != nil {
				t.Fatal(err)
			}
			if got := m.encode(); string(got) != string(want) {
				t.Errorf("%s rather than %s", got, want)
			}
		}
	})
}

// Whatever a message may hold, it is either written by hand or left to the library as a whole.
func TestEncodeLeavesNothingOut(t *testing.T) {
	yes := true
	m := message{
		Op: "x", RequestID: "r", Seq: 1, OK: &yes, SessionID: "s", Server: "v", Resumed: true, Tools: &[]toolInfo{}, Name: "n", Accepted: true, Timeout: 1.5,
		Message: "m", Chunk: "c", Truncated: true, Order: 2, Outputs: json.RawMessage("[]"), FromCache: true, FromInflight: true, Health: &health{}, Error: failed("c", "m"),
	}
	for i, v := 0, reflect.ValueOf(m); i < v.NumField(); i++ {
		if name := v.Type().Field(i).Name; v.Field(i).IsZero() && name != "Reason" { // which is never written
			t.Fatalf("give %s here, and write it in appendTo, or refuse it in isOfCall", name)
		}
	}
	whole, _ := json.Marshal(&m)
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(whole, &fields); err != nil {
		t.Fatal(err)
	}
	for name, raw := range fields {
		one, _ := json.Marshal(map[string]json.RawMessage{"op": json.RawMessage(`"x"`), name: raw})
		var m message
		if err := json.Unmarshal(one, &m); err != nil {
			t.Fatal(err)
		}
		want, _ := json.Marshal(&m)
		if got := m.encode(); string(got) != string(want) {
			t.Errorf("%s rather than %s", got, want)
		}
	}
}
