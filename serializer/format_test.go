// The binary form: what it must give back, what it must refuse, and files of every version for ever.

package serializer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/serializer/serializertest"
)

var writeGolden = flag.Bool("write-golden", false, "write the golden files of the present schema; those of older ones are never written again")

// sample has something of everything.
func sample() *serializer.Manifest {
	at := int64(1_800_000_000_123_456_789)
	return &serializer.Manifest{
		SessionID: "0190f3c2-7d7a-7c3e-8f00-0123456789ab", Namespace: "team-a", Name: "demo", Spec: []byte("\x0a\x07process"),
		SerializedAt: time.Unix(0, at).UTC(), NodeID: "n-7", Release: "v1.2.3", Epoch: 3, Sequence: 7, Turn: 1 << 40, OutputLine: 99,
		Memory: []byte(`{"notes":["ä",1,null]}`), Keeps: serializer.KeepsMessages | serializer.KeepsTranscript | serializer.KeepsWorkspace,
		PathMap: []serializer.PathPair{{Source: "/data/sessions/x/workspace", Root: "workspace"}, {Source: "/root/.claude", Root: "state"}},
		Chunks:  []serializer.ChunkRef{{ID: chunk.Sum([]byte("one")), Bytes: 100}, {ID: chunk.Sum([]byte("two")), Bytes: chunk.MaxContentBytes}},
		Roots: []serializer.Tree{
			{Name: "workspace", Entries: []serializer.Entry{
				{Path: ".", Type: serializer.Dir, Mode: 0o755, ModTime: at},
				{Path: "a", Type: serializer.Dir, Mode: 0o700, ModTime: -1},
				{Path: "a/empty", Type: serializer.File, Mode: 0o644, ModTime: 0},
				{Path: "a/link", Type: serializer.Symlink, ModTime: 1 << 62, Target: "../b"},
				{Path: "a.b", Type: serializer.File, Mode: 0o777, ModTime: -1 << 62, Size: 40, Extents: []serializer.Extent{{Chunk: 0, Offset: 60, Length: 40}}},
				{Path: "b", Type: serializer.File, ModTime: at, Size: 1<<40 + 100 + chunk.MaxContentBytes, Extents: []serializer.Extent{{Chunk: 0, Length: 100}, serializer.Hole(1 << 40), {Chunk: 1, Length: chunk.MaxContentBytes}}},
				{Path: "日本\xff", Type: serializer.Dir, Mode: 0, ModTime: at},
			}},
			{Name: "state", Entries: []serializer.Entry{{Path: ".", Type: serializer.Dir, Mode: 0o700, ModTime: at}}},
		},
	}
}

func TestManifestComesBack(t *testing.T) {
	for name, m := range map[string]*serializer.Manifest{"full": sample(), "empty": {SessionID: "s"}} {
		data, err := m.Encode()
		must(t, err)
		got, err := serializer.Decode(data)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%s: %v\n%+v\n%+v", name, err, got, m)
		}
	}
	if got := sample().Keeps.String(); got != "messages · transcript · workspace" {
		t.Error(got)
	}
}

// Manifests of every schema are read as they were written, by every later release.
func TestGolden(t *testing.T) {
	const manifestFile, jsonFile = "testdata/manifest-v1.bin", "testdata/manifest-v1.json"
	if *writeGolden {
		data, err := sample().Encode()
		must(t, err)
		text, err := json.MarshalIndent(sample(), "", "\t")
		must(t, err)
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(manifestFile, data, 0o644))
		must(t, os.WriteFile(jsonFile, append(text, '\n'), 0o644))
	}
	data, err := os.ReadFile(manifestFile)
	must(t, err)
	m, err := serializer.Decode(data)
	must(t, err)
	got, err := json.MarshalIndent(m, "", "\t")
	must(t, err)
	want, err := os.ReadFile(jsonFile)
	must(t, err)
	if !bytes.Equal(append(got, '\n'), want) {
		t.Errorf("%s reads as\n%s", manifestFile, got)
	}
	if !reflect.DeepEqual(m.Roots, sample().Roots) { // JSON does not keep what is no UTF-8
		t.Error("its trees are others")
	}
}

