// Frames in both codings, against golden ones, and what is refused.

package nodelink

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// Every type of frame, with every field, has the bytes that the golden file holds: what nodes of other releases read.
func TestFramesGolden(t *testing.T) {
	var out strings.Builder
	samples := sampleFrames()
	for _, name := range slices.Sorted(maps.Keys(samples)) {
		f := samples[name]
		js, err := JSON{}.Encode(f)
		if err != nil {
			t.Fatal(err)
		}
		bin, err := proto.MarshalOptions{Deterministic: true}.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s\n  json %s\n  proto %s\n", name, js, hex.EncodeToString(bin))
	}
	golden(t, "frames.golden", out.String())
}

func TestRoundTrip(t *testing.T) {
	for name, f := range sampleFrames() {
		for _, codec := range []Codec{Binary{}, JSON{}} {
			b, err := codec.Encode(f)
			if err != nil {
				t.Fatalf("%s %T: %v", name, codec, err)
			}
			got, err := codec.Decode(b)
			if err != nil {
				t.Fatalf("%s %T: %v\n%s", name, codec, err, b)
			}
			sameFrame(t, got, f)
			if name, _, _ = strings.Cut(name, "."); FrameType(got) != name {
				t.Errorf("type %q, want %q", FrameType(got), name)
			}
		}
	}
}

