// The first file of an archive, session.json: what the archive is, for people, and what the reader needs of the rest.

package archive

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Header is what session.json says. Whoever signs vouches for it, but nobody has compared it with the manifest, which is the truth about the
// session.
type Header struct {
	// CreateTime is when the archive was made, in seconds, in UTC.
	CreateTime time.Time `json:"createTime"`
	// Creator is the program that made it, with its version.
	Creator string `json:"creator,omitempty"`
	// Cluster is the id of the cluster that the session is of.
	Cluster    string     `json:"cluster,omitempty"`
	Session    Session    `json:"session"`
	Checkpoint Checkpoint `json:"checkpoint"`
	// Spec is the session's spec as protojson, or nothing. It is left out where session.json would be too long with it.
	Spec json.RawMessage `json:"spec,omitempty"`
	// Chunks is how many chunks follow, those of the manifest included.
	Chunks int `json:"chunks"`
	// Manifest is the chunk that names the manifest, and the first one.
	Manifest chunk.ID `json:"manifest"`
}

// Session says which session it is.
type Session struct {
	ID        string `json:"id"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Type      string `json:"type,omitempty"`
}

// Checkpoint says which of its checkpoints.
type Checkpoint struct {
	Sequence   uint64    `json:"sequence"`
	Epoch      uint64    `json:"epoch"`
	Turn       uint64    `json:"turn"`
	OutputLine uint64    `json:"outputLine"`
	Bytes      int64     `json:"bytes"`           // of the content of its chunks
	Time       time.Time `json:"time,omitzero"`   // when it was captured
	Keeps      []string  `json:"keeps,omitempty"` // messages, transcript, workspace, memory
}

// file is session.json as it is written.
type file struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	Header
	Manifest string `json:"manifest"` // in place of the header's
}

// encode returns session.json.
func (h Header) encode() ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	for {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(file{formatName, Version, h, h.Manifest.String()}); err != nil {
			return nil, fault.New(fault.Invalid, "archive: encode %s: %w", headerName, err)
		}
		if b.Len() <= MaxHeaderBytes {
			return b.Bytes(), nil
		}
		if h.Spec == nil {
			return nil, fault.New(fault.Invalid, "archive: %s of %d bytes, at most %d", headerName, b.Len(), MaxHeaderBytes)
		}
		h.Spec = nil // the manifest has it
	}
}

// decodeHeader is the inverse of encode. Fields that it does not know are left out: what must not be left out is a new version.
func decodeHeader(text []byte) (Header, error) {
	var f struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if err := json.Unmarshal(text, &f); err != nil {
		return Header{}, corrupt("%s: %w", headerName, err)
	}
	switch {
	case f.Format != formatName:
		return Header{}, corrupt("%s is that of %.100q, want %q", headerName, f.Format, formatName)
	case f.Version > Version:
		return Header{}, fault.New(fault.Unimplemented, "archive: it is written in version %d of the format; this release reads up to version %d: upgrade orchctl", f.Version, Version)
	case f.Version < 1:
		return Header{}, corrupt("%s: version %d", headerName, f.Version)
	}
	var in file
	if err := json.Unmarshal(text, &in); err != nil {
		return Header{}, corrupt("%s: %w", headerName, err)
	}
	h := in.Header
	id, err := chunk.Parse(in.Manifest)
	if err != nil || id.String() != in.Manifest {
		return Header{}, corrupt("%s: the manifest %.80q is not 64 lower-case hexadecimal digits", headerName, in.Manifest)
	}
	h.Manifest = id
	if h.Spec != nil {
		var b bytes.Buffer
		if err := json.Compact(&b, h.Spec); err != nil {
			return Header{}, corrupt("%s: the spec: %w", headerName, err)
		}
		h.Spec = b.Bytes()
	}
	if err := h.check(); err != nil {
		return Header{}, corrupt("%w", err)
	}
	return h, nil
}

// check says what is wrong with a header, before it is written and after it was read.
func (h *Header) check() error {
	switch t := h.CreateTime; {
	case h.Session.ID == "":
		return badHeader("it names no session")
	case h.Chunks < 1 || h.Chunks > MaxChunks:
		return badHeader("%d chunks, want 1 to %d", h.Chunks, MaxChunks)
	case t.Unix() < 0 || t.Unix() > maxOctal || t.Nanosecond() != 0 || t.Location() != time.UTC:
		return badHeader("the time %s: want whole seconds in UTC, from 1970 to 2242", t.Format(time.RFC3339Nano))
	case h.Checkpoint.Bytes < 0:
		return badHeader("a checkpoint of %d bytes", h.Checkpoint.Bytes)
	}
	return nil
}

func badHeader(format string, args ...any) error {
	return fault.New(fault.Invalid, "archive: %s: %w", headerName, fmt.Errorf(format, args...))
}
