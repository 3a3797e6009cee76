// Secrets that can be told by their looks.

package redact

import "strings"

// prefixed are keys that begin in a way of their own: the prefix, and the least of what follows it.
var prefixed = []struct {
	prefix string
	least  int
}{
	{"sk-", 8}, {"sk_live_", 8}, {"sk_test_", 8}, {"rk_live_", 8}, {"orch_", 16},
	{"ghp_", 16}, {"gho_", 16}, {"ghu_", 16}, {"ghs_", 16}, {"ghr_", 16}, {"github_pat_", 16}, {"glpat-", 12},
	{"xoxb-", 10}, {"xoxp-", 10}, {"xoxa-", 10}, {"xoxr-", 10}, {"xoxs-", 10}, {"xapp-", 10}, {"AIza", 24}, {"hf_", 20}, {"npm_", 20},
}

// begun says for the first two bytes of a text, of the second one the lowest six bits, which list of sameBeginning may fit: its number from 1 on,
// or 0 for none, as with most pairs. It is small, for it is looked into at many a byte, and lies in the program.
var begun, sameBeginning = func() (by [256][64]uint8, lists [][]int) {
	for i, p := range prefixed {
		list := &by[p.prefix[0]][p.prefix[1]&63]
		if *list == 0 {
			lists = append(lists, nil)
			*list = uint8(len(lists))
		}
		lists[*list-1] = append(lists[*list-1], i)
	}
	return by, lists
}()

// looked says for a byte which next bytes, of which the lowest six bits count, make it one that may begin something, or stand between a key and
// its value. It tells off all but a few bytes of a text.
var looked = func() (next [256]uint64) {
	for _, c := range ":=>" {
		next[c] = ^uint64(0)
	}
	for c, then := range map[byte]string{'\\': "u", '-': "-", 'e': "y", 'b': "eE", 'B': "eE", 'A': "KSRIGNBC"} {
		for n := range len(then) {
			next[c] |= 1 << (then[n] & 63)
		}
	}
	for _, p := range prefixed {
		next[p.prefix[0]] |= 1 << (p.prefix[1] & 63)
	}
	return next
}()

const (
	awsIDBytes = 20 // AKIA and 16 more
	jwtLeast   = 10 // of a header, of which the first three are eyJ
)

// scanner looks through one text. It remembers where runs of bytes ended, so that a text made to be slow is not.
type scanner struct {
	text                   string
	jwtTo, prefixTo, awsTo int
	pemTo, groupTo         int
	wordFrom, wordTo       int
}

// builtIn returns what the built-in rules find, in one pass. Spans may overlap.
func builtIn(text string) []span {
	s := &scanner{text: text}
	var all []span
	for i := range len(text) {
		then := byte(0) // behind the last byte nothing follows, and nothing begins with it
		if i+1 < len(text) {
			then = text[i+1]
		}
		if looked[text[i]]>>(then&63)&1 == 0 {
			continue
		}
		before := len(all)
		s.at(i, func(found span) {
			if found.to > found.from {
				all = append(all, found)
			}
		})
		for _, found := range all[before:] {
			if found.to == len(text) {
				return all // whatever follows is within it
			}
		}
	}
	return all
}

// at finds what begins at a byte.
func (s *scanner) at(i int, add func(span)) {
	switch c := s.text[i]; c {
	case ':', '=':
		add(s.keyed(i))
		if c == ':' && strings.HasPrefix(s.text[i:], "://") {
			add(userinfo(s.text, i+3))
		}
	case '>':
		add(element(s.text, i, i+1))
	case '\\':
		if strings.HasPrefix(s.text[i:], escapedGreater) {
			add(element(s.text, i, i+len(escapedGreater)))
		}
	case '-':
		if strings.HasPrefix(s.text[i:], "-----BEGIN ") && i >= s.pemTo {
			found := pem(s.text, i)
			s.pemTo = found.to
			add(found)
		} else if strings.HasPrefix(s.text[i:], "--") && (i == 0 || s.text[i-1] != '-') {
			add(s.option(i))
		}
	case 'e':
		if i >= s.jwtTo && strings.HasPrefix(s.text[i:], "eyJ") {
			add(s.jwt(i))
		}
	case 'b', 'B':
		add(bearer(s.text, i))
	case 'A':
		if i >= s.awsTo {
			found := awsID(s.text, i)
			s.awsTo = found.to
			add(found)
		}
	}
	if i+1 < len(s.text) && i >= s.prefixTo {
		if list := begun[s.text[i]][s.text[i+1]&63]; list != 0 {
			found := withPrefix(s.text, i, sameBeginning[list-1])
			s.prefixTo = found.to
			add(found)
		}
	}
}

