// The client gateway: its settings, and how it is served beside health and metrics.

package main

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/neolith/orchestrator/gateway/mcp"
	"github.com/neolith/orchestrator/gateway/socket"
	"github.com/neolith/orchestrator/gateway/tools"
	"github.com/neolith/orchestrator/internal/config"
	"github.com/neolith/orchestrator/queue/dispatch"
)

// gatewayConfig is what clients may have of this server.
type gatewayConfig struct {
	MaxConnections      int `yaml:"max_connections" help:"WebSockets at once"`
	MaxConnectionsPerIP int `yaml:"max_connections_per_ip" help:"of them, from one address"`
	MaxClients          int `yaml:"max_clients" help:"sessions of clients, connected or not, whose calls and results are kept"`

	Rate struct {
		GlobalBurst     int `yaml:"global_burst" help:"calls and greetings of all clients at once"`
		GlobalPerSecond int `yaml:"global_per_second" help:"and in the long run; 0 for no limit"`
		IPBurst         int `yaml:"ip_burst" help:"of one address"`
		IPPerSecond     int `yaml:"ip_per_second" help:"0 for no limit"`
		UserBurst       int `yaml:"user_burst" help:"of one token"`
		UserPerSecond   int `yaml:"user_per_second" help:"0 for no limit"`
	} `yaml:"rate"`

	MaxFrameBytes    config.Bytes `yaml:"max_frame_bytes" help:"a message, after decompression; at most 32 MiB"`
	MaxArgumentBytes config.Bytes `yaml:"max_argument_bytes" help:"the arguments of a call"`
	MaxResultBytes   config.Bytes `yaml:"max_result_bytes" help:"the answer of a call"`
	MaxQueueFrames   int          `yaml:"max_queue_frames" help:"messages that wait for one client"`
	MaxQueueBytes    config.Bytes `yaml:"max_queue_bytes" help:"bytes of them"`
	MaxKeptCalls     int          `yaml:"max_kept_calls" help:"results of calls with durable:false that are kept for one client; the cluster has bounds of its own for durable ones"`
	MaxKeptBytes     config.Bytes `yaml:"max_kept_bytes" help:"bytes of all kept results of calls with durable:false, and of waiting messages"`

	Durable              bool `yaml:"durable" help:"whether calls that do not say are kept by the cluster: acked once they are committed, and answered also when this server is lost"`
	MaxInFlight          int  `yaml:"max_in_flight" help:"calls that run at a time; durable ones wait for their turn, others are refused"`
	MaxInFlightPerClient int  `yaml:"max_in_flight_per_client" help:"calls in flight of one client, those that wait, too"`

	HelloTimeout  time.Duration `yaml:"hello_timeout" help:"how long a connection may take to say hello"`
	CallTimeout   time.Duration `yaml:"call_timeout" help:"how long a call may take that names no deadline"`
	MaxDeadline   time.Duration `yaml:"max_deadline" help:"the longest deadline that a call may name"`
	ResultTTL     time.Duration `yaml:"result_ttl" help:"how long results of calls with durable:false are kept, and what waits for a client that is away"`
	ProgressEvery time.Duration `yaml:"progress_every" help:"how often a long call says that it goes on"`
	PingEvery     time.Duration `yaml:"ping_every" help:"a connection that misses three pings is closed"`
	WriteTimeout  time.Duration `yaml:"write_timeout" help:"a client that does not take a message for so long is disconnected"`

	Origins []string `yaml:"origins" help:"web pages that may connect, such as https://console.example.com; * for all"`

	TrustedProxies []string `yaml:"trusted_proxies" help:"addresses and networks of proxies that are believed, in X-Forwarded-For and Forwarded, about which address a client has, such as 10.0.0.0/8"`
}

func defaultGateway() (c gatewayConfig) {
	l := socket.DefaultLimits()
	c.MaxConnections, c.MaxConnectionsPerIP, c.MaxClients = l.Connections, l.ConnectionsPerIP, l.Clients
	c.Rate.GlobalBurst, c.Rate.GlobalPerSecond = l.Global.Burst, int(l.Global.PerSecond)
	c.Rate.IPBurst, c.Rate.IPPerSecond = l.PerIP.Burst, int(l.PerIP.PerSecond)
	c.Rate.UserBurst, c.Rate.UserPerSecond = l.PerUser.Burst, int(l.PerUser.PerSecond)
	c.MaxFrameBytes, c.MaxArgumentBytes, c.MaxResultBytes = config.Bytes(l.FrameBytes), config.Bytes(l.ArgumentBytes), config.Bytes(l.ResultBytes)
	c.MaxQueueFrames, c.MaxQueueBytes = l.QueueFrames, config.Bytes(l.QueueBytes)
	c.MaxKeptCalls, c.MaxKeptBytes = l.KeptCalls, config.Bytes(l.KeptBytes)
	c.Durable = true
	c.MaxInFlight, c.MaxInFlightPerClient = l.InFlight, l.InFlightClient
	c.HelloTimeout, c.CallTimeout, c.MaxDeadline, c.ResultTTL = l.HelloTimeout, l.CallTimeout, l.CallMax, l.ResultTTL
	c.ProgressEvery, c.PingEvery, c.WriteTimeout = l.ProgressEvery, l.PingEvery, l.WriteTimeout
	return c
}

