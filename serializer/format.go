// The binary form of a manifest, schema 1.
//
//	0   4  "ORCM"
//	4   2  the schema it is written in, big-endian
//	6   2  the oldest schema whose readers may read it
//	8   8  the length of the body
//	16  …  the body, one frame of zstd that says its length
//	−32 32 BLAKE3-256 of all bytes before
//
// The body is a row of sections: a tag, a length, and as many bytes; docs/protocol/checkpoint.md has each byte.

package serializer

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/links"
)

// Schema is the version of the format that this release writes, and the newest that it reads. It has nothing to do with a
// checkpoint's sequence.
//
//	1  the first
const Schema = 1

const (
	manifestMagic   = "ORCM"
	headerBytes     = 16
	trailerBytes    = 32
	freeBodyBytes   = 4 << 20 // so long a body is decoded whatever it was compressed to
	maxRatio        = 1000    // of a longer one
	zstdWindowBytes = 4 << 20
)

// The sections, in their order. A reader leaves out those it does not know: a release that adds one which must not be
// left out raises what its readers need.
const (
	sectionSession = 1
	sectionMemory  = 2
	sectionPathMap = 3
	sectionChunks  = 4
	sectionRoot    = 5 // one for each
)

// Encode returns the manifest's binary form, or an error that matches ErrCorrupt when no reader would take it.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("encode the manifest of %s: %w", m.SessionID, err)
	}
	body := m.body()
	if len(body) > MaxBodyBytes {
		return nil, fault.New(fault.Exhausted, "encode the manifest of %s: %d bytes, at most %d; the session has too many files", m.SessionID, len(body), MaxBodyBytes)
	}
	out := append(make([]byte, 0, headerBytes+len(body)/3+trailerBytes), manifestMagic...)
	out = binary.BigEndian.AppendUint16(out, Schema)
	out = binary.BigEndian.AppendUint16(out, Schema)
	out = binary.BigEndian.AppendUint64(out, uint64(len(body)))
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithWindowSize(zstdWindowBytes), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("encode the manifest of %s: %w", m.SessionID, err)
	}
	out = enc.EncodeAll(body, out)
	sum := blake3.Sum256(out)
	if out = append(out, sum[:]...); len(out) > MaxManifestBytes {
		return nil, fault.New(fault.Exhausted, "encode the manifest of %s: %d bytes, at most %d; the session has too many files", m.SessionID, len(out), MaxManifestBytes)
	}
	return out, nil
}

// body returns the sections.
func (m *Manifest) body() []byte {
	var w writer
	w.section(sectionSession, func(w *writer) {
		w.string(m.SessionID)
		w.string(m.Namespace)
		w.string(m.Name)
		w.bytes(m.Spec)
		w.fixed64(unixNano(m.SerializedAt))
		w.string(m.NodeID)
		w.string(m.Release)
		for _, n := range []uint64{m.Epoch, m.Sequence, m.Turn, m.OutputLine, uint64(m.Keeps), uint64(len(m.Roots))} {
			w.uvarint(n)
		}
	})
	w.section(sectionMemory, func(w *writer) { w.b = m.Memory })
	w.section(sectionPathMap, func(w *writer) {
		w.uvarint(uint64(len(m.PathMap)))
		for _, p := range m.PathMap {
			w.string(p.Source)
			w.string(p.Root)
		}
	})
	w.section(sectionChunks, func(w *writer) { w.chunks(m.Chunks) })
	for i := range m.Roots {
		w.section(sectionRoot, m.Roots[i].write)
	}
	return w.b
}

// write appends a root.
func (t *Tree) write(w *writer) {
	w.string(t.Name)
	w.uvarint(uint64(len(t.Entries)))
	lastPath, lastTime := "", int64(0)
	for i := range t.Entries {
		e := &t.Entries[i]
		w.b = append(w.b, byte(e.Type))
		w.path(lastPath, e.Path)
		w.delta(lastTime, e.ModTime)
		lastPath, lastTime = e.Path, e.ModTime
		switch e.Type {
		case Symlink:
			w.string(e.Target)
		case File:
			w.uvarint(uint64(e.Mode))
			w.uvarint(uint64(e.Size))
			w.extents(e.Extents)
		default:
			w.uvarint(uint64(e.Mode))
		}
	}
}

// Decode returns the manifest that data is the binary form of, or an error that matches ErrCorrupt, or one of the kind
// fault.Unimplemented when a newer release wrote it. What data claims of lengths and numbers is checked before memory is spent on it.
func Decode(data []byte) (*Manifest, error) {
	body, err := openBody(data)
	if err != nil {
		return nil, fmt.Errorf("decode a manifest: %w", err)
	}
	m, err := decodeBody(body)
	if err == nil {
		err = m.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("decode a manifest: %w", err)
	}
	return m, nil
}

