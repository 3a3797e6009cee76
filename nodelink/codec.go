// The two codings of a frame: binary protobuf, and JSON for people.

package nodelink

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// Codec turns frames into messages of the carrier and back. Both directions refuse more than MaxFrameBytes.
type Codec interface {
	// Subprotocol is the WebSocket subprotocol that means this coding.
	Subprotocol() string
	// Text reports whether messages are text messages.
	Text() bool
	// Encode returns the frame as one message; errors are of kind fault.Invalid.
	Encode(f *nodev1.Frame) ([]byte, error)
	// Decode returns the frame, or why it is none. It never panics, and keeps nothing of b. Fields that this release does
	// not know are dropped; a type that it does not know is an error.
	Decode(b []byte) (*nodev1.Frame, error)
}

// Binary is the default coding.
type Binary struct{}

// Subprotocol implements Codec.
func (Binary) Subprotocol() string { return SubprotocolBinary }

// Text implements Codec.
func (Binary) Text() bool { return false }

// Encode implements Codec.
func (Binary) Encode(f *nodev1.Frame) ([]byte, error) {
	b, err := proto.Marshal(f)
	return checkEncoded(f, b, err)
}

// Decode implements Codec.
func (Binary) Decode(b []byte) (*nodev1.Frame, error) {
	if len(b) > MaxFrameBytes {
		return nil, tooLarge()
	}
	f := new(nodev1.Frame)
	if err := proto.Unmarshal(b, f); err != nil {
		return nil, violates(CloseBadFrame, fault.Invalid, "the message is not a frame: %w", err)
	}
	if f.GetPayload() == nil {
		return nil, violates(CloseProtocol, fault.Unimplemented, "the frame's type is not known here")
	}
	return f, nil
}

// JSON is the coding for people and debugging: {type, requestId, epoch, index, payload}.
type JSON struct{}

// envelope is a frame in JSON. 64-bit numbers are strings, as everywhere in protojson.
type envelope struct {
	Type      string          `json:"type"`
	RequestID string          `json:"requestId,omitempty"`
	Epoch     uint32          `json:"epoch,omitempty"`
	Index     jsonUint64      `json:"index,omitempty"`
	Payload   json.RawMessage `json:"payload,omitempty"`
}

// jsonUint64 is written as a string and read from a string or a number.
type jsonUint64 uint64

func (u jsonUint64) MarshalJSON() ([]byte, error) {
	return strconv.AppendQuote(nil, strconv.FormatUint(uint64(u), 10)), nil
}

func (u *jsonUint64) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseUint(string(bytes.Trim(b, `"`)), 10, 64)
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	*u = jsonUint64(n)
	return nil
}

// Subprotocol implements Codec.
func (JSON) Subprotocol() string { return SubprotocolJSON }

// Text implements Codec.
func (JSON) Text() bool { return true }

// Encode implements Codec.
func (JSON) Encode(f *nodev1.Frame) ([]byte, error) {
	m := f.ProtoReflect()
	fd := m.WhichOneof(payloadOneof())
	if fd == nil {
		return checkEncoded(f, nil, nil)
	}
	payload, err := protojson.Marshal(m.Get(fd).Message().Interface())
	if err != nil {
		return checkEncoded(f, nil, err)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out) // it also compacts: protojson adds blanks at random
	enc.SetEscapeHTML(false)
	err = enc.Encode(envelope{
		Type: string(fd.Name()), RequestID: f.GetRequestId(), Epoch: f.GetEpoch(), Index: jsonUint64(f.GetIndex()), Payload: payload,
	})
	return checkEncoded(f, bytes.TrimSuffix(out.Bytes(), []byte("\n")), err)
}

// Decode implements Codec.
func (JSON) Decode(b []byte) (*nodev1.Frame, error) {
	if len(b) > MaxFrameBytes {
		return nil, tooLarge()
	}
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, violates(CloseBadFrame, fault.Invalid, "the message is not a frame: %w", err)
	}
	fd := payloadOneof().Fields().ByName(protoreflect.Name(e.Type))
	if fd == nil {
		return nil, violates(CloseProtocol, fault.Unimplemented, "the frame's type %.64q is not known here", e.Type)
	}
	f := &nodev1.Frame{RequestId: e.RequestID, Epoch: e.Epoch, Index: uint64(e.Index)}
	m := f.ProtoReflect()
	payload := m.NewField(fd)
	if len(e.Payload) > 0 && !bytes.Equal(e.Payload, []byte("null")) {
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(e.Payload, payload.Message().Interface()); err != nil {
			return nil, violates(CloseBadFrame, fault.Invalid, "the payload is not one of type %s: %w", e.Type, err)
		}
	}
	m.Set(fd, payload)
	return f, nil
}

func checkEncoded(f *nodev1.Frame, b []byte, err error) ([]byte, error) {
	switch {
	case err != nil:
		return nil, fault.New(fault.Invalid, "nodelink: encode %s: %w", FrameType(f), err)
	case f.GetPayload() == nil:
		return nil, fault.New(fault.Invalid, "nodelink: encode: the frame has no payload")
	case len(b) > MaxFrameBytes:
		return nil, fault.New(fault.Invalid, "nodelink: encode %s: %d bytes are more than a frame's %d; split it", FrameType(f), len(b), MaxFrameBytes)
	}
	return b, nil
}

func tooLarge() *violation {
	return violates(CloseTooLarge, fault.Exhausted, "the frame is larger than %d bytes", MaxFrameBytes)
}

// codecFor returns the coding that a negotiated subprotocol means; none at all means binary.
func codecFor(subprotocol string) (Codec, bool) {
	switch subprotocol {
	case SubprotocolBinary, "":
		return Binary{}, true
	case SubprotocolJSON:
		return JSON{}, true
	}
	return nil, false
}
