// The settings of a server, their defaults, and what contradicts itself.

package main

import (
	"cmp"
	"net"
	"os"
	"strings"
	"time"

	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/internal/config"
	"github.com/neolith/orchestrator/leader"
	"github.com/neolith/orchestrator/loadbalancer"
	"github.com/neolith/orchestrator/provider"
	"github.com/neolith/orchestrator/recorder"
	"github.com/neolith/orchestrator/session"
	"github.com/neolith/orchestrator/telemetry"
)

// Config is the settings of a server.
type Config struct {
	Name     string `yaml:"name" help:"this server's name in the cluster, for ever; the host's name by default"`
	Cluster  string `yaml:"cluster" help:"the cluster's name; a data directory of another one is refused"`
	DataDir  string `yaml:"data_dir" help:"where the log and the snapshots live"`
	Insecure bool   `yaml:"insecure" help:"allow ports beyond loopback without TLS and tokens"`

	Listen    Addresses `yaml:"listen"`
	Advertise struct {
		Gossip string `yaml:"gossip" help:"what servers are told to gossip with"`
		Raft   string `yaml:"raft" help:"what servers are told to replicate to"`
		GRPC   string `yaml:"grpc" help:"what servers are told to forward calls to"`
		Link   string `yaml:"link" help:"what nodes are told to link to"`
	} `yaml:"advertise"`

	BootstrapExpect int      `yaml:"bootstrap_expect" help:"how many servers form a new cluster together: 1, 3 or 5; 0 joins one"`
	Join            []string `yaml:"join" help:"gossip addresses of other servers"`
	GossipKeyFile   string   `yaml:"gossip_key_file" help:"file with 32 bytes in hexadecimal that encrypt gossip"`

	TLS struct {
		CAFile   string `yaml:"ca_file" help:"the cluster's certificate authority"`
		CertFile string `yaml:"cert_file" help:"this server's certificate"`
		KeyFile  string `yaml:"key_file" help:"its key"`
	} `yaml:"tls"`

	Auth struct {
		Tokens             bool   `yaml:"tokens" help:"callers must show a token"`
		BootstrapTokenFile string `yaml:"bootstrap_token_file" help:"file with the first admin token; made and put into the data directory when empty"`
	} `yaml:"auth"`

	Link struct {
		Lease     time.Duration `yaml:"lease" help:"how long an answered heartbeat lets a node run its sessions"`
		Margin    time.Duration `yaml:"margin" help:"what the leader waits beyond the lease before it calls a node lost"`
		Renew     time.Duration `yaml:"renew" help:"how often nodes ask for the lease"`
		Heartbeat time.Duration `yaml:"heartbeat" help:"how often nodes report their health"`
		Offline   time.Duration `yaml:"offline" help:"when a silent node is called offline"`
		MaxLinks  int           `yaml:"max_links" help:"links that this server holds at most"`
	} `yaml:"link"`

	Raft struct {
		HeartbeatTimeout time.Duration `yaml:"heartbeat_timeout" help:"a follower that hears nothing for this long stands for election"`
		ElectionTimeout  time.Duration `yaml:"election_timeout" help:"how long an election may take"`
		LeaseTimeout     time.Duration `yaml:"lease_timeout" help:"a leader that hears from no majority for this long steps down"`
		CommitTimeout    time.Duration `yaml:"commit_timeout" help:"followers learn of a commit at most this much later"`
		StallTimeout     time.Duration `yaml:"stall_timeout" help:"a write to the log that takes longer makes the leader hand over; 0 never"`
		SnapshotEntries  int           `yaml:"snapshot_entries" help:"log entries between snapshots"`
		TrailingEntries  int           `yaml:"trailing_entries" help:"log entries kept behind a snapshot"`
		RemoveDeadAfter  time.Duration `yaml:"remove_dead_after" help:"how long a server must be dead before it is removed from the cluster"`
		RemoveLeftAfter  time.Duration `yaml:"remove_left_after" help:"the same for a server that was stopped in good order and did not start again"`
		MinVoters        int           `yaml:"min_voters" help:"a dead server is removed only where so many voters remain"`
	} `yaml:"raft"`

	Placement struct {
		Strategy string `yaml:"strategy" help:"how nodes are chosen for sessions that do not say"`
	} `yaml:"placement"`

	Migration struct {
		MaxPerNode    int `yaml:"max_per_node" help:"how many moves one node may be the source or the target of at once; the others wait, and work on"`
		MaxPerCluster int `yaml:"max_per_cluster" help:"how many moves there may be at once in the cluster"`
	} `yaml:"migration"`

	Failover struct {
		RestoresPerSecond int `yaml:"restores_per_second" help:"how many sessions are started again in a second, the most urgent first"`
		RestoresPerNode   int `yaml:"restores_per_node" help:"how many of them one node has in hand at once"`
	} `yaml:"failover"`

	Sessions struct {
		Retention time.Duration `yaml:"retention" help:"how long ended sessions are kept"`
	} `yaml:"sessions"`

	Chunks struct {
		Store                string       `yaml:"store" help:"dir: in the servers' data directories; s3: in a bucket, the same for all servers"`
		MaxBytes             config.Bytes `yaml:"max_bytes" help:"how much of checkpoints this server keeps in its data directory; 0 leaves the bound to the disk"`
		RepairBytesPerSecond config.Bytes `yaml:"repair_bytes_per_second" help:"how fast copies that servers lack are made, in the background"`
		S3                   bucketConfig `yaml:"s3"`
	} `yaml:"chunks"`

	Providers provider.Config `yaml:"providers"`

	Gateway gatewayConfig `yaml:"gateway"`

	Recorder recorder.Config `yaml:"recorder"`

	Log struct {
		Level  string              `yaml:"level" help:"debug, info, warn or error"`
		Format telemetry.LogFormat `yaml:"format" help:"auto, text or json"`
	} `yaml:"log"`
}

