// Archives that are damaged, and those that somebody made to do harm.

package archive

import (
	"archive/tar"
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

func TestTruncated(t *testing.T) {
	h, items := small()
	data := write(t, h, items, testKey(1))
	try := func(data []byte, n int) {
		t.Helper()
		got, err := read(bytes.NewReader(data[:n]), ReaderOptions{})
		if !errors.Is(err, ErrCorrupt) || !contains(err, fmt.Sprintf("cut off after %d bytes", n)) || got.signer != nil {
			t.Errorf("%d of %d bytes: %v", n, len(data), err)
		}
	}
	for n := range data {
		try(data, n)
	}
	h, items = sample([]byte("m"), noise(200_000, 1), bytes.Repeat(noise(100, 2), 5000), noise(100_000, 3))
	for _, data := range [][]byte{write(t, h, items, testKey(1)), pressed(t, tarOf(entries(t, h, items)))} {
		for n := 0; n < len(data); n += 1 << 10 {
			try(data, n)
		}
	}
	// And where the tar is cut, but not its compression.
	tape := tarOf(entries(t, h, items[:1:1]))
	for n := 0; n < len(tape); n += 64 {
		if _, err := read(bytes.NewReader(stored(tape[:n])), ReaderOptions{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d of %d bytes of the tar: %v", n, len(tape), err)
		}
	}
}

// No byte can be another one. What a bit of the compression's own may be, as there are several for the same content, never changes what is
// read.
func TestFlipped(t *testing.T) {
	h, items := small()
	want := result{h, items, testKey(1).Public().(ed25519.PublicKey)}
	for name, data := range map[string][]byte{"written": write(t, h, items, testKey(1)), "pressed": pressed(t, tarOf(entries(t, h, items)))} {
		harmless := 0
		for i := range data {
			for _, flip := range []byte{1 << (i % 8), 255} {
				data[i] ^= flip
				got, err := read(bytes.NewReader(data), ReaderOptions{})
				data[i] ^= flip
				switch {
				case err == nil && reflect.DeepEqual(got, want):
					harmless++
				case err == nil:
					t.Errorf("%s: byte %d ^ %#x: another archive is taken", name, i, flip)
				case !errors.Is(err, ErrCorrupt) && !fault.Is(err, fault.Unimplemented):
					t.Errorf("%s: byte %d ^ %#x: %v", name, i, flip, err)
				}
			}
		}
		t.Logf("%s: %d of %d flips change nothing", name, harmless, 2*len(data))
		if name == "written" && harmless > 8 { // of the size of the window
			t.Errorf("%d flips change nothing", harmless)
		}
	}
	// Behind the checksum of the compression, too.
	tape := tarOf(entries(t, h, items))
	for i := range tape {
		tape[i] ^= 1 << (i % 8)
		if _, err := read(bytes.NewReader(stored(tape)), ReaderOptions{}); !errors.Is(err, ErrCorrupt) && !fault.Is(err, fault.Unimplemented) {
			t.Errorf("byte %d of the tar: %v", i, err)
		}
		tape[i] ^= 1 << (i % 8)
	}
}

// hostile are archives whose checksums and signature are right, but for what each says.
func hostile(t testing.TB) map[string]struct {
	data []byte
	says string
} {
	h, items := small()
	good := entries(t, h, items)
	content := func(change func(all []entry) []entry) []byte { // and sign it
		all := change(append([]entry(nil), good[:len(good)-2]...))
		return stored(tarOf(signed(t, all, testKey(1))))
	}
	insert := func(e entry) []byte {
		return content(func(all []entry) []entry { return append(all[:2:2], append([]entry{e}, all[2:]...)...) })
	}
	special := func(kind byte, name, link string) []byte {
		return insert(entry{name: name, raw: goTar(t, &tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: 0o600, ModTime: h.CreateTime, Format: tar.FormatUSTAR})})
	}
	label := func(change func(m map[string]any)) []byte {
		return content(func(all []entry) []entry {
			var m map[string]any
			must(t, json.Unmarshal(all[0].content, &m))
			change(m)
			text, err := json.Marshal(m)
			must(t, err)
			all[0].content = text
			return all
		})
	}
	set := func(key string, value any) []byte { return label(func(m map[string]any) { m[key] = value }) }
	raw := func(change func(all []entry) []entry) []byte { // not signed again
		return stored(tarOf(change(append([]entry(nil), good...))))
	}
	whole := stored(tarOf(good))
	other, longName := seal([]byte("other")), strings.Repeat("x", 200)
	field := func(at int, value string) []byte {
		return content(func(all []entry) []entry {
			all[2].change = func(b *[blockBytes]byte) { copy(b[at:], value) }
			return all
		})
	}
	return map[string]struct {
		data []byte
		says string
	}{
		"dot dot":                  {insert(entry{name: "../evil"}), `called "../evil"`},
		"dot dot within":           {insert(entry{name: "chunks/../../evil"}), "is called"},
		"absolute":                 {insert(entry{name: "/etc/passwd"}), `called "/etc/passwd"`},
		"a symbolic link":          {special(tar.TypeSymlink, "chunks/x", "/etc/passwd"), "symbolic link"},
		"a hard link":              {special(tar.TypeLink, "chunks/x", "session.json"), "hard link"},
		"a character device":       {special(tar.TypeChar, "chunks/x", ""), "character device"},
		"a block device":           {special(tar.TypeBlock, "chunks/x", ""), "block device"},
		"a named pipe":             {special(tar.TypeFifo, "chunks/x", ""), "named pipe"},
		"a directory":              {special(tar.TypeDir, "chunks/", ""), "directory"},
		"a long name":              {insert(entry{name: longName, raw: goTar(t, &tar.Header{Typeflag: tar.TypeReg, Name: longName, Mode: 0o600, Format: tar.FormatPAX, ModTime: h.CreateTime})}), "header of the pax format"},
		"a long name of GNU":       {insert(entry{name: longName, raw: goTar(t, &tar.Header{Typeflag: tar.TypeReg, Name: longName, Mode: 0o600, Format: tar.FormatGNU, ModTime: h.CreateTime})}), "GNU"},
		"a prefix":                 {field(345, "../.."), "one form"},
		"setuid":                   {field(100, "0004755"), "one form"},
		"an owner":                 {field(108, "0001750"), "one form"},
		"another time":             {field(136, "15243146401"), "another time"},
		"a size in base 256":       {field(124, "\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10"), "no octal number"},
		"a name behind a NUL":      {field(99, "x"), "one form"},
		"a duplicate":              {content(func(all []entry) []entry { all[3] = all[2]; return all }), "comes twice"},
		"a duplicate label":        {content(func(all []entry) []entry { all[3] = all[0]; return all }), `called "session.json"`},
		"chunks before the label":  {content(func(all []entry) []entry { all[0], all[1] = all[1], all[0]; return all }), "want session.json"},
		"another chunk first":      {content(func(all []entry) []entry { all[1], all[2] = all[2], all[1]; return all }), "want that of the manifest"},
		"a chunk with wrong name":  {content(func(all []entry) []entry { all[2].name = chunkDir + other.id.String(); return all }), "something else"},
		"upper case":               {content(func(all []entry) []entry { all[2].name = chunkDir + strings.ToUpper(items[1].id.String()); return all }), "lower-case"},
		"a chunk that is none":     {content(func(all []entry) []entry { all[2].content = []byte("no frame of a chunk"); return all }), "not the frame"},
		"an empty chunk":           {content(func(all []entry) []entry { all[2].content = nil; return all }), "has 0 bytes"},
		"a chunk that is too long": {content(func(all []entry) []entry { all[2].content = noise(chunk.MaxFrameBytes+1, 1); return all }), "1048587 bytes"},
		"a chunk too few":          {content(func(all []entry) []entry { return all[:3] }), "2 of its 3 chunks"},
		"a chunk too many": {content(func(all []entry) []entry {
			return append(all, entry{name: chunkDir + other.id.String(), content: other.frame})
		}), "follows the 3 chunks"},
		"checksums of others": {raw(func(all []entry) []entry { all[4].content = bytes.ToUpper(all[4].content); return all }), "not that of the files"},
		"checksums too short": {raw(func(all []entry) []entry { all[4].content = all[4].content[1:]; return all }), "bytes; that of these files has"},
		"a gigabyte of checksums": {raw(func(all []entry) []entry {
			all[4].change = func(b *[blockBytes]byte) { copy(b[124:], "10000000000") }
			return all
		}), "bytes; that of these files has"},
		"checksums twice":          {raw(func(all []entry) []entry { return append(all[:5:5], all[4:]...) }), `follows SHA256SUMS`},
		"no checksums":             {raw(func(all []entry) []entry { return append(all[:4:4], all[5]) }), "follows the 3 chunks"},
		"no signature":             {raw(func(all []entry) []entry { return all[:5] }), "without SHA256SUMS and SIGNATURE"},
		"nothing":                  {stored(tarOf(nil)), "ends after 0 chunks"},
		"no tar":                   {stored(bytes.Repeat([]byte("x"), 2048)), "no tar header"},
		"an empty file":            {nil, "cut off after 0 bytes"},
		"gzip":                     {[]byte("\x1f\x8b\x08 and more"), "not compressed with zstd"},
		"a skippable frame":        {append([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9}, whole...), "not compressed with zstd"},
		"a dictionary":             {append([]byte{0x28, 0xb5, 0x2f, 0xfd, 1, 0x38, 7}, whole[6:]...), "dictionary"},
		"a large window":           {append([]byte{0x28, 0xb5, 0x2f, 0xfd, 4, 14 << 3}, whole[6:]...), "window"},
		"a terabyte in one piece":  {append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe4, 0, 0, 0, 0, 0, 1, 0, 0}, whole[6:]...), "decompress"},
		"garbage at the end":       {append(bytes.Clone(whole), 0), "something follows its end"},
		"a second frame":           {append(bytes.Clone(whole), whole...), "something follows its end"},
		"a second empty frame":     {append(bytes.Clone(whole), stored(nil)...), "something follows its end"},
		"a skippable frame behind": {append(bytes.Clone(whole), 0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0), "something follows its end"},
		"garbage behind the tar":   {stored(append(tarOf(good), 0)), "something follows its end"},
		"a file behind the end":    {stored(append(tarPart(good), tarOf([]entry{{name: "x"}})...)), "something follows SIGNATURE"},
		"padding that is not zero": {stored(bytes.Replace(tarOf(good), append(bytes.Clone(good[2].content), 0), append(bytes.Clone(good[2].content), 1), 1)), "between two files"},
		"a label that is no JSON":  {content(func(all []entry) []entry { all[0].content = []byte("{"); return all }), "session.json"},
		"another format":           {set("format", "something else"), "something else"},
		"version 0":                {set("version", 0), "version 0"},
		"ten million chunks":       {set("chunks", 10_000_000), "10000000 chunks"},
		"no chunks":                {set("chunks", 0), "0 chunks"},
		"chunks below 0":           {set("chunks", -1), "-1 chunks"},
		"half a chunk":             {set("chunks", 1.5), "session.json"},
		"no session":               {set("session", map[string]any{}), "names no session"},
		"another create time":      {set("createTime", "2027-01-15T08:00:01Z"), "another time"},
		"a time with nanoseconds":  {set("createTime", "2027-01-15T08:00:00.5Z"), "whole seconds"},
		"a manifest in capitals":   {set("manifest", strings.ToUpper(items[0].id.String())), "lower-case"},
		"a manifest that is short": {set("manifest", "abc"), "lower-case"},
		"too long a label":         {set("creator", strings.Repeat("x", MaxHeaderBytes)), "at most 1048576"},
	}
}

