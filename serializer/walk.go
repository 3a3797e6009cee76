// Walking a tree without ever following a link: each directory is opened through its parent's descriptor, by one name.

package serializer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/links"
)

// stamp is what stat(2) tells of a file's identity and last change.
type stamp struct {
	size, mtime, ctime int64
	ino                uint64
	mode               uint32
}

func stampOf(st *unix.Stat_t) stamp {
	return stamp{size: st.Size, mtime: time.Unix(st.Mtim.Unix()).UnixNano(), ctime: time.Unix(st.Ctim.Unix()).UnixNano(), ino: st.Ino, mode: st.Mode}
}

// found is what a walk meets: an entry without extents, and its stamp.
type found struct {
	Entry
	stamp  stamp
	sparse bool // it has fewer blocks than bytes
}

// SkipReason says why something was left out of a tree.
type SkipReason string

// The reasons.
const (
	SkipSpecial    SkipReason = "a socket, device or named pipe"
	SkipLink       SkipReason = "a link that does not stay inside the tree"
	SkipUnreadable SkipReason = "it may not be read"
	SkipPath       SkipReason = "its path is too long or too deep"
)

// Skip is something that was left out.
type Skip struct {
	Root, Path string
	Reason     SkipReason
	Detail     string
}

// retry calls a system call until no signal interrupts it.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// openAt opens a name in a directory, never through a link.
func openAt(dir int, name string, flags int) (fd int, err error) {
	err = retry(func() (err error) {
		fd, err = unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		return err
	})
	return fd, err
}

// walker is one walk.
type walker struct {
	ctx   context.Context
	skip  func(path string, why SkipReason, detail string)
	omit  map[string]bool // paths that are left out with all below
	tops  []string        // absolute names of the tree: an absolute link that begins with one is taken as the relative one that it is
	grant bool            // give the owner all rights to directories, to change what is in them
	all   []found
	names []byte // scratch: directory blocks
}

// walk returns what is in the directory in the order of a walk, itself first.
func (w *walker) walk(dir string) ([]found, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	s := stampOf(&st)
	w.names = make([]byte, 64<<10)
	w.all = append(w.all, found{Entry: Entry{Path: ".", Type: Dir, Mode: s.mode & MaxPerm, ModTime: s.mtime}, stamp: s})
	if err := w.dir(fd, "", 1); err != nil {
		return nil, fmt.Errorf("walk %s: %w", dir, err)
	}
	return w.all, nil
}

// dir appends what is in an open directory.
func (w *walker) dir(fd int, prefix string, depth int) error {
	names, err := w.list(fd)
	if err != nil {
		return fmt.Errorf("list %q: %w", prefix, err)
	}
	for i, name := range names {
		if i%256 == 0 && w.ctx.Err() != nil {
			return w.ctx.Err()
		}
		p := prefix + name
		if w.omit[p] {
			continue
		}
		if len(p) > MaxPathBytes || depth >= MaxDepth {
			w.skip(p[:min(len(p), MaxPathBytes)], SkipPath, "")
			continue
		}
		if len(w.all) == MaxEntries {
			return fault.New(fault.Exhausted, "more than %d files", MaxEntries)
		}
		if err := w.entry(fd, name, p, depth); err != nil {
			return err
		}
	}
	return nil
}

// entry appends one thing, and what is in it. What has gone in the meantime is left out.
func (w *walker) entry(fd int, name, p string, depth int) error {
	var st unix.Stat_t
	switch err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EACCES):
		w.skip(p, SkipUnreadable, "its directory may be listed only")
		return nil
	case err != nil:
		return fmt.Errorf("stat %q: %w", p, err)
	}
	s := stampOf(&st)
	e := Entry{Path: p, Mode: s.mode & MaxPerm, ModTime: s.mtime}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = File, s.size
		w.all = append(w.all, found{Entry: e, stamp: s, sparse: st.Blocks*512 < st.Size})
	case unix.S_IFLNK:
		e.Type, e.Mode = Symlink, 0
		target, err := readlinkAt(fd, name)
		if err != nil {
			return nil // it was replaced: the next round meets what is there then
		}
		target = relative(w.tops, p, target)
		if why := links.Flaw(p, target); why != "" {
			w.skip(p, SkipLink, target+" "+why)
			return nil
		}
		e.Target = target
		w.all = append(w.all, found{Entry: e, stamp: s})
	case unix.S_IFDIR:
		return w.subdir(fd, name, found{Entry: e, stamp: s}, depth)
	default:
		w.skip(p, SkipSpecial, "")
	}
	return nil
}

