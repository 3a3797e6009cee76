// Random trees, random edits, and what a tree looks like to a comparison.

package serializer_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/serializer/chunk"
)

// seen is what a comparison sees of an entry.
type seen struct {
	Type    string
	Mode    fs.FileMode
	ModTime int64
	Content string
}

// look returns all of a tree.
func look(t testing.TB, dir string) map[string]seen {
	t.Helper()
	all := map[string]seen{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		s := seen{Type: info.Mode().Type().String(), Mode: info.Mode().Perm(), ModTime: info.ModTime().UnixNano()}
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			s.Content = fmt.Sprint(len(content), chunk.Sum(content))
		case info.Mode()&fs.ModeSymlink != 0:
			s.Content, err = os.Readlink(p)
		}
		all[rel] = s
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// same fails the test unless two looks are equal.
func same(t testing.TB, got, want map[string]seen) {
	t.Helper()
	for p, w := range want {
		if g, ok := got[p]; !ok {
			t.Errorf("%q is missing", p)
		} else if g != w {
			t.Errorf("%q is %+v, want %+v", p, g, w)
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%q is too much", p)
		}
	}
}

// racy is how long a file counts as written just now.
const racy = 100 * time.Millisecond

// settle waits until nothing below dir counts as written just now. Real files have the kernel's stamps, and nobody sets a ctime.
func settle(t testing.TB, dir string) {
	t.Helper()
	var newest time.Time
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if at := time.Unix(st.Ctim.Unix()); at.After(newest) {
			newest = at
		}
		return err
	}))
	<-time.After(time.Until(newest.Add(2 * racy)))
}

// noise returns bytes that do not compress, the same for a seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n+8)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i < n; i += 8 {
		v := r.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b[:n]
}

func must(t interface{ Fatal(...any) }, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

var (
	names = []string{"a", "b", "ab", "a.b", "a b", "ä", "日本語", "-", "\xff\xfe", "..x", "z\n", "A"}
	modes = []fs.FileMode{0o644, 0o600, 0o755, 0o400, 0o777, 0o711}
	sizes = []int{0, 1, 100, 5_000, 65_535, 65_536, 65_537, 300_000, 700_000}
)

// edit changes something in a tree, or makes it.
func edit(t *rapid.T, dir string) {
	paths, dirs := []string{}, []string{dir}
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if p != dir {
			paths = append(paths, p)
			if d.IsDir() {
				dirs = append(dirs, p)
			}
		}
		return err
	}))
	path := filepath.Join(rapid.SampledFrom(dirs).Draw(t, "dir"), rapid.SampledFrom(names).Draw(t, "name"))
	verb := rapid.SampledFrom([]string{"file", "file", "file", "dir", "dir", "link", "sparse", "remove", "rename", "chmod", "touch", "overwrite", "append", "insert"}).Draw(t, "verb")
	pick := path
	if len(paths) > 0 {
		pick = rapid.SampledFrom(paths).Draw(t, "pick")
	}
	info, err := os.Lstat(pick)
	isFile := err == nil && info.Mode().IsRegular()
	switch {
	case verb == "file":
		must(t, os.RemoveAll(path))
		content := noise(rapid.Uint64Range(0, 5).Draw(t, "seed"), rapid.SampledFrom(sizes).Draw(t, "size"))
		must(t, os.WriteFile(path, content, 0o600))
		must(t, os.Chmod(path, rapid.SampledFrom(modes).Draw(t, "mode")))
	case verb == "dir":
		must(t, os.RemoveAll(path))
		must(t, os.Mkdir(path, 0o700))
		must(t, os.Chmod(path, rapid.SampledFrom([]fs.FileMode{0o755, 0o700, 0o1777}).Draw(t, "mode")))
	case verb == "link":
		must(t, os.RemoveAll(path))
		must(t, os.Symlink(rapid.SampledFrom([]string{"a", "b/a", "nowhere", "./ab"}).Draw(t, "target"), path))
	case verb == "sparse":
		must(t, os.RemoveAll(path))
		f, err := os.Create(path)
		must(t, err)
		for range rapid.IntRange(0, 3).Draw(t, "stretches") {
			_, err := f.WriteAt(noise(7, 9_000), int64(rapid.IntRange(0, 3<<20).Draw(t, "at")))
			must(t, err)
		}
		must(t, f.Truncate(int64(rapid.IntRange(0, 4<<20).Draw(t, "length"))))
		must(t, f.Close())
	case verb == "remove":
		must(t, os.RemoveAll(pick))
	case verb == "rename":
		_ = os.Rename(pick, path) // not into itself, not over a full directory
	case verb == "chmod" && err == nil && info.Mode()&fs.ModeSymlink == 0:
		if isFile {
			must(t, os.Chmod(pick, rapid.SampledFrom(modes).Draw(t, "mode")))
		} else {
			must(t, os.Chmod(pick, 0o751))
		}
	case verb == "touch" && err == nil:
		when := unix.NsecToTimespec(rapid.Int64Range(-1e18, 4e18).Draw(t, "time"))
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, pick, []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW))
	case isFile:
		content, err := os.ReadFile(pick)
		must(t, err)
		more := noise(rapid.Uint64().Draw(t, "seed"), 50)
		switch at := len(content) / 2; verb {
		case "append":
			content = append(content, more...)
		case "insert":
			content = slices.Insert(content, at, more...)
		default:
			content = append(bytes.Clone(content[:at]), bytes.Repeat([]byte{1}, len(content)-at)...)
		}
		must(t, os.Chmod(pick, 0o600))
		keep := info.ModTime()
		must(t, os.WriteFile(pick, content, 0o600))
		if rapid.Bool().Draw(t, "hide") { // the change shows in ctime only
			must(t, os.Chtimes(pick, time.Time{}, keep))
		}
	}
}