// envelope wraps any body.
func envelope(written, needs uint16, claimed int, body []byte) []byte {
	out := []byte("ORCM")
	out = binary.BigEndian.AppendUint16(out, written)
	out = binary.BigEndian.AppendUint16(out, needs)
	out = binary.BigEndian.AppendUint64(out, uint64(claimed))
	enc, _ := zstd.NewWriter(nil, zstd.WithSingleSegment(true))
	out = enc.EncodeAll(body, out)
	return seal(out)
}

func seal(out []byte) []byte {
	sum := blake3.Sum256(out)
	return append(out, sum[:]...)
}

func TestNewerSchemaIsRefusedByName(t *testing.T) {
	data, err := sample().Encode()
	must(t, err)
	copy(data[4:], []byte{0, 9, 0, 7})
	_, err = serializer.Decode(data)
	if !fault.Is(err, fault.Unimplemented) || !strings.Contains(err.Error(), "schema 9") || !strings.Contains(err.Error(), "reads schema 7") {
		t.Error(err)
	}
	// A newer one that says that this release may read it is read, without what is unknown.
	body := body(t, data)
	body = append(body, 200, 1, 3, 'n', 'e', 'w')
	m, err := serializer.Decode(envelope(2, 1, len(body), body))
	if err != nil || !reflect.DeepEqual(m, sample()) {
		t.Error(err)
	}
}

// body returns what is in an envelope.
func body(t testing.TB, data []byte) []byte {
	dec, err := zstd.NewReader(nil)
	must(t, err)
	defer dec.Close()
	b, err := dec.DecodeAll(data[16:len(data)-32], nil)
	must(t, err)
	return b
}

