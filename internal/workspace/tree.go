// The tree that an archive becomes: what may be in it, and how it is written.

package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/links"
)

const (
	maxPathBytes = 4096 // as checkpoints have it
	maxNameBytes = 255
	maxDepth     = 512
	maxKnownDirs = 4096 // whose kind is not looked up again
)

// refuse makes the error that an archive is damaged, or holds what it must not.
func refuse(format string, args ...any) error {
	return fault.New(fault.Invalid, "the archive is refused: %w", fmt.Errorf(format, args...))
}

// tree writes files, directories and links below a root. Whatever an archive says, nothing is written elsewhere, or over anything.
type tree struct {
	ctx     context.Context
	root    *os.Root
	o       *Options
	becomes int64 // bytes that the archive may become, by its length

	entries  int
	bytes    int64
	known    map[string]struct{} // directories, as far as they fit
	implicit map[string]struct{} // directories that were made for what lies in them, and may yet come themselves
	buf      []byte
}

func newTree(ctx context.Context, dir string, archiveBytes int64, o *Options) (*tree, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &tree{ctx: ctx, root: root, o: o, becomes: max(freeBytes, archiveBytes*maxRatio),
		known: map[string]struct{}{}, implicit: map[string]struct{}{}, buf: make([]byte, copyBytes)}, nil
}

// count counts an entry.
func (t *tree) count() error {
	if t.entries++; t.entries > t.o.MaxEntries {
		return fault.New(fault.Exhausted, "the archive has more than the %d entries that are allowed here", t.o.MaxEntries)
	}
	return t.ctx.Err()
}

// grow counts bytes of files.
func (t *tree) grow(n int) error {
	switch t.bytes += int64(n); {
	case t.bytes > t.o.MaxBytes:
		return fault.New(fault.Exhausted, "the archive becomes more than the %d bytes that are allowed here", t.o.MaxBytes)
	case t.bytes > t.becomes:
		return refuse("it becomes more than %d bytes, %d times its own length", t.becomes, maxRatio)
	}
	return t.ctx.Err()
}

// place returns the path that an entry's name says, and makes the directory that it lies in. Names are relative, and may begin with "./".
func (t *tree) place(name string) (string, error) {
	if err := t.count(); err != nil {
		return "", err
	}
	p := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	if p == "" && name != "" && name != "/" || p == "." {
		return ".", nil
	}
	switch {
	case p == "" || p[0] == '/':
		return "", refuse("the name %.200q is not relative", name)
	case len(p) > maxPathBytes || strings.Count(p, "/") >= maxDepth:
		return "", refuse("the name %.200q… is too long or too deep", name)
	case strings.IndexByte(p, 0) >= 0:
		return "", refuse("the name %.200q has a NUL in it", name)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." {
			return "", refuse("the name %.200q has an empty component, . or .. in it", name)
		}
		if len(part) > maxNameBytes {
			return "", refuse("the name %.200q… has a component that is too long", name)
		}
	}
	return p, t.parents(p)
}

// parents makes the directories above a path, and sees to it that they are some: nothing lies below a link.
func (t *tree) parents(p string) error {
	last := strings.LastIndexByte(p, '/')
	if last < 0 {
		return nil
	}
	if _, ok := t.known[p[:last]]; ok {
		return nil
	}
	for i := 0; i <= last; i++ {
		if p[i] != '/' {
			continue
		}
		dir := p[:i]
		if _, ok := t.known[dir]; ok {
			continue
		}
		switch st, err := t.root.Lstat(dir); {
		case err == nil && st.IsDir():
		case err == nil:
			return refuse("%.200q lies below %.200q, which is no directory", p, dir)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		default:
			if err := t.count(); err != nil {
				return err
			}
			if err := t.root.Mkdir(dir, 0o755); err != nil {
				return err
			}
			t.implicit[dir] = struct{}{}
		}
		if len(t.known) >= maxKnownDirs {
			clear(t.known)
		}
		t.known[dir] = struct{}{}
	}
	return nil
}

// twice makes an error of creating what is there.
func twice(p string, err error) error {
	if errors.Is(err, fs.ErrExist) {
		return refuse("it has %.200q twice", p)
	}
	return err
}

// dir makes a directory. Its owner may always enter it, or nothing could be put into it.
func (t *tree) dir(name string, mode fs.FileMode) error {
	p, err := t.place(name)
	if err != nil || p == "." {
		return err
	}
	if _, made := t.implicit[p]; made {
		delete(t.implicit, p)
	} else if err := t.root.Mkdir(p, 0o700); err != nil {
		return twice(p, err)
	}
	return t.root.Chmod(p, mode.Perm()|0o700)
}

// link makes a symbolic link that stays inside.
func (t *tree) link(name, target string) error {
	p, err := t.place(name)
	if err != nil {
		return err
	}
	if why := links.Flaw(p, target); why != "" {
		return refuse("the link %.200q to %.200q %s", p, target, why)
	}
	return twice(p, t.root.Symlink(target, p))
}

// file makes a file. An error of content is passed through damaged.
func (t *tree) file(name string, mode fs.FileMode, modified time.Time, content io.Reader, damaged func(error) error) (err error) {
	p, err := t.place(name)
	if err != nil {
		return err
	}
	if p == "." {
		return refuse("the name %.200q of a file", name)
	}
	f, err := t.root.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return twice(p, err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err == nil && modified.Unix() > 0 {
			err = t.root.Chtimes(p, modified, modified)
		}
	}()
	for {
		n, err := content.Read(t.buf)
		if err := t.grow(n); err != nil {
			return err
		}
		if _, err := f.Write(t.buf[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return f.Chmod(mode.Perm())
		}
		if err != nil {
			return damaged(fmt.Errorf("%.200q: %w", p, err))
		}
	}
}
