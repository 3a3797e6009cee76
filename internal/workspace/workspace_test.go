// What is a reference and what is none; directories; downloads.

package workspace

import (
	"archive/tar"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

func TestDirectoriesAreUsedInPlace(t *testing.T) {
	dir, tmp := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "me@host:x.git"), 0o700))
	t.Chdir(dir)
	for ref, want := range map[string]string{dir: dir, dir + "/": dir, ".": dir, "me@host:x.git": filepath.Join(dir, "me@host:x.git")} {
		got, cleanup, err := Open(t.Context(), ref, Options{Dir: tmp})
		must(t, err)
		cleanup()
		if st, err := os.Stat(got); err != nil || !st.IsDir() || got != want {
			t.Errorf("%s: %s, %v", ref, got, err)
		}
	}
	empty(t, tmp, "directories")
}

func TestWhatIsNoReference(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600))
	for ref, kind := range map[string]fault.Kind{
		"": fault.Invalid, "/nowhere/at/all": fault.Invalid, filepath.Join(dir, "notes.txt"): fault.Invalid, filepath.Join(dir, "none.tar.gz"): fault.NotFound,
		"https://example.com/": fault.Invalid, "https://example.com/x.rar": fault.Invalid, "http:///x.tar": fault.Invalid, "https://example.com/x?y=.tar": fault.Invalid,
		"ftp://example.com/x.tar": fault.Invalid, "file:///tmp/x.tar": fault.Invalid, "ext::sh -c touch% /tmp/x": fault.Invalid, "git+ext://x/y.git": fault.Invalid,
		"host:path": fault.Invalid, "s3://bucket/x.tar": fault.Invalid, "-x@host:y": fault.Invalid, "/dev/null": fault.Invalid, "x\x00.tar": fault.Invalid,
		"ssh://-oProxyCommand=x/y": fault.Invalid, "ssh://-u@host/y": fault.Invalid, "ssh://host": fault.Invalid, "https://exa mple.com/x.git": fault.Invalid,
		"https://example.com/x.git#-x": fault.Invalid, "https://example.com/x.git#": fault.Invalid, "https://example.com/x.git#a..b": fault.Invalid, "me@host:x#--upload-pack=y": fault.Invalid,
		"https://example.com/x.git#a b": fault.Invalid, "https://example.com/x.git#a:b": fault.Invalid, "https://example.com/x.git#a\nb": fault.Invalid, "git+https:///x": fault.Invalid,
	} {
		tmp := t.TempDir()
		_, cleanup, err := Open(t.Context(), ref, Options{Dir: tmp, Git: "/nowhere/git"})
		if cleanup(); !fault.Is(err, kind) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", ref, err)
		}
		empty(t, tmp, ref)
	}
	for _, ref := range []string{"https://me:hunter2@exa mple.com/x.tar", "https://me:hunter2@example.com/x?sig=hunter2", "git+https://me:hunter2@example.com/x?sig=hunter2#a b", "ftp://me:hunter2@x/y"} {
		if _, _, err := Open(t.Context(), ref, Options{}); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Error(err)
		}
	}
	_, _, err := Open(t.Context(), "nonsense", Options{})
	for _, what := range []string{"a directory", ".tar.zst", ".zip", "http(s)://", "git+https://", "#branch"} {
		if !strings.Contains(err.Error(), what) {
			t.Errorf("it does not say that %s is possible: %v", what, err)
		}
	}
}

// serve answers every request.
func serve(t *testing.T, h http.HandlerFunc) (address string, client *http.Client) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL, s.Client()
}

