// Discovery and forwarding, against an API server in memory.

package kube_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/kube"
	"github.com/neolith/orchestrator/internal/kube/kubetest"
)

func TestMain(m *testing.M) {
	// The library lingers for a second over a tunnel that has been closed.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/moby/spdystream.(*Connection).shutdown"))
}

// echo answers each line with a name and the line.
func echo(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer c.Close()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					fmt.Fprintf(c, "%s: %s\n", name, lines.Text())
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); served.Wait() })
	return l.Addr().String()
}

func find(t *testing.T, rel kube.Release) *kube.Reach {
	t.Helper()
	r, err := kube.Find(t.Context(), rel)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// ask sends a line over a new connection.
func ask(ctx context.Context, r *kube.Reach, line string) (string, error) {
	c, err := r.Dial(ctx, "ignored")
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(c, line); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(answer), err
}

func TestFind(t *testing.T) {
	s := kubetest.New(t, "agents")
	s.AddRelease("prod", "secret-token", []byte("-----BEGIN"))
	r := find(t, kube.Release{Kubeconfig: s.Kubeconfig, Name: "prod"})
	if r.Token != "secret-token" || string(r.CA) != "-----BEGIN" || r.Host() != "prod-orchestrator.agents.svc" || r.Release.Namespace != "agents" {
		t.Errorf("found %+v", r)
	}
	if r := find(t, kube.Release{Kubeconfig: s.Kubeconfig}); r.Release.Name != "prod" {
		t.Errorf("the only release of the namespace is %q", r.Release.Name)
	}
	s.AddRelease("plain", "", nil)
	if r := find(t, kube.Release{Kubeconfig: s.Kubeconfig, Name: "plain"}); r.Token != "" || r.CA != nil {
		t.Errorf("a release without TLS has %+v", r)
	}
}

func TestFindRefuses(t *testing.T) {
	s := kubetest.New(t, "agents")
	s.AddRelease("a", "token", []byte("-----BEGIN"))
	s.AddRelease("b", "token", []byte("-----BEGIN"))
	s.AddRelease("broken", "token", nil)
	delete(s.Secrets, "broken-orchestrator-admin-token")
	s.AddRelease("empty", "token", nil)
	s.Secrets["empty-orchestrator-admin-token"] = map[string][]byte{"other": nil}
	for _, c := range []struct {
		rel  kube.Release
		kind fault.Kind
		want string
	}{
		{kube.Release{Name: "c"}, fault.NotFound, `no release "c"`},
		{kube.Release{}, fault.Invalid, "a, b, broken, empty; say which"},
		{kube.Release{Name: "broken"}, fault.NotFound, "broken-orchestrator-admin-token"},
		{kube.Release{Name: "empty"}, fault.FailedPrecondition, `no "token"`},
		{kube.Release{Namespace: "another"}, fault.PermissionDenied, "pods/portforward"},
		{kube.Release{Context: "stranger"}, fault.Unauthenticated, "--kube-context"},
		{kube.Release{Context: "none"}, fault.Invalid, "KUBECONFIG"},
		{kube.Release{Kubeconfig: "/nonexistent"}, fault.Invalid, "--kubeconfig"},
	} {
		if c.rel.Kubeconfig == "" {
			c.rel.Kubeconfig = s.Kubeconfig
		}
		_, err := kube.Find(t.Context(), c.rel)
		if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v (%s), not %s with %q", c.rel, err, fault.KindOf(err), c.kind, c.want)
		}
	}
}

func TestDial(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("old=%t", old), func(t *testing.T) {
			s := kubetest.New(t, "agents")
			s.NoWebSockets = old
			s.AddRelease("prod", "token", nil)
			s.Pods = []kubetest.Pod{
				{Name: "server-0", Ready: true, Backend: echo(t, "server-0")}, {Name: "server-1", Backend: echo(t, "server-1")},
				{Name: "server-2", Ready: true, Gone: true, Backend: echo(t, "server-2")}, {Name: "server-3", Ready: true, Backend: echo(t, "server-3")},
			}
			r := find(t, kube.Release{Kubeconfig: s.Kubeconfig, Name: "prod"})
			var answers []string
			for range 4 {
				answer, err := ask(t.Context(), r, "hello")
				if err != nil {
					t.Fatal(err)
				}
				answers = append(answers, answer)
			}
			if want := []string{"server-0: hello", "server-3: hello", "server-0: hello", "server-3: hello"}; !slices.Equal(answers, want) {
				t.Errorf("the answers are %q: not those of the ready ones, in turn", answers)
			}
			over := "server-0 websocket"
			if old {
				over = "server-0 spdy"
			}
			s.Lock()
			defer s.Unlock()
			if s.Forwarded[0] != over {
				t.Errorf("the first connection was %s", s.Forwarded[0])
			}
		})
	}
}

// A pod that is ready by name only is passed over once the kubelet says so, and nobody is served while none is ready.
func TestDialWhereNobodyIs(t *testing.T) {
	s := kubetest.New(t, "agents")
	s.AddRelease("prod", "token", nil)
	s.Pods = []kubetest.Pod{{Name: "server-0", Ready: true}}
	r := find(t, kube.Release{Kubeconfig: s.Kubeconfig, Name: "prod"})
	if _, err := ask(t.Context(), r, "hello"); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a pod without a listener: %v, not what the kubelet says", err)
	}
	s.Lock()
	s.Pods[0].Ready = false
	s.Unlock()
	if _, err := r.Dial(t.Context(), ""); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "none of the 1 server pods") {
		t.Errorf("no ready pod: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Dial(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has gone is told %v", err)
	}
}
