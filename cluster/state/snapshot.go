// Snapshots on disk: how they are written, and the frames they are made of.
//
//	offset  bytes  what
//	0       8      "ORCHSNAP"
//	8       4      version of the framing, big-endian; 1
//	12      …      frames: the length as a uvarint, then so many bytes of protobuf:
//	               one SnapshotHeader, SnapshotRows, and at last a SnapshotRow with the trailer
//	end-8   8      xxhash64 of all bytes before, big-endian
//
// Rows come by table, and within a table by key; a mailbox is followed by its results in the order of their ends, dead
// letters and idempotency keys come by age, calls by number. The same state gives the same bytes.

package state

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/session"
)

const (
	snapshotMagic = "ORCHSNAP"
	// framingVersion is the version of the bytes around the rows, rowsVersion that of the rows. Version 1 of both is
	// the first; version 2 of the rows has calls and clients, version 3 conversations. A state is written as the first version that
	// has all of its rows, so that servers of both releases read it while a cluster is upgraded.
	framingVersion  = 1
	rowsVersion     = 3
	rowsWithoutTalk = 2
	rowsWithoutCall = 1
	// maxFrameBytes bounds one row: a session with its spec and history, a message or a result with its text.
	maxFrameBytes = 16 << 20
	checksumBytes = 8
	ioBufferBytes = 64 << 10
)

// frameWriter writes frames and keeps the checksum. The first error stays.
type frameWriter struct {
	w    *bufio.Writer
	sum  *xxhash.Digest
	buf  []byte
	rows uint64
	err  error
}

func (f *frameWriter) write(b []byte) {
	if f.err != nil {
		return
	}
	_, _ = f.sum.Write(b) // a hash does not fail
	_, f.err = f.w.Write(b)
}

// frame writes one message; write appends it to what it is given.
func (f *frameWriter) frame(write func([]byte) ([]byte, error)) {
	if f.err != nil {
		return
	}
	var b []byte
	if b, f.err = write(append(f.buf[:0], make([]byte, binary.MaxVarintLen64)...)); f.err != nil {
		return
	}
	f.buf = b
	// The length goes right before the message, into the room that was left for it.
	body := len(b) - binary.MaxVarintLen64
	var length [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(length[:], uint64(body))
	start := binary.MaxVarintLen64 - n
	copy(b[start:], length[:n])
	f.write(b[start:])
}

func (f *frameWriter) message(m proto.Message) {
	f.frame(func(b []byte) ([]byte, error) { return deterministic.MarshalAppend(b, m) })
}

func (f *frameWriter) row(r *clusterv1.SnapshotRow) bool {
	f.message(r)
	f.rows++
	return f.err == nil
}

func newFrameWriter(w io.Writer) *frameWriter {
	return &frameWriter{w: bufio.NewWriterSize(w, ioBufferBytes), sum: xxhash.New()}
}

// open writes what comes before the rows.
func (f *frameWriter) open(h *clusterv1.SnapshotHeader) {
	f.write(binary.BigEndian.AppendUint32([]byte(snapshotMagic), framingVersion))
	f.message(h)
}

// close writes what comes after the rows.
func (f *frameWriter) close() error {
	f.message(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Trailer{Trailer: &clusterv1.SnapshotTrailer{Rows: f.rows}}})
	if f.err == nil {
		_, f.err = f.w.Write(binary.BigEndian.AppendUint64(nil, f.sum.Sum64()))
	}
	if f.err == nil {
		f.err = f.w.Flush()
	}
	return f.err
}

// Persist writes the view as a snapshot.
func (v *View) Persist(w io.Writer) error {
	f := newFrameWriter(w)
	version := uint32(rowsVersion)
	switch {
	case v.meta.stats.Conversations > 0:
	case v.meta.call > 0 || v.meta.stats.Clients > 0:
		version = rowsWithoutTalk
	default:
		version = rowsWithoutCall
	}
	f.open(&clusterv1.SnapshotHeader{
		Version: version, ClusterId: v.meta.clusterID, Index: v.meta.index, Time: v.meta.time,
		EventIndex: v.meta.event, DeadLettersDropped: v.meta.stats.DeadLettersDropped,
		CallNumber: v.meta.call, DeadCallsDropped: v.meta.stats.DeadCallsDropped,
	})
	v.persistSessions(f)
	v.persistRest(f)
	v.persistCalls(f)
	v.persistConversations(f)
	if err := f.close(); err != nil {
		return fmt.Errorf("state: write snapshot at index %d: %w", v.meta.index, err)
	}
	return nil
}

// persistSessions writes sessions, mailboxes with results, and messages.
func (v *View) persistSessions(f *frameWriter) {
	sessions := newSessionWriter()
	v.sessions.prefixed("", func(s *session.Session) bool {
		f.frame(func(b []byte) ([]byte, error) { return sessions.append(b, s) })
		f.rows++
		return f.err == nil
	})
	v.mailboxes.prefixed("", func(m *mailboxRow) bool {
		ok := f.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Mailbox{Mailbox: mailboxToRow(m)}})
		for _, r := range m.results {
			ok = f.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Result{Result: resultToRow(r)}})
		}
		return ok
	})
	for m := range v.keptAndAll() {
		if !f.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Message{Message: messageToRow(m)}}) {
			return
		}
	}
}

