// Session rows by hand are what the generated code reads and writes.

package state

import (
	"bytes"
	"fmt"
	"math"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/session"
)

// populate sets every field of a message, each to something else.
func populate(m protoreflect.Message, n *int) {
	scalar := func(f protoreflect.FieldDescriptor) protoreflect.Value {
		*n++
		switch f.Kind() {
		case protoreflect.StringKind:
			return protoreflect.ValueOfString(fmt.Sprint("text ", *n))
		case protoreflect.BytesKind:
			if f.Name() == "manifest" || f.Name() == "copied" {
				return protoreflect.ValueOfBytes(bytes.Repeat([]byte{byte(*n)}, len(session.ManifestID{})))
			}
			return protoreflect.ValueOfBytes([]byte(fmt.Sprint("bytes ", *n)))
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(true)
		case protoreflect.Int32Kind:
			return protoreflect.ValueOfInt32(int32(*n))
		case protoreflect.Int64Kind:
			return protoreflect.ValueOfInt64(int64(*n))
		case protoreflect.Uint32Kind:
			return protoreflect.ValueOfUint32(uint32(*n))
		case protoreflect.Uint64Kind:
			return protoreflect.ValueOfUint64(uint64(*n))
		case protoreflect.EnumKind:
			return protoreflect.ValueOfEnum(2)
		}
		panic(fmt.Sprintf("field %s is of a kind that this test does not know", f.FullName()))
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		switch f := fields.Get(i); {
		case f.IsMap():
			for range 2 {
				m.Mutable(f).Map().Set(scalar(f.MapKey()).MapKey(), scalar(f.MapValue()))
			}
		case f.IsList() && f.Message() != nil:
			for range 2 {
				populate(m.Mutable(f).List().AppendMutable().Message(), n)
			}
		case f.IsList():
			m.Mutable(f).List().Append(scalar(f))
			m.Mutable(f).List().Append(scalar(f))
		case f.Message() != nil:
			populate(m.Mutable(f).Message(), n)
		default:
			m.Set(f, scalar(f))
		}
	}
}

// TestEveryFieldOfASessionIsKept fails when a field is added to the protocol and forgotten by hand.
func TestEveryFieldOfASessionIsKept(t *testing.T) {
	var row clusterv1.SessionRow
	n := 0
	populate(row.ProtoReflect(), &n)
	b, err := proto.Marshal(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Session{Session: &row}})
	if err != nil {
		t.Fatal(err)
	}
	body, ok := sessionOf(b)
	if !ok {
		t.Fatal("not taken for a session")
	}
	r, w := newSessionReader(newInterner()), newSessionWriter()
	for range 2 { // the second time from what was kept of the first
		s, err := r.read(body)
		if err != nil {
			t.Fatal(err)
		}
		again, err := w.append(nil, s)
		if err != nil {
			t.Fatal(err)
		}
		var out clusterv1.SnapshotRow
		if err := proto.Unmarshal(again, &out); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(&row, out.GetSession()) {
			t.Fatalf("got  %v\nwant %v", out.GetSession(), &row)
		}
	}
	unknown := append(append([]byte{}, body...), 0xa8, 0x1f, 1, 0xb2, 0x1f, 1, 'x') // fields 501 and 502
	if s, err := r.read(unknown); err != nil || s.ID != row.GetId() {
		t.Errorf("fields of a later release: %v", err)
	}
}

func TestSessionRowsByHand(t *testing.T) {
	w, r := newSessionWriter(), newSessionReader(newInterner())
	text := rapid.SampledFrom([]string{"", "a", "b", "node-1", string(make([]byte, 300))})
	number := rapid.SampledFrom([]int64{0, 1, 127, 128, math.MaxInt32, math.MaxInt64, -1})
	rapid.Check(t, func(t *rapid.T) {
		s := &session.Session{
			ID: text.Draw(t, "id"), Phase: session.Phase(rapid.IntRange(0, 11).Draw(t, "phase")), Reason: text.Draw(t, "reason"),
			NodeID: text.Draw(t, "node"), Epoch: uint32(number.Draw(t, "epoch")), CreateTime: number.Draw(t, "create"),
			PID: int32(number.Draw(t, "pid")), NotBefore: number.Draw(t, "not before"), ModifyIndex: uint64(number.Draw(t, "modify")),
			Spec: &session.Spec{Name: text.Draw(t, "name"), Type: text.Draw(t, "type"), CPUMilli: number.Draw(t, "cpu")},
		}
		if rapid.Bool().Draw(t, "exit") {
			s.Exit = &session.Exit{Code: int32(number.Draw(t, "code")), Cause: text.Draw(t, "cause")}
		}
		for range rapid.IntRange(0, 3).Draw(t, "history") {
			s.History = append(s.History, session.HistoryEntry{Time: number.Draw(t, "time"), Phase: 3, Node: text.Draw(t, "on")})
		}
		b, err := w.append(nil, s)
		if err != nil {
			t.Fatal(err)
		}
		var row clusterv1.SnapshotRow
		if err := proto.Unmarshal(b, &row); err != nil {
			t.Fatalf("the generated code does not read it: %v", err)
		}
		body, ok := sessionOf(b)
		if !ok {
			t.Fatal("not taken for a session")
		}
		got, err := r.read(body)
		if err != nil {
			t.Fatal(err)
		}
		again, err := w.append(nil, got)
		if err != nil || string(again) != string(b) {
			t.Fatalf("read and written again: %v\n%q\n%q", err, again, b)
		}
		if p := row.GetSession(); p.GetId() != s.ID || p.GetEpoch() != s.Epoch || p.GetPid() != s.PID || p.GetSpec().GetName() != s.Spec.Name ||
			p.GetNotBefore() != s.NotBefore || len(p.GetHistory()) != len(s.History) || (p.GetExit() == nil) != (s.Exit == nil) {
			t.Fatalf("%+v was written as %v", s, p)
		}
		for cut := range len(body) {
			_, _ = r.read(body[:cut]) // refused or not, it must not panic
		}
	})
}
