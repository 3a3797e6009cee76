// An interaction's JSON, written by hand: of a busy server's record each one is written so, and reflection takes several times as long.

package recorder

import (
	"strconv"
	"time"
	"unicode/utf8"
)

// AppendJSON appends what encoding/json makes of an interaction, with <, > and & as they are; texts are valid UTF-8.
func (i *Interaction) AppendJSON(b []byte) []byte {
	b = appendText(b, `{"id":`, i.ID)
	b = append(b, `,"time":"`...)
	b = append(i.Time.AppendFormat(b, time.RFC3339Nano), '"')
	b = appendText(b, `,"kind":`, string(i.Kind))
	b = appendText(b, `,"namespace":`, i.Namespace)
	b = appendSome(b, `,"session":`, i.Session)
	if i.Epoch != 0 {
		b = strconv.AppendUint(append(b, `,"epoch":`...), i.Epoch, 10)
	}
	b = appendSome(b, `,"client":`, i.Client)
	b = appendSome(b, `,"requestId":`, i.RequestID)
	b = appendSome(b, `,"principal":`, i.Principal)
	b = appendSome(b, `,"tool":`, i.Tool)
	b = appendSome(b, `,"provider":`, i.Provider)
	b = appendSome(b, `,"model":`, i.Model)
	b = appendNumber(b, `,"tokensIn":`, i.TokensIn)
	b = appendNumber(b, `,"tokensOut":`, i.TokensOut)
	b = appendNumber(b, `,"costMicros":`, i.CostMicros)
	b = appendNumber(b, `,"latencyNanos":`, int64(i.Latency))
	b = appendText(b, `,"status":`, string(i.Status))
	b = appendSome(b, `,"code":`, i.Code)
	b = appendSome(b, `,"error":`, i.Error)
	b = appendSome(b, `,"request":`, i.Request)
	b = appendSome(b, `,"response":`, i.Response)
	b = appendNumber(b, `,"requestBytes":`, i.RequestBytes)
	b = appendNumber(b, `,"responseBytes":`, i.ResponseBytes)
	if i.RequestTruncated {
		b = append(b, `,"requestTruncated":true`...)
	}
	if i.ResponseTruncated {
		b = append(b, `,"responseTruncated":true`...)
	}
	b = appendNumber(b, `,"redactions":`, int64(i.Redactions))
	return append(b, '}')
}

func appendNumber(b []byte, key string, v int64) []byte {
	if v == 0 {
		return b
	}
	return strconv.AppendInt(append(b, key...), v, 10)
}

func appendSome(b []byte, key, text string) []byte {
	if text == "" {
		return b
	}
	return appendText(b, key, text)
}

// escaped are the bytes that do not stand for themselves in a JSON string. 0xe2 may begin U+2028 and U+2029, which JavaScript took for ends of
// lines.
var escaped = func() (set [256]bool) {
	for c := range ' ' {
		set[c] = true
	}
	set['"'], set['\\'], set[0xe2] = true, true, true
	return set
}()

func appendText(b []byte, key, text string) []byte {
	b = append(append(b, key...), '"')
	from := 0
	for at := 0; at < len(text); at++ {
		c := text[at]
		if !escaped[c] {
			continue
		}
		size := 1
		if c >= utf8.RuneSelf {
			var r rune
			if r, size = utf8.DecodeRuneInString(text[at:]); r != '\u2028' && r != '\u2029' {
				continue
			}
		}
		b = append(b, text[from:at]...)
		b = appendEscape(b, text[at:at+size])
		at += size - 1
		from = at + 1
	}
	return append(append(b, text[from:]...), '"')
}

const hexDigits = "0123456789abcdef"

func appendEscape(b []byte, char string) []byte {
	switch c := char[0]; c {
	case '"', '\\':
		return append(b, '\\', c)
	case '\b':
		return append(b, '\\', 'b')
	case '\f':
		return append(b, '\\', 'f')
	case '\n':
		return append(b, '\\', 'n')
	case '\r':
		return append(b, '\\', 'r')
	case '\t':
		return append(b, '\\', 't')
	default:
		if c >= utf8.RuneSelf { // of the two that stand for ends of lines
			return append(b, `\u202`+string(hexDigits[char[2]&0xf])...)
		}
		return append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
	}
}
