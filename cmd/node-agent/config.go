// The settings of a node agent, their defaults, and what contradicts itself.

package main

import (
	"cmp"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/neolith/orchestrator/agent"
	"github.com/neolith/orchestrator/agent/capability"
	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/agent/outputlog"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/config"
	"github.com/neolith/orchestrator/session"
	"github.com/neolith/orchestrator/telemetry"
)

// Config is the settings of a node agent.
type Config struct {
	Name     string            `yaml:"name" help:"this node's name in the cluster; the host's name by default"`
	DataDir  string            `yaml:"data_dir" help:"who the node is, and its sessions; one agent at a time"`
	Servers  []string          `yaml:"servers" help:"link addresses of servers; any will do, and the others are learned"`
	Address  string            `yaml:"address" help:"where people reach this machine, only shown; by default the address that it has towards the servers"`
	Labels   map[string]string `yaml:"labels" help:"what sessions may select this node by"`
	Insecure bool              `yaml:"insecure" help:"allow servers beyond loopback without TLS, and others to read metrics and checkpoints in plain text"`

	Capabilities struct {
		Custom                []string     `yaml:"custom" help:"capabilities, as KEY or KEY=false; they win over what is found"`
		MaxConcurrentSessions int          `yaml:"max_concurrent_sessions" help:"sessions at one time; 0 for no limit but CPU and memory"`
		SessionTypes          []string     `yaml:"session_types" help:"types of sessions to offer; all that the agent has when empty"`
		CPUMilli              int64        `yaml:"cpu_milli" help:"thousandths of a core for sessions; what the machine has when 0"`
		MemoryBytes           config.Bytes `yaml:"memory_bytes" help:"memory for sessions; what the machine has when 0"`
	} `yaml:"capabilities"`

	TokenFile string `yaml:"token_file" help:"file with the node's token; not needed with a certificate that names the node"`
	TLS       struct {
		CAFile   string `yaml:"ca_file" help:"the cluster's certificate authority"`
		CertFile string `yaml:"cert_file" help:"this node's certificate"`
		KeyFile  string `yaml:"key_file" help:"its key"`
	} `yaml:"tls"`
	Link struct {
		Codec string `yaml:"codec" help:"binary, or json for people who watch the wire"`
	} `yaml:"link"`

	SecretsDir string `yaml:"secrets_dir" help:"directory with one file for each secret that sessions may name; none when empty"`
	Sessions   struct {
		OutputLogBytes config.Bytes  `yaml:"output_log_bytes" help:"output kept of each session; the oldest goes first"`
		MaxStarts      int           `yaml:"max_starts" help:"processes being started at one time"`
		MaxEndedKept   int           `yaml:"max_ended_kept" help:"ended sessions whose directory is kept at most"`
		DrainOnStop    time.Duration `yaml:"drain_on_stop" help:"when this agent is told to stop, stay for so long at most to have the sessions moved to other nodes; 0 not at all"`
		EndOnStop      bool          `yaml:"end_on_stop" help:"end the sessions when this agent is told to stop, instead of leaving them to the next"`
		Cgroups        bool          `yaml:"cgroups" help:"give each session a cgroup where the kernel lets it"`
	} `yaml:"sessions"`
	Checkpoints struct {
		CacheDir       string       `yaml:"cache_dir" help:"chunks that were sent or fetched, for sessions that come back; below data_dir when empty"`
		CacheBytes     config.Bytes `yaml:"cache_bytes" help:"chunks kept there; what was used least lately goes first, and never more than a tenth of the disk; 0 for none"`
		SpoolBytes     config.Bytes `yaml:"spool_bytes" help:"captured and not stored yet; beyond it sessions are held until the store has taken it"`
		BytesPerSecond config.Bytes `yaml:"bytes_per_second" help:"of chunks that come and go, from wherever and to wherever; 0 for no limit"`
		Serve          string       `yaml:"serve" help:"host:port where other nodes fetch sessions that move to them; without a host the address towards the servers, port 0 any; not served when empty"`
		Parallel       int          `yaml:"parallel" help:"chunks of one session on their way at one time"`
		MaxCaptures    int          `yaml:"max_captures" help:"sessions being read at one time"`
		MaxRestores    int          `yaml:"max_restores" help:"sessions being restored at one time"`
	} `yaml:"checkpoints"`
	Metrics struct {
		Listen string `yaml:"listen" help:"host:port for /metrics, /health and /ready; none when empty"`
		Public bool   `yaml:"public" help:"let other machines read them, in plain text and without a token"`
	} `yaml:"metrics"`
	Log struct {
		Level  slog.Level          `yaml:"level" help:"debug, info, warn or error"`
		Format telemetry.LogFormat `yaml:"format" help:"auto, text or json"`
	} `yaml:"log"`
}

