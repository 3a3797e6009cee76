// No secret survives: a table of forms, each cut at every byte; what is none stays; texts made to be slow are not.

package redact

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// secretWord is the part of each form that must not survive, and no half of it either.
const secretWord = "hunter2Zq9Xw7Vb3"

var forms = []struct{ name, text string }{
	{"json", `{"user":"ann","password":"hunter2Zq9Xw7Vb3","n":1}`},
	{"json with spaces", `{"password" : "hunter2Zq9Xw7Vb3"}`},
	{"json, another line", "{\"api_key\":\n\t\"hunter2Zq9Xw7Vb3\"}"},
	{"json number-like", `{"token":hunter2Zq9Xw7Vb3}`},
	{"json in json", `{"arguments":"{\"client_secret\":\"hunter2Zq9Xw7Vb3\"}"}`},
	{"json in json in json", `{"a":"{\"b\":\"{\\\"accessToken\\\":\\\"hunter2Zq9Xw7Vb3\\\"}\"}"}`},
	{"json, escaped quote before", `{"password":"a\"hunter2Zq9Xw7Vb3"}`},
	{"json, escaped backslash", `{"password":"a\\","token":"hunter2Zq9Xw7Vb3"}`},
	{"json in json, escaped quote before", `{"a":"{\"password\":\"x\\\"hunter2Zq9Xw7Vb3\"}"}`},
	{"json list", `{"secrets":["a","hunter2Zq9Xw7Vb3"]}`},
	{"json object", `{"credentials":{"user":"a","key":{"v":"]}hunter2Zq9Xw7Vb3"}}}`},
	{"single quotes", `{'passwd': 'hunter2Zq9Xw7Vb3'}`},
	{"yaml", "user: ann\ndb_password: hunter2Zq9Xw7Vb3\nport: 1\n"},
	{"environment", "export AWS_SECRET_ACCESS_KEY=hunter2Zq9Xw7Vb3\n"},
	{"environment in json", `{"env":"A=b\nMY_TOKEN=hunter2Zq9Xw7Vb3\nC=d"}`},
	{"query", "GET /v1/x?page=2&access_token=hunter2Zq9Xw7Vb3&n=1"},
	{"header", "Authorization: Bearer hunter2Zq9Xw7Vb3\r\nHost: x"},
	{"header in json", `{"Authorization":"Bearer hunter2Zq9Xw7Vb3"}`},
	{"basic header", "authorization: Basic hunter2Zq9Xw7Vb3=="},
	{"header name x-api-key", "X-Api-Key: hunter2Zq9Xw7Vb3"},
	{"cookie", "Set-Cookie: hunter2Zq9Xw7Vb3"},
	{"bearer in prose", "use bearer hunter2Zq9Xw7Vb3 for it"},
	{"bearer behind an escaped line", `"line\nBearer hunter2Zq9Xw7Vb3"`},
	{"sk-", "the key is sk-proj-hunter2Zq9Xw7Vb3, keep it"},
	{"sk- in a comma", "a,sk-ant-hunter2Zq9Xw7Vb3"},
	{"sk- behind an escaped line", `"key:\nsk-hunter2Zq9Xw7Vb3"`},
	{"github", "ghp_hunter2Zq9Xw7Vb3"},
	{"gitlab", "glpat-hunter2Zq9Xw7Vb3"},
	{"slack", "xoxb-hunter2Zq9Xw7Vb3"},
	{"google", "AIzaSyhunter2Zq9Xw7Vb3hunter2Zq9Xw7Vb3"},
	{"orchestrator", "orch_a1b2c3_hunter2Zq9Xw7Vb3"},
	{"jwt", "eyJhbGciOiJIUzI1NiJ9.eyJodW50ZXIyIn0.hunter2Zq9Xw7Vb3"},
	{"jwt without its signature", "eyJhbGciOiJIUzI1NiJ9.hunter2Zq9Xw7Vb3"},
	{"pem", "-----BEGIN RSA PRIVATE KEY-----\nMIIhunter2Zq9Xw7Vb3\n-----END RSA PRIVATE KEY-----\n"},
	{"pem in json", `"-----BEGIN PRIVATE KEY-----\nMIIhunter2Zq9Xw7Vb3\n-----END PRIVATE KEY-----\n"`},
	{"url", "postgres://ann:hunter2Zq9Xw7Vb3@db.example/x?sslmode=require"},
	{"url, at in the password", "postgres://ann:a@hunter2Zq9Xw7Vb3@db.example/x"},
	{"option", "mysql --password hunter2Zq9Xw7Vb3 -h x"},
	{"option with =", "curl --token=hunter2Zq9Xw7Vb3 x"},
	{"option in a list", `["login","--password","hunter2Zq9Xw7Vb3","x"]`},
	{"option in a quoted list", `"[\"--api-key\", \"hunter2Zq9Xw7Vb3\"]"`},
	{"xml", "<a><password>hunter2Zq9Xw7Vb3</password></a>"},
	{"xml with attributes", `<Secret kind="x">hunter2Zq9Xw7Vb3</Secret>`},
	{"xml in json of Go", `"\u003cpassword\u003ehunter2Zq9Xw7Vb3\u003c/password\u003e"`},
	{"ruby", `{:password => "hunter2Zq9Xw7Vb3"}`},
	{"go", `token := "hunter2Zq9Xw7Vb3"`},
	{"comparison", `if password == "hunter2Zq9Xw7Vb3" {`},
	{"key as another's value", `token=password: "hunter2Zq9Xw7Vb3 x"`},
	{"own expression", "employee number E-hunter2Zq9Xw7Vb3"},
	{"own group", "badge #hunter2Zq9Xw7Vb3."},
}

