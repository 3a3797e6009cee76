// Archives for the tests: one that is well, and the same from entries of any kind.

package archive

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/neolith/orchestrator/serializer/chunk"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testKey is one of two keys that are always the same.
func testKey(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
}

type item struct {
	id    chunk.ID
	frame []byte
}

func seal(content []byte) item { return item{chunk.Sum(content), chunk.Seal(content)} }

// noise returns bytes that do not compress.
func noise(n int, seed uint64) []byte {
	out := make([]byte, 0, n+8)
	for len(out) < n {
		seed ^= seed << 13
		seed ^= seed >> 7
		seed ^= seed << 17
		out = binary.LittleEndian.AppendUint64(out, seed)
	}
	return out[:n]
}

// sample returns a header and its chunks.
func sample(contents ...[]byte) (Header, []item) {
	var items []item
	for _, c := range contents {
		items = append(items, seal(c))
	}
	return Header{
		CreateTime: time.Unix(1_800_000_000, 0).UTC(), Creator: "orchctl v1.2.3", Cluster: "c-1",
		Session: Session{ID: "0190f3c2-7d7a-7c3e-8f00-0123456789ab", Namespace: "team-a", Name: "demo <ä>", Type: "claude-code"},
		Checkpoint: Checkpoint{Sequence: 7, Epoch: 3, Turn: 1 << 60, OutputLine: 99, Bytes: 1234,
			Time: time.Unix(1_799_999_999, 123_456_789).UTC(), Keeps: []string{"messages", "workspace"}},
		Spec: json.RawMessage(`{"type":"claude-code","env":{"A":"<b>"}}`), Chunks: len(items), Manifest: items[0].id,
	}, items
}

func small() (Header, []item) {
	return sample([]byte("ORCM and the rest of a manifest"), []byte("one"), noise(600, 1))
}

// write returns an archive.
func write(t testing.TB, h Header, items []item, key ed25519.PrivateKey) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, h)
	must(t, err)
	for _, i := range items {
		must(t, w.Put(i.id, i.frame))
	}
	must(t, w.Close(key))
	return b.Bytes()
}

// result is all that a reader gave.
type result struct {
	header Header
	items  []item
	signer ed25519.PublicKey
}

func read(r io.Reader, o ReaderOptions) (result, error) {
	in, err := NewReader(r, o)
	if err != nil {
		return result{}, err
	}
	out := result{header: in.Header()}
	for {
		id, frame, err := in.Next()
		if errors.Is(err, io.EOF) {
			out.signer = in.Signer()
			return out, nil
		}
		if err != nil {
			if in.Signer() != nil {
				return out, fmt.Errorf("there is a signer, and yet: %w", err)
			}
			return out, err
		}
		out.items = append(out.items, item{id, frame})
	}
}

// entry is one of a tar, of any kind.
type entry struct {
	name    string
	content []byte
	raw     []byte                  // instead of a header
	change  func(*[blockBytes]byte) // of the header, whose checksum is put right then
}

// entries returns what an archive is made of.
func entries(t testing.TB, h Header, items []item) []entry {
	t.Helper()
	text, err := h.encode()
	must(t, err)
	out := []entry{{name: headerName, content: text}}
	for _, i := range items {
		out = append(out, entry{name: chunkDir + i.id.String(), content: i.frame})
	}
	return signed(t, out, testKey(1))
}

// signed puts right checksums and signature behind the entries.
func signed(t testing.TB, all []entry, key ed25519.PrivateKey) []entry {
	t.Helper()
	var sums []byte
	for _, e := range all {
		sums = appendSumsLine(sums, sha256.Sum256(e.content), e.name)
	}
	signature, err := sign(key, sha256.Sum256(sums))
	must(t, err)
	return append(all[:len(all):len(all)], entry{name: sumsName, content: sums}, entry{name: signatureName, content: signature})
}

// tarOf returns the tar of entries, with its end.
func tarOf(all []entry) []byte { return append(tarPart(all), make([]byte, 2*blockBytes)...) }

func tarPart(all []entry) (out []byte) {
	for _, e := range all {
		b := tarHeader(e.name, int64(len(e.content)), time.Unix(1_800_000_000, 0))
		if e.change != nil {
			e.change(&b)
			copy(b[148:], fmt.Sprintf("%06o\x00 ", tarSum(b[:])))
		}
		if e.raw != nil {
			out = append(out, e.raw...)
		} else {
			out = append(out, b[:]...)
		}
		out = append(out, e.content...)
		out = append(out, make([]byte, padding(int64(len(e.content))))...)
	}
	return out
}

// stored puts bytes into a zstd frame as they are.
func stored(tar []byte) []byte {
	var b bytes.Buffer
	w := newFrameWriter(&b)
	_, _ = w.Write(tar)
	_ = w.Close()
	return b.Bytes()
}

// pressed compresses bytes as tightly as zstd does.
func pressed(t testing.TB, tar []byte, o ...zstd.EOption) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, append([]zstd.EOption{zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(MaxWindowBytes)}, o...)...)
	must(t, err)
	defer e.Close()
	return e.EncodeAll(tar, nil)
}

// goTar returns a tar's header as the standard library writes it.
func goTar(t testing.TB, h *tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, tar.NewWriter(&b).WriteHeader(h))
	return b.Bytes()
}

func contains(err error, s string) bool { return err != nil && strings.Contains(err.Error(), s) }
