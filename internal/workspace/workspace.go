// Package workspace gets the directory that a new session begins with, from wherever a person has it.
//
//	a directory                    is used where it is; nothing is copied
//	an archive                     .tar, .tar.gz, .tgz, .tar.zst or .zip, a file or at an http(s):// address, is unpacked
//	a git repository, with #ref    https://….git, ssh://…, git://…, file://….git, git+https://…, user@host:path, is cloned, one commit deep
//
// What is fetched lies in a temporary directory until the caller has captured it and cleans up. When Open fails it leaves nothing.
//
// Archives come from strangers. They are unpacked through an [os.Root], and hold files, directories, and symbolic links that stay
// inside; anything else, anything twice, names that lead out, what claims to become enormous, and what is cut off is refused as a whole. Of modes the
// permission bits are kept. A git repository is fetched by the machine's own git, with the user's own credentials, and never asks.
package workspace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// What Options bounds when it says nothing.
const (
	DefaultMaxBytes         = int64(64) << 30
	DefaultMaxEntries       = 1_000_000
	DefaultMaxDownloadBytes = int64(16) << 30
)

// Bounds that are the same for everybody.
const (
	// maxRatio is how many times its own length an archive may become, once that is more than freeBytes.
	maxRatio  = 64
	freeBytes = int64(32) << 20
	// stallMax is how long a download may bring nothing.
	stallMax = time.Minute
	// progressBytes is how much happens between two reports.
	progressBytes = int64(1) << 20
	copyBytes     = 128 << 10
)

// Options says how to open a workspace. The zero value will do.
type Options struct {
	// Dir is where temporary directories are made; os.TempDir() when empty.
	Dir string
	// Progress is told how far it is, by one goroutine. May be nil.
	Progress func(Progress)
	// MaxBytes and MaxEntries bound what is unpacked or cloned, MaxDownloadBytes what is downloaded for it. A clone is measured when it is there.
	MaxBytes         int64
	MaxEntries       int
	MaxDownloadBytes int64
	// Client downloads; one that goes from no https:// address to an http:// one when nil.
	Client *http.Client
	// Git is the program; "git", as PATH finds it, when empty.
	Git string

	stall time.Duration // for tests
}

// Progress is how far a step is.
type Progress struct {
	// Step is downloading, unpacking or cloning.
	Step string
	// Bytes of Total were read; Total is 0 where it is not known, both are of a clone.
	Bytes, Total int64
}

const possible = "give a directory; an archive (.tar, .tar.gz, .tgz, .tar.zst, .zip), as a file or an http(s):// address; " +
	"or a git repository (https://….git, ssh://…, git://…, file://….git, git+https://…, user@host:path), with #branch, #tag or #commit behind it where you want another than its head"

// Open returns the directory that ref names. The caller calls cleanup, once it needs the directory no more; it may be called twice, and is
// never nil. The error's kind is Invalid for what is no reference, or an archive that is damaged or not allowed; NotFound, PermissionDenied or Unavailable for
// what cannot be fetched; Exhausted for what exceeds a bound; FailedPrecondition when there is no git. An error of ctx is returned as such.
func Open(ctx context.Context, ref string, o Options) (dir string, cleanup func(), err error) {
	dir, cleanup, err = open(ctx, ref, o.withDefaults())
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return "", func() {}, fmt.Errorf("workspace %s: %w", redacted(ref), err)
	}
	return dir, cleanup, nil
}

func (o Options) withDefaults() Options {
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	if o.MaxDownloadBytes <= 0 {
		o.MaxDownloadBytes = DefaultMaxDownloadBytes
	}
	if o.Git == "" {
		o.Git = "git"
	}
	if o.stall <= 0 {
		o.stall = stallMax
	}
	return o
}

func (o *Options) progress(p Progress) {
	if o.Progress != nil {
		o.Progress(p)
	}
}

func open(ctx context.Context, ref string, o Options) (string, func(), error) {
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	repo, isGit, err := parseGit(ref)
	if err != nil {
		return "", nil, err
	}
	if isGit {
		return inTemp(o, func(base, dir string) error { return repo.clone(ctx, dir, &o) })
	}
	if scheme, _, ok := strings.Cut(ref, "://"); ok {
		format := formatOf(urlPath(ref))
		if s := strings.ToLower(scheme); (s != "https" && s != "http") || format == "" {
			return "", nil, fault.New(fault.Invalid, "it is none: %s", possible)
		}
		return inTemp(o, func(base, dir string) error {
			file := filepath.Join(base, "download")
			if err := download(ctx, ref, file, &o); err != nil {
				return err
			}
			if err := unpack(ctx, file, format, dir, &o); err != nil {
				return err
			}
			return os.Remove(file)
		})
	}
	st, err := os.Stat(ref)
	switch {
	case ref == "", errors.Is(err, fs.ErrNotExist) && formatOf(ref) == "":
		return "", nil, fault.New(fault.Invalid, "there is no such directory: %s", possible)
	case errors.Is(err, fs.ErrNotExist):
		return "", nil, fault.New(fault.NotFound, "there is no such file")
	case errors.Is(err, fs.ErrPermission):
		return "", nil, fault.New(fault.PermissionDenied, "%w", err)
	case err != nil:
		return "", nil, fault.New(fault.Invalid, "%w: %s", err, possible)
	case st.IsDir():
		dir, err := filepath.Abs(ref)
		return dir, func() {}, err
	case !st.Mode().IsRegular() || formatOf(ref) == "":
		return "", nil, fault.New(fault.Invalid, "it is a file, and no archive by its name: %s", possible)
	}
	return inTemp(o, func(_, dir string) error { return unpack(ctx, ref, formatOf(ref), dir, &o) })
}

// inTemp has fill make a directory within a temporary one, which it removes when that fails.
func inTemp(o Options, fill func(base, dir string) error) (string, func(), error) {
	base, err := os.MkdirTemp(o.Dir, "orchestrator-workspace-")
	if err != nil {
		return "", nil, fmt.Errorf("make a temporary directory: %w", err)
	}
	dir := filepath.Join(base, "workspace")
	if err := fill(base, dir); err != nil {
		if left := os.RemoveAll(base); left != nil {
			err = fmt.Errorf("%w; and it is not cleaned up: %w", err, left)
		}
		return "", nil, err
	}
	return dir, func() { _ = os.RemoveAll(base) }, nil
}

// formatOf returns the suffix by which an archive is known, "" when it has none.
func formatOf(name string) string {
	lower := strings.ToLower(name)
	for _, suffix := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".zip"} {
		if strings.HasSuffix(lower, suffix) {
			return suffix
		}
	}
	return ""
}