// persistRest writes the other tables.
func (v *View) persistRest(f *frameWriter) {
	from(v.txn, tableDead, byNumber, numberBytes(0), func(d *deadRow) bool {
		return f.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_DeadLetter{DeadLetter: deadToRow(d.letter)}})
	})
	for n := range v.Nodes() {
		f.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Node{Node: nodeToRow(n)}})
	}
	for t := range v.Tokens() {
		f.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Token{Token: tokenToRow(t)}})
	}
	for r := range v.meta.keys.all() {
		f.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Idempotency{Idempotency: idempotencyToRow(r)}})
	}
	prefixed(v.txn, tableEvents, nil, func(r *eventsRow) bool {
		for _, e := range r.events {
			f.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Event{Event: eventToRow(e)}})
		}
		return f.err == nil
	})
}

// persistCalls writes calls and clients.
func (v *View) persistCalls(f *frameWriter) {
	for c := range v.Calls(0) {
		if !f.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Call{Call: pbconv.CallToRow(c)}}) {
			return
		}
	}
	for c := range v.Clients() {
		if !f.row(&clusterv1.SnapshotRow{Row: &clusterv1.SnapshotRow_Client{Client: pbconv.ClientToRow(c)}}) {
			return
		}
	}
}

// frameReader reads frames and keeps the checksum.
type frameReader struct {
	r      *bufio.Reader
	sum    *xxhash.Digest
	buf    []byte
	offset int64
}

// corrupt says that the snapshot's bytes are not what was written.
func (f *frameReader) corrupt(format string, args ...any) error {
	return fault.New(fault.Invalid, "state: snapshot is damaged near byte %d: %w; use another snapshot", f.offset, fmt.Errorf(format, args...))
}

func (f *frameReader) read(b []byte) error {
	n, err := io.ReadFull(f.r, b)
	f.offset += int64(n)
	_, _ = f.sum.Write(b[:n])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return f.corrupt("it ends too early")
	}
	return err
}

// ReadByte lets the length of a frame be read; it counts and sums like read.
func (f *frameReader) ReadByte() (byte, error) {
	b, err := f.r.ReadByte()
	if err == nil {
		f.offset++
		_, _ = f.sum.Write([]byte{b})
	}
	return b, err
}

// frame reads the bytes of one message, which are valid until the next call.
func (f *frameReader) frame() ([]byte, error) {
	n, err := binary.ReadUvarint(f)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return nil, f.corrupt("it ends too early")
	case err != nil:
		return nil, f.corrupt("length of a row: %w", err)
	case n > maxFrameBytes:
		return nil, f.corrupt("a row of %d bytes, more than %d", n, maxFrameBytes)
	}
	if cap(f.buf) < int(n) {
		f.buf = make([]byte, n)
	}
	b := f.buf[:n]
	return b, f.read(b)
}

// open reads what comes before the rows.
func (f *frameReader) open() (*clusterv1.SnapshotHeader, error) {
	lead := make([]byte, len(snapshotMagic)+4)
	if err := f.read(lead); err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(lead, []byte(snapshotMagic)) {
		return nil, fault.New(fault.Invalid, "state: this is not a snapshot of the state; it begins with %q", lead[:len(snapshotMagic)])
	}
	if v := binary.BigEndian.Uint32(lead[len(snapshotMagic):]); v != framingVersion {
		return nil, versionError("framing", v, framingVersion)
	}
	b, err := f.frame()
	if err != nil {
		return nil, err
	}
	h := &clusterv1.SnapshotHeader{}
	if err := proto.Unmarshal(b, h); err != nil {
		return nil, f.corrupt("the header: %w", err)
	}
	if h.GetVersion() == 0 || h.GetVersion() > rowsVersion {
		return nil, versionError("rows", h.GetVersion(), rowsVersion)
	}
	return h, nil
}

func versionError(of string, got, know uint32) error {
	if got == 0 {
		return fault.New(fault.Invalid, "state: the snapshot names no version of its %s; it is damaged", of)
	}
	return fault.New(fault.FailedPrecondition, "state: the snapshot has %s of version %d, and this release reads up to version %d; use a release that reads version %d", of, got, know, got)
}

// close checks what comes after the rows.
func (f *frameReader) close(rows, told uint64) error {
	if rows != told {
		return f.corrupt("it holds %d rows, and its trailer says %d", rows, told)
	}
	want := f.sum.Sum64()
	sum := make([]byte, checksumBytes)
	if err := f.read(sum); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(sum) != want {
		return f.corrupt("its checksum is not that of its bytes")
	}
	if _, err := f.r.ReadByte(); !errors.Is(err, io.EOF) {
		return f.corrupt("something follows its end")
	}
	return nil
}

// snapshotReader is told what a snapshot holds.
type snapshotReader interface {
	head(h *clusterv1.SnapshotHeader)
	// session is told the bytes of a SessionRow, row any other row; frame is how many bytes it has in all.
	session(b []byte, frame int) error
	row(row *clusterv1.SnapshotRow, frame int) error
}

// readSnapshot reads a whole snapshot. What it has told before it returns an error is not to be trusted.
func readSnapshot(from io.Reader, to snapshotReader) error {
	f := &frameReader{r: bufio.NewReaderSize(from, ioBufferBytes), sum: xxhash.New()}
	h, err := f.open()
	if err != nil {
		return err
	}
	to.head(h)
	for rows := uint64(0); ; rows++ {
		b, err := f.frame()
		if err != nil {
			return err
		}
		if s, ok := sessionOf(b); ok {
			if err := to.session(s, len(b)); err != nil {
				return f.corrupt("a session: %w", err)
			}
			continue
		}
		row, err := unmarshalRow(b)
		if err != nil {
			return f.corrupt("%w", err)
		}
		if t, ok := row.GetRow().(*clusterv1.SnapshotRow_Trailer); ok {
			return f.close(rows, t.Trailer.GetRows())
		}
		if err := to.row(row, len(b)); err != nil {
			return f.corrupt("%w", err)
		}
	}
}
