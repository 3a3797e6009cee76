// What an archive must give back, to this package and to others' tools.

package archive

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/serializer/serializertest"
)

var writeGolden = flag.Bool("write-golden", false, "write the golden files of the present version; those of older ones are never written again")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRoundTrip(t *testing.T) {
	for name, contents := range map[string][][]byte{
		"one":   {[]byte("m")},
		"small": {[]byte("m"), []byte("one"), bytes.Repeat([]byte("two"), 400)},
		"sizes": {noise(1, 1), noise(blockBytes-chunk.HeaderBytes, 2), noise(blockBytes, 3), noise(chunk.MaxContentBytes, 4), noise(chunk.MaxContentBytes-1, 5), {}},
	} {
		h, items := sample(contents...)
		data := write(t, h, items, testKey(1))
		for kind, r := range map[string]io.Reader{
			"whole": bytes.NewReader(data), "by bytes": iotest.OneByteReader(bytes.NewReader(data)), "with its end": iotest.DataErrReader(bytes.NewReader(data)),
			"pressed": bytes.NewReader(pressed(t, tarOf(entries(t, h, items)))),
		} {
			got, err := read(r, ReaderOptions{})
			must(t, err)
			if want := (result{h, items, testKey(1).Public().(ed25519.PublicKey)}); !reflect.DeepEqual(got, want) {
				t.Errorf("%s, %s: another archive comes back: %+v", name, kind, got.header)
			}
		}
		if again := write(t, h, items, testKey(1)); !bytes.Equal(again, data) {
			t.Errorf("%s: the same archive has other bytes", name)
		}
	}
}

// A session that is exported goes on from what is imported.
func TestARealCheckpoint(t *testing.T) {
	store, m := &serializertest.Store{}, &serializer.Manifest{SessionID: "s-1", Sequence: 3, Memory: []byte(`{"a":1}`)}
	stored, err := serializer.StoreManifest(t.Context(), store, m)
	must(t, err)
	var b bytes.Buffer
	w, err := NewWriter(&b, Header{CreateTime: time.Now(), Session: Session{ID: m.SessionID}, Chunks: len(stored.Parts), Manifest: stored.ID})
	must(t, err)
	for _, id := range stored.Parts {
		frame, err := store.Get(t.Context(), id)
		must(t, err)
		must(t, w.Put(id, frame))
	}
	must(t, w.Close(testKey(1)))
	got, err := read(&b, ReaderOptions{})
	must(t, err)
	other := &serializertest.Store{}
	for _, i := range got.items {
		must(t, other.Put(t.Context(), i.id, i.frame))
	}
	back, _, err := serializer.LoadManifest(t.Context(), other, got.header.Manifest)
	if err != nil || !reflect.DeepEqual(back, m) {
		t.Errorf("%+v, %v", back, err)
	}
}

// The limits hold whatever a manifest may have.
func TestLimits(t *testing.T) {
	if want := serializer.MaxChunks + serializer.MaxManifestBytes/chunk.MaxContentBytes + 1; MaxChunks != want {
		t.Errorf("%d chunks, a checkpoint may have %d", MaxChunks, want)
	}
}

// Archives of every version are read as they were written, by every later release; and as writing is exact, it writes the same.
func TestGolden(t *testing.T) {
	const file, text = "testdata/archive-v1.tar.zst", "testdata/archive-v1.json"
	h, items := small()
	if *writeGolden {
		label, err := json.MarshalIndent(h, "", "\t")
		must(t, err)
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(file, write(t, h, items, testKey(1)), 0o644))
		must(t, os.WriteFile(text, append(label, '\n'), 0o644))
	}
	data, err := os.ReadFile(file)
	must(t, err)
	got, err := read(bytes.NewReader(data), ReaderOptions{})
	must(t, err)
	label, err := json.MarshalIndent(got.header, "", "\t")
	must(t, err)
	want, err := os.ReadFile(text)
	must(t, err)
	if string(label)+"\n" != string(want) {
		t.Errorf("its header reads as\n%s", label)
	}
	if !reflect.DeepEqual(got.items, items) || Fingerprint(got.signer) != "SHA256:fe85JkIjo8VPe+XqXJGH5Mau1EMFdK1OdKvJUFicyA8" {
		t.Errorf("%d chunks by %s", len(got.items), Fingerprint(got.signer))
	}
	if Version == 1 && !bytes.Equal(write(t, h, items, testKey(1)), data) {
		t.Error("it is written otherwise now; is that a new version?")
	}
}

