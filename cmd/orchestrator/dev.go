// A whole cluster on this machine: real servers and real node agents, as processes of their own, on loopback.

package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/client"
	clientcontext "github.com/neolith/orchestrator/client/context"
	"github.com/neolith/orchestrator/internal/fault"
)

// portsPerServer is the distance between the first ports of two servers.
const portsPerServer = 10

// devReady is how long a dev cluster may take to come up.
const devReady = time.Minute

// dev is one run of `orchestrator dev`.
type dev struct {
	servers, agents, basePort int
	data, lease               string
	restart, noContext        bool
	stdout, stderr            io.Writer

	lock     *os.File // of the data directory
	token    string
	children *children
}

func devCommand(stdout, stderr io.Writer) *cobra.Command {
	d := &dev{stdout: stdout, stderr: stderr}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole cluster of real processes on this machine, until Ctrl-C",
		Long: `dev starts servers and node agents as processes of their own, on loopback, with TLS, tokens and everything on disk.
It prints a ready line when the cluster can be used, writes an orchctl context, and ends all that it started on Ctrl-C.
Nothing that dies is started again unless --restart is given. The same --data starts again with everything still there.`,
		Example: "  orchestrator dev\n  orchestrator dev --servers 3 --agents 3 --data /tmp/cluster --base-port 9000",
		Args:    cobra.NoArgs,
	}
	f := cmd.Flags()
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := d.check(); err != nil {
			return err
		}
		if err := d.hold(); err != nil {
			return err
		}
		defer d.lock.Close() // the lock goes with it
		if err := d.asBefore(f.Changed); err != nil {
			return err
		}
		return d.run(cmd.Context())
	}
	f.IntVar(&d.servers, "servers", 1, "servers: 1, 3 or 5; by default as many as --data holds, or 1")
	f.IntVar(&d.agents, "agents", 2, "node agents; by default as many as --data holds, or 2")
	f.StringVar(&d.data, "data", "", "directory for everything; ~/.local/share/orchestrator/dev when empty")
	f.IntVar(&d.basePort, "base-port", BasePort, "first of the ports; each server takes five, and the next begins 10 higher")
	f.StringVar(&d.lease, "lease", "", "node lease, such as 4s; the server's default when empty")
	f.BoolVar(&d.restart, "restart", false, "start again what dies")
	f.BoolVar(&d.noContext, "no-context", false, "write no orchctl context")
	return cmd
}

func (d *dev) check() error {
	switch {
	case d.servers != 1 && d.servers != 3 && d.servers != 5:
		return fault.New(fault.Invalid, "--servers: %d make no good majority; use 1, 3 or 5", d.servers)
	case d.agents < 0 || d.agents > 64:
		return fault.New(fault.Invalid, "--agents: %d is not between 0 and 64", d.agents)
	case d.basePort < 1 || d.basePort+portsPerServer*d.servers > 65535:
		return fault.New(fault.Invalid, "--base-port: %d leaves no room for the ports of %d servers", d.basePort, d.servers)
	}
	if d.data == "" {
		base := os.Getenv("XDG_DATA_HOME")
		if base == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return fault.New(fault.Invalid, "--data: %w; name a directory", err)
			}
			base = filepath.Join(home, ".local", "share")
		}
		d.data = filepath.Join(base, "orchestrator", "dev")
	}
	var err error
	d.data, err = filepath.Abs(d.data)
	return err
}

func (d *dev) serverName(i int) string { return "server-" + strconv.Itoa(i+1) }
func (d *dev) agentName(i int) string  { return "node-" + strconv.Itoa(i+1) }

func (d *dev) addresses(i int) Addresses {
	return addressesFrom("127.0.0.1", d.basePort+portsPerServer*i)
}

func names(n int, name func(int) string) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = name(i)
	}
	return out
}

// addressesFrom gives the five ports from the first on.
func addressesFrom(host string, base int) Addresses {
	at := func(n int) string { return net.JoinHostPort(host, strconv.Itoa(base+n)) }
	return Addresses{Gossip: at(0), Raft: at(1), GRPC: at(2), Link: at(3), Client: at(4)}
}

func (d *dev) run(ctx context.Context) error {
	started := time.Now()
	agentBinary, err := findAgent(d.agents)
	if err != nil {
		return err
	}
	if err := d.prepare(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	d.children = newChildren(d.stderr, d.restart)
	// Agents first, so that they can still report the ends of their sessions.
	defer func() { d.children.stop(names(d.agents, d.agentName), names(d.servers, d.serverName)) }()
	logs := filepath.Join(d.data, "logs")
	for i := range d.servers {
		name := d.serverName(i)
		if err := d.children.start(name, filepath.Join(logs, name+".log"), self, "serve", "--config", d.configFile(name)); err != nil {
			return err
		}
	}
	for i := range d.agents {
		name := d.agentName(i)
		if err := d.children.start(name, filepath.Join(logs, name+".log"), agentBinary, "run", "--config", d.configFile(name)); err != nil {
			return err
		}
	}
	switch err := d.waitReady(ctx); {
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(d.stderr, "stopping, before the cluster was ready")
		return nil
	case err != nil:
		return err
	}
	if err := d.announce(started); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		fmt.Fprintln(d.stderr, "stopping")
		return nil
	case err := <-d.children.allGone:
		return err
	}
}

