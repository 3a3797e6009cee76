// That messages are read as encoding/json reads them.
package socket

import (
	"encoding/json"
	"testing"
	"unicode/utf8"
)

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{}`, ` { } `, "\t{\r\n}\n", `{"op":"call_tool","request_id":"1","name":"echo","arguments":{"key":"k"},"durable":false}`,
		`{"op" : "ping" , "request_id" : "é\u00e9\n\"" }`, `{"a":[1,[2,{"b":"]}"}],{}],"c":null,"d":true,"e":-1.5e+3}`, `{"a":1,"a":2,"\u0061":"x\\"}`,
		`{"a":"\ud800","":"","b":"\\\"","c":"\\"}`, `{"a":{"b":"\"}"} ,"c":[ ] }`, `{"op":7,"request_id":null}`, `{"op":null,"request_id":"a b"}`,
		`null`, `[]`, `"{}"`, `1`, ``, ` `, `{`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{} {}`, `{"a":"` + "\n" + `"}`, "\xff", `{"a":01}`, `{"a":tru}`, `{"A":1,"a":2}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &request{words: newWords()}
		err := r.parse(data)
		var want map[string]json.RawMessage
		if broken := json.Unmarshal(data, &want); broken != nil || want == nil || !utf8.Valid(data) || nesting(data) > maxNesting {
			if err == nil {
				t.Fatalf("%q was taken (%v)", data, broken)
			}
			return
		}
		if err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		for _, have := range r.fields {
			if _, ok := want[string(have.name)]; !ok {
				t.Errorf("%q has no field %q", data, have.name)
			}
		}
		for name, raw := range want {
			if have := r.field(name); string(have) != string(raw) {
				t.Errorf("%q: %q is %s rather than %s", data, name, have, raw)
			}
			var s string
			isString := json.Unmarshal(raw, &s) == nil
			if have, f := r.text(name, len(data)); have != s || (f == nil) != isString {
				t.Errorf("%q: %q is %q (%v) rather than %q", data, name, have, f, s)
			}
		}
	})
}
