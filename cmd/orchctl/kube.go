// The way into a release of the Helm chart: --kube-release and what goes with it.

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"

	"github.com/spf13/pflag"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/kube"
	"github.com/neolith/orchestrator/session"
)

// kubeFlags say which release is meant.
type kubeFlags struct{ config, context, namespace, release string }

func (k *kubeFlags) add(f *pflag.FlagSet) {
	f.StringVar(&k.release, "kube-release", "", "go to this Helm release on Kubernetes, through the API server (ORCHCTL_KUBE_RELEASE)")
	f.StringVar(&k.namespace, "kube-namespace", "", "the release's namespace on Kubernetes; the kubeconfig's when not given (ORCHCTL_KUBE_NAMESPACE)")
	f.StringVar(&k.context, "kube-context", "", "the kubeconfig's context; its current one when not given (ORCHCTL_KUBE_CONTEXT)")
	f.StringVar(&k.config, "kubeconfig", "", "the kubeconfig (KUBECONFIG, ~/.kube/config)")
}

// given reports whether any flag says to go to Kubernetes. --kubeconfig alone only says how.
func (k *kubeFlags) given() bool { return k.release != "" || k.namespace != "" || k.context != "" }

// kubeRelease is the release that is meant; false when none is.
func (a *app) kubeRelease() (kube.Release, bool, error) {
	k, g := a.flags.kube, &a.flags
	switch {
	case k.given() && (g.addr != "" || g.context != ""):
		return kube.Release{}, false, fault.New(fault.Invalid, "--kube-… and --addr or --context name different ways; give one of them")
	case g.addr != "" || g.context != "":
		return kube.Release{}, false, nil // flags go before the environment
	case k.config != "" && !k.given() && a.getenv("ORCHCTL_KUBE_RELEASE") == "" && a.getenv("ORCHCTL_KUBE_NAMESPACE") == "":
		return kube.Release{}, false, fault.New(fault.Invalid, "--kubeconfig says how to reach a release, and none is named; give --kube-release or --kube-namespace")
	}
	rel := kube.Release{
		Kubeconfig: k.config, Context: first(k.context, a.getenv("ORCHCTL_KUBE_CONTEXT")),
		Namespace: first(k.namespace, a.getenv("ORCHCTL_KUBE_NAMESPACE")), Name: first(k.release, a.getenv("ORCHCTL_KUBE_RELEASE")),
	}
	if !k.given() && rel.Name == "" && rel.Namespace == "" {
		return kube.Release{}, false, nil
	}
	if !k.given() && a.getenv("ORCHCTL_ADDR") != "" {
		return kube.Release{}, false, fault.New(fault.Invalid, "ORCHCTL_KUBE_RELEASE (or …_NAMESPACE) and ORCHCTL_ADDR name different ways; unset one of them")
	}
	return rel, true, nil
}

// resolveKube decides what is known before the API server is asked.
func (a *app) resolveKube(t *target, rel kube.Release, tokenFile string) (*target, error) {
	t.release = &rel
	t.namespace = first(a.flags.namespace, a.getenv("ORCHCTL_NAMESPACE"), session.DefaultNamespace)
	if a.flags.insecure {
		return nil, fault.New(fault.Invalid, "--insecure is for plain text beyond this machine; the way to a release is the Kubernetes cluster's own, leave it out")
	}
	if t.token == "" && tokenFile != "" {
		var err error
		if t.token, err = readToken(tokenFile); err != nil {
			return nil, err
		}
	}
	a.target = t
	return t, nil
}

// reach asks the API server for the rest: addresses, the token and the authority, unless others were given. For a target that
// is no release there is nothing to ask.
func (a *app) reach(ctx context.Context, t *target) error {
	if t.release == nil || t.dial != nil {
		return nil
	}
	r, err := kube.Find(ctx, *t.release)
	if err != nil {
		return err
	}
	a.release = r
	t.origin = "release " + r.Release.Name + " in namespace " + r.Release.Namespace + " of Kubernetes"
	t.dial = r.Dial
	t.token = first(t.token, r.Token)
	// Plain text stays within the API server's own connections; it counts as this machine's.
	t.addresses = []string{"localhost:8077"}
	if r.CA == nil && t.tls.Empty() {
		return nil
	}
	t.addresses = []string{net.JoinHostPort(r.Host(), "8077")}
	if t.tls.CA != "" {
		return nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(r.CA) {
		return fault.New(fault.FailedPrecondition, "the authority in the Secret of %s is not a PEM certificate; mend it, or give one with --tls-ca", t.origin)
	}
	t.roots = pool
	return nil
}

// tlsConfig is what connections are made with; nil for plain text.
func (t *target) tlsConfig() (*tls.Config, error) {
	cfg, err := t.tls.Load()
	if err != nil || t.roots == nil {
		return cfg, err
	}
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS13}
	}
	cfg.RootCAs = t.roots
	return cfg, nil
}