// keyed returns the value behind text[at], a ':' or '=', where the key before it is a secret's.
func (s *scanner) keyed(at int) span {
	key, mark, ok := keyBefore(s.text, at)
	if !ok || at < s.groupTo || !sensitive(key) {
		return span{}
	}
	v, group := s.valueAfter(at+1, mark)
	if group {
		s.groupTo = v.to // what is in it goes with it
	}
	return v
}

// tokenByte is what keys and tokens are made of.
func tokenByte(c byte) bool { return keyByte(c) || c == '~' || c == '+' || c == '/' }

// run returns where the bytes end that fit.
func run(text string, at int, fits func(byte) bool) int {
	for at < len(text) && fits(text[at]) {
		at++
	}
	return at
}

// begins reports whether no word goes on at text[at]: "task-list" holds no key that begins with sk-. A letter behind a backslash is
// none: \nsk-… in JSON.
func begins(text string, at int) bool {
	if at == 0 {
		return true
	}
	c := text[at-1]
	if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
		if at > 1 && text[at-2] == '\\' {
			return true
		}
		// \u0022sk-…: four hexadecimal digits
		return at > 5 && text[at-6] == '\\' && text[at-5] == 'u'
	}
	return true
}

func withPrefix(text string, at int, which []int) span {
	for _, i := range which {
		p := prefixed[i]
		if !strings.HasPrefix(text[at:], p.prefix) || !begins(text, at) {
			continue
		}
		if to := run(text, at, keyByte); to-at >= len(p.prefix)+p.least {
			return span{from: at, to: to}
		}
	}
	return span{}
}

// jwt finds header.payload.signature, of which the last may be missing, and a header that the text ends in.
func (s *scanner) jwt(at int) span {
	part := func(c byte) bool { return keyByte(c) && c != '.' }
	to := run(s.text, at, part)
	switch {
	case to-at < jwtLeast:
		return span{}
	case to == len(s.text):
		return span{from: at, to: to}
	}
	s.jwtTo = to // what begins within the run ends as it does
	if s.text[to] != '.' {
		return span{}
	}
	return span{from: at, to: run(s.text, to, keyByte)}
}

func bearer(text string, at int) span {
	const name, least = "bearer", 8
	if len(text)-at < len(name)+1 || !strings.EqualFold(text[at:at+len(name)], name) || !begins(text, at) {
		return span{}
	}
	from := at + len(name)
	for from < len(text) && (space(text[from]) || text[from] == ':' || text[from] == '=') {
		from++
	}
	if from == at+len(name) {
		return span{}
	}
	to := run(text, from, tokenByte)
	if to-from < least {
		return span{}
	}
	return span{from: from, to: run(text, to, func(c byte) bool { return c == '=' })}
}

func awsID(text string, at int) span {
	if len(text)-at < awsIDBytes {
		return span{}
	}
	switch text[at : at+4] {
	case "AKIA", "ASIA", "AROA", "AIDA", "AGPA", "ANPA", "ANVA", "ABIA", "ACCA":
	default:
		return span{}
	}
	to := run(text, at, func(c byte) bool { return c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' })
	if to-at < awsIDBytes {
		return span{}
	}
	return span{from: at, to: to}
}

// pem finds a private key, to its end or the text's.
func pem(text string, at int) span {
	const begin, dashes = "-----BEGIN ", "-----"
	label, rest, ok := strings.Cut(text[at+len(begin):], dashes)
	if !ok || !strings.Contains(label, "PRIVATE KEY") || len(label) > longestKey {
		return span{}
	}
	end := strings.Index(rest, "-----END ")
	if end < 0 {
		return span{from: at, to: len(text)}
	}
	to := len(text) - len(rest) + end + len("-----END ")
	if last := strings.Index(text[to:], dashes); last >= 0 {
		return span{from: at, to: to + last + len(dashes)}
	}
	return span{from: at, to: len(text)}
}

// userinfo finds the password of a URL whose authority begins at text[at].
func userinfo(text string, at int) span {
	end := run(text, at, func(c byte) bool {
		return !space(c) && !quote(c) && c != '/' && c != '?' && c != '#' && c != '<' && c != '\\'
	})
	host := strings.LastIndexByte(text[at:end], '@')
	if host < 0 {
		return span{}
	}
	colon := strings.IndexByte(text[at:at+host], ':')
	if colon < 0 {
		return span{}
	}
	return span{from: at + colon + 1, to: at + host}
}