func newRedactor(t testing.TB) *Redactor {
	t.Helper()
	r, err := New(`E-[A-Za-z0-9]+`, `badge #(?P<secret>\w+)`)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// survives returns a part of the secret, of more than six letters, that is in a text.
func survives(text string) string {
	for i := 0; i+7 <= len(secretWord); i++ {
		if part := secretWord[i : i+7]; strings.Contains(text, part) {
			return part
		}
	}
	return ""
}

func TestNoFormSurvives(t *testing.T) {
	r := newRedactor(t)
	for _, f := range forms {
		clean, n := r.Text(f.text, 1<<20)
		if part := survives(clean); part != "" || n == 0 {
			t.Errorf("%s: %q became %q (%d taken out)", f.name, f.text, clean, n)
		}
		if json.Valid([]byte(f.text)) && !json.Valid([]byte(clean)) {
			t.Errorf("%s: %q is no JSON any more", f.name, clean)
		}
	}
}

// Wherever the bound falls, in the secret, before or behind it, and whatever was taken out before it.
func TestNoFormSurvivesTheCut(t *testing.T) {
	r := newRedactor(t)
	many := strings.Repeat(`"password":"`+strings.Repeat("x", 100)+`",`, 20) // these become shorter
	for _, f := range forms {
		for _, before := range []string{"", strings.Repeat("lorem ", 50), many} {
			text := before + " " + f.text + strings.Repeat(" dolor", 100)
			for bound := len(before); bound <= len(before)+len(f.text)+2; bound++ {
				clean, _ := r.Text(text, bound)
				if part := survives(clean); part != "" {
					t.Fatalf("%s, cut at %d: %q is left in %q", f.name, bound-len(before), part, clean[max(0, len(clean)-100):])
				}
				if len(clean) > bound {
					t.Fatalf("%s: %d bytes, more than %d", f.name, len(clean), bound)
				}
			}
		}
	}
}

// A secret that is longer than what is looked at.
func TestASecretThatNeverEnds(t *testing.T) {
	r := newRedactor(t)
	endless := strings.Repeat(secretWord, 3*Beyond/len(secretWord))
	for _, begin := range []string{`{"password":"`, "Bearer ", "sk-", "eyJhbGciOiJIUzI1NiJ9.", "eyJ", "token=", "-----BEGIN PRIVATE KEY-----\n", `{"secret":[["`, "E-"} {
		if clean, _ := r.Text("x "+begin+endless, 100); survives(clean) != "" {
			t.Errorf("behind %q: %q", begin, clean)
		}
	}
}

func TestWhatIsNoSecretStays(t *testing.T) {
	r := newRedactor(t)
	for _, text := range []string{
		`{"max_tokens":4096,"usage":{"input_tokens":12,"output_tokens":7,"total_tokens":19}}`,
		"a task-management-system, a risk-free disk-image", "the tokens are counted", `{"token":null,"secret":true}`,
		"https://example.com/a:b@c", "see http://example.com:8080/x", "author: Ann", "11:30:05", "a == b", "--dry-run --wait", "key: value",
		"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "<b>bold</b>", "begins with AKIA", "héllo wörld", "",
	} {
		if clean, n := r.Text(text, 1<<20); clean != text || n != 0 {
			t.Errorf("%q became %q", text, clean)
		}
	}
}

func TestCutsAreWholeCharacters(t *testing.T) {
	r := newRedactor(t)
	const text = "aé漢😀b"
	for bound := range 12 {
		clean, _ := r.Text(text, bound)
		if !utf8.ValidString(clean) || len(clean) > bound || text[:len(clean)] != clean {
			t.Errorf("cut at %d: %q", bound, clean)
		}
	}
	if clean, _ := r.Text("a\x00b\xffc", 100); clean != "a\uFFFDb\uFFFDc" {
		t.Errorf("%q", clean)
	}
}

func TestBadExpressions(t *testing.T) {
	for _, bad := range []string{"(", "a*", ""} {
		if _, err := New(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// Forms among each other, quoted in JSON to any depth, cut anywhere.
func TestForms(t *testing.T) {
	r := newRedactor(t)
	rapid.Check(t, func(t *rapid.T) {
		var text string
		for range rapid.IntRange(1, 4).Draw(t, "forms") {
			text += rapid.StringMatching(`[a-z{}\[\]":,=\\ ]{0,6}[\n ]`).Draw(t, "noise")
			text += rapid.SampledFrom(forms).Draw(t, "form").text + "\n"
		}
		for range rapid.IntRange(0, 3).Draw(t, "levels") {
			b, err := json.Marshal(map[string]string{"text": text})
			if err != nil {
				t.Fatal(err)
			}
			text = string(b)
		}
		clean, _ := r.Text(text, rapid.IntRange(0, len(text)+10).Draw(t, "bound"))
		if part := survives(clean); part != "" {
			t.Fatalf("%q is left of\n%s\nin\n%s", part, text, clean)
		}
	})
}

// The time grows with the text, not with its square: a megabyte may take a while, and a square of it would take minutes.
func TestTextsMadeToBeSlow(t *testing.T) {
	r := newRedactor(t)
	pieces := []string{"eyJ", "sk-", "token:", `"token":[`, `{"token":{`, "--token ", "AKIA", "-----BEGIN PRIVATE KEY-----", "<token>", `\u003c`, "://a:", `\\\"token\":`,
		"=", `"`, "'", "bearer ", "Bearer", "--", "token=\\", "\\", "@", " ", "]", "a", "."}
	const bytes = 256 << 10
	for _, a := range pieces {
		for _, b := range pieces {
			begin := time.Now()
			r.Text(strings.Repeat(a+b, bytes/len(a+b))+"! x", bytes)
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("%q, over and over, takes %s", a+b, took)
			}
		}
	}
}

func FuzzText(f *testing.F) {
	for _, form := range forms {
		f.Add(strings.ReplaceAll(form.text, secretWord, "another2Word3"), 100)
	}
	r := newRedactor(f)
	f.Fuzz(func(t *testing.T, text string, bound int) {
		bound &= 0xffff
		clean, _ := r.Text(text, bound)
		if len(clean) > bound || !utf8.ValidString(clean) || strings.Contains(clean, "\x00") {
			t.Fatalf("%q", clean)
		}
		if survives(text) != "" {
			return
		}
		// Whatever is around it, a password in JSON does not survive, and neither does a key.
		for _, form := range []string{"\n" + `{"password":"` + secretWord + `"}`, "\nsk-" + secretWord} {
			for _, whole := range []string{form + text, text + form} {
				if clean, _ = r.Text(whole, bound); survives(clean) != "" {
					t.Fatalf("%q: %q", whole, clean)
				}
			}
		}
	})
}

func BenchmarkText(b *testing.B) {
	r, err := New()
	if err != nil {
		b.Fatal(err)
	}
	text := strings.Repeat(`{"role":"user","content":"Move the session to another node, then tell me how it went: what did it cost?"},`, 10)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		r.Text(text, 64<<10)
	}
}
