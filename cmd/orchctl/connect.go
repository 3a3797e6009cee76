// Where to go and as whom: flags, then environment, then contexts.

package main

import (
	"context"
	"crypto/x509"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/neolith/orchestrator/client"
	clientcontext "github.com/neolith/orchestrator/client/context"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/kube"
	"github.com/neolith/orchestrator/session"
	"github.com/neolith/orchestrator/telemetry"
)

// maxTokenBytes bounds a token file.
const maxTokenBytes = 16 << 10

// target is a decision, with where its parts came from.
type target struct {
	addresses []string
	origin    string   // of the addresses
	context   string   // the context whose token or TLS is used; empty when none
	gateways  []string // client ports that the context names
	tokenOf   string   // the context that the token is of; empty when it was given otherwise
	token     string
	tls       client.TLSFiles
	namespace string

	// Of a release on Kubernetes only; all but release come with reach.
	release *kube.Release
	roots   *x509.CertPool
	dial    func(ctx context.Context, address string) (net.Conn, error)
}

// resolve decides where to go.
func (a *app) resolve() (*target, error) {
	if a.target != nil {
		return a.target, nil
	}
	t := &target{token: first(a.flags.token, a.getenv("ORCHCTL_TOKEN"))}
	tokenFile := first(a.flags.tokenFile, a.getenv("ORCHCTL_TOKEN_FILE"))
	if a.flags.tokenFile != "" && a.flags.token == "" {
		t.token = "" // a flag goes before the environment
	}
	t.tls = client.TLSFiles{
		CA: first(a.flags.tlsCA, a.getenv("ORCHCTL_TLS_CA")), Cert: first(a.flags.tlsCert, a.getenv("ORCHCTL_TLS_CERT")),
		Key: first(a.flags.tlsKey, a.getenv("ORCHCTL_TLS_KEY")), ServerName: first(a.flags.tlsServerName, a.getenv("ORCHCTL_TLS_SERVER_NAME")),
	}
	if rel, meant, err := a.kubeRelease(); err != nil {
		return nil, err
	} else if meant {
		return a.resolveKube(t, rel, tokenFile)
	}
	chosen, using, err := a.pick(t)
	if err != nil {
		return nil, err
	}
	if using {
		t.context, t.gateways = chosen.Name, chosen.Gateways
		if t.token == "" && tokenFile == "" && (!a.flags.insecure || !slices.ContainsFunc(t.addresses, beyond)) {
			t.token, tokenFile = chosen.Token, chosen.TokenFile
			if t.token != "" || tokenFile != "" {
				t.tokenOf = chosen.Name
			}
		}
		if t.tls.Empty() {
			t.tls = client.TLSFiles{CA: chosen.TLSCA, Cert: chosen.TLSCert, Key: chosen.TLSKey, ServerName: chosen.TLSServerName}
		}
	}
	if a.flags.insecure {
		t.tls = client.TLSFiles{}
	}
	t.namespace = first(a.flags.namespace, a.getenv("ORCHCTL_NAMESPACE"), chosen.Namespace, session.DefaultNamespace)
	if t.token == "" && tokenFile != "" {
		if t.token, err = readToken(tokenFile); err != nil {
			return nil, err
		}
	}
	for _, address := range t.addresses {
		switch {
		case !t.tls.Empty() || client.IsLoopback(address) || !strings.Contains(address, ":"):
		case !a.flags.insecure:
			return nil, fault.New(fault.Invalid, "refused to connect to %s (%s) in plain text: it is not on this machine and no TLS is configured; give the cluster's CA with --tls-ca or a context, or --insecure on a network that you trust", address, t.origin)
		case t.token != "":
			return nil, fault.New(fault.Invalid, "refused to send a token to %s in plain text; use TLS (--tls-ca), or leave the token out", address)
		}
	}
	a.target = t
	return t, nil
}

// pick finds the addresses, and the context whose identity goes with them.
func (a *app) pick(t *target) (chosen clientcontext.Context, using bool, err error) {
	path, err := clientcontext.DefaultPath(a.getenv)
	file := &clientcontext.File{}
	if err == nil {
		if file, err = clientcontext.Load(path); err != nil {
			return chosen, false, err
		}
	}
	addr, origin := a.flags.addr, "--addr"
	if addr == "" {
		addr, origin = a.getenv("ORCHCTL_ADDR"), "ORCHCTL_ADDR"
	}
	t.addresses, t.origin = split(addr), origin
	if name := a.flags.context; name != "" || len(t.addresses) == 0 && file.Current != "" {
		name = first(name, file.Current)
		if chosen, using = file.Get(name); !using {
			return chosen, false, fault.New(fault.Invalid, "there is no context %q in %s; 'orchctl context list' shows those there are", name, path)
		}
		if len(t.addresses) == 0 {
			t.addresses, t.origin = chosen.Addresses, "context "+name
		}
	}
	if len(t.addresses) == 0 {
		t.addresses, t.origin = []string{client.DefaultAddress}, "the default"
	}
	if !using {
		chosen, using = file.ByAddresses(t.addresses)
		chosen.Namespace = "" // the address was meant, not the context as a whole
	}
	return chosen, using, nil
}

// connect makes the client, once.
func (a *app) connect(ctx context.Context) (*client.Client, error) {
	if a.client != nil {
		return a.client, nil
	}
	t, err := a.resolve()
	if err != nil {
		return nil, err
	}
	if err := a.reach(ctx, t); err != nil {
		return nil, err
	}
	cfg, err := a.clientConfig(t)
	if err != nil {
		return nil, err
	}
	a.client, err = client.New(cfg)
	return a.client, err
}

func (a *app) clientConfig(t *target) (client.Config, error) {
	tlsConfig, err := t.tlsConfig()
	return client.Config{
		Dial: t.dial, Addresses: t.addresses, Token: t.token, TLS: tlsConfig, Insecure: a.flags.insecure, Timeout: a.flags.timeout,
		ReachTimeout: reachTimeout, UserAgent: "orchctl/" + telemetry.ThisBuild().Version,
		OnRetry: func(r client.Retry) { a.busy.say("trying again: " + r.Err.Error()) },
	}, err
}

// namespace is the one to work in.
func (a *app) namespace() string {
	t, err := a.resolve()
	if err != nil {
		return session.DefaultNamespace // connect has refused already, or will
	}
	return t.namespace
}

// beyond reports whether an address is not on this machine.
func beyond(address string) bool { return !client.IsLoopback(address) }

func readToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fault.New(fault.Invalid, "read the token file: %w; name a readable file", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" || len(token) > maxTokenBytes || strings.ContainsAny(token, " \t\r\n") {
		return "", fault.New(fault.Invalid, "read the token file %s: it must hold one token and nothing else", path)
	}
	return token, nil
}

func split(list string) (out []string) {
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
