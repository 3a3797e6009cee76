// Reading an archive.
//
// The files stand in one order, so that reading is a walk: session.json, chunks, SHA256SUMS, SIGNATURE, the end. What SHA256SUMS has to
// be is known when it comes: its lines are hashed as the files are read, and compared by that hash.

package archive

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// ReaderOptions says how to read.
type ReaderOptions struct {
	// Trust says whose archives are taken: its error refuses a signer. It is asked once, with a key whose signature is right, before Next
	// returns io.EOF. Nil takes everybody's.
	Trust func(ed25519.PublicKey) error
}

// Reader reads an archive. It is for one goroutine, and has nothing to close. After an error every call of Next returns it.
//
// Errors match ErrCorrupt where the archive is damaged or never was one. Of kind fault.Unimplemented is one of a newer version; of
// kind fault.PermissionDenied one whose signature is wrong (which matches ErrCorrupt, too) or whose signer Trust refuses. What the source fails with is
// wrapped as it is.
type Reader struct {
	o       ReaderOptions
	frame   *frameReader
	tar     io.Reader
	decoded int64
	h       Header
	seen    names
	count   int
	sums    hash.Hash // of what SHA256SUMS must be
	sumsLen int64
	content []byte // the last chunk's, to be used again
	signer  ed25519.PublicKey
	err     error
}

// NewReader reads an archive's header.
func NewReader(r io.Reader, o ReaderOptions) (*Reader, error) {
	in := &Reader{o: o, frame: newFrameReader(r), seen: names{}, sums: sha256.New()}
	dec, err := zstd.NewReader(in.frame, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(MaxWindowBytes), zstd.WithDecoderMaxMemory(MaxWindowBytes))
	if err != nil {
		return nil, in.broken(err)
	}
	in.tar = dec
	if err := in.header(); err != nil {
		return nil, err
	}
	return in, nil
}

// Header returns what session.json says.
func (r *Reader) Header() Header { return r.h }

// Signer returns who signed the archive, once Next has returned io.EOF; nil before.
func (r *Reader) Signer() ed25519.PublicKey { return r.signer }

// Next returns the next chunk, verified: the first is the one that names the manifest. The frame is the caller's. It returns io.EOF
// when there is no more, and the archive is whole, signed, and by somebody who is trusted.
func (r *Reader) Next() (chunk.ID, []byte, error) {
	if r.err != nil {
		return chunk.ID{}, nil, r.err
	}
	id, frame, err := r.next()
	if err != nil {
		r.err = err
		return chunk.ID{}, nil, err
	}
	return id, frame, nil
}

func (r *Reader) next() (id chunk.ID, frame []byte, err error) {
	name, size, err := r.entry(&r.h.CreateTime)
	if err != nil {
		return id, nil, err
	}
	if name == sumsName {
		if err := r.finish(size); err != nil {
			return id, nil, err
		}
		return id, nil, io.EOF
	}
	if r.count == r.h.Chunks {
		return id, nil, corrupt("%.120q follows the %d chunks that it should have; want %s", name, r.h.Chunks, sumsName)
	}
	digits, ok := strings.CutPrefix(name, chunkDir)
	if id, err = chunk.Parse(digits); !ok || err != nil || id.String() != digits {
		return id, nil, corrupt("file %d is called %.120q; want %s and 64 lower-case hexadecimal digits, or %s", r.count+2, name, chunkDir, sumsName)
	}
	switch {
	case r.count == 0 && id != r.h.Manifest:
		return id, nil, corrupt("its first chunk is %s, want that of the manifest, %s", id, r.h.Manifest)
	case size < chunk.HeaderBytes || size > chunk.MaxFrameBytes:
		return id, nil, corrupt("chunk %s has %d bytes, want %d to %d", id, size, chunk.HeaderBytes, chunk.MaxFrameBytes)
	case !r.seen.add(id):
		return id, nil, corrupt("chunk %s comes twice", id)
	}
	if frame, err = r.body(size); err != nil {
		return id, nil, err
	}
	if r.content, err = chunk.Open(r.content[:0], id, frame); err != nil {
		return id, nil, corrupt("%w", err)
	}
	r.count++
	r.note(name, frame)
	return id, frame, nil
}

// header reads session.json.
func (r *Reader) header() error {
	name, size, when, err := r.entryAt(nil)
	if err != nil {
		return err
	}
	switch {
	case name != headerName:
		return corrupt("its first file is called %.120q, want %s", name, headerName)
	case size > MaxHeaderBytes:
		return corrupt("%s has %d bytes, at most %d", headerName, size, MaxHeaderBytes)
	}
	text, err := r.body(size)
	if err != nil {
		return err
	}
	if r.h, err = decodeHeader(text); err != nil {
		return err
	}
	if !r.h.CreateTime.Equal(when) {
		return corrupt("%s has another time than it says", headerName)
	}
	r.note(name, text)
	return nil
}

