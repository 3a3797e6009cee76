// Writing an archive.

package archive

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Writer writes an archive. It is for one goroutine. After an error every call returns it.
type Writer struct {
	h       Header
	frame   *frameWriter
	sums    []sum
	head    [sha256.Size]byte // of session.json
	seen    names
	content []byte
	err     error
}

// sum is a line of SHA256SUMS.
type sum struct {
	id     chunk.ID
	digest [sha256.Size]byte
}

// NewWriter begins an archive with its header. CreateTime is cut to seconds in UTC. What it writes is an archive only after Close.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	h.CreateTime = h.CreateTime.Truncate(1e9).UTC()
	text, err := h.encode()
	if err != nil {
		return nil, err
	}
	out := &Writer{h: h, frame: newFrameWriter(w), seen: names{}, head: sha256.Sum256(text)}
	if err := out.file(headerName, text); err != nil {
		return nil, err
	}
	return out, nil
}

// file writes a whole file.
func (w *Writer) file(name string, content []byte) error {
	w.begin(name, int64(len(content)))
	_, _ = w.frame.Write(content) // the frame keeps its error
	return w.end(name, int64(len(content)))
}

func (w *Writer) begin(name string, size int64) {
	b := tarHeader(name, size, w.h.CreateTime)
	const used = 345 // zeros follow
	_, _ = w.frame.Write(b[:used])
	w.frame.zeros(blockBytes - used)
}

func (w *Writer) end(name string, size int64) error {
	if n := padding(size); n > 0 {
		w.frame.zeros(n)
	}
	if w.frame.err != nil {
		w.err = fmt.Errorf("archive: write %s: %w", name, w.frame.err)
	}
	return w.err
}

// Put adds a chunk: the one that names the manifest first. It is verified, and a chunk that is damaged, or there already, is an error.
func (w *Writer) Put(id chunk.ID, frame []byte) error {
	if w.err != nil {
		return w.err
	}
	switch content, err := chunk.Open(w.content[:0], id, frame); {
	case err != nil:
		w.err = corrupt("%w", err)
	case len(w.sums) == 0 && id != w.h.Manifest:
		w.err = fault.New(fault.Invalid, "archive: the first chunk is %s, want that of the manifest, %s", id, w.h.Manifest)
	case len(w.sums) == w.h.Chunks:
		w.err = fault.New(fault.Invalid, "archive: more than the %d chunks that it should have", w.h.Chunks)
	case !w.seen.add(id):
		w.err = fault.New(fault.Invalid, "archive: chunk %s comes twice", id)
	default:
		w.content = content
	}
	if w.err != nil {
		return w.err
	}
	w.sums = append(w.sums, sum{id, sha256.Sum256(frame)})
	return w.file(chunkDir+id.String(), frame)
}

// Close ends the archive with its checksums and their signature. It does not close what it writes to.
func (w *Writer) Close(key ed25519.PrivateKey) error {
	if w.err != nil {
		return w.err
	}
	if n := len(w.sums); n != w.h.Chunks {
		w.err = fault.New(fault.FailedPrecondition, "archive: it has %d of its %d chunks", n, w.h.Chunks)
		return w.err
	}
	digest := sha256.New()
	size := int64(sumsLineBytes(headerName) + len(w.sums)*sumsLineBytes(chunkDir+w.h.Manifest.String()))
	w.begin(sumsName, size)
	out := io.MultiWriter(w.frame, digest)
	_, _ = out.Write(appendSumsLine(nil, w.head, headerName))
	var line []byte
	for i := range w.sums {
		line = appendSumsLine(line[:0], w.sums[i].digest, chunkDir+w.sums[i].id.String())
		_, _ = out.Write(line)
	}
	if err := w.end(sumsName, size); err != nil {
		return err
	}
	signature, err := sign(key, [sha256.Size]byte(digest.Sum(nil)))
	if err != nil {
		w.err = err
		return err
	}
	if err := w.file(signatureName, signature); err != nil {
		return err
	}
	w.frame.zeros(blockBytes) // the end of a tar
	w.frame.zeros(blockBytes)
	if err := w.frame.Close(); err != nil {
		w.err = fmt.Errorf("archive: write its end: %w", err)
		return w.err
	}
	w.err = fault.New(fault.FailedPrecondition, "archive: it is closed")
	return nil
}

// appendSumsLine appends a line of SHA256SUMS, as sha256sum writes it.
func appendSumsLine(to []byte, digest [sha256.Size]byte, name string) []byte {
	to = hex.AppendEncode(to, digest[:])
	to = append(to, "  "...)
	to = append(to, name...)
	return append(to, '\n')
}

// sumsLineBytes returns how long that line is.
func sumsLineBytes(name string) int { return 2*sha256.Size + 2 + len(name) + 1 }
