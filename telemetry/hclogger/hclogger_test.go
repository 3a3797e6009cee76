// What HashiCorp's libraries log arrives, with its level, its name and its arguments.

package hclogger

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

func capture(level slog.Leveler) (hclog.Logger, *bytes.Buffer) {
	var buf bytes.Buffer
	h := slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	return New(slog.New(h), "raft"), &buf
}

func TestLines(t *testing.T) {
	l, buf := capture(slog.LevelDebug)
	l.Trace("unseen")
	l.Debug("a", "n", 1)
	l.Info("b", "peer", netip.MustParseAddr("10.0.0.1"), "error", errors.New("gone"))
	l.Warn("c", "odd")
	l.Error("d", 7, "key", "f", hclog.Fmt("%d%%", 5), "empty", hclog.Format{})
	l.Named("wal").With("seg", 3).Info("e")
	l.With("term", 2).ResetNamed("autopilot").Info("f", "x", "y z")
	l.StandardLogger(nil).Print("[ERR] g\n")
	want := `level=DEBUG msg=a component=raft n=1
level=INFO msg=b component=raft peer=10.0.0.1 error=gone
level=WARN msg=c component=raft extra=odd
level=ERROR msg=d component=raft 7=key f=5%
level=INFO msg=e component=raft.wal seg=3
level=INFO msg=f component=autopilot term=2 x="y z"
level=ERROR msg=g component=raft
`
	if buf.String() != want {
		t.Errorf("got\n%s\nwant\n%s", buf, want)
	}
}

func TestLevels(t *testing.T) {
	var level slog.LevelVar
	level.Set(slog.LevelWarn)
	l, buf := capture(&level)
	if l.IsInfo() || !l.IsWarn() || !l.IsError() || l.GetLevel() != hclog.Warn {
		t.Errorf("at warn: info %v, warn %v, level %s", l.IsInfo(), l.IsWarn(), l.GetLevel())
	}
	l.SetLevel(hclog.Trace)
	l.Info("unseen")
	level.Set(levelTrace)
	l.Trace("seen")
	l.Log(hclog.Off, "unseen")
	if !l.IsTrace() || l.GetLevel() != hclog.Trace || strings.Contains(buf.String(), "unseen") || !strings.Contains(buf.String(), "msg=seen") {
		t.Errorf("got %s", buf)
	}
	if l.Name() != "raft" || l.Named("x").Name() != "raft.x" || len(l.With("a", 1).ImpliedArgs()) != 2 {
		t.Error("names or implied arguments are wrong")
	}
}

// A line that is not wanted costs nothing worth speaking of: raft logs in its hot path.
func TestDisabledDoesNotAllocate(t *testing.T) {
	l, _ := capture(slog.LevelInfo)
	args := []any{"n", "x"}
	if n := testing.AllocsPerRun(100, func() { l.Debug("unseen", args...) }); n > 0 {
		t.Errorf("%f allocations", n)
	}
}