// limits are the settings as the gateway takes them.
func (c *gatewayConfig) limits() socket.Limits {
	rate := func(burst, perSecond int) socket.Rate {
		return socket.Rate{Burst: burst, PerSecond: float64(perSecond)}
	}
	return socket.Limits{
		Connections: c.MaxConnections, ConnectionsPerIP: c.MaxConnectionsPerIP, Clients: c.MaxClients,
		Global: rate(c.Rate.GlobalBurst, c.Rate.GlobalPerSecond), PerIP: rate(c.Rate.IPBurst, c.Rate.IPPerSecond), PerUser: rate(c.Rate.UserBurst, c.Rate.UserPerSecond),
		FrameBytes: int(c.MaxFrameBytes), ArgumentBytes: int(c.MaxArgumentBytes), ResultBytes: int(c.MaxResultBytes),
		InFlight: c.MaxInFlight, InFlightClient: c.MaxInFlightPerClient,
		QueueFrames: c.MaxQueueFrames, QueueBytes: int(c.MaxQueueBytes), KeptCalls: c.MaxKeptCalls, KeptBytes: int(c.MaxKeptBytes),
		HelloTimeout: c.HelloTimeout, CallTimeout: c.CallTimeout, CallMax: c.MaxDeadline, ResultTTL: c.ResultTTL,
		ProgressEvery: c.ProgressEvery, PingEvery: c.PingEvery, WriteTimeout: c.WriteTimeout,
	}
}

// mcpLimits are the settings as MCP takes them.
func (c *gatewayConfig) mcpLimits() mcp.Limits {
	return mcp.Limits{
		MessageBytes: int(c.MaxFrameBytes), QueueFrames: c.MaxQueueFrames, QueueBytes: int(c.MaxQueueBytes), QueuedBytes: int(c.MaxKeptBytes), InFlight: c.MaxInFlightPerClient,
		CallTimeout: c.CallTimeout, ProgressEvery: c.ProgressEvery, PingEvery: c.PingEvery, WriteTimeout: c.WriteTimeout,
	}
}

// validate refuses what would serve nobody.
func (c *gatewayConfig) validate() error {
	for _, n := range []struct {
		key   string
		value int64
	}{
		{"max_connections", int64(c.MaxConnections)}, {"max_connections_per_ip", int64(c.MaxConnectionsPerIP)}, {"max_clients", int64(c.MaxClients)},
		{"max_frame_bytes", int64(c.MaxFrameBytes)}, {"max_argument_bytes", int64(c.MaxArgumentBytes)}, {"max_result_bytes", int64(c.MaxResultBytes)},
		{"max_queue_frames", int64(c.MaxQueueFrames)}, {"max_queue_bytes", int64(c.MaxQueueBytes)},
		{"max_kept_calls", int64(c.MaxKeptCalls)}, {"max_kept_bytes", int64(c.MaxKeptBytes)},
		{"max_in_flight", int64(c.MaxInFlight)}, {"max_in_flight_per_client", int64(c.MaxInFlightPerClient)},
		{"hello_timeout", int64(c.HelloTimeout)}, {"call_timeout", int64(c.CallTimeout)}, {"max_deadline", int64(c.MaxDeadline)},
		{"result_ttl", int64(c.ResultTTL)}, {"progress_every", int64(c.ProgressEvery)}, {"ping_every", int64(c.PingEvery)}, {"write_timeout", int64(c.WriteTimeout)},
	} {
		if n.value < 1 {
			return config.Bad("gateway."+n.key, "is not positive")
		}
	}
	for _, n := range []struct {
		key             string
		burst, bySecond int
	}{{"global", c.Rate.GlobalBurst, c.Rate.GlobalPerSecond}, {"ip", c.Rate.IPBurst, c.Rate.IPPerSecond}, {"user", c.Rate.UserBurst, c.Rate.UserPerSecond}} {
		switch {
		case n.bySecond < 0:
			return config.Bad("gateway.rate."+n.key+"_per_second", "%d is negative; 0 is no limit", n.bySecond)
		case n.bySecond > 0 && n.burst < 1:
			return config.Bad("gateway.rate."+n.key+"_burst", "%d is not positive; nothing would ever pass", n.burst)
		}
	}
	switch {
	case c.MaxFrameBytes > socket.MaxFrameBytes:
		return config.Bad("gateway.max_frame_bytes", "%d is more than %d; send large things in parts", c.MaxFrameBytes, socket.MaxFrameBytes)
	case c.CallTimeout > c.MaxDeadline:
		return config.Bad("gateway.call_timeout", "%s is longer than gateway.max_deadline (%s)", c.CallTimeout, c.MaxDeadline)
	}
	_, err := c.trustedProxies()
	return err
}

