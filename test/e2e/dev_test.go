// A cluster as somebody has it who tries it: three servers and some nodes by `orchestrator dev`, with TLS and tokens.

package e2e

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/client"
)

// dev is one, with its administrator's token and a client of all its servers.
type dev struct {
	base  int
	data  string
	token string
	trust *tls.Config
	api   *client.Client
}

// startDev starts one with so many agents, and waits until they are linked.
func startDev(t *testing.T, agents int, flags ...string) *dev {
	t.Helper()
	d := &dev{base: ports(t, 30), data: filepath.Join(t.TempDir(), "dev")}
	start(t, "dev", "orchestrator", append([]string{
		"dev", "--servers", "3", "--agents", strconv.Itoa(agents), "--data", d.data, "--base-port", strconv.Itoa(d.base), "--no-context",
	}, flags...)...)
	until(t, "the cluster has its token", func(context.Context) bool {
		b, err := os.ReadFile(filepath.Join(d.data, "admin-token"))
		d.token = strings.TrimSpace(string(b))
		return err == nil && d.token != ""
	})
	var err error
	if d.trust, err = (client.TLSFiles{CA: filepath.Join(d.data, "ca", "ca.pem")}).Load(); err != nil {
		t.Fatal(err)
	}
	if d.api, err = client.New(client.Config{Addresses: d.all(2), Token: d.token, TLS: d.trust, Timeout: 30 * time.Second}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.api.Close() })
	until(t, "the nodes are linked", func(ctx context.Context) bool { return linked(ctx, d.api) == agents })
	return d
}

// at is the address of a port of a server, counted from its first.
func (d *dev) at(server, port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(d.base+10*server+port))
}

// all are the addresses of a port of all servers.
func (d *dev) all(port int) []string { return []string{d.at(0, port), d.at(1, port), d.at(2, port)} }
