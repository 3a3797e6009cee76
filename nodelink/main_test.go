// What the tests of this package share.
package nodelink

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files and the example in docs/protocol/node-link.md")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// golden compares with a file in testdata, or rewrites it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; if the protocol was meant to change, run go test ./nodelink -update\n got: %s\nwant: %s", path, got, want)
	}
}

// sampleFrames returns a frame of every type, with every field set and every alternative of inner oneofs.
func sampleFrames() map[string]*nodev1.Frame {
	out := make(map[string]*nodev1.Frame)
	fields := payloadOneof().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		for variant, name := range alternatives(fd.Message()) {
			f := &nodev1.Frame{RequestId: "r-7", Epoch: 3, Index: 1042}
			m := f.ProtoReflect()
			v := m.NewField(fd)
			fillMessage(v.Message(), variant)
			m.Set(fd, v)
			key := string(fd.Name())
			if name != "" {
				key += "." + name
			}
			out[key] = f
		}
	}
	return out
}

func alternatives(md protoreflect.MessageDescriptor) []string {
	for i := range md.Oneofs().Len() {
		if o := md.Oneofs().Get(i); !o.IsSynthetic() {
			var names []string
			for j := range o.Fields().Len() {
				names = append(names, string(o.Fields().Get(j).Name()))
			}
			return names
		}
	}
	return []string{""}
}

func fillMessage(m protoreflect.Message, variant int) {
	switch m.Descriptor().FullName() {
	case "google.protobuf.Timestamp":
		m.Set(m.Descriptor().Fields().ByName("seconds"), protoreflect.ValueOfInt64(1767323045))
		return
	case "google.protobuf.Duration":
		m.Set(m.Descriptor().Fields().ByName("seconds"), protoreflect.ValueOfInt64(12))
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if o := fd.ContainingOneof(); o != nil && o.Fields().Get(variant%o.Fields().Len()) != fd {
			continue
		}
		switch {
		case fd.IsMap():
			mp := m.Mutable(fd).Map()
			mp.Set(scalar(fd.MapKey()).MapKey(), scalar(fd.MapValue()))
		case fd.IsList() && fd.Message() != nil:
			l := m.Mutable(fd).List()
			for v := range alternatives(fd.Message()) {
				e := l.NewElement()
				fillMessage(e.Message(), v)
				l.Append(e)
			}
		case fd.IsList():
			m.Mutable(fd).List().Append(scalar(fd))
		case fd.Message() != nil:
			fillMessage(m.Mutable(fd).Message(), 0)
		default:
			m.Set(fd, scalar(fd))
		}
	}
}

func scalar(fd protoreflect.FieldDescriptor) protoreflect.Value {
	n := int64(fd.Number())
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(string(fd.Name()) + " <&> ü")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{0, 0xff, byte(n)})
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n) + 0.5)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(fd.Enum().Values().Get(1).Number())
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(-n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(-n << 40)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1<<63 + uint64(n))
	default:
		panic("a kind of field that samples do not know: " + fd.Kind().String())
	}
}

// testLogger writes to the test's log at debug level, quietly once the test is over.
func testLogger(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("test", t.Name())
}

func helloFrame(node string, incarnation, link uint64) *nodev1.Frame {
	return &nodev1.Frame{Payload: &nodev1.Frame_Hello{Hello: &nodev1.Hello{
		ProtocolMin: ProtocolMin, ProtocolMax: ProtocolMax, NodeId: node, Name: node, Incarnation: incarnation, LinkNumber: link,
	}}}
}

func ackFrame() *nodev1.Frame {
	return &nodev1.Frame{Payload: &nodev1.Frame_HelloAck{HelloAck: &nodev1.HelloAck{Protocol: ProtocolMax, ClusterId: "c1"}}}
}

func heartbeatFrame(n int64) *nodev1.Frame {
	return &nodev1.Frame{Payload: &nodev1.Frame_Heartbeat{Heartbeat: &nodev1.Heartbeat{SentAt: n}}}
}

func heartbeatAckFrame(n int64) *nodev1.Frame {
	return &nodev1.Frame{Payload: &nodev1.Frame_HeartbeatAck{HeartbeatAck: &nodev1.HeartbeatAck{SentAt: n}}}
}

func factsFrame(incarnation uint64, indexes ...uint64) *nodev1.Frame {
	facts := &nodev1.Facts{Incarnation: incarnation}
	for _, i := range indexes {
		facts.Facts = append(facts.Facts, &nodev1.Fact{Index: i, SessionId: "s", Epoch: 1, Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: 1}}})
	}
	return &nodev1.Frame{Payload: &nodev1.Frame_Facts{Facts: facts}}
}

// recv receives a frame within a time, and fails the test otherwise.
func recv(t testing.TB, c Conn) *nodev1.Frame {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	f, err := c.Recv(ctx)
	if err != nil {
		t.Fatalf("receive: %v", err)
	}
	return f
}

// recvEnd receives until the link ends, and returns the frames and how it ended.
func recvEnd(t testing.TB, c Conn) ([]*nodev1.Frame, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var all []*nodev1.Frame
	for {
		f, err := c.Recv(ctx)
		if err != nil {
			return all, err
		}
		all = append(all, f)
	}
}

func mustSend(t testing.TB, c interface{ Send(*nodev1.Frame) error }, f *nodev1.Frame) {
	t.Helper()
	if err := c.Send(f); err != nil {
		t.Fatalf("send %s: %v", FrameType(f), err)
	}
}

func sameFrame(t testing.TB, got, want *nodev1.Frame) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("got frame %v, want %v", got, want)
	}
}
