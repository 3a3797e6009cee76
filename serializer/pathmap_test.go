// Paths are rewritten as wholes.

package serializer_test

import (
	"testing"

	"github.com/neolith/orchestrator/serializer"
)

func TestRewritePaths(t *testing.T) {
	pairs := []serializer.PathPair{{Source: "/data/s", Root: "session"}, {Source: "/data/s/workspace", Root: "workspace"}, {Source: "/root", Root: "nowhere"}}
	places := map[string]string{"session": "/srv/x", "workspace": "/w"}
	for in, want := range map[string]string{
		"":        "",
		"/data/s": "/srv/x",
		`{"cwd":"/data/s/workspace/a","b":"/data/s/b"}`: `{"cwd":"/w/a","b":"/srv/x/b"}`,
		"/data/s/workspace2 /data/sx /x/data/s":         "/srv/x/workspace2 /data/sx /x/data/s",
		"/data/s:/data/s/workspace,/root/x":             "/srv/x:/w,/root/x",
		"/data/s.bak /data/s-1 /data/s/":                "/data/s.bak /data/s-1 /srv/x/",
		"file:///data/s ü/data/s":                       "file:///data/s ü/data/s",
		"no path at all":                                "no path at all",
		"/data/s/data/s":                                "/srv/x/data/s",
	} {
		if got := string(serializer.RewritePaths([]byte(in), pairs, places)); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	if got := string(serializer.RewritePaths([]byte("/data/s"), pairs, nil)); got != "/data/s" {
		t.Error(got)
	}
}