// Who knows nothing of this package gets along with the standard library.
func TestReadByAnOutsider(t *testing.T) {
	data, err := os.ReadFile("testdata/archive-v1.tar.zst")
	must(t, err)
	z, err := zstd.NewReader(bytes.NewReader(data))
	must(t, err)
	defer z.Close()
	files, order := map[string]string{}, []string(nil)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		if h.Mode != 0o600 || h.Uid != 0 || h.Gid != 0 || h.Typeflag != tar.TypeReg || h.ModTime.Unix() != 1_800_000_000 {
			t.Errorf("%+v", h)
		}
		content, err := io.ReadAll(r)
		must(t, err)
		files[h.Name], order = string(content), append(order, h.Name)
	}
	var label map[string]any
	must(t, json.Unmarshal([]byte(files["session.json"]), &label))
	if label["version"] != 1.0 || label["format"] != "orchestrator session archive" || order[1] != "chunks/"+label["manifest"].(string) || len(order) != 3+int(label["chunks"].(float64)) {
		t.Errorf("%v: %v", order, label)
	}
	lines := 0
	for line := range strings.Lines(files["SHA256SUMS"]) {
		digest, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if name != order[lines] || fmt.Sprintf("%x", sha256.Sum256([]byte(files[name]))) != digest {
			t.Errorf("line %d: %s", lines, line)
		}
		lines++
	}
	if lines != len(order)-2 || order[lines] != "SHA256SUMS" || order[lines+1] != "SIGNATURE" {
		t.Errorf("%d lines of %q", lines, order)
	}
	signed := fmt.Sprintf("orchestrator session archive, version 1\n%x\n", sha256.Sum256([]byte(files["SHA256SUMS"])))
	said := strings.Split(files["SIGNATURE"], "\n")
	der, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(said[1], "public-key "))
	must(t, err)
	signature, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(said[2], "signature "))
	must(t, err)
	key, err := x509.ParsePKIXPublicKey(der)
	must(t, err)
	if said[0] != "algorithm ed25519" || !ed25519.Verify(key.(ed25519.PublicKey), []byte(signed), signature) {
		t.Errorf("%q", said)
	}
}

