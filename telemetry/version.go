// Which build is this?

package telemetry

import (
	"runtime"
	"runtime/debug"
	"strings"
)

// version is set by the linker: -ldflags "-X github.com/neolith/orchestrator/telemetry.version=v1.2.3".
var version string

// Build identifies a binary.
type Build struct {
	Version  string // v1.2.3, or "dev" when the linker was told nothing
	Commit   string // of the source; empty when it was not built from a checkout
	Modified bool   // the checkout had changes that were not committed
	Go       string // of the compiler, such as go1.26.8
}

// ThisBuild identifies the running binary.
func ThisBuild() Build {
	b := Build{Version: version, Go: runtime.Version()}
	if b.Version == "" {
		b.Version = "dev"
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Commit = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
	}
	return b
}

// String is what --version shows: v1.2.3 (4f3c2b1a9d8e, go1.26.8).
func (b Build) String() string {
	details := make([]string, 0, 2)
	if b.Commit != "" {
		commit := b.Commit[:min(12, len(b.Commit))]
		if b.Modified {
			commit += "+changes"
		}
		details = append(details, commit)
	}
	return b.Version + " (" + strings.Join(append(details, b.Go), ", ") + ")"
}
