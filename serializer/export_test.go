// What tests see of the inside.

package serializer

import (
	"context"
	"encoding/binary"

	"github.com/neolith/orchestrator/serializer/chunk"
)

// Body returns the sections, whether they are valid or not.
func (m *Manifest) Body() []byte { return m.body() }

// DecodeBody reads sections as Decode does, without the envelope.
func DecodeBody(b []byte) (*Manifest, error) {
	m, err := decodeBody(b)
	if err == nil {
		err = m.Validate()
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

// CaptureManyChunks does what a capture of one file of n chunks does, but for reading it.
func CaptureManyChunks(ctx context.Context, sink Sink, n int) (*Captured, error) {
	c := &capture{sink: sink, old: &Index{}}
	c.up, c.ctx = newUploader(ctx, sink, defaultParallel)
	f := indexFile{path: "f"}
	for i := range n {
		x, err := c.emit(binary.BigEndian.AppendUint64(nil, uint64(i)))
		if err != nil {
			return nil, err
		}
		f.extents = append(f.extents, x)
		f.stamp.size += x.Length
	}
	if err := c.up.wait(); err != nil {
		return nil, err
	}
	c.roots = []planned{{Root: Root{Name: "workspace"}, found: []found{{Entry: Entry{Path: "."}}, {Entry: Entry{Path: "f", Type: File, Size: f.stamp.size}}},
		file: []indexFile{{}, f}, gone: make([]bool, 2)}}
	return c.finish()
}

// Lie returns an index in which each packed file has the content of the one before it.
func (x *Index) Lie() *Index {
	lie := &Index{round: x.round, chunks: x.chunks}
	for _, r := range x.roots {
		files := append([]indexFile(nil), r.files...)
		for i := 1; i < len(files); i++ {
			if files[i].hash != (chunk.ID{}) {
				files[i].hash, files[i].extents = r.files[i-1].hash, r.files[i-1].extents
			}
		}
		lie.roots = append(lie.roots, indexRoot{r.name, files})
	}
	return lie
}