const (
	codecBinary = "binary"
	codecJSON   = "json"
	// minOutputLogBytes is the least that lets a reader see how a session ended.
	minOutputLogBytes = 64 << 10
	maxSessionsLimit  = 1_000_000
	maxStartsLimit    = 1024
	defaultCacheBytes = 4 << 30
	// minSpoolBytes and minCacheBytes hold a few chunks.
	minSpoolBytes     = 16 << 20
	minCacheBytes     = 16 << 20
	minBytesPerSecond = 64 << 10
	maxParallelLimit  = 256
	// minDrainOnStop lets one session move; maxDrainOnStop is as long as any drain may be.
	minDrainOnStop, maxDrainOnStop = time.Second, 7 * 24 * time.Hour
)

func defaults() Config {
	var c Config
	c.Name, _ = os.Hostname()
	c.Name = strings.ToLower(c.Name)
	c.DataDir = "/var/lib/node-agent"
	c.Servers = []string{"127.0.0.1:8078"}
	c.Link.Codec = codecBinary
	c.Sessions.OutputLogBytes = outputlog.DefaultTotalBytes
	c.Sessions.MaxStarts, c.Sessions.MaxEndedKept = agent.DefaultMaxStarts, agent.DefaultMaxEndedKept
	c.Sessions.Cgroups = true
	c.Checkpoints.CacheBytes, c.Checkpoints.SpoolBytes = defaultCacheBytes, checkpoint.DefaultSpoolBytes
	c.Checkpoints.Parallel, c.Checkpoints.MaxCaptures = checkpoint.DefaultParallel, checkpoint.DefaultCaptures
	c.Checkpoints.MaxRestores = agent.DefaultMaxRestores
	c.Log.Level, c.Log.Format = slog.LevelInfo, telemetry.LogAuto
	return c
}

// Validate implements config.Validator.
func (c *Config) Validate() error {
	if why := session.CheckName(c.Name); why != "" {
		return config.Bad("name", "%s", why)
	}
	if c.DataDir == "" {
		return config.Bad("data_dir", "is empty; give a directory on a disk that lasts")
	}
	if c.Link.Codec != codecBinary && c.Link.Codec != codecJSON {
		return config.Bad("link.codec", "%q is not a codec; use %s or %s", c.Link.Codec, codecBinary, codecJSON)
	}
	if _, err := c.declared(); err != nil {
		return err
	}
	if err := c.validateServers(); err != nil {
		return err
	}
	if err := c.validateMetrics(); err != nil {
		return err
	}
	if err := c.validateCheckpoints(); err != nil {
		return err
	}
	return c.validateNumbers()
}

func (c *Config) validateCheckpoints() error {
	k := c.Checkpoints
	switch {
	case k.CacheBytes != 0 && k.CacheBytes < minCacheBytes:
		return config.Bad("checkpoints.cache_bytes", "%s is below %s; 0 is for no cache", k.CacheBytes, config.Bytes(minCacheBytes))
	case k.SpoolBytes < minSpoolBytes:
		return config.Bad("checkpoints.spool_bytes", "%s is below %s; sessions would be held for as long as the store takes", k.SpoolBytes, config.Bytes(minSpoolBytes))
	case k.BytesPerSecond != 0 && k.BytesPerSecond < minBytesPerSecond:
		return config.Bad("checkpoints.bytes_per_second", "%s is below %s; 0 is for no limit", k.BytesPerSecond, config.Bytes(minBytesPerSecond))
	}
	if err := c.validateServe(); err != nil {
		return err
	}
	for key, n := range map[string]int{"parallel": k.Parallel, "max_captures": k.MaxCaptures, "max_restores": k.MaxRestores} {
		if n < 1 || n > maxParallelLimit {
			return config.Bad("checkpoints."+key, "%d is not between 1 and %d", n, maxParallelLimit)
		}
	}
	return nil
}

// validateServe refuses what other nodes could not, or should not, fetch from.
func (c *Config) validateServe() error {
	k := c.Checkpoints
	if k.Serve == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(k.Serve)
	switch {
	case err != nil:
		return config.Bad("checkpoints.serve", "%q is not host:port; use :0 for the address towards the servers and any port", k.Serve)
	case k.CacheBytes == 0:
		return config.Bad("checkpoints.serve", "what is served is in the cache, and checkpoints.cache_bytes is 0; give it a size, or serve nothing")
	case c.usesTLS() && (c.TLS.CertFile == "" || c.TLS.CAFile == ""):
		return config.Bad("checkpoints.serve", "nodes know each other by their certificates; give tls.ca_file, tls.cert_file and tls.key_file, or serve nothing")
	case host == "" && c.local() == "":
		return config.Bad("checkpoints.serve", "no address of this machine towards its servers is known; give one, as in 10.0.0.7:8080")
	}
	return nil
}

