// Archives: what they become, and those that are refused, of which nothing is left.

package workspace

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/links"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// entry is one of an archive.
type entry struct {
	kind    byte // tar's
	name    string
	mode    int64
	content string // or the target of a link
}

var when = time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC)

// tarOf returns a tar.
func tarOf(t testing.TB, all ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range all {
		h := &tar.Header{Typeflag: e.kind, Name: e.name, Mode: e.mode, ModTime: when}
		if e.kind == tar.TypeReg {
			h.Size = int64(len(e.content))
		} else {
			h.Linkname = e.content
		}
		must(t, w.WriteHeader(h))
		if e.kind == tar.TypeReg {
			_, err := io.WriteString(w, e.content)
			must(t, err)
		}
	}
	must(t, w.Close())
	return b.Bytes()
}

// zipOf returns a zip of the same entries.
func zipOf(t testing.TB, all ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range all {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate, Modified: when}
		mode := fs.FileMode(e.mode & 0o777)
		if e.mode&0o4000 != 0 {
			mode |= fs.ModeSetuid
		}
		switch e.kind {
		case tar.TypeDir:
			mode |= fs.ModeDir
		case tar.TypeSymlink:
			mode |= fs.ModeSymlink
		case tar.TypeChar:
			mode |= fs.ModeDevice | fs.ModeCharDevice
		case tar.TypeBlock:
			mode |= fs.ModeDevice
		case tar.TypeFifo:
			mode |= fs.ModeNamedPipe
		}
		h.SetMode(mode)
		f, err := w.CreateHeader(h)
		must(t, err)
		_, err = io.WriteString(f, e.content)
		if e.kind != tar.TypeDir {
			must(t, err)
		}
	}
	must(t, w.Close())
	return b.Bytes()
}

func gz(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	must(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func zst(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	must(t, err)
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// every returns the entries as an archive of every kind, by its suffix.
func every(t testing.TB, all ...entry) map[string][]byte {
	t.Helper()
	data := tarOf(t, all...)
	return map[string][]byte{".tar": data, ".tar.gz": gz(t, data), ".tgz": gz(t, data), ".TAR.ZST": zst(t, data), ".zip": zipOf(t, all...)}
}

// put writes an archive and returns its path.
func put(t testing.TB, suffix string, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "work"+suffix)
	must(t, os.WriteFile(file, data, 0o600))
	return file
}

// listing describes all that is in a directory.
func listing(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		must(t, err)
		st, err := os.Lstat(p)
		must(t, err)
		rel, _ := filepath.Rel(dir, p)
		switch {
		case rel == ".":
		case st.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			must(t, err)
			all[rel] = "-> " + target
		case st.IsDir():
			all[rel] = st.Mode().String()
		default:
			must(t, os.Chmod(p, 0o600))
			text, err := os.ReadFile(p)
			must(t, err)
			all[rel] = fmt.Sprintf("%s %s %s", st.Mode(), st.ModTime().UTC().Format(time.DateTime), text)
		}
		return nil
	}))
	return all
}

// empty fails unless nothing is in the directory.
func empty(t testing.TB, dir, what string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("%s: left behind: %v", what, left)
	}
}

