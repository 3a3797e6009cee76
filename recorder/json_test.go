// What is written by hand is what encoding/json writes.

package recorder

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestJSONIsThatOfTheLibrary(t *testing.T) {
	text := rapid.StringOf(rapid.OneOf(rapid.Rune(), rapid.RuneFrom([]rune("\x00\b\f\n\r\t\x1f\x7f\"\\/<>&\u2027\u2028\u2029\u202a漢😀\uFFFD"))))
	number := rapid.Int64Min(0)
	rapid.Check(t, func(t *rapid.T) {
		i := Interaction{Time: time.UnixMicro(rapid.Int64Range(0, 1<<52).Draw(t, "time")).UTC(), Epoch: rapid.Uint64().Draw(t, "epoch"),
			RequestTruncated: rapid.Bool().Draw(t, "cut"), ResponseTruncated: rapid.Bool().Draw(t, "cut"), Redactions: rapid.IntRange(0, 9).Draw(t, "secrets")}
		for _, s := range i.stringFields() {
			if rapid.Bool().Draw(t, "has") {
				*s = text.Draw(t, "text")
			}
		}
		for _, n := range i.numberFields() {
			if rapid.Bool().Draw(t, "has") {
				*n = number.Draw(t, "number")
			}
		}
		var want bytes.Buffer
		enc := json.NewEncoder(&want)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(&i); err != nil {
			t.Fatal(err)
		}
		if got := append(i.AppendJSON(nil), '\n'); string(got) != want.String() {
			t.Fatalf("got  %s\nwant %s", got, want.String())
		}
	})
}
