// Where the client gateway is, and as whom to go there: as connect.go decides it for the API.

package main

import (
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/neolith/orchestrator/client/toolclient"
	"github.com/neolith/orchestrator/internal/fault"
)

// gatewayStep is how far a server's client port is from that of its API, with every base port.
const gatewayStep = 2

// gateway makes a client of the client gateway. The caller closes it.
func (a *app) gateway() (*toolclient.Client, error) {
	t, err := a.resolve()
	if err != nil {
		return nil, err
	}
	addresses, err := a.gateways(t)
	if err != nil {
		return nil, err
	}
	tlsConfig, err := t.tlsConfig()
	if err != nil {
		return nil, err
	}
	cfg := toolclient.Config{
		Addresses: addresses, TLS: tlsConfig, Insecure: a.flags.insecure, SessionID: a.flags.session, FallbackAfter: 1 + len(addresses),
		Backoff:     toolclient.Backoff{Min: gatewayPauseMin, Max: gatewayPauseMax},
		GiveUpAfter: 2 + 2*len(addresses), ConnectTimeout: reachTimeout,
	}
	if t.token != "" {
		cfg.Token = toolclient.StaticToken(t.token)
	}
	return toolclient.New(cfg)
}

// gateways are the addresses to go to.
func (a *app) gateways(t *target) ([]string, error) {
	if t.release != nil {
		return nil, fault.New(fault.Invalid, "the way to a release on Kubernetes leads to its API only; forward a client port (kubectl port-forward svc/… 8079) and give --gateway and --addr")
	}
	given, origin := a.flags.gateway, "--gateway"
	if given == "" {
		given, origin = a.getenv("ORCHCTL_GATEWAY"), "ORCHCTL_GATEWAY"
	}
	list := split(given)
	if len(list) == 0 {
		if len(t.gateways) > 0 {
			return t.gateways, nil
		}
		return beside(t.addresses), nil
	}
	// What a context holds is for its own servers.
	if t.tokenOf != "" {
		for _, address := range list {
			if host := hostOf(address); !slices.ContainsFunc(slices.Concat(t.addresses, t.gateways), func(s string) bool { return hostOf(s) == host }) {
				return nil, fault.New(fault.Invalid, "%s: %s is no host of context %s, whose token is not for others; give a token with --token-file, or write the address down with 'orchctl context set %s --gateway …'", origin, host, t.tokenOf, t.tokenOf)
			}
		}
	}
	return list, nil
}

// beside are the client ports of servers whose API addresses are known.
func beside(addresses []string) []string {
	var all []string
	for _, address := range addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			all = append(all, address) // refused with the reason where it is used
			continue
		}
		if n, err := strconv.Atoi(port); err == nil {
			port = strconv.Itoa(n + gatewayStep)
		}
		all = append(all, net.JoinHostPort(host, port))
	}
	return all
}

// hostOf is the host of host:port or a URL.
func hostOf(address string) string {
	if u, err := url.Parse(address); err == nil && strings.Contains(address, "://") {
		return u.Hostname()
	}
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// checkGateways refuses what is no address, for a context.
func checkGateways(list []string) error {
	if err := (toolclient.Config{Addresses: list, Insecure: true}).Validate(); err != nil {
		return fault.New(fault.Invalid, "--gateway: %w", err)
	}
	return nil
}