func TestUnpack(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 40_000)
	all := []entry{
		{tar.TypeDir, "./", 0o755, ""},
		{tar.TypeDir, "./top/", 0o750, ""},
		{tar.TypeReg, "./top/run.sh", 0o755, "#!/bin/sh\n"},
		{tar.TypeReg, "top/empty", 0o400, ""},
		{tar.TypeReg, "top/setuid", 0o4755, "s"},
		{tar.TypeReg, "top/big", 0o644, big},
		{tar.TypeReg, "implied/deep/ä 日本.txt", 0o640, "x"},
		{tar.TypeDir, "implied/deep", 0o700, ""}, // and said afterwards
		{tar.TypeDir, "locked", 0o500, ""},
		{tar.TypeReg, "locked/in", 0o600, "y"},
		{tar.TypeSymlink, "top/up", 0o777, "../implied/deep"},
		{tar.TypeSymlink, "dangling", 0o777, "nowhere/to/be/found"},
	}
	want := map[string]string{
		"top": "drwxr-x---", "top/run.sh": "-rwxr-xr-x 2026-01-02 03:04:06 #!/bin/sh\n", "top/empty": "-r-------- 2026-01-02 03:04:06 ",
		"top/setuid": "-rwxr-xr-x 2026-01-02 03:04:06 s", "top/big": "-rw-r--r-- 2026-01-02 03:04:06 " + big, "implied": "drwxr-xr-x", "implied/deep": "drwx------",
		"implied/deep/ä 日本.txt": "-rw-r----- 2026-01-02 03:04:06 x", "locked": "drwx------", "locked/in": "-rw------- 2026-01-02 03:04:06 y",
		"top/up": "-> ../implied/deep", "dangling": "-> nowhere/to/be/found",
	}
	for suffix, data := range every(t, all...) {
		tmp, last := t.TempDir(), Progress{}
		dir, cleanup, err := Open(t.Context(), put(t, suffix, data), Options{Dir: tmp, Progress: func(p Progress) { last = p }})
		must(t, err)
		if got := listing(t, dir); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v", suffix, got)
		}
		if last != (Progress{"unpacking", int64(len(data)), int64(len(data))}) {
			t.Errorf("%s: %+v in the end", suffix, last)
		}
		cleanup()
		cleanup()
		empty(t, tmp, suffix)
	}
}

// Archives as other programs make them.
func TestUnpackOthers(t *testing.T) {
	long := strings.Repeat("long/", 40) + "name"
	var sparse, global bytes.Buffer
	w := tar.NewWriter(&global)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "0123"}}))
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: long, Mode: 0o644, Format: tar.FormatGNU}))
	must(t, w.Close())
	global.Write(make([]byte, 8192)) // records of a tape
	plain := zip.NewWriter(&sparse)
	f, err := plain.Create("a/b") // without directories or modes
	must(t, err)
	_, err = f.Write([]byte("c"))
	must(t, errors.Join(err, plain.Close()))
	two := append(zst(t, tarOf(t, entry{tar.TypeReg, "a", 0o600, "1"})[:700]), zst(t, tarOf(t, entry{tar.TypeReg, "a", 0o600, "1"})[700:])...)
	for name, c := range map[string]struct {
		suffix string
		data   []byte
		has    string
	}{
		"git archive": {".tar", global.Bytes(), long}, "a plain zip": {".zip", sparse.Bytes(), "a/b"}, "several frames": {".tar.zst", two, "a"},
		"an empty tar": {".tar", make([]byte, 1024), "."}, "an empty zip": {".zip", zipOf(t), "."},
	} {
		dir, cleanup, err := Open(t.Context(), put(t, c.suffix, c.data), Options{Dir: t.TempDir()})
		must(t, err)
		if st, err := os.Stat(filepath.Join(dir, c.has)); err != nil || st.Mode().Perm()&0o022 != 0 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
		cleanup()
	}
}

// refused opens an archive that must not be taken, and returns why. Beside the temporary directory lies a secret that must stay as it is.
func refused(t testing.TB, name, suffix string, data []byte, o Options) error {
	t.Helper()
	base := t.TempDir()
	o.Dir = filepath.Join(base, "tmp")
	must(t, os.Mkdir(o.Dir, 0o700))
	must(t, os.WriteFile(filepath.Join(base, "secret"), []byte("s"), 0o600))
	dir, cleanup, err := Open(t.Context(), put(t, suffix, data), o)
	if err == nil {
		t.Errorf("%s%s: taken: %v", name, suffix, listing(t, dir))
		cleanup()
		return nil
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%s%s: %v", name, suffix, err)
	}
	empty(t, o.Dir, name+suffix)
	if text, err := os.ReadFile(filepath.Join(base, "secret")); err != nil || string(text) != "s" {
		t.Errorf("%s%s: something outside is changed", name, suffix)
	}
	if all, err := os.ReadDir(base); err != nil || len(all) != 2 {
		t.Errorf("%s%s: outside is %v", name, suffix, all)
	}
	return err
}

