// Addresses: whom the limits of one address count, behind proxies too.

package socket

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// maxHops bounds the proxies behind one another that are looked through.
const maxHops = 16

// addressOf is the address that a request comes from, without the port. It is the other end of the TCP connection, unless that is a
// trusted proxy: then it is the nearest address in X-Forwarded-For or Forwarded that is not one. What stands farther from this server
// was written by somebody who is not trusted. Where the two headers disagree, a client wrote one of them and the proxies passed it on,
// and neither is believed.
func (h *Hub) addressOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	peer, err := netip.ParseAddr(host)
	if err != nil || !h.trusts(peer) {
		return host
	}
	byX, saidX := h.nearest(peer, r.Header.Values("X-Forwarded-For"), forwardedFor)
	byRFC, saidRFC := h.nearest(peer, r.Header.Values("Forwarded"), forwarded)
	switch {
	case saidX && !saidRFC, saidX && byX == byRFC:
		return byX.String()
	case saidRFC && !saidX:
		return byRFC.String()
	}
	return host
}

// trusts reports whether what an address says of others is believed.
func (h *Hub) trusts(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(h.o.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// nearest is the first hop, from this server outward, that is no trusted proxy; the farthest that is known where all are, or where the
// next one does not say who it is. It reports whether there is such a header at all.
func (h *Hub) nearest(peer netip.Addr, lines []string, read func(line string) []netip.Addr) (at netip.Addr, said bool) {
	at = peer.Unmap().WithZone("")
	if len(lines) == 0 {
		return at, false
	}
	hops := read(strings.Join(lines, ","))
	for _, hop := range slices.Backward(hops) {
		if !hop.IsValid() {
			break
		}
		if at = hop; !h.trusts(hop) {
			break
		}
	}
	return at, true
}

// forwardedFor reads X-Forwarded-For: the hops, the nearest last; the zero address stands for one that does not say who it is.
func forwardedFor(line string) (hops []netip.Addr) {
	for hop := range strings.SplitSeq(line, ",") {
		hops = nearer(hops, parseHop(strings.TrimSpace(hop)))
	}
	return hops
}

// nearer appends a hop, and lets the farthest one go when there are maxHops.
func nearer(hops []netip.Addr, hop netip.Addr) []netip.Addr {
	if len(hops) == maxHops {
		hops = slices.Delete(hops, 0, 1)
	}
	return append(hops, hop)
}

// forwarded reads Forwarded (RFC 7239) in the same way. A line that is not well-formed says nothing: with a quote that it leaves
// open, a client could otherwise make what a proxy appends a part of its own.
func forwarded(line string) (hops []netip.Addr) {
	var hop netip.Addr
	for {
		line = strings.TrimLeft(line, " \t")
		name, rest, ok := strings.Cut(line, "=")
		if !ok || name == "" || strings.ContainsAny(name, " \t\",;") {
			return nil
		}
		value, rest, ok := cutValue(rest)
		if !ok {
			return nil
		}
		if strings.EqualFold(name, "for") {
			hop = parseHop(value)
		}
		rest = strings.TrimLeft(rest, " \t")
		switch {
		case rest == "":
			return nearer(hops, hop)
		case rest[0] == ',':
			hops, hop = nearer(hops, hop), netip.Addr{}
		case rest[0] != ';':
			return nil
		}
		line = rest[1:]
	}
}

// cutValue takes a token or a quoted string off the beginning of s. No address needs an escape in its quotes, so there is none here.
func cutValue(s string) (value, rest string, ok bool) {
	if quoted, is := strings.CutPrefix(s, `"`); is {
		value, rest, ok = strings.Cut(quoted, `"`)
		return value, rest, ok && !strings.Contains(value, `\`)
	}
	end := strings.IndexAny(s, " \t,;\"")
	if end < 0 {
		end = len(s)
	}
	return s[:end], s[end:], end > 0
}

// parseHop reads an address, with or without a port; the zero address when it is none, such as unknown or _hidden.
func parseHop(s string) netip.Addr {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.Unmap().WithZone("")
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