// Addresses are a server's five ports as host:port.
type Addresses struct {
	Gossip string `yaml:"gossip" help:"servers find each other, tcp and udp"`
	Raft   string `yaml:"raft" help:"servers replicate the log"`
	GRPC   string `yaml:"grpc" help:"operators and servers: the gRPC API"`
	Link   string `yaml:"link" help:"nodes: the WebSocket node link"`
	Client string `yaml:"client" help:"clients, health and metrics"`
}

// BasePort is the first of a server's five ports.
const BasePort = 8075

func defaults() Config {
	var c Config
	c.Name, _ = os.Hostname()
	c.Name = strings.ToLower(c.Name)
	c.Cluster = "default"
	c.DataDir = "/var/lib/orchestrator"
	c.Listen = addressesFrom("127.0.0.1", BasePort)
	c.BootstrapExpect = 1
	c.Providers = provider.Defaults()
	c.Auth.Tokens = true
	l := leader.DefaultLease()
	c.Link.Lease, c.Link.Margin, c.Link.Renew, c.Link.Heartbeat, c.Link.Offline = l.Duration, l.Margin, l.Renew, l.Heartbeat, l.Offline
	c.Link.MaxLinks = 20_000
	t := cluster.DefaultTimings()
	c.Raft.HeartbeatTimeout, c.Raft.ElectionTimeout, c.Raft.LeaseTimeout = t.Heartbeat, t.Election, t.Lease
	c.Raft.CommitTimeout, c.Raft.StallTimeout = t.Commit, t.Stall
	c.Raft.SnapshotEntries, c.Raft.TrailingEntries = 65536, 32768
	p := cluster.DefaultAutopilot()
	c.Raft.RemoveDeadAfter, c.Raft.RemoveLeftAfter, c.Raft.MinVoters = p.RemoveAfter, p.RemoveLeftAfter, int(p.MinVoters)
	c.Placement.Strategy = "least-connections"
	m, f := leader.DefaultMoveLimits(), leader.DefaultRestoreLimits()
	c.Migration.MaxPerNode, c.Migration.MaxPerCluster = m.PerNode, m.PerCluster
	c.Failover.RestoresPerSecond, c.Failover.RestoresPerNode = f.PerSecond, f.PerNode
	c.Sessions.Retention = time.Hour
	c.Chunks.Store, c.Chunks.RepairBytesPerSecond = storeDir, defaultRepairBytes
	c.Gateway = defaultGateway()
	c.Recorder = recorder.Default()
	c.Log.Level, c.Log.Format = "info", telemetry.LogAuto
	return c
}