func (c *Config) validateNumbers() error {
	can, s := c.Capabilities, c.Sessions
	switch {
	case can.MaxConcurrentSessions < 0 || can.MaxConcurrentSessions > maxSessionsLimit:
		return config.Bad("capabilities.max_concurrent_sessions", "%d is not between 0 and %d", can.MaxConcurrentSessions, maxSessionsLimit)
	case can.CPUMilli < 0:
		return config.Bad("capabilities.cpu_milli", "%d is negative; 0 means what the machine has", can.CPUMilli)
	case can.MemoryBytes < 0:
		return config.Bad("capabilities.memory_bytes", "%s is negative; 0 means what the machine has", can.MemoryBytes)
	case s.OutputLogBytes < minOutputLogBytes:
		return config.Bad("sessions.output_log_bytes", "%s is below %s; a session's last words would be lost before anybody reads them", s.OutputLogBytes, config.Bytes(minOutputLogBytes))
	case s.MaxStarts < 1 || s.MaxStarts > maxStartsLimit:
		return config.Bad("sessions.max_starts", "%d is not between 1 and %d", s.MaxStarts, maxStartsLimit)
	case s.DrainOnStop != 0 && (s.DrainOnStop < minDrainOnStop || s.DrainOnStop > maxDrainOnStop):
		return config.Bad("sessions.drain_on_stop", "%s is not between %s and %s; 0 is for no drain", s.DrainOnStop, minDrainOnStop, maxDrainOnStop)
	case s.MaxEndedKept < 1:
		return config.Bad("sessions.max_ended_kept", "%d is not positive; logs of ended sessions are read from there", s.MaxEndedKept)
	}
	return nil
}

// validateMetrics: metrics are plain text, so who lets others read them says so.
func (c *Config) validateMetrics() error {
	m := c.Metrics
	if m.Listen == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(m.Listen)
	switch {
	case err != nil:
		return config.Bad("metrics.listen", "%q is not host:port: %v", m.Listen, err)
	case !auth.IsLoopback(host) && !m.Public && !c.Insecure:
		return config.Bad("metrics.listen", "%s can be reached from other machines, in plain text and without a token; set metrics.public: true where that is meant, or listen on 127.0.0.1", m.Listen)
	}
	return nil
}

// validateServers refuses to send a token, or to take orders, in the clear beyond this machine.
func (c *Config) validateServers() error {
	if len(c.Servers) == 0 {
		return config.Bad("servers", "is empty; give the link address of at least one server, such as 10.0.0.1:8078")
	}
	for _, s := range c.Servers {
		host, port, err := net.SplitHostPort(s)
		if err != nil || host == "" {
			return config.Bad("servers", "%q is not host:port", s)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return config.Bad("servers", "%q: %q is not a port", s, port)
		}
		if !c.usesTLS() && !c.Insecure && !auth.IsLoopback(host) {
			return config.Bad("servers", "%s is beyond this machine and there is no TLS: whoever is on the way could give this node orders; "+
				"give tls.ca_file (and tls.cert_file, tls.key_file), or set insecure: true", s)
		}
	}
	return nil
}

// address is where people reach the machine.
func (c *Config) address() string { return cmp.Or(c.Address, c.local()) }

// local is the address that the machine has on the way to the first server that it has a way to; nothing is sent to find out.
func (c *Config) local() string {
	for _, s := range c.Servers {
		conn, err := net.Dial("udp", s)
		if err != nil {
			continue // it is only shown; the link says what is wrong with the server
		}
		host, _, err := net.SplitHostPort(conn.LocalAddr().String())
		_ = conn.Close() // nothing was sent
		if err == nil {
			return host
		}
	}
	return ""
}

func (c *Config) usesTLS() bool { return c.TLS.CAFile != "" || c.TLS.CertFile != "" }

// declared is what the operator says that the node can run.
func (c *Config) declared() (capability.Declared, error) {
	can := c.Capabilities
	d := capability.Declared{Custom: make(map[string]bool, len(can.Custom)), MaxSessions: uint32(max(can.MaxConcurrentSessions, 0)),
		SessionTypes: can.SessionTypes, CPUMilli: can.CPUMilli, MemoryBytes: int64(can.MemoryBytes)}
	for _, c := range can.Custom {
		key, value, given := strings.Cut(c, "=")
		if key == "" || given && value != "true" && value != "false" {
			return d, config.Bad("capabilities.custom", "%q is not KEY, KEY=true or KEY=false", c)
		}
		d.Custom[key] = value != "false"
	}
	return d, nil
}
