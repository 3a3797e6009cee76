// Cloning: which references are git repositories, and how the machine's git is run so that it neither asks nor stays behind.

package workspace

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

const (
	gitEndMax         = 5 * time.Second // between the end of git and that of what holds its output
	gitMaxStderrBytes = 8 << 10         // the last ones are kept
)

// repository is where to clone from.
type repository struct {
	url    string
	ref    string // a branch or a tag; the head when empty
	commit string // instead
	secret string // within url, not to be shown or kept
}

var (
	scpLike = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9._-]*:[^-]`)
	commits = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
	// What git takes for the name of a branch or a tag, or a little less.
	refName = regexp.MustCompile(`^[\pL\pN_+@=%,#.][\pL\pN_+@=%,#./-]*$`)
)

// parseGit reports whether a reference is a git repository's, and which.
func parseGit(ref string) (repo repository, ok bool, err error) {
	where, at, has := strings.Cut(ref, "#")
	repo.url = where
	if scheme, rest, isURL := strings.Cut(where, "://"); isURL {
		scheme = strings.ToLower(scheme)
		plain, marked := strings.CutPrefix(scheme, "git+")
		switch {
		case marked && slices.Contains([]string{"https", "http", "ssh", "file", "git"}, plain):
		case scheme == "ssh" || scheme == "git":
		case (scheme == "https" || scheme == "http" || scheme == "file") && strings.HasSuffix(urlOrPath(where), ".git"):
		default:
			return repo, false, nil
		}
		repo.url = plain + "://" + rest
		u, err := url.Parse(repo.url)
		if err != nil {
			return repo, false, fault.New(fault.Invalid, "%w", scrub(err))
		}
		if bad := strings.HasPrefix(u.Host, "-") || strings.HasPrefix(u.User.Username(), "-") || strings.ContainsFunc(where, isControl); bad || (u.Host == "" && plain != "file") || u.Path == "" {
			return repo, false, fault.New(fault.Invalid, "that is no address of a git repository: %s", possible)
		}
		repo.secret, _ = u.User.Password()
	} else if !scpLike.MatchString(where) || strings.ContainsFunc(where, isControl) {
		return repo, false, nil
	} else if _, err := os.Stat(ref); err == nil {
		return repo, false, nil // a file that is called so
	}
	switch {
	case commits.MatchString(at):
		repo.commit = at
	case !has:
	case !refName.MatchString(at) || strings.Contains(at, "..") || strings.Contains(at, "@{") || strings.Contains(at, "//") || strings.HasSuffix(at, "/") || strings.HasSuffix(at, ".lock"):
		return repo, false, fault.New(fault.Invalid, "%.100q is no branch, tag or commit", at)
	default:
		repo.ref = at
	}
	return repo, true, nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// urlOrPath returns the path of an address that may have no host.
func urlOrPath(ref string) string {
	u, err := url.Parse(ref)
	if err != nil {
		return ""
	}
	return u.Path
}

// clone makes dir a clone, one commit deep.
func (r *repository) clone(ctx context.Context, dir string, o *Options) error {
	git, err := exec.LookPath(o.Git)
	if err != nil {
		return fault.New(fault.FailedPrecondition, "git is needed for that, and is not here (%w): install it, or give a directory or an archive", err)
	}
	o.progress(Progress{Step: "cloning"})
	steps := [][]string{{"clone", "--quiet", "--depth=1", "--single-branch", "--origin=origin"}}
	if r.ref != "" {
		steps[0] = append(steps[0], "--branch="+r.ref)
	}
	if r.commit != "" {
		steps[0] = append(steps[0], "--no-checkout")
		steps = append(steps,
			[]string{"-C", dir, "fetch", "--quiet", "--depth=1", "--no-tags", "--", "origin", r.commit},
			[]string{"-C", dir, "checkout", "--quiet", "--detach", r.commit, "--"})
	}
	steps[0] = append(steps[0], "--", r.url, dir)
	if r.secret != "" { // or the session would carry it around, in every checkpoint
		u, err := url.Parse(r.url)
		if err != nil {
			return fault.New(fault.Invalid, "%w", scrub(err))
		}
		u.User = url.User(u.User.Username())
		steps = append(steps, []string{"-C", dir, "remote", "set-url", "origin", u.String()})
	}
	for _, args := range steps {
		if err := r.run(ctx, git, args); err != nil {
			return err
		}
	}
	return measure(ctx, dir, o)
}

// local are the variables by which git, when it runs something itself, says which repository is meant; not that one.
var local = []string{"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR",
	"GIT_NAMESPACE", "GIT_PREFIX", "GIT_SHALLOW_FILE", "GIT_GRAFT_FILE", "GIT_IMPLICIT_WORK_TREE"}

// run runs git, with whatever it starts, until it ends or ctx does.
func (r *repository) run(ctx context.Context, git string, args []string) error {
	cmd := exec.CommandContext(ctx, git, append([]string{"-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "core.fsmonitor=false", "-c", "advice.detachedHead=false"}, args...)...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(local, name)
	})
	// Not ext::, which runs a command, nor helpers that somebody has installed.
	cmd.Env = append(cmd.Env, "GIT_TERMINAL_PROMPT=0", "GIT_ALLOW_PROTOCOL=https:http:ssh:git:file", "LC_ALL=C")
	stderr := &tail{}
	cmd.Stderr = stderr
	// A session of its own is a process group to kill, and has no terminal that ssh could ask on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	cmd.WaitDelay = gitEndMax
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	said := stderr.String()
	if r.secret != "" {
		said = strings.ReplaceAll(said, r.secret, "xxxxx")
		said = strings.ReplaceAll(said, url.QueryEscape(r.secret), "xxxxx")
	}
	return gitError(said, err)
}

// gitError makes an error of what git said.
func gitError(said string, err error) error {
	kind, remedy := fault.Unavailable, ""
	has := func(all ...string) bool {
		return slices.ContainsFunc(all, func(s string) bool { return strings.Contains(said, s) })
	}
	switch {
	case has("Authentication failed", "could not read Username", "could not read Password", "Permission denied", "Host key verification failed", "terminal prompts disabled"):
		kind, remedy = fault.PermissionDenied, "; see to it that `git clone` works here without asking"
	case has("Remote branch", "unadvertised object", "not our ref", "couldn't find remote ref", "Could not find remote branch"):
		kind, remedy = fault.NotFound, "; give a branch, a tag, or all digits of a commit"
	case has("not found", "does not exist", "does not appear to be a git repository"):
		kind = fault.NotFound
	}
	var lines []string
	for line := range strings.Lines(said) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return fault.New(kind, "git: %w%s", err, remedy)
	}
	return fault.New(kind, "git: %.600s (%w)%s", strings.Join(lines, "; "), err, remedy)
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - gitMaxStderrBytes; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

// String returns it as text.
func (t *tail) String() string { return strings.ToValidUTF8(string(t.b), "?") }

// measure refuses a clone that is larger than it may be.
func measure(ctx context.Context, dir string, o *Options) error {
	entries, bytes := 0, int64(0)
	return filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entries++; d.Type().IsRegular() {
			st, err := d.Info()
			if err != nil {
				return err
			}
			bytes += st.Size()
		}
		if entries > o.MaxEntries || bytes > o.MaxBytes {
			return fault.New(fault.Exhausted, "the clone has more than the %d entries or %d bytes that are allowed here", o.MaxEntries, o.MaxBytes)
		}
		return ctx.Err()
	})
}