func TestJSONEnvelope(t *testing.T) {
	b, err := JSON{}.Encode(sampleFrames()["get_session"])
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(m)), []string{"epoch", "index", "payload", "requestId", "type"}; !slices.Equal(got, want) {
		t.Errorf("envelope has %q, want %q", got, want)
	}
	for _, in := range []string{`{"type":"get_health"}`, `{"type":"get_health","payload":null,"index":5}`, `{"type":"get_health","index":"5","later":1,"payload":{"later":{}}}`} {
		if _, err := (JSON{}).Decode([]byte(in)); err != nil {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	huge := make([]byte, MaxFrameBytes+1)
	for _, tc := range []struct {
		name  string
		codec Codec
		in    []byte
		kind  fault.Kind
		close int
	}{
		{"garbage", Binary{}, []byte{0xff, 0xff, 0xff}, fault.Invalid, CloseBadFrame},
		{"empty", Binary{}, nil, fault.Unimplemented, CloseProtocol},
		{"no payload", Binary{}, []byte{0x0a, 0x01, 'x'}, fault.Unimplemented, CloseProtocol},
		{"a later type", Binary{}, []byte{0xfa, 0x06, 0x00}, fault.Unimplemented, CloseProtocol}, // field 111
		{"not UTF-8", Binary{}, []byte{0x0a, 0x01, 0xff, 0xea, 0x01, 0x00}, fault.Invalid, CloseBadFrame},
		{"large", Binary{}, huge, fault.Exhausted, CloseTooLarge},
		{"garbage", JSON{}, []byte("hello"), fault.Invalid, CloseBadFrame},
		{"empty", JSON{}, nil, fault.Invalid, CloseBadFrame},
		{"a list", JSON{}, []byte("[]"), fault.Invalid, CloseBadFrame},
		{"two", JSON{}, []byte(`{"type":"get_health"}{"type":"get_health"}`), fault.Invalid, CloseBadFrame},
		{"no type", JSON{}, []byte(`{}`), fault.Unimplemented, CloseProtocol},
		{"a later type", JSON{}, []byte(`{"type":"dance","payload":{}}`), fault.Unimplemented, CloseProtocol},
		{"a field as type", JSON{}, []byte(`{"type":"request_id","payload":{}}`), fault.Unimplemented, CloseProtocol},
		{"wrong payload", JSON{}, []byte(`{"type":"hello","payload":{"pid":"many"}}`), fault.Invalid, CloseBadFrame},
		{"payload is a list", JSON{}, []byte(`{"type":"hello","payload":[1]}`), fault.Invalid, CloseBadFrame},
		{"negative index", JSON{}, []byte(`{"type":"hello","index":-1}`), fault.Invalid, CloseBadFrame},
		{"large", JSON{}, huge, fault.Exhausted, CloseTooLarge},
	} {
		t.Run(fmt.Sprintf("%T %s", tc.codec, tc.name), func(t *testing.T) {
			f, err := tc.codec.Decode(tc.in)
			var v *violation
			if !errors.As(err, &v) {
				t.Fatalf("got %v, %v; want a violation", f, err)
			}
			if v.code != tc.close || fault.KindOf(err) != tc.kind {
				t.Errorf("close code %d, kind %v; want %d, %v", v.code, fault.KindOf(err), tc.close, tc.kind)
			}
		})
	}
}

func TestEncodeRefuses(t *testing.T) {
	data := func(b []byte) *nodev1.Frame {
		return &nodev1.Frame{Payload: &nodev1.Frame_StreamData{StreamData: &nodev1.StreamData{Stdout: b}}}
	}
	for name, f := range map[string]*nodev1.Frame{
		"no payload": {RequestId: "r"},
		"not UTF-8":  {RequestId: "\xff", Payload: &nodev1.Frame_GetHealth{GetHealth: &nodev1.GetHealth{}}},
		"too large":  data(make([]byte, MaxFrameBytes)),
	} {
		for _, codec := range []Codec{Binary{}, JSON{}} {
			if name == "not UTF-8" && codec == (JSON{}) {
				continue // encoding/json replaces it in the envelope
			}
			if _, err := codec.Encode(f); !fault.Is(err, fault.Invalid) {
				t.Errorf("%s, %T: got %v, want fault.Invalid", name, codec, err)
			}
		}
	}
}

// What is a request and what is bulk is written down twice; both must agree with the .proto.
func TestFrameTables(t *testing.T) {
	samples := sampleFrames()
	for request, answer := range answers {
		if samples[request] == nil || samples[answer] == nil {
			t.Errorf("%s/%s: no such types", request, answer)
		} else if !isAnswer(samples[answer]) || isAnswer(samples[request]) {
			t.Errorf("%s/%s: isAnswer disagrees", request, answer)
		}
	}
	for name, f := range samples {
		b, err := Binary{}.Encode(f)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.HasPrefix(name, "stream_data") || strings.HasPrefix(name, "stream_close")
		if isBulk(f) != want || isBulkBinary(b) != want {
			t.Errorf("%s: bulk %t, in binary %t; want %t", name, isBulk(f), isBulkBinary(b), want)
		}
	}
}

func TestErrorsTravel(t *testing.T) {
	for k := fault.Internal; k <= fault.Unimplemented; k++ {
		e := ToError("spawn_session", fmt.Errorf("spawn: %w", fault.New(k, "why")))
		if got := FromError(e); fault.KindOf(got) != k || got.Error() != "spawn: why" {
			t.Errorf("%v came back as %v %q", k, fault.KindOf(got), got)
		}
	}
	if e := ToError("", ErrQueueFull); e.GetCode() != "RESOURCE_EXHAUSTED" || !e.GetRetryable() {
		t.Errorf("a full queue travels as %v", e)
	}
	if err := FromError(&nodev1.Error{Code: "OF_LATER", Error: "x"}); !fault.Is(err, fault.Internal) {
		t.Errorf("an unknown code gave %v", err)
	}
	if FromError(nil) != nil {
		t.Error("no error became one")
	}
}

func FuzzDecode(f *testing.F) {
	for _, frame := range sampleFrames() {
		for _, codec := range []Codec{Binary{}, JSON{}} {
			b, err := codec.Encode(frame)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Add([]byte(`{"type":"hello","payload":{"capabilities":{"customCapabilities":{"x":true}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		isBulkBinary(b)
		for _, codec := range []Codec{Binary{}, JSON{}} {
			frame, err := codec.Decode(b)
			if err != nil {
				if !isViolation(err) {
					t.Fatalf("%T: %v is no violation", codec, err)
				}
				continue
			}
			again, err := codec.Encode(frame)
			if err != nil {
				continue // escaping may take a frame beyond the limit
			}
			back, err := codec.Decode(again)
			if err != nil || !proto.Equal(frame, back) && !strings.Contains(frame.String(), "nan") {
				t.Fatalf("%T: decoded, encoded and decoded again: %v\n%v\n%v", codec, err, frame, back)
			}
		}
	})
}