// openBody checks the envelope and returns what is in it.
func openBody(data []byte) ([]byte, error) {
	if len(data) < headerBytes+trailerBytes || string(data[:4]) != manifestMagic {
		return nil, corrupt("not a manifest")
	}
	if len(data) > MaxManifestBytes {
		return nil, corrupt("%d bytes, at most %d", len(data), MaxManifestBytes)
	}
	// Versions first: a newer release may have moved everything behind them.
	written, needs := binary.BigEndian.Uint16(data[4:]), binary.BigEndian.Uint16(data[6:])
	if needs > Schema {
		return nil, fault.New(fault.Unimplemented, "the checkpoint is written in schema %d and needs a release that reads schema %d; this one reads up to schema %d: upgrade it", written, needs, Schema)
	}
	if needs == 0 || written < needs {
		return nil, corrupt("written in schema %d, readable from schema %d on", written, needs)
	}
	end := len(data) - trailerBytes
	if blake3.Sum256(data[:end]) != [32]byte(data[end:]) {
		return nil, corrupt("its checksum is wrong")
	}
	packed, n := data[headerBytes:end], binary.BigEndian.Uint64(data[8:])
	var h zstd.Header
	if err := h.Decode(packed); err != nil || !h.HasFCS || h.FrameContentSize != n {
		return nil, corrupt("its body does not say that it has %d bytes", n)
	}
	if n > MaxBodyBytes || (n > freeBodyBytes && n/maxRatio > uint64(len(packed))) {
		return nil, corrupt("a body of %d bytes from %d, at most %d and %d times as many", n, len(packed), MaxBodyBytes, maxRatio)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(max(n, 8<<20)), zstd.WithDecoderMaxWindow(MaxBodyBytes))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	body, err := dec.DecodeAll(packed, make([]byte, 0, n))
	if err != nil {
		return nil, corrupt("its body: %w", err)
	}
	if uint64(len(body)) != n {
		return nil, corrupt("its body has %d bytes, not %d", len(body), n)
	}
	return body, nil
}

// decodeBody reads the sections. Each known one but the roots stands there once, and in order.
func decodeBody(body []byte) (*Manifest, error) {
	m := &Manifest{}
	entries, extents, roots := MaxEntries, MaxExtents, 0
	r := reader{b: body}
	last := uint64(0)
	for len(r.b) > 0 && r.err == nil {
		tag := r.uvarint()
		in := reader{b: r.bytes(MaxBodyBytes, "bytes of a section")}
		if r.err != nil {
			break
		}
		if tag == 0 || tag < last || (tag == last && tag != sectionRoot) {
			return nil, corrupt("section %d behind section %d", tag, last)
		}
		if tag <= sectionChunks && tag != last+1 || tag > sectionChunks && last < sectionChunks {
			return nil, corrupt("a section before section %d is missing", tag)
		}
		last = tag
		switch tag {
		case sectionSession:
			roots = m.readSession(&in)
		case sectionMemory:
			m.Memory = append(m.Memory, in.take(len(in.b))...)
		case sectionPathMap:
			for range in.count(MaxPathMap, 2, "pairs of the path map") {
				m.PathMap = append(m.PathMap, PathPair{in.string(MaxPathBytes, "a path"), in.string(MaxStringBytes, "a root's name")})
			}
		case sectionChunks:
			m.Chunks = in.chunks()
		case sectionRoot:
			if len(m.Roots) == MaxRoots {
				return nil, corrupt("more than %d roots", MaxRoots)
			}
			m.Roots = append(m.Roots, readTree(&in, &entries, &extents))
		default:
			continue
		}
		if in.err != nil {
			return nil, in.err
		}
		if len(in.b) > 0 {
			return nil, corrupt("%d bytes too many in section %d", len(in.b), tag)
		}
	}
	if r.err == nil && (last < sectionChunks || len(m.Roots) != roots) {
		return nil, corrupt("its sections end with %d, and it has %d of %d roots", last, len(m.Roots), roots)
	}
	return m, r.err
}

// readSession also returns how many roots there will be.
func (m *Manifest) readSession(r *reader) (roots int) {
	m.SessionID = r.string(MaxStringBytes, "a session id")
	m.Namespace = r.string(MaxStringBytes, "a namespace")
	m.Name = r.string(MaxStringBytes, "a name")
	m.Spec = append(m.Spec, r.bytes(MaxSpecBytes, "bytes of a spec")...)
	m.SerializedAt = fromUnixNano(r.fixed64())
	m.NodeID = r.string(MaxStringBytes, "a node id")
	m.Release = r.string(MaxStringBytes, "a release")
	m.Epoch, m.Sequence, m.Turn, m.OutputLine = r.uvarint(), r.uvarint(), r.uvarint(), r.uvarint()
	m.Keeps = Keeps(r.upTo(255, "what it keeps"))
	return int(r.upTo(MaxRoots, "roots"))
}

// readTree reads a root; the budgets are shared by all of them.
func readTree(r *reader, entries, extents *int) Tree {
	t := Tree{Name: r.string(64, "a root's name")}
	n := r.count(*entries, 5, "entries")
	*entries -= n
	t.Entries = make([]Entry, n)
	lastPath, lastTime := "", int64(0)
	for i := range t.Entries {
		e := &t.Entries[i]
		e.Type = Type(r.byte())
		e.Path = r.path(lastPath)
		e.ModTime = r.delta(lastTime)
		lastPath, lastTime = e.Path, e.ModTime
		if e.Type == Symlink {
			e.Target = r.string(links.MaxTargetBytes, "bytes of a target")
		} else {
			e.Mode = uint32(r.upTo(int64(MaxPerm), "a mode"))
		}
		if e.Type == File {
			e.Size = r.upTo(MaxTreeBytes, "bytes of a file")
			e.Extents = r.extents(extents)
		}
		if r.err != nil {
			break
		}
	}
	return t
}

// unixNano is the format's time; 0 is no time.
func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromUnixNano(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}
