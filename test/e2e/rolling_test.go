// A cluster of three servers whose servers are restarted one after the other, as by an upgrade: nobody who calls notices.

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
)

// trio is a cluster of three servers, and agents that know all of them. What it does with sessions, nodes and calls is small's.
type trio struct {
	*small
	servers []*process
	bases   []int // the first of each server's five ports
	// settings are further ones of each server.
	settings map[string]any
}

func (c *trio) at(server, port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.bases[server]+port))
}

// named is the same port under a name.
func (c *trio) named(server, port int) string {
	return net.JoinHostPort("localhost", strconv.Itoa(c.bases[server]+port))
}

// startTrio starts it. Everything is on loopback and open to all.
func startTrio(t *testing.T, agents int) *trio {
	t.Helper()
	return startTrioWith(t, agents, nil)
}

// startTrioWith starts it with further settings of the servers.
func startTrioWith(t *testing.T, agents int, settings map[string]any) *trio {
	t.Helper()
	c := &trio{small: &small{t: t, dir: t.TempDir()}, settings: settings}
	for range 3 {
		c.bases = append(c.bases, ports(t, 5))
	}
	var grpc, links []string
	for i := range 3 {
		grpc, links = append(grpc, c.at(i, 2)), append(links, c.at(i, 3))
	}
	for i := range 3 {
		c.startServer(i)
	}
	for i := range agents {
		name := fmt.Sprintf("node-%d", i+1)
		c.agents = append(c.agents, start(t, name, "node-agent", "run", "--config", writeYAML(t, c.dir, name+".yaml", map[string]any{
			"name": name, "data_dir": filepath.Join(c.dir, name), "servers": links, "log": map[string]string{"level": "debug"},
		})))
	}
	var err error
	if c.c, err = client.New(client.Config{Addresses: grpc, Timeout: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.c.Close() })
	for i := range c.servers {
		c.untilReady(i)
	}
	c.until("all nodes are linked", func(ctx context.Context) bool { return c.linked(ctx) == agents })
	return c
}

// startServer starts a server for the first time; its ports are there.
func (c *trio) startServer(i int) {
	c.t.Helper()
	name := fmt.Sprintf("server-%d", i+1)
	settings := map[string]any{
		"name": name, "data_dir": filepath.Join(c.dir, name), "auth": map[string]any{"tokens": false},
		"listen": map[string]string{"gossip": c.at(i, 0), "raft": c.at(i, 1), "grpc": c.at(i, 2), "link": c.at(i, 3), "client": c.at(i, 4)},
		// By name, as servers whose addresses may change.
		"advertise":        map[string]string{"gossip": c.named(i, 0), "raft": c.named(i, 1), "grpc": c.named(i, 2)},
		"bootstrap_expect": 3, "join": []string{c.named(0, 0), c.named(1, 0), c.named(2, 0)}, "raft": map[string]string{"remove_left_after": "10s"},
		"log": map[string]string{"level": "debug"},
	}
	maps.Copy(settings, c.settings)
	c.servers = append(c.servers, start(c.t, name, "orchestrator", "serve", "--config", writeYAML(c.t, c.dir, name+".yaml", settings)))
}

// voters are the servers that vote, in the order of their names.
func (c *trio) voters(ctx context.Context) (names []string) {
	r, err := c.c.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
	if err != nil {
		return nil
	}
	for _, m := range r.GetMembers() {
		if m.GetRole() == apiv1.Member_LEADER || m.GetRole() == apiv1.Member_FOLLOWER {
			names = append(names, m.GetId())
		}
	}
	slices.Sort(names)
	return names
}

