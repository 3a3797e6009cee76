// The first configuration, the data directory, and the guard of the disk.

package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/neolith/orchestrator/internal/fault"
)

func member(id string, expect int, change ...func(*gossipMember)) gossipMember {
	m := gossipMember{ID: id, Status: memberAlive, Meta: memberMeta{RaftAddress: id + ":8076", Expect: expect}}
	for _, c := range change {
		c(&m)
	}
	return m
}

func TestFirstConfiguration(t *testing.T) {
	formed := func(m *gossipMember) { m.Meta.Formed = true }
	failed := func(m *gossipMember) { m.Status = memberFailed }
	for name, tc := range map[string]struct {
		members []gossipMember
		expect  int
		waits   string
	}{
		"one of one":             {[]gossipMember{member("a", 1)}, 1, ""},
		"three of three":         {[]gossipMember{member("c", 3), member("a", 3), member("b", 3)}, 3, ""},
		"two of three":           {[]gossipMember{member("a", 3), member("b", 3)}, 3, "fewer"},
		"a failed one":           {[]gossipMember{member("a", 3), member("b", 3), member("c", 3, failed)}, 3, "fewer"},
		"one too many":           {[]gossipMember{member("a", 3), member("b", 3), member("c", 3), member("d", 3)}, 3, "more"},
		"one that only joins":    {[]gossipMember{member("a", 1), member("b", 0)}, 1, ""},
		"different expectations": {[]gossipMember{member("a", 3), member("b", 5), member("c", 3)}, 3, "another number"},
		"a cluster is there":     {[]gossipMember{member("a", 3), member("b", 3), member("c", 3, formed)}, 3, "belongs to a cluster"},
	} {
		servers, why := firstConfiguration(tc.members, tc.expect)
		if tc.waits != "" {
			if !strings.Contains(why, tc.waits) || servers != nil {
				t.Errorf("%s: %v, %q", name, servers, why)
			}
			continue
		}
		if why != "" || len(servers) != tc.expect {
			t.Errorf("%s: %v, waits because %q", name, servers, why)
		}
		for i := 1; i < len(servers); i++ {
			if servers[i-1].ID >= servers[i].ID {
				t.Errorf("%s: not the same on every server: %v", name, servers)
			}
		}
	}
}

func TestDataDirRefusals(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	d, err := OpenDataDir(dir, "prod", "server-1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDataDir(dir, "prod", "server-1"); !fault.Is(err, fault.FailedPrecondition) {
		t.Errorf("in use: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	refused := func(name, cluster, server, want string) {
		t.Helper()
		d, err := OpenDataDir(dir, cluster, server)
		if err == nil {
			_ = d.Close()
		}
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused("another cluster", "test", "server-1", `belongs to cluster "prod"`)
	refused("another server", "prod", "server-2", `belongs to server "server-1"`)
	record := filepath.Join(dir, "server.json")
	if err := os.WriteFile(record, []byte(`{"version":99,"cluster":"prod","server":"server-1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a newer release", "prod", "server-1", "run the newer release")
	if err := os.WriteFile(record, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("a torn record", "prod", "server-1", "restore it")
}

// slowStore is a log whose writes wait.
type slowStore struct {
	raft.LogStore
	began, goOn chan struct{}
}

func (s slowStore) StoreLogs([]*raft.Log) error {
	close(s.began)
	<-s.goOn
	return nil
}

func TestStallGuardSeesTheWriteUnderWay(t *testing.T) {
	s := slowStore{began: make(chan struct{}), goOn: make(chan struct{})}
	g := newStallGuard(s)
	if g.stalled(time.Now().Add(time.Hour)) != 0 {
		t.Error("stalled while nothing is written")
	}
	done := make(chan error)
	go func() { done <- g.StoreLog(&raft.Log{}) }()
	<-s.began
	if d := g.stalled(time.Now().Add(time.Hour)); d < time.Hour {
		t.Errorf("stalled for %s", d)
	}
	close(s.goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if g.stalled(time.Now().Add(time.Hour)) != 0 || g.writes.Load() != 1 {
		t.Error("still stalled after the write")
	}
}