// The commands that docs/protocol/archive.md gives do what it says.
func TestOrdinaryTools(t *testing.T) {
	for _, tool := range []string{"bash", "tar", "zstd", "sha256sum", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s, which is not installed; TestReadByAnOutsider does the same without", tool)
		}
	}
	page, err := os.ReadFile("../../docs/protocol/archive.md")
	must(t, err)
	_, script, _ := strings.Cut(string(page), "```sh\n")
	script, _, _ = strings.Cut(script, "```")
	file, err := filepath.Abs("testdata/archive-v1.tar.zst")
	must(t, err)
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
	cmd.Dir, cmd.Env = t.TempDir(), append(os.Environ(), "FILE="+file)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "session.json: OK") || !strings.Contains(string(out), "Signature Verified Successfully") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestTarHeaderIsThatOfTheStandardLibrary(t *testing.T) {
	for _, size := range []int64{0, 1, 511, 512, 1 << 20, maxOctal} {
		name, when := chunkDir+chunk.Sum(nil).String(), time.Unix(1_800_000_000+size%7, 0)
		b := tarHeader(name, size, when)
		if want := goTar(t, &tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: when}); !bytes.Equal(b[:], want) {
			t.Errorf("%d bytes:\n%q\n%q", size, b, want)
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	h, items := small()
	begin := func() *Writer {
		w, err := NewWriter(io.Discard, h)
		must(t, err)
		return w
	}
	for name, c := range map[string]struct {
		do   func(w *Writer) error
		says string
	}{
		"a damaged chunk":     {func(w *Writer) error { return w.Put(items[0].id, items[1].frame) }, "something else"},
		"no frame":            {func(w *Writer) error { return w.Put(items[0].id, []byte("x")) }, "not the frame"},
		"the wrong first one": {func(w *Writer) error { return w.Put(items[1].id, items[1].frame) }, "first chunk"},
		"one twice": {func(w *Writer) error {
			must(t, w.Put(items[0].id, items[0].frame))
			return w.Put(items[0].id, items[0].frame)
		}, "twice"},
		"too few": {func(w *Writer) error {
			must(t, w.Put(items[0].id, items[0].frame))
			return w.Close(testKey(1))
		}, "1 of its 3 chunks"},
		"too many": {func(w *Writer) error {
			for _, i := range items {
				must(t, w.Put(i.id, i.frame))
			}
			more := seal([]byte("more"))
			return w.Put(more.id, more.frame)
		}, "more than the 3"},
		"no key": {func(w *Writer) error {
			for _, i := range items {
				must(t, w.Put(i.id, i.frame))
			}
			return w.Close(nil)
		}, "no ed25519 key"},
	} {
		w := begin()
		if err := c.do(w); !contains(err, c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if err := w.Close(testKey(1)); !contains(err, c.says) { // it is over
			t.Errorf("%s, then: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Header){
		"no session": func(h *Header) { h.Session.ID = "" }, "no chunks": func(h *Header) { h.Chunks = 0 },
		"too many chunks": func(h *Header) { h.Chunks = MaxChunks + 1 }, "long ago": func(h *Header) { h.CreateTime = time.Time{} },
		"too much": func(h *Header) { h.Creator = strings.Repeat("x", MaxHeaderBytes) }, "broken spec": func(h *Header) { h.Spec = json.RawMessage("{") },
	} {
		bad := h
		change(&bad)
		if _, err := NewWriter(io.Discard, bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range 40 { // wherever the disk is full
		out := &limited{left: n * 64}
		w, err := NewWriter(out, h)
		for _, i := range items {
			if err == nil {
				err = w.Put(i.id, i.frame)
			}
		}
		if err == nil {
			err = w.Close(testKey(1))
		}
		if !errors.Is(err, errFull) {
			t.Errorf("%d bytes: %v", n*64, err)
		}
	}
}

var errFull = errors.New("full")

// limited takes so many bytes.
type limited struct{ left int }

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// A spec that is too long for session.json does not keep a session from being exported.
func TestALongSpecIsLeftOut(t *testing.T) {
	h, items := small()
	h.Spec = json.RawMessage(`{"command":["` + strings.Repeat("x", MaxHeaderBytes) + `"]}`)
	got, err := read(bytes.NewReader(write(t, h, items, testKey(1))), ReaderOptions{})
	must(t, err)
	if got.header.Spec != nil || got.header.Session != h.Session {
		t.Errorf("%d bytes of spec", len(got.header.Spec))
	}
}

// What fails is not the archive: the error is the source's.
func TestSourceFails(t *testing.T) {
	h, items := sample([]byte("m"), noise(200_000, 1))
	data, broken := write(t, h, items, testKey(1)), errors.New("unplugged")
	for _, n := range []int{0, 3, 5, 6, 8, 100, 5_000, 100_000, len(data) - 1, len(data)} {
		_, err := read(io.MultiReader(bytes.NewReader(data[:n]), iotest.ErrReader(broken)), ReaderOptions{})
		if !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}
