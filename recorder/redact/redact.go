// Finding spans and replacing them; what is a span is in keys.go and tokens.go.

package redact

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// Mark stands where a secret was.
	Mark = "[REDACTED]"
	// Beyond is how many bytes behind the bound are looked at for secrets that begin before it.
	Beyond = 8 << 10
)

// Redactor takes secrets out of text. It may be used by many goroutines.
type Redactor struct {
	own []*regexp.Regexp
}

// span is a secret: text[from:to]. What replaces it is Mark, between quotes where quote is not empty.
type span struct {
	from, to int
	quote    string
}

// New returns a redactor with the built-in rules and regular expressions (RE2) of one's own. Where such a one has groups named "secret", only
// they are replaced.
func New(patterns ...string) (*Redactor, error) {
	r := &Redactor{}
	for _, p := range patterns {
		re, err := regexp.Compile(p)
		if err != nil {
			return nil, fmt.Errorf("redact: %q is no regular expression: %w", p, err)
		}
		if re.MatchString("") {
			return nil, fmt.Errorf("redact: %q matches the empty text, so it would be found everywhere; demand a character", p)
		}
		r.own = append(r.own, re)
	}
	return r, nil
}

// Window returns what of a text must be kept for Text to see all that it needs.
func Window(text string, bytesMax int) string { return text[:min(len(text), bytesMax+Beyond)] }

// Text returns at most bytesMax bytes of a text without its secrets, as valid UTF-8 without zero bytes, and how many secrets were taken
// out of it. It cuts where a character begins.
func (r *Redactor) Text(text string, bytesMax int) (clean string, secrets int) {
	if text == "" {
		return "", 0
	}
	text = printable(Window(text, bytesMax))
	spans := r.spans(text)
	keep := min(len(text), bytesMax)
	if len(spans) == 0 {
		return cut(text, keep), 0
	}
	var b strings.Builder
	at := 0
	for _, s := range spans {
		if s.from >= keep {
			break
		}
		secrets++
		b.WriteString(text[at:s.from])
		b.WriteString(s.quote)
		b.WriteString(Mark)
		b.WriteString(s.quote)
		at = s.to
	}
	if at < keep {
		b.WriteString(text[at:keep])
	}
	return cut(b.String(), bytesMax), secrets
}

// cut returns at most n bytes, and no half of a character.
func cut(text string, n int) string {
	if len(text) > n {
		text = text[:n]
	}
	for i := 0; i < utf8.UTFMax && len(text) > 0; i++ {
		if c, size := utf8.DecodeLastRuneInString(text); c != utf8.RuneError || size > 1 {
			break
		}
		text = text[:len(text)-1]
	}
	return text
}

// printable returns the text as databases take it. Most texts are.
func printable(text string) string {
	if strings.IndexByte(text, 0) >= 0 {
		text = strings.ReplaceAll(text, "\x00", "\uFFFD")
	}
	if utf8.ValidString(text) { // which takes eight bytes at a time
		return text
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// spans returns all secrets, in order, none within another.
func (r *Redactor) spans(text string) []span {
	all := builtIn(text)
	for _, re := range r.own {
		all = append(all, matches(re, text)...)
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Or(a.from-b.from, b.to-a.to) })
	out := all[:0]
	for _, s := range all {
		if n := len(out); n > 0 && s.from < out[n-1].to {
			out[n-1].to = max(out[n-1].to, s.to)
			continue
		}
		out = append(out, s)
	}
	return out
}

// matches are the places of one expression, or of its groups that are named secret.
func matches(re *regexp.Regexp, text string) []span {
	var all []span
	for _, m := range re.FindAllStringSubmatchIndex(text, -1) {
		named := false
		for i, name := range re.SubexpNames() {
			if name != "secret" {
				continue
			}
			named = true
			if m[2*i] >= 0 {
				all = append(all, span{from: m[2*i], to: m[2*i+1]})
			}
		}
		if !named && m[1] > m[0] {
			all = append(all, span{from: m[0], to: m[1]})
		}
	}
	return all
}

// Printable is Text for what holds no secrets: names that the house itself gave.
func (r *Redactor) Printable(text string, bytesMax int) string {
	return cut(printable(Window(text, bytesMax)), bytesMax)
}