// Validate implements config.Validator.
func (c *Config) Validate() error {
	if why := session.CheckName(c.Name); why != "" {
		return config.Bad("name", "%s", why)
	}
	if why := session.CheckName(c.Cluster); why != "" {
		return config.Bad("cluster", "%s", why)
	}
	if c.DataDir == "" {
		return config.Bad("data_dir", "is empty; give a directory on a disk that lasts")
	}
	switch c.BootstrapExpect {
	case 0, 1, 3, 5:
	default:
		return config.Bad("bootstrap_expect", "%d servers make no good majority; use 1, 3 or 5, or 0 to join a cluster", c.BootstrapExpect)
	}
	if c.BootstrapExpect != 1 && len(c.Join) == 0 {
		return config.Bad("join", "is empty, so this server finds no other; give the gossip addresses of some")
	}
	if _, err := loadbalancer.Named(c.Placement.Strategy); err != nil {
		return config.Bad("placement.strategy", "%v", err)
	}
	for _, l := range []struct{ key, address string }{
		{"listen.gossip", c.Listen.Gossip}, {"listen.raft", c.Listen.Raft}, {"listen.grpc", c.Listen.GRPC}, {"listen.link", c.Listen.Link}, {"listen.client", c.Listen.Client},
	} {
		if _, _, err := net.SplitHostPort(l.address); err != nil {
			return config.Bad(l.key, "%q is not host:port", l.address)
		}
	}
	for _, l := range []struct {
		key   string
		value int
	}{
		{"migration.max_per_node", c.Migration.MaxPerNode}, {"migration.max_per_cluster", c.Migration.MaxPerCluster},
		{"failover.restores_per_second", c.Failover.RestoresPerSecond}, {"failover.restores_per_node", c.Failover.RestoresPerNode},
	} {
		if l.value < 1 {
			return config.Bad(l.key, "%d is not positive; no session would ever move", l.value)
		}
	}
	if err := c.validateChunks(); err != nil {
		return err
	}
	if err := c.Providers.Validate("providers"); err != nil {
		return err
	}
	if err := c.Gateway.validate(); err != nil {
		return err
	}
	if err := c.Recorder.Validate("recorder"); err != nil {
		return err
	}
	return c.validateTimes()
}

func (c *Config) validateTimes() error {
	l := c.Link
	switch {
	case l.Lease < time.Second:
		return config.Bad("link.lease", "%s is shorter than 1s; a busy machine could not keep it", l.Lease)
	case l.Renew <= 0 || l.Renew > l.Lease/2:
		return config.Bad("link.renew", "%s must be above 0 and at most half of link.lease (%s), so that one lost heartbeat loses nothing", l.Renew, l.Lease)
	case l.Margin < l.Lease/20 || l.Margin < 250*time.Millisecond:
		return config.Bad("link.margin", "%s is too short for clocks that drift and kills that take their time; use at least a twentieth of link.lease and 250ms", l.Margin)
	case l.Heartbeat < l.Renew:
		return config.Bad("link.heartbeat", "%s is shorter than link.renew (%s)", l.Heartbeat, l.Renew)
	case l.Offline < l.Lease+l.Margin:
		return config.Bad("link.offline", "%s is shorter than link.lease and link.margin together", l.Offline)
	case l.MaxLinks < 1:
		return config.Bad("link.max_links", "%d is not positive", l.MaxLinks)
	}
	r := c.Raft
	switch {
	case r.HeartbeatTimeout < 50*time.Millisecond:
		return config.Bad("raft.heartbeat_timeout", "%s is below 50ms; the cluster would not hold a leader", r.HeartbeatTimeout)
	case r.ElectionTimeout < r.HeartbeatTimeout:
		return config.Bad("raft.election_timeout", "%s is below raft.heartbeat_timeout (%s)", r.ElectionTimeout, r.HeartbeatTimeout)
	case r.LeaseTimeout > r.HeartbeatTimeout || r.LeaseTimeout < 5*time.Millisecond:
		return config.Bad("raft.lease_timeout", "%s must be between 5ms and raft.heartbeat_timeout (%s)", r.LeaseTimeout, r.HeartbeatTimeout)
	case r.CommitTimeout < time.Millisecond:
		return config.Bad("raft.commit_timeout", "%s is below 1ms", r.CommitTimeout)
	case r.SnapshotEntries < 1 || r.TrailingEntries < 1:
		return config.Bad("raft.snapshot_entries", "snapshot_entries and trailing_entries must be positive")
	case r.RemoveDeadAfter < 10*time.Second:
		return config.Bad("raft.remove_dead_after", "%s is below 10s; a server that only starts again would be removed", r.RemoveDeadAfter)
	case r.RemoveLeftAfter < 10*time.Second:
		return config.Bad("raft.remove_left_after", "%s is below 10s; a server that only starts again would be removed", r.RemoveLeftAfter)
	case r.MinVoters < 1:
		return config.Bad("raft.min_voters", "%d is not positive; a cluster needs a voter", r.MinVoters)
	}
	if c.Sessions.Retention < time.Minute {
		return config.Bad("sessions.retention", "%s is below 1m; nobody could read how a session ended", c.Sessions.Retention)
	}
	return nil
}

// autopilot is the default, but for what is set.
func (c *Config) autopilot() cluster.Autopilot {
	p := cluster.DefaultAutopilot()
	p.RemoveAfter, p.RemoveLeftAfter, p.MinVoters = c.Raft.RemoveDeadAfter, c.Raft.RemoveLeftAfter, uint(c.Raft.MinVoters)
	return p
}

// advertised is what others are told: what is set, and otherwise what is listened on.
func (c *Config) advertised() (raft, grpc, link string) {
	a, l := c.Advertise, c.Listen
	return cmp.Or(a.Raft, l.Raft), cmp.Or(a.GRPC, l.GRPC), cmp.Or(a.Link, l.Link)
}