func file(name string) entry         { return entry{tar.TypeReg, name, 0o600, "x"} }
func link(name, target string) entry { return entry{tar.TypeSymlink, name, 0o777, target} }

func TestHostile(t *testing.T) {
	for name, c := range map[string]struct {
		all  []entry
		says string
	}{
		"dot dot":                {[]entry{file("ok"), file("../evil")}, ".. in it"},
		"dot dot within":         {[]entry{file("a/../../evil")}, ".. in it"},
		"dot dot at the end":     {[]entry{{tar.TypeDir, "a/..", 0o755, ""}}, ".. in it"},
		"absolute":               {[]entry{file("/tmp/evil")}, "not relative"},
		"a dot within":           {[]entry{file("a/./b")}, ". or .. in it"},
		"two slashes":            {[]entry{file("a//b")}, "empty component"},
		"the root as a file":     {[]entry{file("./.")}, "of a file"},
		"too deep":               {[]entry{file(strings.Repeat("d/", maxDepth) + "x")}, "too deep"},
		"too long a component":   {[]entry{file(strings.Repeat("n", 256))}, "too long"},
		"an absolute link":       {[]entry{link("l", "/etc/passwd")}, "is absolute"},
		"a link out":             {[]entry{link("a/l", "../../secret")}, "leads out"},
		"a link out by links":    {[]entry{link("a", "."), link("b", "a/../../secret")}, ".. behind a name"},
		"a link to nothing":      {[]entry{link("l", "")}, "is empty"},
		"a long link":            {[]entry{link("l", strings.Repeat("x", links.MaxTargetBytes+1))}, "is too long"},
		"a file through a link":  {[]entry{{tar.TypeDir, "d", 0o755, ""}, link("l", "d"), file("l/x")}, "no directory"},
		"a file below a file":    {[]entry{file("f"), file("f/x")}, "no directory"},
		"a file over a link":     {[]entry{file("f"), link("l", "f"), file("l")}, "twice"},
		"a directory over links": {[]entry{link("l", "."), {tar.TypeDir, "l", 0o755, ""}}, "twice"},
		"a file twice":           {[]entry{file("f"), file("f")}, "twice"},
		"twice by other names":   {[]entry{file("f"), file("./f")}, "twice"},
		"a directory twice":      {[]entry{{tar.TypeDir, "d", 0o755, ""}, {tar.TypeDir, "d/", 0o755, ""}}, "twice"},
		"a directory and a file": {[]entry{{tar.TypeDir, "d", 0o755, ""}, file("d")}, "twice"},
		"a link twice":           {[]entry{link("l", "a"), link("l", "a")}, "twice"},
		"a character device":     {[]entry{{tar.TypeChar, "dev", 0o600, ""}}, "is a"},
		"a block device":         {[]entry{{tar.TypeBlock, "dev", 0o600, ""}}, "is a"},
		"a named pipe":           {[]entry{{tar.TypeFifo, "pipe", 0o600, ""}}, "is a"},
	} {
		for suffix, data := range every(t, c.all...) {
			if err := refused(t, name, suffix, data, Options{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s%s: %v", name, suffix, err)
			}
		}
	}
	good := tarOf(t, file("a"))
	other := func(kind byte) []byte {
		b := tarOf(t, file("a"))
		b[156] = kind
		return summed(b)
	}
	zipped := zipOf(t, file("a"))
	encrypted := bytes.Clone(zipped)
	encrypted[bytes.Index(encrypted, []byte("PK\x01\x02"))+8] |= 1
	method := bytes.Clone(zipped)
	method[bytes.Index(method, []byte("PK\x01\x02"))+10] = 99
	content := bytes.Clone(zipped)
	content[bytes.Index(content, []byte("PK\x01\x02"))+16] ^= 1 // its checksum
	for name, c := range map[string]struct {
		suffix string
		data   []byte
		says   string
		kind   fault.Kind
	}{
		"a hard link":               {".tar", tarOf(t, file("f"), entry{tar.TypeLink, "l", 0o600, "f"}), "--hard-dereference", fault.Invalid},
		"a hard link out":           {".tar", tarOf(t, entry{tar.TypeLink, "l", 0o600, "../secret"}), "hard link", fault.Invalid},
		"an unknown kind":           {".tar", other('Z'), "of type 'Z'", fault.Invalid},
		"a contiguous file":         {".tar", other('7'), "of type '7'", fault.Invalid},
		"a file behind the end":     {".tar", append(bytes.Clone(good), good...), "something follows its end", fault.Invalid},
		"a byte behind the end":     {".tar", append(bytes.Clone(good), 1), "something follows its end", fault.Invalid},
		"garbage behind gzip":       {".tgz", append(gz(t, good), "garbage as long as a header"...), "damaged", fault.Invalid},
		"garbage behind zstd":       {".tar.zst", append(zst(t, good), "garbage"...), "damaged", fault.Invalid},
		"gzip that is zstd":         {".tgz", zst(t, good), "not compressed with gzip", fault.Invalid},
		"zstd that is gzip":         {".tar.zst", gz(t, good), "damaged", fault.Invalid},
		"a tar that is a zip":       {".tar", zipOf(t, entry{tar.TypeReg, "a", 0o600, noise(5000, 1)}), "damaged", fault.Invalid},
		"a zip that is a tar":       {".zip", good, "damaged", fault.Invalid},
		"nothing":                   {".tar", nil, "cut off", fault.Invalid},
		"backslashes":               {".zip", zipOf(t, file(`a\b`)), "separates names by /", fault.Invalid},
		"an encrypted file":         {".zip", encrypted, "encrypted", fault.Invalid},
		"an unknown compression":    {".zip", method, "method 99", fault.Unimplemented},
		"a wrong checksum":          {".zip", content, "checksum", fault.Invalid},
		"a gigabyte of zstd window": {".tar.zst", append([]byte{0x28, 0xb5, 0x2f, 0xfd, 4, 20 << 3}, 1, 0, 0), "window", fault.Invalid},
	} {
		if err := refused(t, name, c.suffix, c.data, Options{}); !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s%s: %v", name, c.suffix, err)
		}
	}
}

