// Addresses behind proxies: trusted ones are believed, and nobody else is.
package socket

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func proxies(networks ...string) (all []netip.Prefix) {
	for _, n := range networks {
		all = append(all, netip.MustParsePrefix(n))
	}
	return all
}

func TestAddresses(t *testing.T) {
	h := &Hub{o: Options{TrustedProxies: proxies("10.0.0.0/8", "fd00::/8")}}
	const proxy = "10.1.1.1:40000"
	type headers map[string][]string
	x := func(lines ...string) headers { return headers{"X-Forwarded-For": lines} }
	f := func(lines ...string) headers { return headers{"Forwarded": lines} }
	for name, c := range map[string]struct {
		peer string
		said headers
		want string
	}{
		"nobody between":                      {"203.0.113.7:1", nil, "203.0.113.7"},
		"who is not trusted says another":     {"203.0.113.7:1", x("198.51.100.1"), "203.0.113.7"},
		"who is not trusted names a proxy":    {"203.0.113.7:1", x("198.51.100.1, 10.0.0.1"), "203.0.113.7"},
		"who is not trusted, by the standard": {"203.0.113.7:1", f("for=198.51.100.1"), "203.0.113.7"},
		"a proxy says nothing":                {proxy, nil, "10.1.1.1"},
		"a proxy says who":                    {proxy, x("203.0.113.7"), "203.0.113.7"},
		"with a port":                         {proxy, x("203.0.113.7:4711"), "203.0.113.7"},
		"of the other family":                 {proxy, x("2001:db8::1"), "2001:db8::1"},
		"in brackets":                         {proxy, x("[2001:db8::1]"), "2001:db8::1"},
		"in brackets with a port":             {proxy, x("[2001:db8::1]:80"), "2001:db8::1"},
		"written in two ways":                 {proxy, x("::ffff:203.0.113.7"), "203.0.113.7"},
		"a proxy of the other family":         {"[fd00::1]:1", x("203.0.113.7"), "203.0.113.7"},
		"a proxy with a zone":                 {"[fd00::1%eth0]:1", x("203.0.113.7"), "203.0.113.7"},
		"a proxy on a socket of both":         {"[::ffff:10.1.1.1]:1", x("203.0.113.7"), "203.0.113.7"},

		"what a client put before":      {proxy, x("198.51.100.1, 203.0.113.7"), "203.0.113.7"},
		"in a line of its own":          {proxy, x("198.51.100.1", "203.0.113.7"), "203.0.113.7"},
		"two proxies":                   {proxy, x("203.0.113.7, 10.2.2.2"), "203.0.113.7"},
		"two, and what is before":       {proxy, x("198.51.100.1,203.0.113.7,10.2.2.2"), "203.0.113.7"},
		"a client among the trusted":    {proxy, x("10.9.9.9"), "10.9.9.9"},
		"nobody that is known":          {proxy, x("unknown"), "10.1.1.1"},
		"nobody that the second knows":  {proxy, x("198.51.100.1, unknown, 10.2.2.2"), "10.2.2.2"},
		"nothing":                       {proxy, x(""), "10.1.1.1"},
		"more proxies than one has":     {proxy, x("203.0.113.7" + strings.Repeat(", 10.2.2.2", 100)), "10.2.2.2"},
		"a flood that a client put":     {proxy, x(strings.Repeat("1.1.1.1,", 1000) + "203.0.113.7"), "203.0.113.7"},
		"an address that is no address": {proxy, x("203.0.113.7.example.com"), "10.1.1.1"},

		"by the standard":            {proxy, f("for=203.0.113.7"), "203.0.113.7"},
		"with all that it has":       {proxy, f(`by=10.1.1.1;For="[2001:db8::1]:4711";host=example.com;proto=https`), "2001:db8::1"},
		"several elements":           {proxy, f(`for=198.51.100.1, for=203.0.113.7;proto=http ,for=10.2.2.2`), "203.0.113.7"},
		"an element that hides":      {proxy, f("for=198.51.100.1, for=_hidden"), "10.1.1.1"},
		"an element without for":     {proxy, f("for=198.51.100.1, proto=https"), "10.1.1.1"},
		"a quote left open":          {proxy, f(`for="198.51.100.1`, "for=203.0.113.7"), "10.1.1.1"},
		"a quote that takes the end": {proxy, f(`for=198.51.100.1;by="`, `for="203.0.113.7"`), "10.1.1.1"},
		"an escape":                  {proxy, f(`for=198.51.100.1;by="\"`, `for="203.0.113.7"`), "10.1.1.1"},
		"a comma in quotes":          {proxy, f(`by="a,for=198.51.100.1";for=203.0.113.7`), "203.0.113.7"},
		"no pair":                    {proxy, f("203.0.113.7"), "10.1.1.1"},

		"both headers":                    {proxy, headers{"X-Forwarded-For": {"198.51.100.1, 203.0.113.7"}, "Forwarded": {"for=203.0.113.7"}}, "203.0.113.7"},
		"one written by the client":       {proxy, headers{"X-Forwarded-For": {"203.0.113.7"}, "Forwarded": {"for=198.51.100.1"}}, "10.1.1.1"},
		"the other written by the client": {proxy, headers{"X-Forwarded-For": {"198.51.100.1"}, "Forwarded": {"for=203.0.113.7"}}, "10.1.1.1"},
		"no address at all":               {"@", x("203.0.113.7"), "@"}, // a Unix socket
	} {
		r := &http.Request{RemoteAddr: c.peer, Header: http.Header(c.said)}
		if got := h.addressOf(r); got != c.want {
			t.Errorf("%s: %s, not %s", name, got, c.want)
		}
		r.Header = http.Header(c.said)
		alone := (&Hub{}).addressOf(r)
		if beforePort := strings.TrimPrefix(strings.TrimSuffix(c.peer[:max(strings.LastIndex(c.peer, ":"), 0)], "]"), "["); beforePort != "" && alone != beforePort {
			t.Errorf("%s: where nobody is trusted, %s, not %s", name, alone, beforePort)
		}
	}
}

