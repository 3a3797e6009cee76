// Where turns end, told record by record: what no real process can be made to do on time.
package process

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/outputlog"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/session"
)

func out(n uint64, text string) outputlog.Record {
	return outputlog.Record{Kind: outputlog.Stdout, Epoch: 1, Number: n, Data: []byte(text)}
}

func piece(n uint64, text string) outputlog.Record {
	r := out(n, text)
	r.Partial = true
	return r
}

func errLine(n uint64, text string) outputlog.Record {
	r := out(n, text)
	r.Kind = outputlog.Stderr
	return r
}

func mark(sequence uint64) outputlog.Record {
	return outputlog.Record{Kind: outputlog.Input, Epoch: 1, Data: []byte{byte(sequence), 0, 0, 0, 0, 0, 0, 0}}
}

func gap(first, last uint64) outputlog.Record {
	return outputlog.Record{Kind: outputlog.Hole, Number: first, Last: last}
}

func TestTurns(t *testing.T) {
	long := strings.Repeat("y", session.MaxResultBytes)
	huge := strings.Repeat("z", resultLineBytesMax)
	for name, c := range map[string]struct {
		protocol string
		given    []shim.GivenInput
		records  []outputlog.Record
		want     []string // "SEQUENCE RESULT line N", "cut" when truncated
		open     uint64
	}{
		"output before the first message belongs to none": {
			protocol: session.ProtocolLines,
			records:  []outputlog.Record{out(1, "hello"), mark(5), out(2, "answer"), out(3, "chatter")},
			want:     []string{"5 answer line 2"},
		},
		"stderr ends no turn": {
			protocol: session.ProtocolLines,
			records:  []outputlog.Record{mark(5), errLine(1, "warning")},
			open:     5,
		},
		"a line in pieces is one result": {
			protocol: session.ProtocolLines,
			records:  []outputlog.Record{mark(1), piece(1, "a"), errLine(2, "between"), piece(3, "b"), out(4, "c")},
			want:     []string{"1 abc line 4"},
		},
		"a line in pieces that is too long is cut": {
			protocol: session.ProtocolLines,
			records:  []outputlog.Record{mark(1), piece(1, long), out(2, "more"), mark(2), out(3, "next")},
			want:     []string{"1 " + long + " line 2 cut", "2 next line 3"},
		},
		"another epoch's records are not ours": {
			protocol: session.ProtocolLines,
			records:  []outputlog.Record{{Kind: outputlog.Input, Epoch: 9, Data: mark(3).Data}, mark(1), {Kind: outputlog.Stdout, Epoch: 9, Number: 1}, out(2, "ok")},
			want:     []string{"1 ok line 2"},
		},
		"a turn whose end was dropped has ended all the same": {
			protocol: session.ProtocolLines,
			records:  []outputlog.Record{mark(1), gap(1, 50), mark(2), out(51, "ok")},
			want:     []string{"1  line 0 cut", "2 ok line 51"},
		},
		"markers that were dropped are known from the shim": {
			protocol: session.ProtocolLines,
			given:    []shim.GivenInput{{Sequence: 1, Line: 0}, {Sequence: 2, Line: 1}, {Sequence: 3, Line: 60}},
			records:  []outputlog.Record{gap(1, 50), out(51, "late"), mark(3), out(61, "ok")},
			want:     []string{"1  line 0 cut", "2 late line 51 cut", "3 ok line 61"},
		},
		"a marker on the edge of a hole counts once": {
			protocol: session.ProtocolLines,
			given:    []shim.GivenInput{{Sequence: 2, Line: 50}},
			records:  []outputlog.Record{gap(1, 50), mark(2), out(51, "ok")},
			want:     []string{"2 ok line 51 cut"},
		},
		"json: only the result with the message's id ends it": {
			protocol: session.ProtocolJSON,
			records: []outputlog.Record{mark(12), out(1, "plain"), out(2, `{"type":"result","id":"m-1","text":"old"}`), out(3, `{"type":"log","id":"m-12"}`),
				errLine(4, `{"type":"result","id":"m-12","text":"stderr"}`), out(5, `{"type":"result","id":"m-12","text":"it\n"}`)},
			want: []string{"12 it\n line 5"},
		},
		"json: a text that is not a string is kept as JSON": {
			protocol: session.ProtocolJSON,
			records:  []outputlog.Record{mark(1), out(1, `{"type":"result","id":"m-1","text":{"a":[1]}}`), mark(2), out(2, `{"type":"result","id":"m-2"}`)},
			want:     []string{`1 {"a":[1]} line 1`, "2  line 2"},
		},
		"json: a result that is too long to be read ends its turn": {
			protocol: session.ProtocolJSON,
			records:  []outputlog.Record{mark(1), piece(1, `{"type":"result","id":"m-1","text":"`+huge), out(2, `"}`)},
			want:     []string{"1 " + (`{"type":"result","id":"m-1","text":"` + huge)[:session.MaxResultBytes] + " line 2 cut"},
		},
		"json: a long line that is no result ends nothing": {
			protocol: session.ProtocolJSON,
			records:  []outputlog.Record{mark(1), piece(1, `{"type":"log","id":"m-1","text":"\"result\"`+huge), out(2, `"}`), out(3, `{"type":"result","id":"m-1","text":"ok"}`)},
			want:     []string{"1 ok line 3"},
		},
		"raw: the next message ends the turn before": {
			protocol: session.ProtocolRaw,
			records:  []outputlog.Record{mark(1), out(1, "a"), errLine(2, "b"), piece(3, "> "), mark(2)},
			want:     []string{"1 a\nb\n>  line 3"},
			open:     2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := &turns{protocol: c.protocol, epoch: 1, given: c.given, seen: make(map[uint64]bool)}
			for i := range c.records {
				x.step(&c.records[i])
			}
			var got []string
			for _, e := range x.take() {
				s := fmt.Sprintf("%d %s line %d", e.Sequence, e.Result, e.OutputLine)
				if e.Truncated {
					s += " cut"
				}
				got = append(got, s)
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) || x.open != c.open {
				t.Fatalf("got %.400q, open %d; want %.400q, open %d", got, x.open, c.want, c.open)
			}
		})
	}
}

func TestRawSettles(t *testing.T) {
	x := &turns{protocol: session.ProtocolRaw, epoch: 1, seen: make(map[uint64]bool)}
	m, o := mark(1), out(1, "a")
	m.Time, o.Time = 100, int64(time.Second)
	x.step(&m)
	x.step(&o)
	if x.settle(time.Second, int64(2*time.Second)-1); x.open != 1 {
		t.Fatal("it ended before it was idle for a second")
	}
	if x.settle(time.Second, int64(2*time.Second)); x.open != 0 || len(x.take()) != 1 {
		t.Fatal("it did not end after a second")
	}
}

func TestEncodeMessage(t *testing.T) {
	in := &driver.Input{Sequence: 7, Priority: session.High, Text: []byte("say \"hi\"\n")}
	for protocol, want := range map[string]string{
		session.ProtocolJSON: `{"id":"m-7","sequence":7,"priority":"high","text":"say \"hi\"\n"}` + "\n",
		session.ProtocolRaw:  "say \"hi\"\n",
	} {
		if b, refused := encodeMessage(protocol, in); string(b) != want || refused != "" {
			t.Fatalf("%s: %q, %q", protocol, b, refused)
		}
	}
	for _, protocol := range []string{session.ProtocolLines, session.ProtocolNone} {
		if _, refused := encodeMessage(protocol, in); refused == "" {
			t.Fatalf("%s took it", protocol)
		}
	}
}
