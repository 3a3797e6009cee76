// Origins: which web pages may connect.

package socket

import (
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Allows reports whether a request may come from where it says it does. Programs say nothing and may; pages may when their origin
// is this server or is listed. A server that needs no token is its own only by an address or as localhost: a name could be anybody's
// who has it point here.
func (h *Hub) Allows(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" || slices.Contains(h.o.Origins, origin) || slices.Contains(h.o.Origins, "*") {
		return true
	}
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
		return false
	}
	name := u.Hostname()
	return !h.o.Open || name == "localhost" || net.ParseIP(name) != nil
}