func noise(n int, seed uint64) string {
	out := make([]byte, 0, n+8)
	for len(out) < n {
		seed ^= seed << 13
		seed ^= seed >> 7
		seed ^= seed << 17
		out = binary.LittleEndian.AppendUint64(out, seed)
	}
	return string(out[:n])
}

// Cut off anywhere, an archive is refused: also where the reader of tar would take it for the end.
func TestTruncated(t *testing.T) {
	small := every(t, file("a"), entry{tar.TypeDir, "d", 0o755, ""}, file("d/b"), file(strings.Repeat("n", 150)))
	for suffix, data := range small {
		step := 5
		if suffix == ".tar" {
			step = 64
		}
		for n := 0; n < len(data); n += step {
			if err := refused(t, fmt.Sprintf("%d of %d bytes", n, len(data)), suffix, data[:n], Options{}); !fault.Is(err, fault.Invalid) {
				t.Errorf("%d of %d bytes%s: %v", n, len(data), suffix, err)
			}
		}
	}
	large := every(t, entry{tar.TypeReg, "a", 0o600, noise(60_000, 1)}, entry{tar.TypeReg, "zeros", 0o600, strings.Repeat("\x00", 20_000)}, entry{tar.TypeReg, "b", 0o600, noise(20_000, 2)})
	for suffix, data := range large {
		for n := 0; n < len(data); n += 1 << 10 {
			if err := refused(t, fmt.Sprintf("%d of %d bytes", n, len(data)), suffix, data[:n], Options{}); !fault.Is(err, fault.Invalid) {
				t.Errorf("%d of %d bytes%s: %v", n, len(data), suffix, err)
			}
		}
	}
}