func TestDownload(t *testing.T) {
	for suffix, data := range every(t, entry{tar.TypeReg, "a/b", 0o600, noise(3<<20, 1)}) {
		url, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept-Encoding") != "identity" {
				t.Error("it may come unpacked")
			}
			user, password, _ := r.BasicAuth()
			if user != "me" || password != "hunter2" || r.URL.RawQuery != "v=1" {
				t.Errorf("%s asks for %s", user, r.URL)
			}
			_, _ = w.Write(data)
		})
		tmp, steps := t.TempDir(), map[string]Progress{}
		ref := strings.Replace(url, "//", "//me:hunter2@", 1) + "/x" + suffix + "?v=1#frag"
		dir, cleanup, err := Open(t.Context(), ref, Options{Dir: tmp, Progress: func(p Progress) { steps[p.Step] = p }})
		must(t, err)
		if text, err := os.ReadFile(filepath.Join(dir, "a/b")); err != nil || len(text) != 3<<20 {
			t.Errorf("%s: %d bytes, %v", suffix, len(text), err)
		}
		if steps["downloading"].Bytes != int64(len(data)) || steps["unpacking"].Bytes != int64(len(data)) {
			t.Errorf("%s: %v", suffix, steps)
		}
		if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) != 1 {
			t.Errorf("%s: beside it: %v", suffix, left)
		}
		cleanup()
		empty(t, tmp, suffix)
	}
}

func TestDownloadsThatFail(t *testing.T) {
	data := tarOf(t, entry{tar.TypeReg, "a", 0o600, noise(200_000, 1)})
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request)
		kind   fault.Kind
		says   string
	}{
		"not there":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, fault.NotFound, "404 Not Found"},
		"not allowed": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, fault.PermissionDenied, "401"},
		"in trouble":  {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, fault.Unavailable, "503"},
		"announced": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000001")
			w.WriteHeader(200)
		}, fault.Exhausted, "1000001 bytes"},
		"too much":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 2_000_000)) }, fault.Exhausted, "1000000 bytes"},
		"damaged":   {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data[:100_000]) }, fault.Invalid, "cut off"},
		"on and on": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, fault.Unavailable, "on and on"},
		"breaking off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "400000")
			_, _ = w.Write(data)
		}, fault.Unavailable, "after"},
		"another thing": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>sign in</html>")) }, fault.Invalid, "cut off"},
	} {
		url, _ := serve(t, c.answer)
		tmp := t.TempDir()
		ref := strings.Replace(url, "//", "//me:hunter2@", 1) + "/x.tar"
		_, _, err := Open(t.Context(), ref, Options{Dir: tmp, MaxDownloadBytes: 1_000_000})
		if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		empty(t, tmp, name)
	}
	if _, _, err := Open(t.Context(), "http://me:hunter2@127.0.0.1:1/x.tar", Options{}); !fault.Is(err, fault.Unavailable) || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
}

func TestNoDownloadFromHTTPSToHTTP(t *testing.T) {
	plain, _ := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("it was followed") })
	s := httptest.NewTLSServer(http.RedirectHandler(plain+"/x.tar", http.StatusFound))
	defer s.Close()
	c, done := client()
	defer done()
	c.Transport = s.Client().Transport
	if _, _, err := Open(t.Context(), s.URL+"/x.tar", Options{Dir: t.TempDir(), Client: c}); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "from https to http") {
		t.Error(err)
	}
}

// hanging sends a little, and then nothing.
func hanging(t *testing.T) (address string) {
	gone := make(chan struct{})
	url, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(make([]byte, 100))
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-gone:
		}
	})
	t.Cleanup(func() { close(gone) }) // before the server is closed, which waits
	return url
}

func TestDownloadStalls(t *testing.T) {
	tmp := t.TempDir()
	_, _, err := Open(t.Context(), hanging(t)+"/x.tar", Options{Dir: tmp, stall: 50 * time.Millisecond})
	if !fault.Is(err, fault.Unavailable) || !errors.Is(err, errStalled) {
		t.Error(err)
	}
	empty(t, tmp, "stalled")
}

func TestDownloadCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tmp, url := t.TempDir(), hanging(t)
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, _, err := Open(ctx, url+"/x.tar", Options{Dir: tmp}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	empty(t, tmp, "canceled")
	if _, _, err := Open(ctx, tmp, Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