// Whatever a client writes into either header, behind a proxy that appends to one of them it has its own address or the proxy's.
func TestNobodyHasAnAddressByChoice(t *testing.T) {
	h := &Hub{o: Options{TrustedProxies: proxies("10.0.0.0/8")}}
	pieces := rapid.SliceOf(rapid.SampledFrom([]string{"for", "=", "\"", ",", ";", " ", "\\", "by", "1.1.1.1", "10.3.3.3", "[::1]", "unknown", "for=1.1.1.1", `"1.1.1.1"`}))
	rapid.Check(t, func(t *rapid.T) {
		header := http.Header{}
		for _, name := range []string{"X-Forwarded-For", "Forwarded"} {
			if forged := strings.Join(pieces.Draw(t, name), ""); forged != "" {
				header.Set(name, forged)
			}
		}
		own := "203.0.113.7"
		appended := map[string]string{"X-Forwarded-For": own, "Forwarded": rapid.SampledFrom([]string{"for=" + own, `for="` + own + `:80";proto=https`, `by="[fd00::2]";for="` + own + `"`}).Draw(t, "form")}
		by := rapid.SampledFrom([]string{"X-Forwarded-For", "Forwarded"}).Draw(t, "by")
		switch lines := header[by]; {
		case lines == nil || rapid.Bool().Draw(t, "line"):
			header.Add(by, appended[by])
		default:
			header.Set(by, lines[0]+", "+appended[by])
		}
		if got := h.addressOf(&http.Request{RemoteAddr: "10.1.1.1:1", Header: header}); got != own && got != "10.1.1.1" {
			t.Fatalf("%v: a client is taken for %s", header, got)
		}
	})
}

// The limits count clients behind a trusted proxy apart, and those who only say that they are behind one together.
func TestLimitsCountClientsBehindProxies(t *testing.T) {
	from := func(address string) http.Header { return http.Header{"X-Forwarded-For": {address}} }
	for name, c := range map[string]struct {
		trusted  []netip.Prefix
		admitted int
	}{"trusted": {proxies("127.0.0.0/8", "::1/128"), 3}, "not trusted": {nil, 1}} {
		w := start(t, func(o *Options) { o.TrustedProxies, o.Limits.ConnectionsPerIP = c.trusted, 1 })
		admitted := 0
		var said []string
		for i := range 3 {
			p := w.dial(from(fmt.Sprintf("203.0.113.%d", i)))
			p.send(map[string]any{"op": "hello", "token": "alice"})
			m, _ := p.read()
			if said = append(said, fmt.Sprint(m["error"])); m["ok"] == true {
				admitted++
			}
		}
		if admitted != c.admitted || admitted < 3 && !slices.Contains(said, "over_capacity") {
			t.Errorf("%s: %d connections of 3 clients were let in: %v", name, admitted, said)
		}
	}
	w := start(t, func(o *Options) { o.TrustedProxies, o.Limits.ConnectionsPerIP = proxies("127.0.0.0/8", "::1/128"), 1 })
	w.dial(from("203.0.113.1"))
	p := w.dial(from("198.51.100.9, 203.0.113.1"))
	if m, _ := p.read(); m["error"] != "over_capacity" {
		t.Errorf("a client that put another address before its own: %v", m)
	}
}
