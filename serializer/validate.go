// What a manifest must look like. Writers and readers ask the same function, so that nothing is written that will not be read.

package serializer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/links"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// corruption is an ErrCorrupt with its reason.
type corruption struct{ why error }

func (c corruption) Error() string        { return ErrCorrupt.Error() + ": " + c.why.Error() }
func (c corruption) Is(target error) bool { return target == ErrCorrupt }
func (c corruption) Unwrap() error        { return c.why }

// corrupt makes the error that bytes are not what they should be.
func corrupt(format string, args ...any) error {
	return fault.New(fault.Invalid, "%w", corruption{fmt.Errorf(format, args...)})
}

// Validate returns an error that matches ErrCorrupt unless the manifest is one that can be restored.
func (m *Manifest) Validate() error {
	for _, s := range []struct{ what, value string }{
		{"session id", m.SessionID}, {"namespace", m.Namespace}, {"name", m.Name}, {"node id", m.NodeID}, {"release", m.Release},
	} {
		if len(s.value) > MaxStringBytes {
			return corrupt("its %s has %d bytes, at most %d", s.what, len(s.value), MaxStringBytes)
		}
	}
	switch {
	case m.SessionID == "":
		return corrupt("it names no session")
	case len(m.Spec) > MaxSpecBytes:
		return corrupt("a spec of %d bytes, at most %d", len(m.Spec), MaxSpecBytes)
	case len(m.Memory) > MaxMemoryBytes:
		return corrupt("a memory snapshot of %d bytes, at most %d", len(m.Memory), MaxMemoryBytes)
	case len(m.Memory) > 0 && (!bytes.HasPrefix(bytes.TrimLeft(m.Memory, " \t\r\n"), []byte("{")) || !json.Valid(m.Memory)):
		return corrupt("its memory snapshot is not a JSON object")
	case m.Keeps >= 1<<len(keepsNames):
		return corrupt("it keeps something unknown (%#x)", uint8(m.Keeps))
	case len(m.PathMap) > MaxPathMap:
		return corrupt("a path map of %d pairs, at most %d", len(m.PathMap), MaxPathMap)
	case len(m.Roots) > MaxRoots:
		return corrupt("%d roots, at most %d", len(m.Roots), MaxRoots)
	case len(m.Chunks) > MaxChunks:
		return corrupt("%d chunks, at most %d", len(m.Chunks), MaxChunks)
	}
	for i, p := range m.PathMap {
		if !path.IsAbs(p.Source) || path.Clean(p.Source) != p.Source || len(p.Source) > MaxPathBytes || !validRootName(p.Root) {
			return corrupt("pair %d of its path map, %.100q to %.100q, is not a clean absolute path and a name", i, p.Source, p.Root)
		}
	}
	for i, c := range m.Chunks {
		if c.Bytes == 0 || c.Bytes > chunk.MaxContentBytes {
			return corrupt("chunk %d has %d bytes, want 1 to %d", i, c.Bytes, chunk.MaxContentBytes)
		}
	}
	return m.validateTrees()
}

// budget is what is left of the limits that all trees share.
type budget struct {
	entries, extents int
	bytes            int64
}

func (m *Manifest) validateTrees() error {
	left := budget{entries: MaxEntries, extents: MaxExtents, bytes: MaxTreeBytes}
	for i := range m.Roots {
		t := &m.Roots[i]
		if !validRootName(t.Name) {
			return corrupt("the name %.100q of a root: want 1 to 64 lower-case letters, digits and dashes", t.Name)
		}
		for j := range i {
			if m.Roots[j].Name == t.Name {
				return corrupt("two roots are called %s", t.Name)
			}
		}
		if err := t.validate(m.Chunks, &left); err != nil {
			return err
		}
	}
	return nil
}

