// Values whose key says that they are secret.

package redact

import "strings"

// longestKey bounds how long a key is looked at.
const longestKey = 128

// sensitive reports whether a key names a secret. Separators and case do not count.
func sensitive(key string) bool {
	if len(key) > longestKey {
		key = key[len(key)-longestKey:]
	}
	var buf [longestKey]byte
	n := 0
	for i := range len(key) {
		switch c := key[i]; {
		case c >= 'A' && c <= 'Z':
			buf[n] = c + 'a' - 'A'
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			buf[n] = c
		default:
			continue
		}
		n++
	}
	k := string(buf[:n])
	// Four looks tell almost all keys from the ten that are meant.
	switch {
	case n < 3:
		return false
	case strings.Contains(k, "pass") && (strings.Contains(k, "password") || strings.Contains(k, "passwd") || strings.Contains(k, "passphrase")):
		return true
	case strings.Contains(k, "cre") && (strings.Contains(k, "secret") || strings.Contains(k, "credential")):
		return true
	case strings.Contains(k, "authorization"):
		return true
	case strings.Contains(k, "key") && (strings.Contains(k, "apikey") || strings.Contains(k, "accesskey") || strings.Contains(k, "privatekey")):
		return true
	}
	for _, end := range [...]string{"token", "cookie", "pwd", "authtokens", "accesstokens"} {
		if strings.HasSuffix(k, end) {
			return true
		}
	}
	return false
}

func keyByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.'
}

