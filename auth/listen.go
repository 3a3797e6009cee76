// Where a server may listen: nothing unprotected leaves the machine by accident.

package auth

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/neolith/orchestrator/internal/fault"
)

// ListenPolicy decides whether a port may be opened.
type ListenPolicy struct {
	TLS    bool // the port speaks TLS
	Tokens bool // callers must show a token or a certificate
	// Insecure is the operator's word that everything is allowed.
	Insecure bool
}

// Check decides on one address (host:port) of the port with the given setting, such as listen.grpc. Beyond loopback it
// takes TLS and tokens. The warning is not empty when only Insecure allows it: log it, loudly. Errors are of kind
// fault.Invalid.
func (p ListenPolicy) Check(setting, address string) (warning string, err error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return "", fault.New(fault.Invalid, "%s: %q is not host:port: %w", setting, address, err).WithField(setting)
	}
	lacks := ""
	switch {
	case IsLoopback(host), p.TLS && p.Tokens:
		return "", nil
	case !p.TLS && !p.Tokens:
		lacks = "neither TLS nor tokens"
	case !p.TLS:
		lacks = "no TLS"
	default:
		lacks = "no tokens"
	}
	if p.Insecure {
		return fmt.Sprintf("INSECURE: %s: %s can be reached from other machines with %s, because insecure: true says so", setting, address, lacks), nil
	}
	return "", fault.New(fault.Invalid, "%s: %s can be reached from other machines, with %s; give tls.cert_file, tls.key_file and tls.ca_file "+
		"(`orchestrator ca init` and `ca issue` make them), or listen on 127.0.0.1, or set insecure: true", setting, address, lacks).WithField(setting)
}

// IsLoopback reports whether a host is reached only from its own machine. A name other than localhost counts as
// reachable: what it means may change.
func IsLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().WithZone("").IsLoopback()
}
