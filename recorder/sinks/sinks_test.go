// The sink that is opened is the one that is named, and what is wrong is told without its secrets.

package sinks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/recorder/postgres"
	"github.com/neolith/orchestrator/recorder/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOpen(t *testing.T) {
	c := recorder.Default()
	if _, err := Open(t.Context(), c, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("no file: %v", err)
	}
	c.SQLite.File = filepath.Join(t.TempDir(), "x.db")
	s, err := Open(t.Context(), c, nil)
	if _, ok := s.(*sqlite.Sink); !ok || err != nil {
		t.Fatalf("%T, %v", s, err)
	}
	s.Close()
	c.Sink = recorder.SinkNone
	if s, err := Open(t.Context(), c, nil); s != nil || err != nil {
		t.Errorf("%v, %v", s, err)
	}
	c.Sink, c.Postgres.URLFile = recorder.SinkPostgres, filepath.Join(t.TempDir(), "url")
	for _, file := range []struct {
		text string
		mode os.FileMode
		good bool
	}{
		{"postgres://ann:hunter2@127.0.0.1:1/x\n", 0o600, true},
		{"postgres://ann:hunter2@127.0.0.1:1/x\n", 0o640, true},
		{"postgres://ann:hunter2@127.0.0.1:1/x\n", 0o644, false},
		{"hunter2", 0o600, false},
		{"", 0o600, false},
		{strings.Repeat("hunter2", 1000), 0o600, false},
	} {
		os.Remove(c.Postgres.URLFile)
		if err := os.WriteFile(c.Postgres.URLFile, []byte(file.text), file.mode); err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), c, nil)
		if _, ok := s.(*postgres.Sink); ok != file.good || file.good != (err == nil) {
			t.Errorf("%+v: %T, %v", file, s, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows the password: %v", err)
		}
		if s != nil {
			s.Close()
		}
	}
	os.Remove(c.Postgres.URLFile)
	if _, err := Open(t.Context(), c, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("no such file: %v", err)
	}
}
