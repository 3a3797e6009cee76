// The settings of a node, their defaults, and what contradicts itself.
package main

import (
	"net"
	"os"
	"strings"

	"github.com/neolith/orchestrator/agent"
	"github.com/neolith/orchestrator/internal/config"
	"github.com/neolith/orchestrator/session"
	"github.com/neolith/orchestrator/telemetry"
)

// Config is the settings of a node.
type Config struct {
	Name      string            `yaml:"name" help:"this node's name, unique in its cluster; the host's name by default"`
	DataDir   string            `yaml:"data_dir" help:"the node's own directory: its identity, and its sessions"`
	Servers   []string          `yaml:"servers" help:"link addresses of servers, as host:port; one that answers is enough"`
	Address   string            `yaml:"address" help:"where this machine is reached, for people"`
	Labels    map[string]string `yaml:"labels" help:"labels that sessions may select"`
	TokenFile string            `yaml:"token_file" help:"file with a token of role node"`
	Insecure  bool              `yaml:"insecure" help:"allow servers beyond loopback without TLS"`

	Capabilities struct {
		Custom       map[string]string `yaml:"custom" help:"capabilities that are so because you say so: KEY=true or KEY=false"`
		MaxSessions  uint32            `yaml:"max_concurrent_sessions" help:"sessions at one time; 0 for no bound"`
		SessionTypes []string          `yaml:"session_types" help:"types of sessions to run; all that this node can when empty"`
		CPUMilli     int64             `yaml:"cpu_milli" help:"thousandths of cores that sessions may reserve; what the machine has when 0"`
		Memory       config.Bytes      `yaml:"memory" help:"memory that sessions may reserve; what the machine has when 0"`
	} `yaml:"capabilities"`

	TLS struct {
		CAFile   string `yaml:"ca_file" help:"the cluster's certificate authority"`
		CertFile string `yaml:"cert_file" help:"this node's certificate"`
		KeyFile  string `yaml:"key_file" help:"its key"`
	} `yaml:"tls"`

	Link struct {
		Codec string `yaml:"codec" help:"binary, or json to be read by people"`
	} `yaml:"link"`

	SecretsDir string `yaml:"secrets_dir" help:"directory with a file for each secret that sessions may name"`

	Sessions struct {
		OutputLog config.Bytes `yaml:"output_log" help:"bound of one session's output log"`
		EndedKept int          `yaml:"ended_kept" help:"ended sessions whose directory is kept until the cluster forgets them"`
		Cgroups   bool         `yaml:"cgroups" help:"give each session a cgroup where the kernel allows it"`
	} `yaml:"sessions"`

	Metrics struct {
		Listen string `yaml:"listen" help:"address of /metrics and /health; none when empty"`
	} `yaml:"metrics"`

	Log struct {
		Level  string              `yaml:"level" help:"debug, info, warn or error"`
		Format telemetry.LogFormat `yaml:"format" help:"auto, text or json"`
	} `yaml:"log"`
}

// The codecs of the link.
const (
	codecBinary = "binary"
	codecJSON   = "json"
)

// minOutputLog is two segments.
const minOutputLog = 64 << 10

func defaults() Config {
	var c Config
	c.Name, _ = os.Hostname()
	c.Name = strings.ToLower(c.Name)
	c.DataDir = "/var/lib/node-agent"
	c.Servers = []string{"127.0.0.1:8078"}
	c.Link.Codec = codecBinary
	c.Sessions.OutputLog = 64 << 20
	c.Sessions.EndedKept = agent.DefaultMaxEndedKept
	c.Sessions.Cgroups = true
	c.Log.Level, c.Log.Format = "info", telemetry.LogAuto
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
	if len(c.Servers) == 0 {
		return config.Bad("servers", "is empty; give the link address of a server, such as 10.0.0.1:8078")
	}
	for _, s := range c.Servers {
		host, _, err := net.SplitHostPort(s)
		if err != nil || host == "" {
			return config.Bad("servers", "%q is not host:port", s)
		}
	}
	if (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		return config.Bad("tls.cert_file", "and tls.key_file belong together; give both or neither")
	}
	for k, v := range c.Capabilities.Custom {
		if v != "true" && v != "false" {
			return config.Bad("capabilities.custom", "%s: %q is neither true nor false", k, v)
		}
	}
	switch {
	case c.Link.Codec != codecBinary && c.Link.Codec != codecJSON:
		return config.Bad("link.codec", "%q is not a codec; use binary or json", c.Link.Codec)
	case c.Capabilities.CPUMilli < 0:
		return config.Bad("capabilities.cpu_milli", "%d is negative", c.Capabilities.CPUMilli)
	case c.Capabilities.Memory < 0:
		return config.Bad("capabilities.memory", "is negative")
	case c.Sessions.OutputLog < minOutputLog:
		return config.Bad("sessions.output_log", "is below %d bytes", minOutputLog)
	case c.Sessions.EndedKept < 1:
		return config.Bad("sessions.ended_kept", "%d is not positive", c.Sessions.EndedKept)
	}
	return nil
}
