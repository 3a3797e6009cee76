// Session rows by hand: the one table that may have a million rows is written and read without an object per part.
//
// The bytes are those of SessionRow in snapshot.proto; a test sets every field of that message and compares with what
// the generated code reads and writes. A spec is written once and its bytes used again for all sessions that have the
// same: the name, which differs, comes behind the others.

package state

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

// The numbers of fields, from the protocol.
const (
	rowSession protowire.Number = 1 // SnapshotRow.session
	fieldEpoch protowire.Number = 6 // SessionRow.epoch
	specName   protowire.Number = 2 // SessionSpec.name
)

var deterministic = proto.MarshalOptions{Deterministic: true}

// sessionWriter writes session rows for one snapshot.
type sessionWriter struct {
	keys  *interner         // only for its keys of specs
	specs map[string][]byte // by key: the spec without its name
}

func newSessionWriter() *sessionWriter {
	return &sessionWriter{keys: newInterner(), specs: map[string][]byte{}}
}

// append appends a SnapshotRow that holds the session.
func (w *sessionWriter) append(b []byte, s *session.Session) ([]byte, error) {
	spec, err := w.spec(s.Spec)
	if err != nil {
		return nil, err
	}
	var exit []byte
	if s.Exit != nil {
		if exit, err = deterministic.Marshal(pbconv.ExitToProto(s.Exit)); err != nil {
			return nil, err
		}
	}
	b = protowire.AppendTag(b, rowSession, protowire.BytesType)
	row := len(b)
	b = appendText(b, 1, s.ID)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	at := len(b)
	b = append(b, spec...)
	b = appendText(b, specName, s.Spec.Name)
	b = prefixLength(b, at)
	b = appendNumber(b, 3, uint64(s.Phase))
	b = appendText(b, 4, s.Reason)
	b = appendText(b, 5, s.NodeID)
	b = appendNumber(b, fieldEpoch, uint64(s.Epoch))
	b = appendNumber(b, 7, uint64(s.CreateTime))
	b = appendNumber(b, 8, uint64(s.StartTime))
	b = appendNumber(b, 9, uint64(s.EndTime))
	b = appendNumber(b, 10, uint64(s.Restarts))
	if s.Exit != nil {
		b = protowire.AppendTag(b, 11, protowire.BytesType)
		b = protowire.AppendBytes(b, exit)
	}
	b = appendText(b, 12, s.Placement)
	b = appendNumber(b, 13, s.CreateIndex)
	b = appendNumber(b, 14, s.ModifyIndex)
	b = appendNumber(b, 15, uint64(int64(s.PID)))
	b = appendNumber(b, 16, s.OutputLine)
	b = appendNumber(b, 17, uint64(s.NotBefore))
	for i := range s.History {
		h := &s.History[i]
		b = protowire.AppendTag(b, 18, protowire.BytesType)
		at := len(b)
		b = appendNumber(b, 1, uint64(h.Time))
		b = appendNumber(b, 2, h.Index)
		b = appendNumber(b, 3, uint64(h.Phase))
		b = appendNumber(b, 4, uint64(h.Epoch))
		b = appendText(b, 5, h.Node)
		b = appendText(b, 6, h.Reason)
		b = prefixLength(b, at)
	}
	b = appendNumber(b, 19, uint64(s.StopGrace))
	b = appendText(b, 20, s.StopCause)
	b = appendNumber(b, 21, s.PlacedIndex)
	if b, err = appendSaved(b, s); err != nil {
		return nil, err
	}
	return prefixLength(b, row), nil
}

// spec returns the bytes of a spec without its name.
func (w *sessionWriter) spec(s *session.Spec) ([]byte, error) {
	key := w.keys.specKey(s)
	if b, ok := w.specs[string(key)]; ok {
		return b, nil
	}
	unnamed := *s
	unnamed.Name = ""
	b, err := deterministic.Marshal(pbconv.SpecToProto(&unnamed))
	if err != nil {
		return nil, err
	}
	if len(w.specs) >= internSpecs {
		clear(w.specs)
	}
	if len(key) <= internSpecBytes {
		w.specs[string(key)] = b
	}
	return b, nil
}