// findAgent looks for node-agent beside this program, then on the PATH.
func findAgent(agents int) (string, error) {
	if agents == 0 {
		return "", nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	beside := filepath.Join(filepath.Dir(self), "node-agent")
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		p := filepath.Join(dir, "node-agent")
		if info, err := os.Stat(p); err == nil && info.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fault.New(fault.Invalid, "there is no node-agent beside %s or on the PATH; build all programs with `make build`", self)
}

func (d *dev) configFile(name string) string { return filepath.Join(d.data, name, "config.yaml") }

// prepare writes what is missing: authority, certificates, token, gossip key, and each process's configuration.
func (d *dev) prepare() error {
	if err := os.MkdirAll(d.path("logs"), 0o700); err != nil {
		return fault.New(fault.Invalid, "--data: %w; choose a directory that you may write", err)
	}
	ca, err := d.authority()
	if err != nil {
		return err
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	if _, err := keep(d.path("gossip-key"), hex.EncodeToString(secret)); err != nil {
		return err
	}
	if d.token, err = keep(d.path("admin-token"), auth.Generate().Reveal()); err != nil {
		return err
	}
	var join, links []string
	for i := range d.servers {
		join, links = append(join, d.addresses(i).Gossip), append(links, d.addresses(i).Link)
	}
	for i := range d.servers {
		if err := d.prepareServer(ca, i, join); err != nil {
			return err
		}
	}
	for i := range d.agents {
		if err := d.prepareAgent(ca, i, links); err != nil {
			return err
		}
	}
	return nil
}

func (d *dev) path(elem ...string) string { return filepath.Join(append([]string{d.data}, elem...)...) }

func (d *dev) authority() (*auth.CA, error) {
	if _, err := os.Stat(d.path("ca", auth.CACertFile)); err == nil {
		return auth.OpenCA(d.path("ca"), time.Now)
	}
	return auth.InitCA(d.path("ca"), "dev", time.Now)
}

// keep reads a small file, or writes it with the given content when it is not there.
func keep(file, content string) (string, error) {
	b, err := os.ReadFile(file)
	if err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	if err := renameio.WriteFile(file, []byte(content+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write %s: %w", file, err)
	}
	return content, nil
}

// certificate issues one unless it is there.
func (d *dev) certificate(ca *auth.CA, role auth.Role, name string, hosts ...string) (auth.Files, error) {
	dir := d.path(name, "tls")
	if b, err := os.ReadFile(filepath.Join(dir, "files")); err == nil {
		if f := strings.Split(strings.TrimSpace(string(b)), "\n"); len(f) == 3 {
			return auth.Files{Cert: f[0], Key: f[1], CA: f[2]}, nil
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return auth.Files{}, fmt.Errorf("make %s anew: %w", dir, err)
	}
	issued, err := ca.Issue(auth.CertRequest{Role: role, Name: name, Hosts: hosts})
	if err != nil {
		return auth.Files{}, err
	}
	files, err := issued.Write(dir)
	if err != nil {
		return auth.Files{}, err
	}
	_, err = keep(filepath.Join(dir, "files"), files.Cert+"\n"+files.Key+"\n"+files.CA)
	return files, err
}

func (d *dev) writeConfig(name string, settings map[string]any) error {
	b, err := yaml.Marshal(settings)
	if err != nil {
		return fmt.Errorf("encode the configuration of %s: %w", name, err)
	}
	if err := renameio.WriteFile(d.configFile(name), b, 0o600); err != nil {
		return fmt.Errorf("write the configuration of %s: %w", name, err)
	}
	return nil
}

func (d *dev) prepareServer(ca *auth.CA, i int, join []string) error {
	name := d.serverName(i)
	files, err := d.certificate(ca, auth.Server, name, "127.0.0.1", "localhost", name)
	if err != nil {
		return err
	}
	a := d.addresses(i)
	settings := map[string]any{
		"name": name, "cluster": "dev", "data_dir": d.path(name, "data"), "bootstrap_expect": d.servers, "join": join,
		"gossip_key_file": d.path("gossip-key"),
		"listen":          map[string]string{"gossip": a.Gossip, "raft": a.Raft, "grpc": a.GRPC, "link": a.Link, "client": a.Client},
		"tls":             map[string]string{"ca_file": files.CA, "cert_file": files.Cert, "key_file": files.Key},
		"auth":            map[string]any{"bootstrap_token_file": d.path("admin-token")},
		"log":             map[string]string{"format": "text"},
	}
	if d.lease != "" {
		lease, err := time.ParseDuration(d.lease)
		if err != nil {
			return fault.New(fault.Invalid, "--lease: %q is not a duration such as 4s", d.lease)
		}
		settings["link"] = map[string]string{
			"lease": lease.String(), "renew": (lease / 4).String(), "margin": max(lease/6, 500*time.Millisecond).String(),
		}
	}
	return d.writeConfig(name, settings)
}

func (d *dev) prepareAgent(ca *auth.CA, i int, links []string) error {
	name := d.agentName(i)
	files, err := d.certificate(ca, auth.Node, name)
	if err != nil {
		return err
	}
	return d.writeConfig(name, map[string]any{
		"name": name, "data_dir": d.path(name, "data"), "servers": links,
		"tls":      map[string]string{"ca_file": files.CA, "cert_file": files.Cert, "key_file": files.Key},
		"sessions": map[string]any{"end_on_stop": true}, "checkpoints": map[string]any{"serve": "127.0.0.1:0"},
		"log": map[string]string{"format": "text"},
	})
}

// connect makes a client of the cluster.
func (d *dev) connect() (*client.Client, error) {
	tlsConfig, err := client.TLSFiles{CA: d.path("ca", auth.CACertFile)}.Load()
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{Addresses: d.grpcAddresses(), Token: d.token, TLS: tlsConfig, UserAgent: "orchestrator-dev"})
}

func (d *dev) grpcAddresses() []string {
	var out []string
	for i := range d.servers {
		out = append(out, d.addresses(i).GRPC)
	}
	return out
}

// waitReady waits until all servers are members and all agents are linked.
func (d *dev) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	c, err := d.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	var last string
	for {
		missing, err := d.missing(ctx, c)
		switch {
		case err == nil && missing == "":
			return nil
		case err == nil:
			last = missing
		default:
			last = err.Error()
		}
		select {
		case err := <-d.children.died:
			return fmt.Errorf("the cluster did not come up: %w; see %s", err, d.path("logs"))
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fault.New(fault.Timeout, "the cluster is not ready after %s: %s; see %s", devReady, last, d.path("logs"))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (d *dev) missing(ctx context.Context, c *client.Client) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	members, err := c.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
	if err != nil {
		return "", err
	}
	voters := 0
	for _, m := range members.GetMembers() {
		if m.GetRole() == apiv1.Member_LEADER || m.GetRole() == apiv1.Member_FOLLOWER {
			voters++
		}
	}
	if voters < d.servers {
		return fmt.Sprintf("%d of %d servers vote", voters, d.servers), nil
	}
	nodes, err := c.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{PageSize: 1000})
	if err != nil {
		return "", err
	}
	want := map[string]bool{}
	for i := range d.agents {
		want[d.agentName(i)] = true
	}
	for _, n := range nodes.GetNodes() {
		if n.GetConnection() == "connected" {
			delete(want, n.GetName())
		}
	}
	if len(want) > 0 {
		return fmt.Sprintf("%d of %d agents are not linked", len(want), d.agents), nil
	}
	return "", nil
}

// announce tells how to use the cluster.
func (d *dev) announce(started time.Time) error {
	addresses := strings.Join(d.grpcAddresses(), ",")
	fmt.Fprintf(d.stdout, "ready: %d servers, %d agents after %s; ORCHCTL_ADDR=%s\n", d.servers, d.agents, time.Since(started).Round(10*time.Millisecond), addresses)
	env := fmt.Sprintf("export ORCHCTL_ADDR=%s\nexport ORCHCTL_TOKEN_FILE=%s\nexport ORCHCTL_TLS_CA=%s\n", addresses, d.path("admin-token"), d.path("ca", auth.CACertFile))
	if err := renameio.WriteFile(d.path("orchctl.env"), []byte(env), 0o600); err != nil {
		return fmt.Errorf("write orchctl.env: %w", err)
	}
	fmt.Fprintf(d.stdout, "  data     %s\n  logs     %s\n  metrics  https://%s/metrics\n", d.data, d.path("logs"), d.addresses(0).Client)
	if d.noContext {
		fmt.Fprintf(d.stdout, "  use      . %s\n", d.path("orchctl.env"))
		return nil
	}
	path, err := clientcontext.DefaultPath(os.Getenv)
	if err != nil {
		return err
	}
	name := "dev"
	if d.basePort != BasePort {
		name = "dev-" + strconv.Itoa(d.basePort)
	}
	err = clientcontext.Update(path, func(f *clientcontext.File) error {
		f.Set(clientcontext.Context{Name: name, Addresses: d.grpcAddresses(), TokenFile: d.path("admin-token"), TLSCA: d.path("ca", auth.CACertFile)})
		if f.Current == "" {
			f.Current = name
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write the orchctl context %s: %w", name, err)
	}
	fmt.Fprintf(d.stdout, "  use      orchctl --context %s sessions list   (or: . %s)\n", name, d.path("orchctl.env"))
	return nil
}
