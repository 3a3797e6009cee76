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

// shareWith lets a page that may call read its answer. Pages are let in before.
func shareWith(w http.ResponseWriter, r *http.Request) {
	if origin := r.Header.Get("Origin"); origin != "" {
		w.Header().Set("Access-Control-Allow-Origin", origin)
		w.Header().Add("Vary", "Origin")
		w.Header().Set("Access-Control-Expose-Headers", "Retry-After")
	}
}

// preflightAge is how long a browser may remember what a page may do.
const preflightAge = "600"

// preflight tells a browser what a page of another origin may ask for. Tokens stand in a header and never in cookies, so there are no credentials to allow.
func (h *Hub) preflight(w http.ResponseWriter, r *http.Request) {
	if !h.Allows(r) {
		refuse(w, http.StatusForbidden, failed(codeUnauthorized, "origin: pages of this origin may not call; add it to gateway.origins"))
		return
	}
	shareWith(w, r)
	w.Header().Set("Access-Control-Allow-Methods", "GET, POST")
	w.Header().Set("Access-Control-Allow-Headers", "Authorization, Content-Type, "+SessionHeader)
	w.Header().Set("Access-Control-Max-Age", preflightAge)
	w.WriteHeader(http.StatusNoContent)
}