// finish reads everything from SHA256SUMS on.
func (r *Reader) finish(size int64) error {
	if r.count < r.h.Chunks {
		return corrupt("it has %d of its %d chunks", r.count, r.h.Chunks)
	}
	if size != r.sumsLen {
		return corrupt("%s has %d bytes; that of these files has %d", sumsName, size, r.sumsLen)
	}
	got, piece := sha256.New(), make([]byte, 32<<10)
	for left := size; left > 0; {
		p := piece[:min(left, int64(len(piece)))]
		if err := r.fill(p); err != nil {
			return err
		}
		_, _ = got.Write(p)
		left -= int64(len(p))
	}
	if err := r.pad(size); err != nil {
		return err
	}
	want := [sha256.Size]byte(r.sums.Sum(nil))
	if [sha256.Size]byte(got.Sum(nil)) != want {
		return corrupt("%s is not that of the files", sumsName)
	}
	name, size, err := r.entry(&r.h.CreateTime)
	if err != nil {
		return err
	}
	if name != signatureName || size > MaxSignatureBytes {
		return corrupt("%.120q with %d bytes follows %s; want %s with at most %d", name, size, sumsName, signatureName, MaxSignatureBytes)
	}
	text, err := r.body(size)
	if err != nil {
		return err
	}
	if err := r.end(); err != nil {
		return err
	}
	signer, err := verify(text, want)
	if err != nil {
		return err
	}
	if r.o.Trust != nil {
		if err := r.o.Trust(signer); err != nil {
			return fault.New(fault.PermissionDenied, "archive: it is signed by %s: %w", Fingerprint(signer), err)
		}
	}
	r.signer = signer
	return nil
}

// end makes sure that two empty blocks follow, and then nothing: not in the tar, not behind the frame.
func (r *Reader) end() error {
	var b [2 * blockBytes]byte
	if err := r.fill(b[:]); err != nil {
		return err
	}
	if b != [2 * blockBytes]byte{} {
		return corrupt("something follows %s", signatureName)
	}
	switch n, err := r.tar.Read(b[:1]); {
	case n > 0:
		return corrupt("something follows its end")
	case !errors.Is(err, io.EOF) || r.frame.err != nil:
		return r.broken(err)
	}
	r.frame.err = r.frame.end()
	if r.frame.err != nil {
		return r.broken(r.frame.err)
	}
	return nil
}

// entry reads the header of the next file.
func (r *Reader) entry(when *time.Time) (name string, size int64, err error) {
	name, size, _, err = r.entryAt(when)
	return name, size, err
}

func (r *Reader) entryAt(when *time.Time) (name string, size int64, at time.Time, err error) {
	var b [blockBytes]byte
	if err := r.fill(b[:]); err != nil {
		return "", 0, at, err
	}
	if b == [blockBytes]byte{} {
		return "", 0, at, corrupt("it ends after %d chunks, without %s and %s", r.count, sumsName, signatureName)
	}
	return readTarHeader(&b, when)
}

// body reads a file, whose size was checked.
func (r *Reader) body(size int64) ([]byte, error) {
	b := make([]byte, size)
	if err := r.fill(b); err != nil {
		return nil, err
	}
	return b, r.pad(size)
}

// pad reads what follows a file to the end of its block.
func (r *Reader) pad(size int64) error {
	var zeros, b [blockBytes]byte
	n := padding(size)
	if err := r.fill(b[:n]); err != nil {
		return err
	}
	if b != zeros {
		return corrupt("something stands between two files")
	}
	return nil
}

// note adds a file to what SHA256SUMS must be.
func (r *Reader) note(name string, content []byte) {
	line := appendSumsLine(nil, sha256.Sum256(content), name)
	_, _ = r.sums.Write(line)
	r.sumsLen += int64(len(line))
}

// fill reads as many bytes of the tar as p has.
func (r *Reader) fill(p []byte) error {
	for len(p) > 0 {
		n, err := r.tar.Read(p)
		p = p[n:]
		r.decoded += int64(n)
		if r.decoded > FreeBytes && r.decoded/MaxRatio > r.frame.count {
			return corrupt("%d bytes of it become %d, more than %d times as many", r.frame.count, r.decoded, MaxRatio)
		}
		if err != nil && len(p) > 0 {
			return r.broken(err)
		}
	}
	return nil
}

// broken is the error when no more can be read: the source's own, or why it is no archive.
func (r *Reader) broken(err error) error {
	switch own := r.frame.err; {
	case own != nil && errors.Is(own, ErrCorrupt):
		return own
	case own != nil:
		return fmt.Errorf("archive: read: %w", own)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return corrupt("its tar is cut off after %d bytes", r.decoded)
	default:
		return corrupt("decompress: %w", err)
	}
}
