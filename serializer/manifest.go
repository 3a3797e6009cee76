// The manifest of a checkpoint, as plain values, and its limits.

package serializer

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/neolith/orchestrator/serializer/chunk"
)

// The limits of a manifest; more is refused when written and when read.
const (
	MaxEntries       = 4 << 20        // files, directories and links of all trees together
	MaxExtents       = 16 << 20       // of all files together
	MaxChunks        = 8 << 20        // that a manifest names
	MaxRoots         = 16             // trees
	MaxPathBytes     = 4096           // of an entry, relative to its root
	MaxNameBytes     = 255            // of one component of a path
	MaxDepth         = 512            // directories between the root and an entry
	MaxTreeBytes     = int64(1) << 50 // of all files together, holes counted
	MaxSpecBytes     = 1 << 20        // the session's spec
	MaxMemoryBytes   = 16 << 20       // the memory snapshot
	MaxStringBytes   = 4096           // ids and names
	MaxPathMap       = 64             // pairs of the path map
	MaxBodyBytes     = 512 << 20      // the manifest before compression
	MaxManifestBytes = 256 << 20      // the manifest as it is stored
	MaxPerm          = uint32(0o777)  // the bits of a mode that are kept
	hole             = ^uint32(0)     // the chunk of an extent that has none
)

// ErrCorrupt says that bytes are no manifest or no index, or not the one that was written, or that a manifest describes
// something that cannot or must not be restored.
var ErrCorrupt = errors.New("checkpoint: corrupt")

// Keeps is what a checkpoint keeps of a session, a set.
type Keeps uint8

// What a checkpoint may keep.
const (
	KeepsMessages   Keeps = 1 << iota // the mailbox: messages it has not seen will be delivered
	KeepsTranscript                   // the agent's own record of the conversation
	KeepsWorkspace                    // the files it works on
	KeepsMemory                       // the process's memory
)

var keepsNames = []string{"messages", "transcript", "workspace", "memory"}

// List returns the names of what is kept.
func (k Keeps) List() (names []string) {
	for i, n := range keepsNames {
		if k&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return names
}

// KeepsOf is the inverse of List; names that are none are left out.
func KeepsOf(names []string) (k Keeps) {
	for _, n := range names {
		if i := slices.Index(keepsNames, n); i >= 0 {
			k |= 1 << i
		}
	}
	return k
}

// String returns the names as users see them.
func (k Keeps) String() string { return strings.Join(k.List(), " · ") }

// Manifest is a checkpoint: everything that a session needs to go on, but for the content of its chunks.
type Manifest struct {
	SessionID string
	Namespace string
	Name      string
	// Spec is the SessionSpec of the public API in protobuf's binary form. Secrets stand in it by name, never by value.
	Spec []byte
	// SerializedAt is when it was captured, to the nanosecond, in UTC.
	SerializedAt time.Time
	NodeID       string // where
	Release      string // the version of the program that captured it
	Epoch        uint64 // of the session's process tree that was captured
	Sequence     uint64 // of this checkpoint in the session's chain
	Turn         uint64 // how many ended turns it has seen
	OutputLine   uint64 // the number of the last line of output it has seen
	// Memory is the driver's snapshot: empty, or a JSON object.
	Memory []byte
	Keeps  Keeps
	// PathMap says which absolute paths of the source stand for which roots, so that a restore elsewhere can rewrite them in
	// the session's own state.
	PathMap []PathPair
	Roots   []Tree
	Chunks  []ChunkRef // in the order in which the trees first name them, each once
}

// PathPair says that an absolute path on the source is the directory of a root, or another place that restores know by name.
type PathPair struct{ Source, Root string }

// ChunkRef is a chunk that a manifest names, with the length of its content in bytes.
type ChunkRef struct {
	ID    chunk.ID
	Bytes uint32
}

// Tree is a directory with all that is in it, under a symbolic name such as "workspace".
type Tree struct {
	Name string
	// Entries are in the order of a walk: a directory, then what is in it, names in the order of their bytes. The first is the
	// directory itself, with the path ".".
	Entries []Entry
}

// Type is the type of an entry. The numbers are those of the format.
type Type uint8

// The types of entries. There are no others: sockets, devices and named pipes are not captured.
const (
	Dir     Type = 0
	File    Type = 1
	Symlink Type = 2
)

// Entry is a file, a directory or a symbolic link.
type Entry struct {
	Path    string // relative to the root, components separated by slashes; any bytes but NUL
	Type    Type
	Mode    uint32 // permission bits; 0 of a symbolic link
	ModTime int64  // Unix nanoseconds
	Size    int64  // bytes, of a file
	Target  string // of a symbolic link
	Extents []Extent
}

// Extent is a stretch of a file: Length bytes of a chunk from Offset on, or a hole, which reads as zeros. The extents of a file
// follow each other and together are as long as it is.
type Extent struct {
	Chunk  uint32 // an index into Manifest.Chunks
	Offset uint32 // within the chunk's content
	Length int64
}

// Hole returns an extent of zeros that no chunk holds.
func Hole(length int64) Extent { return Extent{Chunk: hole, Length: length} }

// IsHole reports whether no chunk holds the extent.
func (e Extent) IsHole() bool { return e.Chunk == hole }

// Root returns the tree of that name, nil when there is none.
func (m *Manifest) Root(name string) *Tree {
	for i := range m.Roots {
		if m.Roots[i].Name == name {
			return &m.Roots[i]
		}
	}
	return nil
}

// ContentBytes returns how long the content of all chunks is together.
func (m *Manifest) ContentBytes() (n int64) {
	for _, c := range m.Chunks {
		n += int64(c.Bytes)
	}
	return n
}