// maxTrustedProxies bounds what each request is compared with.
const maxTrustedProxies = 256

// trusted are the proxies of settings that are valid.
func (c *gatewayConfig) trusted() []netip.Prefix {
	networks, _ := c.trustedProxies() // validate has refused what is none
	return networks
}

// trustedProxies reads the setting as networks.
func (c *gatewayConfig) trustedProxies() (networks []netip.Prefix, err error) {
	const key = "gateway.trusted_proxies"
	if len(c.TrustedProxies) > maxTrustedProxies {
		return nil, config.Bad(key, "%d are more than %d; give networks", len(c.TrustedProxies), maxTrustedProxies)
	}
	for _, text := range c.TrustedProxies {
		network, err := netip.ParsePrefix(text)
		if a, bad := netip.ParseAddr(text); bad == nil {
			network, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		switch {
		case err != nil || network.Addr().Is4In6() || network.Addr().Zone() != "":
			return nil, config.Bad(key, "%q is neither an address nor a network; use such as 10.0.0.0/8", text)
		case network.Bits() == 0:
			return nil, config.Bad(key, "%q is everybody; any client could say that it has any address. Give the network that the proxies are in", text)
		}
		networks = append(networks, network.Masked())
	}
	return networks, nil
}

// openGateway makes the client gateway, whose tools call this server's own API.
func (s *server) openGateway(version string) (err error) {
	set := s.recorded(tools.New(s.api.Local()))
	limits := s.cfg.Gateway.limits()
	s.callLog = dispatch.NewLog(s.node, s.store.Index, s.peers, s.log)
	s.calls = dispatch.New(dispatch.Options{
		Server: s.cfg.Name, State: dispatch.StoreState{Store: s.store}, Log: s.callLog, Runner: socket.NewRunner(set, s.api, limits.ResultBytes, s.log),
		Chunks: s.chunks, MaxInFlight: limits.InFlight, MaxWaiting: dispatch.DefaultMaxWaiting, Cancelled: tools.ErrCancelled, Retry: dispatch.DefaultRetry(),
		Logger: s.log,
	})
	s.gateway = socket.New(socket.Options{
		Server: s.cfg.Name, Tools: set, Access: s.api, Calls: s.calls, Durable: s.cfg.Gateway.Durable, Origins: s.cfg.Gateway.Origins,
		TrustedProxies: s.cfg.Gateway.trusted(), Open: !s.cfg.Auth.Tokens,
		Ready: s.isReady, Limits: limits, Logger: s.log,
	})
	s.mcp, err = mcp.New(mcp.Options{
		Server: s.cfg.Name, Version: version, Tools: set, API: s.api.Local(), Access: s.api, Door: s.gateway, Limits: s.cfg.Gateway.mcpLimits(), Logger: s.log,
	})
	return err
}

// closeGateway ends it in good order: calls in flight may end until ctx does.
func (s *server) closeGateway(ctx context.Context) {
	done := make(chan struct{})
	go func() { defer close(done); s.gateway.Close(ctx) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
	s.mcp.Close() // its calls are among those that the gateway waits for
	<-done
}

// gatewayPath is where clients connect.
const gatewayPath = "/mcp"

// handleGateway registers all ways of speaking to clients.
func (s *server) handleGateway(mux *http.ServeMux) {
	mux.HandleFunc(gatewayPath, func(w http.ResponseWriter, r *http.Request) {
		if mcp.Wanted(r) {
			s.mcp.ServeHTTP(w, r)
			return
		}
		s.gateway.ServeHTTP(w, r)
	})
	s.gateway.Handle(mux)
}
