// How an interaction lies in the spool: fields with numbers, in the wire format of protocol buffers, so that a build can read what an
// older or a newer one wrote. Numbers are never used again.

package recorder

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// stringFields and numberFields say which field has which number.
func (i *Interaction) stringFields() [15]*string {
	return [...]*string{0: &i.ID, 1: (*string)(&i.Kind), 2: &i.Namespace, 3: &i.Session, 4: &i.RequestID, 5: &i.Principal, 6: &i.Tool, 7: &i.Provider,
		8: &i.Model, 9: (*string)(&i.Status), 10: &i.Code, 11: &i.Error, 12: &i.Request, 13: &i.Response, 14: &i.Client}
}

func (i *Interaction) numberFields() [6]*int64 {
	return [...]*int64{0: &i.TokensIn, 1: &i.TokensOut, 2: &i.CostMicros, 3: (*int64)(&i.Latency), 4: &i.RequestBytes, 5: &i.ResponseBytes}
}

const (
	firstString = 1
	firstNumber = 32
	fieldTime   = 40 // Unix microseconds
	fieldEpoch  = 41
	fieldRedact = 42
	fieldFlags  = 43

	flagRequestTruncated  = 1
	flagResponseTruncated = 2
)

// encode appends an interaction to b.
func encode(b []byte, i *Interaction) []byte {
	for n, s := range i.stringFields() {
		if *s != "" {
			b = protowire.AppendTag(b, protowire.Number(firstString+n), protowire.BytesType)
			b = protowire.AppendString(b, *s)
		}
	}
	number := func(field protowire.Number, v int64) {
		if v != 0 {
			b = protowire.AppendTag(b, field, protowire.VarintType)
			b = protowire.AppendVarint(b, uint64(v))
		}
	}
	for n, v := range i.numberFields() {
		number(protowire.Number(firstNumber+n), *v)
	}
	number(fieldTime, i.Time.UnixMicro())
	number(fieldEpoch, int64(i.Epoch))
	number(fieldRedact, int64(i.Redactions))
	flags := int64(0)
	if i.RequestTruncated {
		flags |= flagRequestTruncated
	}
	if i.ResponseTruncated {
		flags |= flagResponseTruncated
	}
	number(fieldFlags, flags)
	return b
}

// decode reads what encode wrote.
func decode(b []byte) (Interaction, error) {
	var i Interaction
	texts, numbers := i.stringFields(), i.numberFields()
	whole := string(b) // whose parts the texts are
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return i, fmt.Errorf("recorder: read a record: %w", protowire.ParseError(n))
		}
		b = b[n:]
		at := int(field)
		switch {
		case kind == protowire.BytesType && at >= firstString && at < firstString+len(texts):
			var v []byte
			if v, n = protowire.ConsumeBytes(b); n >= 0 {
				end := len(whole) - len(b) + n
				*texts[at-firstString] = whole[end-len(v) : end]
			}
		case kind == protowire.VarintType:
			var v uint64
			if v, n = protowire.ConsumeVarint(b); n >= 0 {
				i.setNumber(at, int64(v), numbers[:])
			}
		default: // of a newer build
			n = protowire.ConsumeFieldValue(field, kind, b)
		}
		if n < 0 {
			return i, fmt.Errorf("recorder: read a record: %w", protowire.ParseError(n))
		}
		b = b[n:]
	}
	return i, nil
}

func (i *Interaction) setNumber(field int, v int64, numbers []*int64) {
	switch field {
	case fieldTime:
		i.Time = time.UnixMicro(v).UTC()
	case fieldEpoch:
		i.Epoch = uint64(v)
	case fieldRedact:
		i.Redactions = int(v)
	case fieldFlags:
		i.RequestTruncated, i.ResponseTruncated = v&flagRequestTruncated != 0, v&flagResponseTruncated != 0
	default:
		if n := field - firstNumber; n >= 0 && n < len(numbers) {
			*numbers[n] = v
		}
	}
}