// repeat is a reader of n times the same.
type repeat struct {
	what []byte
	n    int
	at   int
}

func (r *repeat) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if r.n == 0 {
			return n, io.EOF
		}
		k := copy(p[n:], r.what[r.at:])
		n += k
		if r.at += k; r.at == len(r.what) {
			r.at, r.n = 0, r.n-1
		}
	}
	return n, nil
}

// bomb compresses a tar with one file of many bytes.
func bomb(t testing.TB, block []byte, times int, compress func(io.Writer) io.WriteCloser) []byte {
	t.Helper()
	var b bytes.Buffer
	z := compress(&b)
	w := tar.NewWriter(z)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "big", Mode: 0o600, Size: int64(len(block) * times)}))
	_, err := io.Copy(w, &repeat{what: block, n: times})
	must(t, errors.Join(err, w.Close(), z.Close()))
	return b.Bytes()
}

func TestBombs(t *testing.T) {
	toGzip := func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }
	toZstd := func(w io.Writer) io.WriteCloser {
		z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(64<<10))
		must(t, err)
		return z
	}
	hundred := append([]byte(noise(10_000, 1)), make([]byte, 990_000)...) // of which zstd's window sees no second
	zipBomb := func() []byte {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		f, err := w.Create("big")
		must(t, err)
		_, err = io.Copy(f, &repeat{what: make([]byte, 1<<20), n: 100})
		must(t, errors.Join(err, w.Close()))
		return b.Bytes()
	}()
	for name, c := range map[string]struct {
		suffix string
		data   []byte
	}{
		"100:1 gzip":    {".tgz", bomb(t, hundred, 100, toGzip)},
		"100:1 zstd":    {".tar.zst", bomb(t, hundred, 100, toZstd)},
		"10,000:1 zstd": {".tar.zst", bomb(t, make([]byte, 1<<20), 100, toZstd)},
		"1,000:1 zip":   {".zip", zipBomb},
		"overlapping":   {".zip", overlapping(t)},
		"a sparse file": {".tar", sparse(t)},
	} {
		if ratio := 100_000_000 / len(c.data); name == "100:1 zstd" && (ratio < 80 || ratio > 105) {
			t.Errorf("the bomb of %d bytes is of %d:1", len(c.data), ratio)
		}
		if err := refused(t, name, c.suffix, c.data, Options{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "64 times") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The bound in bytes, with archives that are as large as they say.
	for suffix, data := range every(t, entry{tar.TypeReg, "a", 0o600, noise(60_000, 1)}, entry{tar.TypeReg, "b", 0o600, noise(60_000, 2)}) {
		if err := refused(t, "too large", suffix, data, Options{MaxBytes: 100_000}); !fault.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "100000 bytes") {
			t.Errorf("%s: %v", suffix, err)
		}
	}
}

// summed puts right the checksum of a tar's first header.
func summed(b []byte) []byte {
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// sparse is a tar with a file of 8 GiB that is all hole, in the form of GNU.
func sparse(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "hole", Mode: 0o600, Format: tar.FormatGNU}))
	must(t, w.Close())
	data := b.Bytes()
	data[156] = tar.TypeGNUSparse
	copy(data[386:], "77777777777\x0000000000000\x00") // where its only piece lies, and that it is empty
	copy(data[483:], "77777777777\x00")                // how long the file is
	return summed(data)
}