// validRootName reports whether a name may be that of a root: it becomes part of paths and tables.
func validRootName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// validate checks the entries. In the order of a walk a directory comes before what is in it, so that a path whose parent is
// not the innermost open directory is below something else: a file, a link, nothing, or something out of order.
func (t *Tree) validate(chunks []ChunkRef, left *budget) error {
	if left.entries -= len(t.Entries); left.entries < 0 {
		return corrupt("more than %d entries", MaxEntries)
	}
	if len(t.Entries) == 0 || t.Entries[0].Path != "." || t.Entries[0].Type != Dir {
		return corrupt("root %s does not begin with its directory", t.Name)
	}
	dirs := []string{"."} // from the root down to the last entry's directory
	for i := range t.Entries {
		e := &t.Entries[i]
		if err := e.validate(chunks, left); err != nil {
			return corrupt("root %s, entry %d, %.200q: %w", t.Name, i, e.Path, err)
		}
		if i == 0 {
			continue
		}
		if err := validPath(e.Path); err != nil {
			return corrupt("root %s, entry %d: the path %.200q %w", t.Name, i, e.Path, err)
		}
		switch c := comparePaths(t.Entries[i-1].Path, e.Path); {
		case i > 1 && c == 0:
			return corrupt("root %s has %.200q twice", t.Name, e.Path)
		case i > 1 && c > 0:
			return corrupt("root %s has %.200q out of order", t.Name, e.Path)
		}
		parent := parentOf(e.Path)
		for len(dirs) > 0 && dirs[len(dirs)-1] != parent {
			dirs = dirs[:len(dirs)-1]
		}
		if len(dirs) == 0 {
			return corrupt("root %s has %.200q, but no directory for it", t.Name, e.Path)
		}
		if e.Type == Dir {
			if dirs = append(dirs, e.Path); len(dirs) > MaxDepth {
				return corrupt("root %s: %.200q is more than %d directories deep", t.Name, e.Path, MaxDepth)
			}
		}
	}
	return nil
}

// flaw is an error that another one explains.
type flaw string

func (f flaw) Error() string { return string(f) }

func flawf(format string, args ...any) error { return flaw(fmt.Sprintf(format, args...)) }

// parentOf returns the path of the directory that an entry lies in.
func parentOf(p string) string {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i]
	}
	return "."
}

// baseOf returns the last component of a path.
func baseOf(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

// validPath says what is wrong with the path of an entry.
func validPath(p string) error {
	switch {
	case p == "" || p[0] == '/':
		return flaw("is not relative")
	case len(p) > MaxPathBytes:
		return flaw("is too long")
	case strings.IndexByte(p, 0) >= 0:
		return flaw("has a NUL in it")
	}
	for name := range strings.SplitSeq(p, "/") {
		if name == "" || name == "." || name == ".." {
			return flaw("has an empty component, . or .. in it")
		}
		if len(name) > MaxNameBytes {
			return flaw("has a component that is too long")
		}
	}
	return nil
}

// validate checks what an entry says of itself.
func (e *Entry) validate(chunks []ChunkRef, left *budget) error {
	switch {
	case e.Type > Symlink:
		return flawf("its type %d is not known", e.Type)
	case e.Mode&^MaxPerm != 0:
		return flawf("its mode %#o has more than permission bits", e.Mode)
	case e.Type != File && (e.Size != 0 || len(e.Extents) > 0):
		return flawf("it is no file and has content")
	case e.Type != Symlink && e.Target != "":
		return flawf("it is no link and has a target")
	case e.Type == Symlink:
		if e.Mode != 0 {
			return flawf("it is a link and has a mode")
		}
		if why := links.Flaw(e.Path, e.Target); why != "" {
			return flawf("its target %.200q %s", e.Target, why)
		}
	}
	if left.extents -= len(e.Extents); left.extents < 0 {
		return flawf("more than %d extents", MaxExtents)
	}
	if e.Size < 0 || e.Size > left.bytes {
		return flawf("its %d bytes are more than a checkpoint may hold", e.Size)
	}
	left.bytes -= e.Size
	var sum int64
	for _, x := range e.Extents {
		if x.Length <= 0 || x.Length > e.Size-sum {
			return flawf("its extents are not as long as its %d bytes", e.Size)
		}
		sum += x.Length
		if x.IsHole() {
			if x.Offset != 0 {
				return flawf("a hole with an offset")
			}
			continue
		}
		if int64(x.Chunk) >= int64(len(chunks)) {
			return flawf("chunk %d of %d", x.Chunk, len(chunks))
		}
		if int64(x.Offset)+x.Length > int64(chunks[x.Chunk].Bytes) {
			return flawf("an extent beyond the end of its chunk")
		}
	}
	if sum != e.Size {
		return flawf("its extents have %d bytes, it has %d", sum, e.Size)
	}
	return nil
}

// comparePaths orders paths as a walk meets them: the slash before all other bytes.
func comparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		x, y := a[i], b[i]
		if x == y {
			continue
		}
		if x == '/' || (x < y && y != '/') {
			return -1
		}
		return 1
	}
	return len(a) - len(b)
}