// ready is what a server says of whether it can serve: the status, and why not; empty when nobody answers.
func (c *trio) ready(server int) (status, reason string) {
	r, err := http.Get("http://" + c.at(server, 4) + "/ready")
	if err != nil {
		return "", ""
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	var said struct{ Status, Reason string }
	if json.Unmarshal(b, &said) != nil {
		return string(b), ""
	}
	return said.Status, said.Reason
}

func (c *trio) untilReady(server int) {
	c.t.Helper()
	c.until(fmt.Sprintf("server %d is ready", server+1), func(context.Context) bool {
		status, _ := c.ready(server)
		return status == "ready"
	})
}

// leads is which server leads.
func (c *trio) leads() (leader int) {
	c.t.Helper()
	c.until("a server leads", func(ctx context.Context) bool {
		r, err := c.c.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
		for _, m := range r.GetMembers() {
			if m.GetRole() == apiv1.Member_LEADER && err == nil {
				_, err = fmt.Sscanf(m.GetId(), "server-%d", &leader)
				return err == nil
			}
		}
		return false
	})
	return leader - 1
}

// gaps sends messages that nobody waits for, one after the other, and returns the longest time between two that were accepted.
func (c *trio) gaps(id string) (end func() time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	longest, failed := time.Duration(0), error(nil)
	var wait sync.WaitGroup
	wait.Go(func() {
		last := time.Now()
		for n := 0; ctx.Err() == nil; n++ {
			if _, err := c.c.Sessions.SendMessage(context.Background(), &apiv1.SendMessageRequest{SessionId: id, Text: []byte("x"), IdempotencyKey: fmt.Sprint("gap-", n)}); err != nil {
				failed = errors.Join(failed, err)
			}
			longest, last = max(longest, time.Since(last)), time.Now()
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	return func() time.Duration {
		c.t.Helper()
		cancel()
		wait.Wait()
		if failed != nil {
			c.t.Errorf("messages were refused: %v", failed)
		}
		return longest
	}
}

func TestServersAreRestartedOneByOne(t *testing.T) {
	t.Parallel()
	watch := newObserver(t)
	c := startTrio(t, 2)
	var ids []string
	var ends []func() int
	var follows []func(uint64) uint64
	for i := range 4 {
		row := c.spawn(&apiv1.SessionSpec{Name: fmt.Sprint("watched-", i), Command: watch.keeping()})
		ids, follows, ends = append(ids, row.GetId()), append(follows, c.followLines(row.GetId())), append(ends, c.talk(row.GetId()))
	}
	quiet := c.spawn(&apiv1.SessionSpec{Name: "quiet", Command: watch.keeping()})
	gaps := c.gaps(quiet.GetId())

	// The leader first, then whoever leads by then, and the last one.
	restarted := map[int]bool{}
	for range c.servers {
		i := c.leads()
		for restarted[i] {
			i = (i + 1) % len(c.servers)
		}
		restarted[i] = true
		began := time.Now()
		if code := c.servers[i].end(syscall.SIGTERM); code != 0 {
			t.Errorf("server %d ended with exit code %d", i+1, code)
		}
		took := time.Since(began)
		if took > 8*time.Second {
			t.Errorf("server %d took %s to end", i+1, took)
		}
		c.servers[i].run()
		c.untilReady(i)
		t.Logf("server %d ended in %s and was ready again after %s", i+1, took.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	}
	longest := gaps()
	t.Logf("the longest time between two accepted messages was %s", longest.Round(time.Millisecond))
	if longest > 5*time.Second {
		t.Errorf("for %s nothing was accepted", longest)
	}
	for i, end := range ends {
		total := end()
		if last := follows[i](uint64(total)); last != uint64(total) {
			t.Errorf("who followed the output saw %d lines of %d", last, total)
		}
		row := c.session(ids[i])
		text, notices := c.lines(ids[i])
		if row.GetEpoch() != 1 || len(text) != total || notices != 0 {
			t.Errorf("%s: epoch %d, %d lines and %d notices of %d answers", row.GetName(), row.GetEpoch(), len(text), notices, total)
		}
	}
	watch.check(t)
}

// TestAServerThatStopsSaysSo: it is not ready while it still answers, and the leadership is another one's when it has ended.
func TestAServerThatStopsSaysSo(t *testing.T) {
	t.Parallel()
	c := startTrio(t, 1)
	i := c.leads()
	// A call that waits for ever on that very server: it holds up the end for a moment, and no longer.
	row := c.spawn(&apiv1.SessionSpec{Command: []string{"sleep", "1000"}})
	waits, err := client.New(client.Config{Addresses: []string{c.at(i, 2)}, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer waits.Close()
	refused := make(chan error, 1)
	go func() {
		_, err := waits.Sessions.SendMessage(context.Background(), &apiv1.SendMessageRequest{SessionId: row.GetId(), Text: []byte("x"), Wait: true})
		refused <- err
	}()
	c.until("the call waits", func(context.Context) bool { return c.session(row.GetId()).GetMailbox().GetDelivered() > 0 })
	c.servers[i].signal(syscall.SIGTERM)
	said := false
	c.until("it has stopped", func(context.Context) bool {
		status, reason := c.ready(i)
		said = said || status == "not ready" && reason == "the server is stopping"
		return status == ""
	})
	if !said {
		t.Error("it never said that it stops")
	}
	if code := c.servers[i].wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if err := <-refused; err == nil {
		t.Error("a call that nobody can answer was answered")
	}
	if !c.servers[i].says("handed the leadership over") {
		t.Error("it did not hand the leadership over")
	}
	if c.leads() == i {
		t.Errorf("server %d still leads", i+1)
	}
}

// TestFewerServersAreLeft: two more servers join by themselves and vote; when they are stopped for good, the others do without them by
// themselves, and can afford to lose one more.
func TestFewerServersAreLeft(t *testing.T) {
	t.Parallel()
	watch := newObserver(t)
	c := startTrio(t, 1)
	row := c.spawn(&apiv1.SessionSpec{Name: "watched", Command: watch.keeping()})
	end := c.talk(row.GetId())
	for i := 3; i < 5; i++ {
		c.bases = append(c.bases, ports(t, 5))
		c.startServer(i)
	}
	five := []string{"server-1", "server-2", "server-3", "server-4", "server-5"}
	c.until("all five vote", func(ctx context.Context) bool { return slices.Equal(c.voters(ctx), five) })

	// Both at once, as when a set of pods shrinks; one of them leads.
	if _, err := c.c.Cluster.TransferLeadership(t.Context(), &apiv1.TransferLeadershipRequest{Id: five[4]}); err != nil {
		t.Fatal(err)
	}
	c.servers[3].signal(syscall.SIGTERM)
	c.servers[4].signal(syscall.SIGTERM)
	for _, i := range []int{3, 4} {
		if code := c.servers[i].wait(); code != 0 {
			t.Errorf("server %d ended with exit code %d", i+1, code)
		}
	}
	c.until("three vote", func(ctx context.Context) bool { return slices.Equal(c.voters(ctx), five[:3]) })
	c.servers[c.leads()].kill()
	if c.count(c.spawn(&apiv1.SessionSpec{Name: "after", Command: watch.keeping()}).GetId()) != 1 {
		t.Error("what was spawned after the loss counts wrong")
	}
	if end() == 0 || c.session(row.GetId()).GetEpoch() != 1 {
		t.Error("the session did not work on")
	}
	watch.check(t)
}

// TestAServerThatLostItsDisk: it comes back under its name with nothing, and is given all there is.
func TestAServerThatLostItsDisk(t *testing.T) {
	t.Parallel()
	watch := newObserver(t)
	c := startTrio(t, 1)
	row := c.spawn(&apiv1.SessionSpec{Name: "watched", Command: watch.keeping()})
	end := c.talk(row.GetId())
	lost := (c.leads() + 1) % 3
	c.servers[lost].kill()
	if err := os.RemoveAll(filepath.Join(c.dir, fmt.Sprintf("server-%d", lost+1))); err != nil {
		t.Fatal(err)
	}
	c.servers[lost].run()
	c.untilReady(lost)
	c.servers[c.leads()].kill() // what it was given counts
	if c.count(c.spawn(&apiv1.SessionSpec{Name: "after", Command: watch.keeping()}).GetId()) != 1 {
		t.Error("what was spawned after the loss counts wrong")
	}
	if end() == 0 || c.session(row.GetId()).GetEpoch() != 1 {
		t.Error("the session did not work on")
	}
	watch.check(t)
}
