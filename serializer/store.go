// Where chunks go and come from, and how a manifest is kept as chunks.
//
// A manifest that fits into a chunk is one. A longer one is cut into parts, and a list of these is the chunk that names it:
//
//	"ORCL" · version 1, 1 byte · 0, 3 bytes · length of the manifest, 8 bytes · ids of the parts, 32 bytes each

package serializer

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Sink is where chunks are stored. It is safe for concurrent use.
type Sink interface {
	// Missing returns those of ids that are not stored, in any order. Those that are must stay until the checkpoint that will name them
	// is committed or given up.
	Missing(ctx context.Context, ids []chunk.ID) ([]chunk.ID, error)
	// Put stores a chunk, which is durable when it returns. The frame is the caller's again then.
	Put(ctx context.Context, id chunk.ID, frame []byte) error
}

// Source is where chunks are read from. It is safe for concurrent use.
type Source interface {
	// Get returns the frame of a chunk, which belongs to the caller then. Whoever asks verifies it.
	Get(ctx context.Context, id chunk.ID) (frame []byte, err error)
}

const (
	listMagic       = "ORCL"
	listVersion     = 1
	listHeaderBytes = 16
)

// Stored is a manifest in a store.
type Stored struct {
	// ID names the chunk by which the manifest is found again.
	ID chunk.ID
	// Parts are all chunks that the manifest itself is kept in, that one included. What it names besides is in Manifest.Chunks.
	Parts []chunk.ID
	Bytes int64 // of the manifest's binary form
	Sent  int64 // bytes of frames that were not there yet
}

// Piece is one of the chunks that a manifest itself is kept in.
type Piece struct {
	ID    chunk.ID
	Frame []byte
}

// SealManifest returns the chunks that a manifest is kept in, in the order in which they are to be stored: what a piece names is before it,
// so that the last one names the manifest. Of the result of storing it all but Sent is known.
func SealManifest(m *Manifest) ([]Piece, Stored, error) {
	data, err := m.Encode()
	if err != nil {
		return nil, Stored{}, err
	}
	contents := [][]byte{data}
	if len(data) > chunk.MaxContentBytes {
		list := append(make([]byte, 0, listHeaderBytes), listMagic...)
		list = append(list, listVersion, 0, 0, 0)
		list = binary.BigEndian.AppendUint64(list, uint64(len(data)))
		contents = contents[:0]
		for rest := data; len(rest) > 0; {
			part := rest[:min(len(rest), chunk.MaxContentBytes)]
			rest = rest[len(part):]
			id := chunk.Sum(part)
			list = append(list, id[:]...)
			contents = append(contents, part)
		}
		contents = append(contents, list)
	}
	s := Stored{Bytes: int64(len(data))}
	pieces := make([]Piece, len(contents))
	for i, content := range contents {
		pieces[i] = Piece{chunk.Sum(content), chunk.Seal(content)}
		s.Parts = append(s.Parts, pieces[i].ID)
		s.ID = pieces[i].ID
	}
	return pieces, s, nil
}

// StoreManifest puts the manifest into the sink: when it returns, everything of it is durable. Its chunks must be stored
// before.
func StoreManifest(ctx context.Context, sink Sink, m *Manifest) (Stored, error) {
	pieces, s, err := SealManifest(m)
	if err != nil {
		return Stored{}, err
	}
	for _, p := range pieces {
		missing, err := sink.Missing(ctx, []chunk.ID{p.ID})
		if err == nil && len(missing) > 0 {
			s.Sent += int64(len(p.Frame))
			err = sink.Put(ctx, p.ID, p.Frame)
		}
		if err != nil {
			return Stored{}, fmt.Errorf("store the manifest of %s: %w", m.SessionID, err)
		}
	}
	return s, nil
}

// LoadManifest returns the manifest that a chunk names, and how it is stored.
func LoadManifest(ctx context.Context, src Source, id chunk.ID) (*Manifest, Stored, error) {
	data, parts, err := loadParts(ctx, src, id)
	if err != nil {
		return nil, Stored{}, fmt.Errorf("load the manifest %s: %w", id, err)
	}
	m, err := Decode(data)
	if err != nil {
		return nil, Stored{}, fmt.Errorf("load the manifest %s: %w", id, err)
	}
	return m, Stored{ID: id, Parts: append(parts, id), Bytes: int64(len(data))}, nil
}

// FurtherParts returns in how many chunks a manifest is kept besides the one that names it, by the content of that one. It is
// no promise that these are good: LoadManifest says so.
func FurtherParts(content []byte) int {
	if len(content) < listHeaderBytes || string(content[:4]) != listMagic {
		return 0
	}
	return min(len(content)-listHeaderBytes, MaxManifestBytes/chunk.MaxContentBytes*len(chunk.ID{})) / len(chunk.ID{})
}

func loadParts(ctx context.Context, src Source, id chunk.ID) (data []byte, parts []chunk.ID, err error) {
	root, err := fetch(ctx, src, nil, id)
	if err != nil || len(root) < listHeaderBytes || string(root[:4]) != listMagic {
		return root, nil, err // one chunk, or none
	}
	if root[4] != listVersion {
		return nil, nil, fault.New(fault.Unimplemented, "a list of parts of version %d; this release reads version %d: upgrade it", root[4], listVersion)
	}
	total, ids := binary.BigEndian.Uint64(root[8:]), root[listHeaderBytes:]
	n := (total + chunk.MaxContentBytes - 1) / chunk.MaxContentBytes
	if total > MaxManifestBytes || uint64(len(ids)) != n*uint64(len(id)) || root[5]|root[6]|root[7] != 0 {
		return nil, nil, corrupt("a list of parts of %d bytes for a manifest of %d bytes, at most %d", len(root), total, MaxManifestBytes)
	}
	for len(ids) > 0 {
		part := chunk.ID(ids[:len(id)])
		ids = ids[len(id):]
		parts = append(parts, part)
		before := len(data)
		if data, err = fetch(ctx, src, data, part); err != nil {
			return nil, nil, err
		}
		if got := len(data) - before; got != chunk.MaxContentBytes && (len(ids) > 0 || uint64(len(data)) != total) {
			return nil, nil, corrupt("part %d of the manifest has %d bytes", len(parts), got)
		}
	}
	if uint64(len(data)) != total {
		return nil, nil, corrupt("the parts of the manifest have %d bytes, not %d", len(data), total)
	}
	return data, parts, nil
}

// fetch appends a chunk's verified content to dst.
func fetch(ctx context.Context, src Source, dst []byte, id chunk.ID) ([]byte, error) {
	frame, err := src.Get(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("get chunk %s: %w", id, err)
	}
	out, err := chunk.Open(dst, id, frame)
	if err != nil {
		return nil, corrupt("%w", err)
	}
	return out, nil
}
