// Names of servers: where gossip advertises this one, and where it finds the others. Names are looked up each time they are needed,
// for the addresses behind all of them may change at once.

package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

// Lookup returns the addresses of a host.
type Lookup func(ctx context.Context, host string) ([]netip.Addr, error)

// SystemLookup asks the system's resolver.
func SystemLookup(ctx context.Context, host string) ([]netip.Addr, error) {
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for i := range found {
		found[i] = found[i].Unmap()
	}
	return found, err
}

const (
	// lookupTimeout bounds one lookup, and lookupAgain is the pause before another one.
	lookupTimeout, lookupAgain = 3 * time.Second, 500 * time.Millisecond
	// namePatience is how long a server's own name may be unknown when it starts: it may become known because of the start.
	namePatience = time.Minute
	// stalePatience is how long it may lead elsewhere: to where the server was before.
	stalePatience = 10 * time.Second
	// maxJoinAddresses bounds what the names of peers may resolve to.
	maxJoinAddresses = 64
)

// ResolveAdvertised returns an address for gossip to advertise, host:port, with a name in it looked up: gossip needs the address
// itself. It waits until the name is known and leads to where gossip listens, which bind says; when it goes on leading elsewhere, as
// behind a translation of addresses, that is taken for meant.
func ResolveAdvertised(ctx context.Context, address, bind string, lookup Lookup, log *slog.Logger) (string, error) {
	return resolver{lookup: lookup, own: listensAt(bind), log: log}.advertised(ctx, address)
}

// resolver looks up a server's own name.
type resolver struct {
	lookup Lookup
	own    func(netip.Addr) bool
	log    *slog.Logger
}

func (r resolver) advertised(ctx context.Context, address string) (string, error) {
	if address == "" {
		return "", nil
	}
	host, port, err := splitHostPort(address)
	if err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return address, nil
	}
	began, told := time.Now(), false
	for {
		found, err := lookupOnce(ctx, r.lookup, host)
		if i := slices.IndexFunc(found, r.own); i >= 0 {
			return joined(found[i], port), nil
		}
		waited := time.Since(began)
		switch {
		case len(found) > 0 && waited >= stalePatience:
			r.log.Warn("the name to be advertised leads to no address of this machine; advertising where it leads", "name", host, "address", found[0])
			return joined(found[0], port), nil
		case waited >= namePatience:
			return "", fault.New(fault.Unavailable, "look up %s: %w; see that the name is known, or give an address", host, err)
		case !told:
			told = true
			r.log.Info("waiting until the name to be advertised leads to this machine", "name", host, "found", found, "error", err)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("look up %s: %w", host, context.Cause(ctx))
		case <-time.After(lookupAgain):
		}
	}
}

// lookupOnce returns what a host resolves to; an error when that is nothing.
func lookupOnce(ctx context.Context, lookup Lookup, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, err := lookup(ctx, host)
	if err == nil && len(found) == 0 {
		err = fault.New(fault.NotFound, "it has no address")
	}
	return found, err
}

func joined(a netip.Addr, port int) string { return net.JoinHostPort(a.String(), strconv.Itoa(port)) }

// listensAt returns a function that reports whether who listens on bind does so at an address.
func listensAt(bind string) func(netip.Addr) bool {
	host, _, err := net.SplitHostPort(bind)
	if err != nil {
		return hasAddress
	}
	if a, err := netip.ParseAddr(host); err == nil && !a.IsUnspecified() {
		return func(b netip.Addr) bool { return a.Unmap() == b }
	}
	return hasAddress
}

// hasAddress reports whether the machine has an address: whether it can listen there.
func hasAddress(a netip.Addr) bool {
	c, err := net.ListenPacket("udp", joined(a, 0))
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// resolve looks up peers, given as host:port, all at once. It returns what it found, without doubles, and why it did not find more.
func resolve(ctx context.Context, lookup Lookup, peers []string) (addresses []string, errs []error) {
	type answer struct {
		found []string
		err   error
	}
	answers := make([]answer, len(peers))
	var wait sync.WaitGroup
	for i, peer := range peers {
		host, port, err := splitHostPort(peer)
		if err != nil {
			answers[i].err = err
			continue
		}
		if _, err := netip.ParseAddr(host); err == nil {
			answers[i].found = []string{peer}
			continue
		}
		wait.Go(func() {
			found, err := lookupOnce(ctx, lookup, host)
			if err != nil {
				answers[i].err = fmt.Errorf("look up %s: %w", host, err)
			}
			for _, a := range found {
				answers[i].found = append(answers[i].found, joined(a, port))
			}
		})
	}
	wait.Wait()
	for _, a := range answers {
		addresses = append(addresses, a.found...)
		if a.err != nil {
			errs = append(errs, a.err)
		}
	}
	slices.Sort(addresses)
	addresses = slices.Compact(addresses)
	return addresses[:min(len(addresses), maxJoinAddresses)], errs
}
