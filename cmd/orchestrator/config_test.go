// The sample of the settings, and what contradicts itself.

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/internal/config/configtest"
)

func TestSampleIsTrue(t *testing.T) {
	configtest.Sample(t, "orchestrator.yaml", defaults(), "name", "cluster", "listen", "advertise", "bootstrap_expect", "join", "gossip_key_file", "tls")
}

func TestContradictionsAreRefused(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"bootstrap_expect: 2 ":           func(c *Config) { c.BootstrapExpect = 2 },
		"join: is empty":                 func(c *Config) { c.BootstrapExpect = 3 },
		"name: ":                         func(c *Config) { c.Name = "Not a name" },
		"placement.strategy: ":           func(c *Config) { c.Placement.Strategy = "darts" },
		"listen.grpc: ":                  func(c *Config) { c.Listen.GRPC = "8077" },
		"link.renew: ":                   func(c *Config) { c.Link.Renew = c.Link.Lease },
		"link.margin: ":                  func(c *Config) { c.Link.Margin = time.Millisecond },
		"link.offline: ":                 func(c *Config) { c.Link.Offline = time.Second },
		"raft.lease_timeout: ":           func(c *Config) { c.Raft.LeaseTimeout = time.Minute },
		"raft.election_timeout: ":        func(c *Config) { c.Raft.ElectionTimeout = time.Millisecond },
		"raft.remove_dead_after: ":       func(c *Config) { c.Raft.RemoveDeadAfter = time.Second },
		"raft.remove_left_after: ":       func(c *Config) { c.Raft.RemoveLeftAfter = time.Second },
		"raft.min_voters: ":              func(c *Config) { c.Raft.MinVoters = 0 },
		"listen.gossip: ":                func(c *Config) { c.Listen = Addresses{} }, // the first of several
		"migration.max_per_node: 0 is":   func(c *Config) { c.Migration.MaxPerNode = 0 },
		"migration.max_per_cluster: ":    func(c *Config) { c.Migration.MaxPerCluster = -1 },
		"failover.restores_per_second: ": func(c *Config) { c.Failover.RestoresPerSecond = 0 },
		"failover.restores_per_node: ":   func(c *Config) { c.Failover.RestoresPerNode = 0 },
		"sessions.retention: ":           func(c *Config) { c.Sessions.Retention = time.Second },
		"gateway.max_connections: ":      func(c *Config) { c.Gateway.MaxConnections = 0 },
		"gateway.max_frame_bytes: ":      func(c *Config) { c.Gateway.MaxFrameBytes = 33 << 20 },
		"gateway.call_timeout: ":         func(c *Config) { c.Gateway.CallTimeout = 48 * time.Hour },
		"gateway.ping_every: ":           func(c *Config) { c.Gateway.PingEvery = -1 },
		"gateway.rate.user_burst: ":      func(c *Config) { c.Gateway.Rate.UserBurst = 0 },
		"recorder.sink: \"stone\"":       func(c *Config) { c.Recorder.Sink = "stone" },
		"recorder.spool.max_bytes: ":     func(c *Config) { c.Recorder.Spool.MaxBytes = 1 },
		"recorder.postgres.url_file: ":   func(c *Config) { c.Recorder.Sink = "postgres" },
		"gateway.rate.ip_per_second: -1": func(c *Config) { c.Gateway.Rate.IPPerSecond = -1 },
		`gateway.trusted_proxies: "ingr`: func(c *Config) { c.Gateway.TrustedProxies = []string{"10.0.0.1", "ingress"} },
		`gateway.trusted_proxies: "::/0`: func(c *Config) { c.Gateway.TrustedProxies = []string{"::/0"} },
	} {
		c := defaults()
		c.Name = "server-1"
		change(&c)
		err := c.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("want a refusal that begins with %q, got %v", want, err)
		}
	}
	c := defaults()
	c.Name = "server-1"
	if err := c.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}
