// The limits of an archive, and the errors of one that breaks them.

package archive

import (
	"errors"
	"fmt"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Version is the version of the format that this release writes, and the newest that it reads.
//
//	1  the first
const Version = 1

// The limits of the format. More is refused when written and when read.
const (
	// MaxChunks is how many chunks there may be: those that a manifest may name, and those that it is kept in itself.
	MaxChunks = 8<<20 + 257
	// MaxHeaderBytes is the longest session.json.
	MaxHeaderBytes = 1 << 20
	// MaxSignatureBytes is the longest SIGNATURE.
	MaxSignatureBytes = 1 << 10
	// MaxWindowBytes is the largest window of the compression, which is what zstd -19 uses.
	MaxWindowBytes = 8 << 20
	// MaxRatio is how many bytes may become of one that was read, once there are more than FreeBytes. Chunks are compressed already: what
	// is exported grows by less than 2.
	MaxRatio  = 32
	FreeBytes = 4 << 20
)

const (
	headerName    = "session.json"
	chunkDir      = "chunks/"
	sumsName      = "SHA256SUMS"
	signatureName = "SIGNATURE"
	formatName    = "orchestrator session archive"
)

// ErrCorrupt says that bytes are no archive, or not the one that was written.
var ErrCorrupt = errors.New("archive: corrupt")

// corruption is an ErrCorrupt with its reason.
type corruption struct{ why error }

func (c corruption) Error() string        { return ErrCorrupt.Error() + ": " + c.why.Error() }
func (c corruption) Is(target error) bool { return target == ErrCorrupt }
func (c corruption) Unwrap() error        { return c.why }

// corrupt makes the error that bytes are not what they should be.
func corrupt(format string, args ...any) error {
	return fault.New(fault.Invalid, "%w", corruption{fmt.Errorf(format, args...)})
}

// names remembers which chunks there were, by the first 8 bytes of their names: two whose hashes begin alike in all of those do not happen.
type names map[uint64]struct{}

// add reports whether the chunk is new.
func (s names) add(id chunk.ID) bool {
	var k uint64
	for _, b := range id[:8] {
		k = k<<8 | uint64(b)
	}
	if _, there := s[k]; there {
		return false
	}
	s[k] = struct{}{}
	return true
}