func space(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func quote(c byte) bool { return c == '"' || c == '\'' }

// keyBefore returns the key that ends before text[at], which is ':' or '='; false when there is none. Its quote is with its backslashes.
func keyBefore(text string, at int) (key, mark string, ok bool) {
	end := skipSpaceBefore(text, at)
	if end > 0 && quote(text[end-1]) {
		from := end - 1
		for from > 0 && text[from-1] == '\\' {
			from--
		}
		mark, end = text[from:end], from
	}
	from := end
	for from > 0 && end-from < longestKey && keyByte(text[from-1]) {
		from--
	}
	return text[from:end], mark, end > from
}

// valueAfter returns the value of a secret that begins at text[at], behind its ':' or '=', and whether it is an object or a list. The span is
// empty when there is none.
func (s *scanner) valueAfter(at int, mark string) (value span, group bool) {
	text := s.text
	for at < len(text) && (text[at] == '=' || text[at] == '>' || text[at] == ':') { // ==, =>, :=, ::
		at++
	}
	if rest := strings.TrimLeft(text[at:], `\`); strings.HasPrefix(rest, escapedGreater[1:]) {
		at = len(text) - len(rest) + len(escapedGreater) - 1
	}
	at = skipSpace(text, at)
	slashes := at
	for slashes < len(text) && text[slashes] == '\\' {
		slashes++
	}
	switch {
	case slashes == len(text):
		return span{}, false
	case quote(text[slashes]):
		from := slashes + 1
		return span{from: from, to: closing(text, from, text[slashes], slashes-at)}, false
	case text[at] == '{' || text[at] == '[':
		return span{from: at, to: balanced(text, at), quote: mark}, true
	case mark == "":
		return s.bare(at), false
	}
	to := at // of a number, or a word, in JSON
	for to < len(text) && !space(text[to]) && strings.IndexByte(",}]", text[to]) < 0 && !quote(text[to]) {
		to++
	}
	switch text[at:to] {
	case "null", "true", "false":
		return span{}, false
	}
	return span{from: at, to: to, quote: mark}, false
}

// skipSpace returns where something else than space begins; \n and its kin are space, with any number of backslashes: in JSON quoted in
// JSON.
func skipSpace(text string, at int) int {
	for at < len(text) {
		letter := at
		for letter < len(text) && text[letter] == '\\' {
			letter++
		}
		switch {
		case space(text[at]):
			at++
		case letter > at && letter < len(text) && escapeOfSpace(text[letter]):
			at = letter + 1
		default:
			return at
		}
	}
	return at
}

// skipSpaceBefore is skipSpace towards the beginning.
func skipSpaceBefore(text string, end int) int {
	for end > 0 {
		switch {
		case space(text[end-1]):
			end--
		case end > 1 && escapeOfSpace(text[end-1]) && text[end-2] == '\\':
			for end--; end > 0 && text[end-1] == '\\'; {
				end--
			}
		default:
			return end
		}
	}
	return end
}

func escapeOfSpace(c byte) bool { return c == 'n' || c == 't' || c == 'r' }

// bare is a value without quotes, in a header, a query string or an environment file: the word, and the next one too when the first says
// only how the second is to be read.
func (s *scanner) bare(at int) span {
	to := s.word(at)
	switch strings.ToLower(s.text[at:min(to, at+longestScheme)]) {
	case "bearer", "basic", "digest", "token", "negotiate", "aws4-hmac-sha256":
		for to < len(s.text) && (s.text[to] == ' ' || s.text[to] == '\t') {
			to++
		}
		to = s.word(to)
	}
	return span{from: at, to: to}
}

// longestScheme is a byte more than the longest scheme of a header has.
const longestScheme = 17

// word returns where a value without quotes ends.
func (s *scanner) word(at int) int {
	if at >= s.wordFrom && at < s.wordTo {
		return s.wordTo
	}
	to := at
	for to < len(s.text) && !s.endsWord(to) {
		to++
	}
	s.wordFrom, s.wordTo = at, to
	return to
}

func (s *scanner) endsWord(at int) bool {
	switch c := s.text[at]; c {
	case '&', '"', '<', '>':
		return true
	case '\\':
		return at+1 < len(s.text) && strings.IndexByte("nrt\"\\", s.text[at+1]) >= 0
	default:
		return space(c)
	}
}

// closing returns where a quoted value ends whose opening quote had so many backslashes before it: JSON quoted in JSON doubles them, and adds
// one, at each level.
func closing(text string, at int, q byte, slashes int) int {
	run := 0 // of backslashes
	for i := at; i < len(text); i++ {
		switch {
		case text[i] == '\\':
			run++
			continue
		case text[i] == q && run < slashes: // what it was quoted in ends
			return i - run
		case text[i] == q && (run-slashes)/(slashes+1)%2 == 0:
			return i - slashes
		}
		run = 0
	}
	return len(text)
}

// balanced returns the end of an object or a list; brackets in quotes do not count.
func balanced(text string, at int) int {
	depth := 0
	for i := at; i < len(text); i++ {
		switch c := text[i]; c {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		case '"':
			slashes := 0
			for i-slashes > at && text[i-slashes-1] == '\\' {
				slashes++
			}
			i = closing(text, i+1, c, slashes)
			for i < len(text) && text[i] == '\\' {
				i++
			}
		}
	}
	return len(text)
}

// option returns the value behind --name, in a command line or a list of arguments; text[at:] begins with "--".
func (s *scanner) option(at int) span {
	text, from := s.text, at+2
	to := from
	for to < len(text) && to-from < longestKey && keyByte(text[to]) {
		to++
	}
	if to == from || to == len(text) || !sensitive(text[from:to]) {
		return span{}
	}
	value := to
	for value < len(text) && (space(text[value]) || text[value] == '\\' || text[value] == ',' || quote(text[value])) {
		value++
	}
	if value == to || value == len(text) || text[value] == '-' {
		return span{}
	}
	if slashes := value - 1; quote(text[slashes]) {
		n := 0
		for text[slashes-n-1] == '\\' {
			n++
		}
		return span{from: value, to: closing(text, value, text[slashes], n)}
	}
	return span{from: value, to: s.word(value)}
}

// What JSON makes of brackets where it may stand in HTML.
const (
	escapedLess    = `\u003c`
	escapedGreater = `\u003e`
)

// element returns the text of an XML element whose name says that it is secret; its opening tag ends with a bracket at text[at:behind].
func element(text string, at, behind int) span {
	tag := text[max(0, at-longestKey):at]
	if from := strings.LastIndex(tag, escapedLess); from >= 0 {
		tag = tag[from+len(escapedLess):]
	} else if from := strings.LastIndexByte(tag, '<'); from >= 0 {
		tag = tag[from+1:]
	} else {
		return span{}
	}
	name, _, _ := strings.Cut(tag, " ")
	if name == "" || name[0] == '/' || !sensitive(name) {
		return span{}
	}
	to := len(text)
	for _, end := range [...]string{"<", escapedLess} {
		if n := strings.Index(text[behind:to], end); n >= 0 {
			to = behind + n
		}
	}
	for to > behind && text[to-1] == '\\' {
		to--
	}
	return span{from: behind, to: to}
}