func (w *walker) subdir(fd int, name string, f found, depth int) error {
	if w.grant && f.Mode&0o700 != 0o700 {
		if err := unix.Fchmodat(fd, name, f.Mode|0o700, 0); err != nil {
			return fmt.Errorf("change the mode of %q: %w", f.Path, err)
		}
	}
	sub, err := openAt(fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil // it has gone, or is something else by now
	case errors.Is(err, unix.EACCES):
		w.skip(f.Path, SkipUnreadable, "")
		return nil
	case err != nil:
		return fmt.Errorf("open %q: %w", f.Path, err)
	}
	defer unix.Close(sub)
	w.all = append(w.all, f)
	return w.dir(sub, f.Path+"/", depth+1)
}

// list returns the names in a directory, sorted.
func (w *walker) list(fd int) (names []string, err error) {
	for {
		var n int
		if err := retry(func() (err error) { n, err = unix.ReadDirent(fd, w.names); return err }); err != nil {
			if errors.Is(err, unix.ENOENT) {
				return nil, nil // it was removed while it was open
			}
			return nil, err
		}
		if n <= 0 {
			break
		}
		_, _, names = unix.ParseDirent(w.names[:n], -1, names)
	}
	if len(names) > 1 {
		slices.SortFunc(names, strings.Compare)
	}
	return names, nil
}

// relative returns an absolute target that lies in the tree as seen from the link, and every other target as it is. What is
// restored elsewhere then still leads to the same file. A target with .. in it may lead anywhere, and stays as it is.
func relative(tops []string, link, target string) string {
	for _, top := range tops {
		rest, ok := strings.CutPrefix(target, top)
		if !ok || rest != "" && rest[0] != '/' || slices.Contains(strings.Split(rest, "/"), "..") {
			continue
		}
		up := strings.Repeat("../", strings.Count(link, "/"))
		if rest = strings.Trim(path.Clean("/"+rest), "/"); rest != "" {
			return up + rest
		}
		return cmp.Or(strings.TrimSuffix(up, "/"), ".")
	}
	return target
}

// topsOf returns the absolute names of a directory: as it is called, and without links on the way to it.
func topsOf(dir string) (tops []string) {
	abs, err := filepath.Abs(dir)
	if err != nil || abs == "/" {
		return nil
	}
	tops = []string{abs}
	if resolved, err := filepath.EvalSymlinks(abs); err == nil && resolved != abs && resolved != "/" {
		tops = append(tops, resolved)
	}
	return tops
}

func readlinkAt(dir int, name string) (string, error) {
	var buf [links.MaxTargetBytes + 1]byte
	n, err := unix.Readlinkat(dir, name, buf[:])
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// opener opens the files of a tree one after the other, in the order of a walk: it keeps the directories open that lead to the last
// one.
type opener struct {
	names []string
	fds   []int // one more than names: the root
}

func newOpener(dir string) (*opener, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return &opener{fds: []int{fd}}, nil
}

// open opens a file for reading; its descriptor is the caller's to close.
func (o *opener) open(p string) (int, error) {
	depth := 0
	rest := p
	for {
		name, after, more := strings.Cut(rest, "/")
		if !more {
			break
		}
		if depth == len(o.names) || o.names[depth] != name {
			o.shut(depth)
			fd, err := openAt(o.fds[depth], name, unix.O_RDONLY|unix.O_DIRECTORY)
			if err != nil {
				return -1, err
			}
			o.names, o.fds = append(o.names, name), append(o.fds, fd)
		}
		rest = after
		depth++
	}
	o.shut(depth)
	return openAt(o.fds[depth], rest, unix.O_RDONLY)
}

// shut closes all directories deeper than depth.
func (o *opener) shut(depth int) {
	for len(o.names) > depth {
		unix.Close(o.fds[len(o.fds)-1])
		o.names, o.fds = o.names[:len(o.names)-1], o.fds[:len(o.fds)-1]
	}
}

func (o *opener) close() {
	o.shut(0)
	unix.Close(o.fds[0])
}