func TestHostile(t *testing.T) {
	for name, c := range hostile(t) {
		got, err := read(bytes.NewReader(c.data), ReaderOptions{})
		if !errors.Is(err, ErrCorrupt) || !fault.Is(err, fault.Invalid) || !contains(err, c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		if got.signer != nil {
			t.Errorf("%s: it has a signer", name)
		}
	}
}

func TestNewerVersionIsRefusedByName(t *testing.T) {
	h, items := small()
	all := entries(t, h, items)
	all[0].content = bytes.Replace(all[0].content, []byte(`"version": 1`), []byte(`"version": 9`), 1)
	_, err := read(bytes.NewReader(stored(tarOf(all))), ReaderOptions{})
	if !fault.Is(err, fault.Unimplemented) || !contains(err, "version 9") || !contains(err, "upgrade") {
		t.Error(err)
	}
	// What a later release adds in the same version is left out.
	all = entries(t, h, items)
	all[0].content = bytes.Replace(all[0].content, []byte(`"cluster"`), []byte(`"colour": {"a": [1]}, "cluster"`), 1)
	got, err := read(bytes.NewReader(stored(tarOf(signed(t, all[:len(all)-2], testKey(1))))), ReaderOptions{})
	if err != nil || !reflect.DeepEqual(got.header, h) {
		t.Errorf("%+v, %v", got.header, err)
	}
}

func TestSignatures(t *testing.T) {
	h, items := small()
	good := entries(t, h, items)
	with := func(text string) []byte {
		all := append([]entry(nil), good...)
		all[len(all)-1].content = []byte(text)
		return stored(tarOf(all))
	}
	text := string(good[len(good)-1].content)
	lines := strings.SplitAfter(text, "\n")
	third, err := sign(testKey(2), [32]byte{})
	must(t, err)
	other := strings.SplitAfter(string(third), "\n")
	for name, c := range map[string]struct {
		text string
		kind fault.Kind
	}{
		"of something else":   {string(third), fault.PermissionDenied},
		"by another key":      {lines[0] + other[1] + lines[2], fault.PermissionDenied},
		"another signature":   {lines[0] + lines[1] + other[2], fault.PermissionDenied},
		"empty":               {"", fault.Invalid},
		"a line more":         {text + "x\n", fault.Invalid},
		"no line break":       {strings.TrimSuffix(text, "\n"), fault.Invalid},
		"a blank":             {strings.Replace(text, "\nsignature", " \nsignature", 1), fault.Invalid},
		"another order":       {lines[0] + lines[2] + lines[1], fault.Invalid},
		"no base64":           {lines[0] + "public-key !\n" + lines[2], fault.Invalid},
		"no key":              {lines[0] + "public-key AAAA\n" + lines[2], fault.Invalid},
		"a short signature":   {lines[0] + lines[1] + "signature AAAA\n", fault.Invalid},
		"another algorithm":   {"algorithm ml-dsa-65\n" + lines[1] + lines[2], fault.Unimplemented},
		"carriage returns":    {strings.ReplaceAll(text, "\n", "\r\n"), fault.Unimplemented},
		"longer than allowed": {text + strings.Repeat("\n", MaxSignatureBytes), fault.Invalid},
	} {
		_, err := read(bytes.NewReader(with(c.text)), ReaderOptions{})
		if !fault.Is(err, c.kind) || (c.kind != fault.Unimplemented && !errors.Is(err, ErrCorrupt)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Everything put right again by somebody else is an archive, of somebody else.
	forged := write(t, h, items, testKey(2))
	got, err := read(bytes.NewReader(forged), ReaderOptions{})
	if err != nil || !got.signer.Equal(testKey(2).Public()) {
		t.Error(err)
	}
	var asked []string
	trust := ReaderOptions{Trust: func(k ed25519.PublicKey) error {
		asked = append(asked, Fingerprint(k))
		if !k.Equal(testKey(1).Public()) {
			return errors.New("nobody knows that key")
		}
		return nil
	}}
	got, err = read(bytes.NewReader(forged), trust)
	if !fault.Is(err, fault.PermissionDenied) || errors.Is(err, ErrCorrupt) || !contains(err, asked[0]) || !contains(err, "nobody knows") || got.signer != nil {
		t.Error(err)
	}
	if _, err := read(bytes.NewReader(write(t, h, items, testKey(1))), trust); err != nil || len(asked) != 2 {
		t.Error(err, asked)
	}
	if _, err := read(bytes.NewReader(with(string(third))), trust); err == nil || len(asked) != 2 {
		t.Error("somebody whose signature is wrong was asked about")
	}
}

// growth returns how much memory f has needed at its peak, as the test looks while it reads.
func growth(f func(look func())) (peak uint64) {
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f(func() {
		runtime.GC()
		runtime.ReadMemStats(&now)
		peak = max(peak, now.HeapAlloc-min(before.HeapAlloc, now.HeapAlloc))
	})
	return peak
}

// bomb is an archive whose chunks shrink, as none that was written does: they are kept plain.
func bomb(t testing.TB, chunks, different int) []byte {
	var contents [][]byte
	for i := range chunks {
		c := make([]byte, chunk.MaxContentBytes)
		copy(c, noise(different, uint64(i+1)))
		contents = append(contents, c)
	}
	h, items := sample(contents...)
	for i := range items {
		frame := binary.BigEndian.AppendUint32([]byte("ORCC\x01\x00"), chunk.MaxContentBytes)
		items[i].frame = append(frame, contents[i]...)
	}
	return pressed(t, tarOf(entries(t, h, items)))
}

func TestBombs(t *testing.T) {
	for name, data := range map[string][]byte{
		"zeros":    pressed(t, make([]byte, 64<<20)),
		"100:1":    bomb(t, 24, chunk.MaxContentBytes/100),
		"10,000:1": bomb(t, 24, 30),
		"zeros behind the end": func() []byte {
			h, items := small()
			return pressed(t, append(tarOf(entries(t, h, items)), make([]byte, 64<<20)...))
		}(),
	} {
		peak := growth(func(look func()) {
			_, err := read(bytes.NewReader(data), ReaderOptions{})
			if !errors.Is(err, ErrCorrupt) || strings.HasSuffix(name, ":1") && !contains(err, "32 times as many") {
				t.Errorf("%s, %d bytes: %v", name, len(data), err)
			}
			look()
		})
		if peak > 32<<20 {
			t.Errorf("%s: %d bytes of memory", name, peak)
		}
	}
	// One that was written is none, however alike its chunks are.
	var contents [][]byte
	for i := range 20 {
		contents = append(contents, append(noise(1<<19, 7), byte(i)))
	}
	h, items := sample(contents...)
	if _, err := read(bytes.NewReader(write(t, h, items, testKey(1))), ReaderOptions{}); err != nil {
		t.Error(err)
	}
}

// endless is a stream of bytes that are made when they are read.
type endless struct {
	make func() []byte // nil at its end
	rest []byte
	n    int64
}

func (e *endless) Read(p []byte) (int, error) {
	for len(e.rest) == 0 {
		if e.rest = e.make(); e.rest == nil {
			return 0, io.EOF
		}
	}
	n := copy(p, e.rest)
	e.rest, e.n = e.rest[n:], e.n+int64(n)
	return n, nil
}

// Ten million entries: of nothing, and of chunks as small as there are, by somebody who says so and somebody who does not.
func TestTenMillionEntries(t *testing.T) {
	h, items := small()
	open := func(claimed int, next func(i int) entry) *endless {
		h.Chunks = claimed
		text, err := h.encode()
		must(t, err)
		var b bytes.Buffer
		f := newFrameWriter(&b)
		_, _ = f.Write(tarPart([]entry{{name: headerName, content: text}, {name: chunkDir + items[0].id.String(), content: items[0].frame}}))
		i := 0
		return &endless{make: func() []byte {
			if i == 10_000_000 {
				return nil
			}
			for b.Len() == 0 {
				_, _ = f.Write(tarPart([]entry{next(i)}))
				i++
			}
			return append([]byte(nil), b.Next(b.Len())...)
		}}
	}
	begin := time.Now()
	for name, c := range map[string]struct {
		in   *endless
		says string
		most int64 // bytes that are read before it is refused
	}{
		"empty":             {open(MaxChunks, func(i int) entry { return entry{name: fmt.Sprintf("chunks/%064x", i)} }), "has 0 bytes", 1 << 20},
		"empty, other name": {open(MaxChunks, func(i int) entry { return entry{name: fmt.Sprint(i)} }), "is called", 1 << 20},
		"more than it says": {open(1000, func(i int) entry {
			c := seal(binary.BigEndian.AppendUint32(nil, uint32(i)))
			return entry{name: chunkDir + c.id.String(), content: c.frame}
		}), "follows the 1000 chunks", 4 << 20},
	} {
		peak := growth(func(look func()) {
			if _, err := read(c.in, ReaderOptions{}); !errors.Is(err, ErrCorrupt) || !contains(err, c.says) {
				t.Errorf("%s: %v", name, err)
			}
			look()
		})
		if peak > 32<<20 || c.in.n > c.most {
			t.Errorf("%s: %d bytes of memory, %d were read", name, peak, c.in.n)
		}
	}
	if d := time.Since(begin); d > time.Minute {
		t.Errorf("it took %s", d)
	}
	// And blocks of the compression that are empty.
	i := 0
	blocks := &endless{make: func() []byte {
		i++
		switch {
		case i == 1:
			return []byte{0x28, 0xb5, 0x2f, 0xfd, 4, 0x38}
		case i < 1000:
			return make([]byte, 3*10_000)
		}
		return nil
	}}
	peak := growth(func(look func()) {
		if _, err := read(blocks, ReaderOptions{}); !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
		look()
	})
	if peak > 32<<20 {
		t.Errorf("empty blocks: %d bytes of memory", peak)
	}
}

// What many chunks need is what is promised: their names, and one frame.
func TestMemoryOfManyChunks(t *testing.T) {
	const n = 50_000
	mk := func(i int) item { return seal(binary.BigEndian.AppendUint64(nil, uint64(i))) }
	h, _ := small()
	h.Chunks, h.Manifest = n, mk(0).id
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		w, err := NewWriter(pw, h)
		for i := 0; i < n && err == nil; i++ {
			c := mk(i)
			err = w.Put(c.id, c.frame)
		}
		if err == nil {
			err = w.Close(testKey(1))
		}
		pw.CloseWithError(err)
		done <- err
	}()
	peak := growth(func(look func()) {
		in, err := NewReader(pr, ReaderOptions{})
		must(t, err)
		for i := 0; ; i++ {
			_, _, err := in.Next()
			if i%(n/4) == n/4-1 {
				look()
			}
			if errors.Is(err, io.EOF) {
				break
			}
			must(t, err)
		}
		look()
		runtime.KeepAlive(in)
	})
	must(t, <-done)
	if most := uint64(8<<20 + n*(64*2+24)); peak > most { // the writer's checksums, too, in a slice that doubles
		t.Errorf("%d bytes of memory for %d chunks, at most %d", peak, n, most)
	}
}
