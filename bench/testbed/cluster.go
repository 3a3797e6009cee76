// Clusters of real servers, as `orchestrator dev` runs them, whose members can be killed and started again.

package testbed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/client"
)

// readyTimeout is how long a cluster may take to come up, and a server to come back.
const readyTimeout = time.Minute

// ClusterOptions say what to start.
type ClusterOptions struct {
	// Dir holds everything; it must exist. Program is the orchestrator to run.
	Dir, Program string
	Servers      int
	// Plain leaves out TLS; tokens stay.
	Plain bool
	// Settings are added to each server's configuration.
	Settings map[string]any
	// Env is added to each server's environment, as KEY=VALUE; %d stands for the server's number from 0.
	Env []string
	// NodeProgram is the node-agent to run, Nodes how many of them.
	NodeProgram  string
	Nodes        int
	NodeSettings map[string]any
}

// Cluster is a running cluster.
type Cluster struct {
	o       ClusterOptions
	token   string
	ca      *auth.CA
	node    auth.Files // of simulated nodes
	servers []*Server
	nodes   []*process
	admin   *client.Client
}

// Server is one server of it.
type Server struct {
	Name                            string
	Gossip, Raft, GRPC, Link, Users string
	c                               *Cluster
	number                          int
	proc                            *process
	client                          *client.Client
}

// StartCluster starts servers and node agents, and waits until the cluster can be used.
func StartCluster(ctx context.Context, o ClusterOptions) (*Cluster, error) {
	c := &Cluster{o: o}
	if err := c.start(ctx); err != nil {
		_ = c.Stop() // the reason to stop says more
		return nil, fmt.Errorf("start a cluster in %s: %w", o.Dir, err)
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	if err := c.prepare(); err != nil {
		return err
	}
	for _, s := range c.servers {
		if err := s.Start(); err != nil {
			return err
		}
	}
	var err error
	if c.admin, err = c.access(c.servers).Client(); err != nil {
		return err
	}
	for _, s := range c.servers {
		if s.client, err = c.access([]*Server{s}).Client(); err != nil {
			return err
		}
	}
	if err := c.startNodes(); err != nil {
		return err
	}
	return c.WaitReady(ctx)
}

// prepare writes certificates, token and configurations.
func (c *Cluster) prepare() error {
	if err := os.MkdirAll(c.path("logs"), 0o700); err != nil {
		return err
	}
	c.token = auth.Generate().Reveal()
	if err := os.WriteFile(c.path("token"), []byte(c.token), 0o600); err != nil {
		return err
	}
	if !c.o.Plain {
		var err error
		if c.ca, err = auth.InitCA(c.path("ca"), "bench", time.Now); err != nil {
			return err
		}
		if c.node, err = c.issue(auth.Node, "simulated"); err != nil {
			return err
		}
	}
	ports, err := freePorts(5 * c.o.Servers)
	if err != nil {
		return err
	}
	for i := range c.o.Servers {
		p := ports[5*i:]
		c.servers = append(c.servers, &Server{
			Name: "server-" + strconv.Itoa(i+1), c: c, number: i, Gossip: p[0], Raft: p[1], GRPC: p[2], Link: p[3], Users: p[4],
		})
	}
	for _, s := range c.servers {
		if err := s.configure(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.o.Dir}, elem...)...)
}

func (c *Cluster) issue(role auth.Role, name string) (auth.Files, error) {
	issued, err := c.ca.Issue(auth.CertRequest{Role: role, Name: name, Hosts: []string{"127.0.0.1", "localhost"}})
	if err != nil {
		return auth.Files{}, err
	}
	return issued.Write(c.path("tls", name))
}

// freePorts finds n loopback addresses that nobody listens on now.
func freePorts(n int) ([]string, error) {
	var found []string
	var open []net.Listener
	defer func() {
		for _, l := range open {
			_ = l.Close()
		}
	}()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		open, found = append(open, l), append(found, l.Addr().String())
	}
	return found, nil
}

func (s *Server) configure() error {
	c := s.c
	var join []string
	for _, o := range c.servers {
		join = append(join, o.Gossip)
	}
	settings := map[string]any{
		"name": s.Name, "cluster": "bench", "data_dir": c.path(s.Name, "data"), "bootstrap_expect": c.o.Servers, "join": join,
		"listen": map[string]string{"gossip": s.Gossip, "raft": s.Raft, "grpc": s.GRPC, "link": s.Link, "client": s.Users},
		"auth":   map[string]any{"bootstrap_token_file": c.path("token")},
		"log":    map[string]string{"format": "text"},
	}
	if !c.o.Plain {
		f, err := c.issue(auth.Server, s.Name)
		if err != nil {
			return err
		}
		settings["tls"] = map[string]string{"ca_file": f.CA, "cert_file": f.Cert, "key_file": f.Key}
	}
	for k, v := range c.o.Settings {
		settings[k] = v
	}
	return c.writeConfig(s.Name, settings)
}

func (c *Cluster) writeConfig(name string, settings map[string]any) error {
	b, err := yaml.Marshal(settings)
	if err != nil {
		return fmt.Errorf("encode the configuration of %s: %w", name, err)
	}
	if err := os.MkdirAll(c.path(name), 0o700); err != nil {
		return err
	}
	return os.WriteFile(c.path(name, "config.yaml"), b, 0o600)
}