// overlapping is a zip whose many entries are all the same compressed bytes.
func overlapping(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.Create("000")
	must(t, err)
	_, err = f.Write([]byte(noise(500_000, 3)))
	must(t, errors.Join(err, w.Close()))
	data := b.Bytes()
	at := bytes.Index(data, []byte("PK\x01\x02"))
	end := bytes.LastIndex(data, []byte("PK\x05\x06"))
	one, tail := data[at:end], bytes.Clone(data[end:])
	out := bytes.Clone(data[:at])
	const n = 500
	for i := range n {
		e := bytes.Clone(one)
		copy(e[46:], fmt.Sprintf("%03d", i))
		out = append(out, e...)
	}
	binary.LittleEndian.PutUint16(tail[8:], n)
	binary.LittleEndian.PutUint16(tail[10:], n)
	binary.LittleEndian.PutUint32(tail[12:], uint32(n*len(one)))
	return append(out, tail...)
}

// Ten million entries end at the bound, and cost no memory.
func TestTenMillionEntries(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begin := time.Now()
	// As a stream through the same door as files: what a disk would hold is five gigabytes.
	dir := filepath.Join(t.TempDir(), "w")
	o := Options{MaxEntries: 5_000}.withDefaults()
	tr, err := newTree(t.Context(), dir, 10_000_000*512, &o)
	must(t, err)
	defer tr.root.Close()
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w := tar.NewWriter(pw)
		for i := range 10_000_000 {
			if w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%d/%d", i%100, i), Mode: 0o600}) != nil {
				return
			}
		}
		t.Error("all of them were read")
	}()
	err = tr.tar(pr)
	pr.Close()
	<-done
	runtime.GC()
	runtime.ReadMemStats(&after)
	if !fault.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "5000 entries") {
		t.Error(err)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("%d bytes of memory", grown)
	}
	if d := time.Since(begin); d > time.Minute {
		t.Errorf("it took %s", d)
	}
	// One name can make many directories, which count.
	if err := refused(t, "deep", ".tar", tarOf(t, file(strings.Repeat("d/", 400)+"x")), Options{MaxEntries: 300}); !fault.Is(err, fault.Exhausted) {
		t.Error(err)
	}
	for suffix, data := range every(t, file("a"), file("b"), file("c")) {
		if err := refused(t, "three", suffix, data, Options{MaxEntries: 2}); !fault.Is(err, fault.Exhausted) {
			t.Errorf("%s: %v", suffix, err)
		}
	}
	// A zip's list is read as a whole: its length is bounded before.
	list := bytes.Repeat(append([]byte("PK\x01\x02"), append(make([]byte, 42), 0)...)[:46], 1_000_000)
	end := append([]byte("PK\x05\x06"), make([]byte, 18)...)
	binary.LittleEndian.PutUint32(end[12:], uint32(len(list)))
	binary.LittleEndian.PutUint16(end[8:], uint16(1_000_000&0xffff))
	binary.LittleEndian.PutUint16(end[10:], uint16(1_000_000&0xffff))
	if err := refused(t, "a million", ".zip", append(list, end...), Options{}); !fault.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "list of entries") {
		t.Error(err)
	}
}

// Who gives up leaves nothing.
func TestUnpackCanceled(t *testing.T) {
	for suffix, data := range every(t, entry{tar.TypeReg, "a", 0o600, noise(3<<20, 1)}, entry{tar.TypeReg, "b", 0o600, noise(3<<20, 2)}) {
		ctx, cancel := context.WithCancelCause(t.Context())
		enough, tmp := errors.New("enough"), t.TempDir()
		_, _, err := Open(ctx, put(t, suffix, data), Options{Dir: tmp, Progress: func(Progress) { cancel(enough) }})
		if !errors.Is(err, enough) {
			t.Errorf("%s: %v", suffix, err)
		}
		empty(t, tmp, suffix)
		cancel(nil)
	}
}
