// Reading archives: tar, plain or compressed, and zip.

package workspace

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/links"
)

const (
	maxWindowBytes = 128 << 20 // of zstd, as --ultra -22 has it
	maxZipDirBytes = 32 << 20  // of a zip's list of entries, which is read as a whole
	tarBlockBytes  = 512
)

// unpack makes the directory dir hold what is in an archive.
func unpack(ctx context.Context, file, format, dir string, o *Options) (err error) {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	t, err := newTree(ctx, dir, st.Size(), o)
	if err != nil {
		return err
	}
	defer t.root.Close()
	if format == ".zip" {
		err = t.zip(f, st.Size())
	} else {
		err = t.compressedTar(&told{r: f, o: o, total: st.Size()}, format)
	}
	if err == nil {
		o.progress(Progress{Step: "unpacking", Bytes: st.Size(), Total: st.Size()})
	}
	return err
}

// told reports how much of a file was read.
type told struct {
	r              io.Reader
	o              *Options
	n, last, total int64
}

func (r *told) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if r.n += int64(n); r.n-r.last >= progressBytes {
		r.last = r.n
		r.o.progress(Progress{Step: "unpacking", Bytes: r.n, Total: r.total})
	}
	return n, err
}

// damaged makes the error that no more can be read, unless that is not the archive's fault.
func damaged(err error) error {
	var path *fs.PathError
	switch {
	case fault.As(err) != nil, errors.As(err, &path), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return refuse("it is cut off: %w", io.ErrUnexpectedEOF)
	}
	return refuse("it is damaged: %w", err)
}

func (t *tree) compressedTar(r io.Reader, format string) error {
	in := bufio.NewReaderSize(r, copyBytes)
	switch format {
	case ".tar.gz", ".tgz":
		z, err := gzip.NewReader(in)
		if err != nil {
			return damaged(fmt.Errorf("not compressed with gzip: %w", err))
		}
		return t.tar(z)
	case ".tar.zst":
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindowBytes), zstd.WithDecoderMaxMemory(maxWindowBytes))
		if err != nil {
			return damaged(fmt.Errorf("not compressed with zstd: %w", err))
		}
		defer z.Close()
		return t.tar(z)
	}
	return t.tar(in)
}

// tape is the stream of a tar.
type tape struct {
	r     io.Reader
	t     *tree
	n     int64
	zeros int64 // at its end so far
}

func (s *tape) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	i := n
	for i > 0 && p[i-1] == 0 {
		i--
	}
	if i > 0 {
		s.zeros = 0
	}
	s.zeros += int64(n - i)
	if s.n += int64(n); s.n > s.t.becomes {
		return n, refuse("it becomes more than %d bytes, %d times its own length", s.t.becomes, maxRatio)
	}
	if err == nil {
		err = s.t.ctx.Err()
	}
	return n, err
}

func (t *tree) tar(r io.Reader) error {
	s := &tape{r: r, t: t}
	in, end := tar.NewReader(s), int64(0)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return s.finish(end)
		}
		if err != nil {
			return damaged(err)
		}
		if err := t.tarEntry(h, in); err != nil {
			return err
		}
		end = s.n
	}
}

func (t *tree) tarEntry(h *tar.Header, in io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return t.file(h.Name, fs.FileMode(h.Mode&0o777), h.ModTime, in, damaged)
	case tar.TypeDir:
		return t.dir(h.Name, fs.FileMode(h.Mode&0o777))
	case tar.TypeSymlink:
		return t.link(h.Name, h.Linkname)
	case tar.TypeXGlobalHeader: // git archive begins with one
		return t.count()
	case tar.TypeLink:
		return refuse("%.200q is a hard link to %.200q; make it with `tar --hard-dereference`", h.Name, h.Linkname)
	}
	what := map[byte]string{tar.TypeChar: "a device", tar.TypeBlock: "a device", tar.TypeFifo: "a named pipe"}[h.Typeflag]
	if what == "" {
		what = fmt.Sprintf("of type %q", h.Typeflag)
	}
	return refuse("%.200q is %s; files, directories and symbolic links are taken", h.Name, what)
}

// finish makes sure that the tar was not cut off between two files, which its reader takes for the end: two empty blocks
// follow the last one. What is behind them is padding.
func (s *tape) finish(end int64) error {
	end = (end + tarBlockBytes - 1) &^ (tarBlockBytes - 1)
	if s.n < end+2*tarBlockBytes || s.zeros < 2*tarBlockBytes {
		return damaged(io.ErrUnexpectedEOF)
	}
	buf := s.t.buf
	for {
		_, err := s.Read(buf)
		if s.zeros < s.n-end {
			return refuse("something follows its end")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return damaged(err)
		}
	}
}

// listLimit reads a file, and only so much of it while the list of a zip's entries is read.
type listLimit struct {
	r    io.ReaderAt
	left atomic.Int64
	off  bool
}

var errListTooLong = errors.New("its list of entries is too long")

// ReadAt reads.
func (l *listLimit) ReadAt(p []byte, at int64) (int, error) {
	if !l.off && l.left.Add(-int64(len(p))) < 0 {
		return 0, errListTooLong
	}
	return l.r.ReadAt(p, at)
}

func (t *tree) zip(r io.ReaderAt, size int64) error {
	limit := &listLimit{r: r}
	limit.left.Store(maxZipDirBytes)
	z, err := zip.NewReader(limit, size)
	if errors.Is(err, errListTooLong) {
		return fault.New(fault.Exhausted, "the archive has a list of entries of more than %d bytes: pack it as .tar.zst or .tar.gz", maxZipDirBytes)
	}
	if err != nil {
		return damaged(err)
	}
	limit.off = true
	read := int64(0)
	for _, f := range z.File {
		if err := t.zipEntry(f); err != nil {
			return err
		}
		if n := int64(min(f.CompressedSize64, uint64(size))); read/progressBytes != (read+n)/progressBytes {
			t.o.progress(Progress{Step: "unpacking", Bytes: min(read+n, size), Total: size})
			read += n
		} else {
			read += n
		}
	}
	return nil
}

func (t *tree) zipEntry(f *zip.File) error {
	mode := f.Mode()
	const unix, macOS = 3, 19
	if by := f.CreatorVersion >> 8; by != unix && by != macOS {
		mode &^= 0o022 // who knows no modes lets everybody write
	}
	switch {
	case strings.Contains(f.Name, `\`):
		return refuse(`the name %.200q has a \ in it; pack it with a program that separates names by /`, f.Name)
	case f.Flags&1 != 0:
		return refuse("%.200q is encrypted", f.Name)
	case mode.IsDir() || strings.HasSuffix(f.Name, "/"):
		return t.dir(f.Name, mode)
	case mode&fs.ModeType != 0 && mode&fs.ModeType != fs.ModeSymlink:
		return refuse("%.200q is a %s; files, directories and symbolic links are taken", f.Name, strings.TrimRight(mode.Type().String(), "-"))
	}
	content, err := f.Open()
	if errors.Is(err, zip.ErrAlgorithm) {
		return fault.New(fault.Unimplemented, "%.200q is compressed by method %d, which is not known here: pack it as .tar.zst or .tar.gz", f.Name, f.Method)
	}
	if err != nil {
		return damaged(err)
	}
	defer content.Close()
	if mode&fs.ModeSymlink == 0 {
		return t.file(f.Name, mode, f.Modified, content, damaged)
	}
	target, err := io.ReadAll(io.LimitReader(content, links.MaxTargetBytes+1))
	if err != nil {
		return damaged(fmt.Errorf("%.200q: %w", f.Name, err))
	}
	return t.link(f.Name, string(target))
}