// startNodes starts the real node agents.
func (c *Cluster) startNodes() error {
	var links []string
	for _, s := range c.servers {
		links = append(links, s.Link)
	}
	for i := range c.o.Nodes {
		name := "node-" + strconv.Itoa(i+1)
		settings := map[string]any{"name": name, "data_dir": c.path(name, "data"), "servers": links, "log": map[string]string{"format": "text"}}
		if c.o.Plain {
			settings["token_file"] = c.path("token")
		} else {
			f, err := c.issue(auth.Node, name)
			if err != nil {
				return err
			}
			settings["tls"] = map[string]string{"ca_file": f.CA, "cert_file": f.Cert, "key_file": f.Key}
		}
		for k, v := range c.o.NodeSettings {
			settings[k] = v
		}
		if err := c.writeConfig(name, settings); err != nil {
			return err
		}
		p, err := startProcess(name, c.path("logs", name+".log"), c.o.NodeProgram, nil, "run", "--config", c.path(name, "config.yaml"))
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, p)
	}
	return nil
}

// Start starts the server; Kill or Stop came before, if it ran.
func (s *Server) Start() error {
	var env []string
	for _, e := range s.c.o.Env {
		if strings.Contains(e, "%d") {
			e = fmt.Sprintf(e, s.number)
		}
		env = append(env, e)
	}
	var err error
	s.proc, err = startProcess(s.Name, s.c.path("logs", s.Name+".log"), s.c.o.Program, env, "serve", "--config", s.c.path(s.Name, "config.yaml"))
	return err
}

// Kill ends the server as a power cut would.
func (s *Server) Kill() { s.proc.kill() }

// PID is the server's process id.
func (s *Server) PID() int { return s.proc.pid() }

// Client is a client, with all rights, that asks this server only.
func (s *Server) Client() *client.Client { return s.client }

// Servers are all of them, in the order of their names.
func (c *Cluster) Servers() []*Server { return c.servers }

// Admin is a client with all rights.
func (c *Cluster) Admin() *client.Client { return c.admin }

// Leader returns the server that leads.
func (c *Cluster) Leader(ctx context.Context) (*Server, error) {
	m, err := c.admin.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
	if err != nil {
		return nil, err
	}
	for _, m := range m.GetMembers() {
		for _, s := range c.servers {
			if m.GetRole() == apiv1.Member_LEADER && m.GetId() == s.Name {
				return s, nil
			}
		}
	}
	return nil, errors.New("no member leads")
}

// Access tells how to reach the cluster, the leader first.
func (c *Cluster) Access(ctx context.Context) (Access, error) {
	leader, err := c.Leader(ctx)
	if err != nil {
		return Access{}, err
	}
	order := []*Server{leader}
	for _, s := range c.servers {
		if s != leader {
			order = append(order, s)
		}
	}
	return c.access(order), nil
}

func (c *Cluster) access(order []*Server) Access {
	a := Access{Token: c.token, Node: c.node}
	for _, s := range order {
		a.Addresses, a.Links, a.Clients = append(a.Addresses, s.GRPC), append(a.Links, s.Link), append(a.Clients, s.Users)
	}
	return a
}

// WaitReady waits until every server votes and is heard of, and every node agent is linked.
func (c *Cluster) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		why := c.missing(ctx)
		if why == nil {
			return nil
		}
		for _, p := range c.processes() {
			if dead, err := p.dead(); dead {
				return fmt.Errorf("%s died (%w): %s", p.name, err, lastLine(c.path("logs", p.name+".log")))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready after %s: %w; see %s", readyTimeout, why, c.path("logs"))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *Cluster) processes() []*process {
	all := append([]*process{}, c.nodes...)
	for _, s := range c.servers {
		if s.proc != nil {
			all = append(all, s.proc)
		}
	}
	return all
}

func (c *Cluster) missing(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := c.admin.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
	if err != nil {
		return err
	}
	voters := 0
	for _, m := range m.GetMembers() {
		if m.GetHealthy() && (m.GetRole() == apiv1.Member_LEADER || m.GetRole() == apiv1.Member_FOLLOWER) {
			voters++
		}
	}
	if voters < c.o.Servers {
		return fmt.Errorf("%d of %d servers vote and are healthy", voters, c.o.Servers)
	}
	if c.o.Nodes == 0 {
		return nil
	}
	nodes, err := c.admin.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{PageSize: 1000})
	if err != nil {
		return err
	}
	linked := 0
	for _, n := range nodes.GetNodes() {
		if n.GetConnection() == "connected" && n.GetStatus() == apiv1.Node_HEALTHY {
			linked++
		}
	}
	if linked < c.o.Nodes {
		return fmt.Errorf("%d of %d nodes are linked", linked, c.o.Nodes)
	}
	return nil
}

// lastLine is the end of a log, for an error.
func lastLine(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// Stop ends everything, node agents first.
func (c *Cluster) Stop() error {
	var errs []error
	if c.admin != nil {
		_ = c.admin.Close()
	}
	for _, s := range c.servers {
		if s.client != nil {
			_ = s.client.Close()
		}
	}
	for _, p := range c.nodes {
		errs = append(errs, p.stop())
	}
	stopped := make(chan error, len(c.servers))
	for _, s := range c.servers {
		go func() {
			if s.proc == nil {
				stopped <- nil
				return
			}
			stopped <- s.proc.stop()
		}()
	}
	for range c.servers {
		errs = append(errs, <-stopped)
	}
	return errors.Join(errs...)
}