func TestHostileBytes(t *testing.T) {
	data, err := sample().Encode()
	must(t, err)
	good := body(t, data)
	enc, _ := zstd.NewWriter(nil)
	bomb := append([]byte("ORCM\x00\x01\x00\x01\x00\x00\x00\x00\x10\x00\x00\x00"), enc.EncodeAll(make([]byte, 256<<20), nil)...)
	cases := map[string][]byte{
		"nothing": nil, "another magic": append([]byte("ORCX"), data[4:]...), "schema 0": envelope(0, 0, len(good), good), "needs more than it is": envelope(1, 0, len(good), good),
		"claims more": envelope(1, 1, len(good)+1, good), "claims less": envelope(1, 1, len(good)-1, good), "claims 2^62": envelope(1, 1, 1<<62, good),
		"a bomb of 256 MiB": seal(bomb), "no sections": envelope(1, 1, 0, nil), "twice": envelope(1, 1, 2*len(good), append(bytes.Clone(good), good...)),
		"two frames": seal(append(bytes.Clone(data[:len(data)-32]), enc.EncodeAll(make([]byte, 1<<20), nil)...)),
	}
	for i := range len(good) {
		cases[fmt.Sprintf("cut after %d bytes of its body", i)] = envelope(1, 1, i, good[:i])
	}
	for name, b := range cases {
		if _, err := serializer.Decode(b); !errors.Is(err, serializer.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1
		if _, err := serializer.Decode(bad); err == nil {
			t.Errorf("byte %d changed and nobody saw it", i)
		}
		if _, err := serializer.Decode(data[:i]); err == nil {
			t.Errorf("cut to %d bytes and nobody saw it", i)
		}
	}
}

// What a manifest may not say, whoever wrote it with a right checksum. It is refused when it is written, too.
func TestHostileManifests(t *testing.T) {
	type M = serializer.Manifest
	file := func(path string) serializer.Entry { return serializer.Entry{Path: path, Type: serializer.File} }
	link := func(path, target string) serializer.Entry {
		return serializer.Entry{Path: path, Type: serializer.Symlink, Target: target}
	}
	dir := func(path string) serializer.Entry { return serializer.Entry{Path: path, Type: serializer.Dir} }
	entries := func(es ...serializer.Entry) func(*M) {
		return func(m *M) { m.Roots[1].Entries = append(m.Roots[1].Entries, es...) }
	}
	extents := func(size int64, xs ...serializer.Extent) func(*M) {
		return entries(serializer.Entry{Path: "f", Type: serializer.File, Size: size, Extents: xs})
	}
	for name, change := range map[string]func(*M){
		"..":                        entries(file("..")),
		"a path out":                entries(file("../x")),
		"a path that goes round":    entries(dir("a"), file("a/../../x")),
		"an absolute path":          entries(file("/etc/passwd")),
		"an empty path":             entries(file("")),
		"an empty component":        entries(dir("a"), file("a//b")),
		"a slash at its end":        entries(dir("a/")),
		".":                         entries(dir(".")),
		"a NUL":                     entries(file("a\x00b")),
		"a long name":               entries(file(strings.Repeat("x", 256))),
		"twice":                     entries(file("a"), file("a")),
		"out of order":              entries(file("b"), file("a")),
		"a child out of order":      entries(dir("a"), file("a.b"), file("a/b")),
		"no directory":              entries(file("a/b")),
		"below a file":              entries(file("a"), file("a/b")),
		"below a link":              entries(link("a", "b"), file("a/x"), dir("b")),
		"a link out":                entries(link("a", "..")),
		"a link far out":            entries(dir("d"), link("d/a", "../../etc/passwd")),
		"a link to /":               entries(link("a", "/etc/passwd")),
		"a link round a link":       entries(dir("d"), link("d/up", ".."), link("x", "d/up/../../etc")),
		"a link to nothing":         entries(link("a", "")),
		"a link with a mode":        entries(serializer.Entry{Path: "a", Type: serializer.Symlink, Target: "b", Mode: 0o777}),
		"setuid":                    entries(serializer.Entry{Path: "a", Type: serializer.File, Mode: 0o4755}),
		"a device":                  entries(serializer.Entry{Path: "a", Type: 3}),
		"a directory with content":  entries(serializer.Entry{Path: "a", Type: serializer.Dir, Size: 1}),
		"too few extents":           extents(101, serializer.Extent{Chunk: 0, Length: 100}),
		"too many extents":          extents(100, serializer.Extent{Chunk: 0, Length: 100}, serializer.Hole(1)),
		"an empty extent":           extents(100, serializer.Hole(0), serializer.Extent{Chunk: 0, Length: 100}),
		"beyond its chunk":          extents(100, serializer.Extent{Chunk: 0, Offset: 1, Length: 100}),
		"no such chunk":             extents(100, serializer.Extent{Chunk: 2, Length: 100}),
		"a negative extent":         extents(100, serializer.Hole(200), serializer.Hole(-100)),
		"a file of 2 PiB":           extents(2<<50, serializer.Hole(2<<50)),
		"no root entry":             func(m *M) { m.Roots[1].Entries = nil },
		"another root entry":        func(m *M) { m.Roots[1].Entries[0].Path = "x" },
		"two roots of a name":       func(m *M) { m.Roots[1].Name = "workspace" },
		"a root with a path's name": func(m *M) { m.Roots[1].Name = "../x" },
		"a chunk too long":          func(m *M) { m.Chunks[0].Bytes = chunk.MaxContentBytes + 1 },
		"an empty chunk":            func(m *M) { m.Chunks[0].Bytes = 0 },
		"no session":                func(m *M) { m.SessionID = "" },
		"memory that is no object":  func(m *M) { m.Memory = []byte("[]") },
		"memory that is blank":      func(m *M) { m.Memory = []byte("  ") },
		"memory that is cut":        func(m *M) { m.Memory = []byte(`{"a":`) },
		"keeps something":           func(m *M) { m.Keeps = 128 },
		"a relative path map":       func(m *M) { m.PathMap[0].Source = "a" },
		"a path map round":          func(m *M) { m.PathMap[0].Source = "/a/../b" },
	} {
		m := sample()
		change(m)
		if _, err := m.Encode(); !errors.Is(err, serializer.ErrCorrupt) {
			t.Errorf("%s: encoded, %v", name, err)
		}
		// Some of it the binary form has no words for.
		unsaid := name == "a directory with content" || name == "a link with a mode"
		b := m.Body()
		if _, err := serializer.Decode(envelope(1, 1, len(b), b)); !errors.Is(err, serializer.ErrCorrupt) && !unsaid {
			t.Errorf("%s: decoded, %v", name, err)
		}
		out := t.TempDir() + "/out"
		if _, err := serializer.Restore(t.Context(), &serializertest.Store{}, m, "state", out, serializer.RestoreOptions{}); !errors.Is(err, serializer.ErrCorrupt) {
			t.Errorf("%s: restored, %v", name, err)
		}
		if _, err := os.Lstat(out); err == nil {
			t.Errorf("%s: something is there", name)
		}
	}
}

// A manifest that does not fit into a chunk is kept in several, and any of them that is wrong is noticed.
func TestLongManifest(t *testing.T) {
	m, store := sample(), &serializertest.Store{}
	m.Spec = noise(1, 1<<20)
	for i := range 40_000 {
		m.Chunks = append(m.Chunks, serializer.ChunkRef{ID: chunk.Sum(binary.BigEndian.AppendUint32(nil, uint32(i))), Bytes: 1})
	}
	s, err := serializer.StoreManifest(t.Context(), store, m)
	must(t, err)
	got, loaded, err := serializer.LoadManifest(t.Context(), store, s.ID)
	if err != nil || !reflect.DeepEqual(got, m) || !reflect.DeepEqual(loaded.Parts, s.Parts) || len(s.Parts) != 4 || loaded.Bytes != s.Bytes {
		t.Errorf("%v; %d parts, then %d", err, len(s.Parts), len(loaded.Parts))
	}
	again, err := serializer.StoreManifest(t.Context(), store, m)
	if err != nil || again.Sent != 0 || again.ID != s.ID {
		t.Errorf("stored again: %+v, %v", again, err)
	}
	root, err := store.Get(context.Background(), s.ID)
	must(t, err)
	list, err := chunk.Open(nil, s.ID, root)
	must(t, err)
	for name, bad := range map[string][]byte{
		"cut": list[:len(list)-32], "a part twice": append(bytes.Clone(list), list[16:48]...), "in another order": append(append(bytes.Clone(list[:16]), list[48:]...), list[16:48]...),
		"a larger sum": append([]byte("ORCL\x01\x00\x00\x00\x00\x00\x00\x00\x00\x2f\xff\xff"), list[16:]...),
		"a huge sum":   append([]byte("ORCL\x01\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff"), list[16:]...),
	} {
		id := chunk.Sum(bad)
		must(t, store.Put(t.Context(), id, chunk.Seal(bad)))
		if _, _, err := serializer.LoadManifest(t.Context(), store, id); !errors.Is(err, serializer.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	newer := append([]byte("ORCL\x02"), list[5:]...)
	must(t, store.Put(t.Context(), chunk.Sum(newer), chunk.Seal(newer)))
	if _, _, err := serializer.LoadManifest(t.Context(), store, chunk.Sum(newer)); !fault.Is(err, fault.Unimplemented) {
		t.Error(err)
	}
	store.Delete(s.Parts[1])
	if _, _, err := serializer.LoadManifest(t.Context(), store, s.ID); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func FuzzManifest(f *testing.F) {
	full, err := sample().Encode()
	must(f, err)
	small, err := (&serializer.Manifest{SessionID: "s"}).Encode()
	must(f, err)
	f.Add(body(f, full))
	f.Add(body(f, small))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := serializer.DecodeBody(b)
		if err != nil {
			if !errors.Is(err, serializer.ErrCorrupt) {
				t.Error(err)
			}
			return
		}
		data, err := m.Encode()
		must(t, err) // what is read can be written
		again, err := serializer.Decode(data)
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("%v\n%+v\n%+v", err, again, m)
		}
	})
}

// FuzzEnvelope tries the outer bytes, whose checksum is put right.
func FuzzEnvelope(f *testing.F) {
	full, err := sample().Encode()
	must(f, err)
	f.Add(full[:len(full)-32])
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := serializer.Decode(seal(bytes.Clone(b))); err != nil && !errors.Is(err, serializer.ErrCorrupt) && !fault.Is(err, fault.Unimplemented) {
			t.Error(err)
		}
	})
}

func FuzzIndex(f *testing.F) {
	store := &serializertest.Store{}
	dir := workspace(f, 5, 70_000)
	c := capture(f, store, dir, nil)
	f.Add(c.Index.Encode()[5 : len(c.Index.Encode())-32])
	f.Add((&serializer.Index{}).Encode()[5:8])
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := serializer.DecodeIndex(seal(append([]byte("ORCI\x01"), b...)))
		if err != nil {
			if !errors.Is(err, serializer.ErrCorrupt) {
				t.Error(err)
			}
			return
		}
		again, err := serializer.DecodeIndex(x.Encode())
		if err != nil || !reflect.DeepEqual(again, x) {
			t.Errorf("%v\n%+v\n%+v", err, again, x)
		}
	})
}