func appendText(b []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func appendNumber(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

// prefixLength puts the length of what follows at in front of it.
func prefixLength(b []byte, at int) []byte {
	n := len(b) - at
	size := protowire.SizeVarint(uint64(n))
	b = append(b, make([]byte, size)...)
	copy(b[at+size:], b[at:at+n])
	protowire.AppendVarint(b[at:at], uint64(n))
	return b
}

// sessionReader reads session rows of one snapshot.
type sessionReader struct {
	intern *interner
	specs  map[string]*session.Spec // by their bytes without the name: the spec without its name
	key    []byte
}

func newSessionReader(in *interner) *sessionReader {
	return &sessionReader{intern: in, specs: map[string]*session.Spec{}}
}

// sessionOf returns the bytes of the session in a SnapshotRow that holds one and nothing else.
func sessionOf(row []byte) ([]byte, bool) {
	num, kind, n := protowire.ConsumeTag(row)
	if n < 0 || num != rowSession || kind != protowire.BytesType {
		return nil, false
	}
	b, m := protowire.ConsumeBytes(row[n:])
	return b, m >= 0 && n+m == len(row)
}

// field is one field of a message; number holds a varint, bytes what has a length.
type field struct {
	num    protowire.Number
	kind   protowire.Type
	number uint64
	bytes  []byte
}

func nextField(b []byte) (f field, rest []byte, err error) {
	num, kind, n := protowire.ConsumeTag(b)
	if n < 0 {
		return f, nil, fmt.Errorf("a field: %w", protowire.ParseError(n))
	}
	f.num, f.kind = num, kind
	b = b[n:]
	switch kind {
	case protowire.VarintType:
		f.number, n = protowire.ConsumeVarint(b)
	case protowire.BytesType:
		f.bytes, n = protowire.ConsumeBytes(b)
	default:
		n = protowire.ConsumeFieldValue(num, kind, b)
	}
	if n < 0 {
		return f, nil, fmt.Errorf("field %d: %w", num, protowire.ParseError(n))
	}
	return f, b[n:], nil
}

// read reads a SessionRow. Fields that this release does not know are passed over.
func (r *sessionReader) read(b []byte) (*session.Session, error) {
	s := &session.Session{}
	history := 0
	for rest := b; len(rest) > 0; {
		f, next, err := nextField(rest)
		if err != nil {
			return nil, err
		}
		if rest = next; f.num == 18 {
			history++
		}
	}
	if history > 0 {
		s.History = make([]session.HistoryEntry, 0, history)
	}
	for len(b) > 0 {
		f, next, err := nextField(b)
		if err != nil {
			return nil, err
		}
		b = next
		switch f.kind {
		case protowire.VarintType:
			sessionNumber(s, f.num, f.number)
		case protowire.BytesType:
			if err := r.part(s, f.num, f.bytes); err != nil {
				return nil, err
			}
		}
	}
	if s.Spec == nil {
		s.Spec = &session.Spec{}
	}
	return s, nil
}

func sessionNumber(s *session.Session, num protowire.Number, v uint64) {
	switch num {
	case 3:
		s.Phase = session.Phase(min(v, 255))
	case fieldEpoch:
		s.Epoch = uint32(v)
	case 7:
		s.CreateTime = int64(v)
	case 8:
		s.StartTime = int64(v)
	case 9:
		s.EndTime = int64(v)
	case 10:
		s.Restarts = uint32(v)
	case 39:
		s.RestartsForgiven = uint32(v)
	case 13:
		s.CreateIndex = v
	case 14:
		s.ModifyIndex = v
	case 15:
		s.PID = int32(v)
	case 16:
		s.OutputLine = v
	case 17:
		s.NotBefore = int64(v)
	case 19:
		s.StopGrace = time.Duration(v)
	case 21:
		s.PlacedIndex = v
	default:
		savedNumber(s, num, v)
	}
}

func (r *sessionReader) part(s *session.Session, num protowire.Number, b []byte) (err error) {
	switch num {
	case 1:
		s.ID = string(b)
	case 2:
		s.Spec, err = r.spec(b)
	case 4:
		s.Reason = r.intern.bytes(b)
	case 5:
		s.NodeID = r.intern.bytes(b)
	case 11:
		var x apiv1.Session_Exit
		if err = proto.Unmarshal(b, &x); err == nil {
			s.Exit = pbconv.ExitFromProto(&x)
			s.Exit.Cause, s.Exit.Message, s.Exit.Signal = r.intern.str(s.Exit.Cause), r.intern.str(s.Exit.Message), r.intern.str(s.Exit.Signal)
		}
	case 12:
		s.Placement = r.intern.bytes(b)
	case 18:
		err = r.history(s, b)
	case 20:
		s.StopCause = r.intern.bytes(b)
	case 38:
		s.CheckpointError = r.intern.bytes(b)
	case 22, 26:
		err = r.saved(s, num, b)
	}
	return err
}

func (r *sessionReader) history(s *session.Session, b []byte) error {
	var h session.HistoryEntry
	for len(b) > 0 {
		f, next, err := nextField(b)
		if err != nil {
			return err
		}
		b = next
		switch {
		case f.num == 1 && f.kind == protowire.VarintType:
			h.Time = int64(f.number)
		case f.num == 2 && f.kind == protowire.VarintType:
			h.Index = f.number
		case f.num == 3 && f.kind == protowire.VarintType:
			h.Phase = session.Phase(f.number)
		case f.num == 4 && f.kind == protowire.VarintType:
			h.Epoch = uint32(f.number)
		case f.num == 5 && f.kind == protowire.BytesType:
			h.Node = r.intern.bytes(f.bytes)
		case f.num == 6 && f.kind == protowire.BytesType:
			h.Reason = r.intern.bytes(f.bytes)
		}
	}
	s.History = append(s.History, h)
	return nil
}

// spec returns the spec of the bytes; specs that differ in nothing but their names share the rest.
func (r *sessionReader) spec(b []byte) (*session.Spec, error) {
	key, name := r.key[:0], ""
	for rest := b; len(rest) > 0; {
		f, next, err := nextField(rest)
		if err != nil {
			return nil, err
		}
		if f.num == specName && f.kind == protowire.BytesType {
			name = string(f.bytes)
		} else {
			key = append(key, rest[:len(rest)-len(next)]...)
		}
		rest = next
	}
	r.key = key
	unnamed, ok := r.specs[string(key)]
	if !ok {
		var p apiv1.SessionSpec
		if err := proto.Unmarshal(key, &p); err != nil {
			return nil, err
		}
		unnamed = r.intern.spec(pbconv.SpecFromProto(&p))
		if len(r.specs) >= internSpecs {
			clear(r.specs)
		}
		if len(key) <= internSpecBytes {
			r.specs[string(key)] = unnamed
		}
	}
	if name == "" {
		return unnamed, nil
	}
	named := *unnamed
	named.Name = name
	return &named, nil
}

// unmarshalRow reads any other row.
func unmarshalRow(b []byte) (*clusterv1.SnapshotRow, error) {
	row := &clusterv1.SnapshotRow{}
	if err := proto.Unmarshal(b, row); err != nil {
		return nil, fmt.Errorf("a row: %w", err)
	}
	return row, nil
}
