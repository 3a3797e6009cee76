// Package kube reaches an installation of the Helm chart from outside of its Kubernetes cluster, with no more than a
// kubeconfig.
//
// Find asks the API server for the release's client Service, by the labels that Helm's charts have in common
// (app.kubernetes.io/instance is the release, app.kubernetes.io/component is "client"). Two annotations of that Service say
// where the rest is:
//
//	neolith.github.io/admin-token: SECRET/KEY   the token to show; absent where the servers ask for none
//	neolith.github.io/ca:          SECRET/KEY   the authority of the servers' certificates; absent where they speak plain text
//
// Dial then makes connections to a server that is ready, as `kubectl port-forward` does, but without a port on this
// machine that other users could reach: the API server carries the bytes to the pod. Each connection chooses a pod
// anew, so a client that comes back after a pod has gone gets another one.
//
// It takes: get and list of services, pods and secrets, and create of pods/portforward, in one namespace. Credential
// plugins (exec) of kubeconfigs work; the old built-in ones (auth-provider) do not.
package kube

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/neolith/orchestrator/internal/fault"
)

// Annotations of the client Service.
const (
	annotationToken = "neolith.github.io/admin-token"
	annotationCA    = "neolith.github.io/ca"
)

const (
	labelRelease   = "app.kubernetes.io/instance"
	labelComponent = "app.kubernetes.io/component"
	labelPartOf    = "app.kubernetes.io/part-of"
	partOf         = "orchestrator"
	component      = "client"
	portName       = "grpc"
)

// Release names an installation.
type Release struct {
	Kubeconfig string // a file; KUBECONFIG and ~/.kube/config when empty
	Context    string // of the kubeconfig; its current one when empty
	Namespace  string // of Kubernetes; the context's when empty
	Name       string // of the Helm release; may be empty where there is only one in the namespace
}

// Reach is a way into an installation.
type Reach struct {
	Release Release // with what was found in place of what was empty
	Service string  // the client Service's name
	Token   string  // "" where the servers ask for none
	CA      []byte  // PEM; nil where the servers speak plain text

	api      *api
	selector string // of the servers' pods
	turn     atomic.Uint32
}

// Host is the name in the servers' certificates.
func (r *Reach) Host() string { return r.Service + "." + r.Release.Namespace + ".svc" }

// Find looks an installation up. Errors are of kind fault.Invalid (the kubeconfig), NotFound, PermissionDenied,
// Unauthenticated, FailedPrecondition (something is not as the chart makes it) or Unavailable.
func Find(ctx context.Context, rel Release) (*Reach, error) {
	config, err := load(&rel)
	if err != nil {
		return nil, err
	}
	a, err := newAPI(config, rel.Namespace)
	if err != nil {
		return nil, err
	}
	svc, err := findService(ctx, a, &rel)
	if err != nil {
		return nil, err
	}
	r := &Reach{Release: rel, Service: svc.Metadata.Name, api: a, selector: selector(svc.Spec.Selector)}
	if r.selector == "" {
		return nil, fault.New(fault.FailedPrecondition, "Service %s/%s selects no pods; it is not one of the chart", rel.Namespace, r.Service)
	}
	token, err := r.secret(ctx, svc, annotationToken)
	if err != nil {
		return nil, err
	}
	r.Token = strings.TrimSpace(string(token))
	if r.CA, err = r.secret(ctx, svc, annotationCA); err != nil {
		return nil, err
	}
	return r, nil
}

// load reads the kubeconfig by the usual rules, and fills in the namespace.
func load(rel *Release) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = rel.Kubeconfig
	cc := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: rel.Context})
	config, err := cc.ClientConfig()
	if err != nil {
		return nil, fault.New(fault.Invalid, "read the kubeconfig: %w; name a good one with KUBECONFIG or --kubeconfig, and a context of it with --kube-context", err)
	}
	if rel.Namespace == "" {
		if rel.Namespace, _, err = cc.Namespace(); err != nil {
			return nil, fault.New(fault.Invalid, "read the kubeconfig's namespace: %w; give one with --kube-namespace", err)
		}
	}
	config.UserAgent = "orchctl"
	return config, nil
}

// findService finds the client Service, and fills in the release's name.
func findService(ctx context.Context, a *api, rel *Release) (*service, error) {
	want := map[string]string{labelComponent: component, labelPartOf: partOf}
	if rel.Name != "" {
		want[labelRelease] = rel.Name
	}
	var found list[service]
	if err := a.get(ctx, "services", url.Values{"labelSelector": {selector(want)}}, &found); err != nil {
		return nil, fmt.Errorf("find the release: %w", err)
	}
	switch {
	case len(found.Items) == 0 && rel.Name != "":
		return nil, fault.New(fault.NotFound, "there is no release %q of the orchestrator chart in namespace %q of Kubernetes; 'helm list --all-namespaces' shows where it is", rel.Name, rel.Namespace)
	case len(found.Items) == 0:
		return nil, fault.New(fault.NotFound, "there is no release of the orchestrator chart in namespace %q of Kubernetes; give another one with --kube-namespace", rel.Namespace)
	case len(found.Items) > 1:
		var names []string
		for _, s := range found.Items {
			names = append(names, s.Metadata.Labels[labelRelease])
		}
		slices.Sort(names)
		return nil, fault.New(fault.Invalid, "namespace %q of Kubernetes has the releases %s; say which with --kube-release", rel.Namespace, strings.Join(names, ", "))
	}
	rel.Name = found.Items[0].Metadata.Labels[labelRelease]
	return &found.Items[0], nil
}

// secret reads what an annotation names; nil when there is no annotation.
func (r *Reach) secret(ctx context.Context, svc *service, annotation string) ([]byte, error) {
	where, ok := svc.Metadata.Annotations[annotation]
	if !ok {
		return nil, nil
	}
	name, key, ok := strings.Cut(where, "/")
	if !ok {
		return nil, fault.New(fault.FailedPrecondition, "the annotation %s of Service %s is %q, and not SECRET/KEY", annotation, r.Service, where)
	}
	var s secret
	if err := r.api.get(ctx, "secrets/"+url.PathEscape(name), nil, &s); err != nil {
		return nil, fmt.Errorf("read the Secret %s: %w", name, err)
	}
	value := s.Data[key]
	if len(value) == 0 {
		return nil, fault.New(fault.FailedPrecondition, "Secret %s/%s has no %q; it was changed by hand, or the release's installation did not end", r.Release.Namespace, name, key)
	}
	return value, nil
}

// pods are the servers that a connection can be made to, the next one first.
func (r *Reach) pods(ctx context.Context) ([]pod, error) {
	var all list[pod]
	if err := r.api.get(ctx, "pods", url.Values{"labelSelector": {r.selector}}, &all); err != nil {
		return nil, fmt.Errorf("find the servers' pods: %w", err)
	}
	ready := slices.DeleteFunc(slices.Clone(all.Items), func(p pod) bool { return !p.ready() })
	if len(ready) == 0 {
		return nil, fault.New(fault.Unavailable, "none of the %d server pods of release %s is ready; see 'kubectl -n %s get pods -l %s'", len(all.Items), r.Release.Name, r.Release.Namespace, r.selector)
	}
	slices.SortFunc(ready, func(x, y pod) int { return strings.Compare(x.Metadata.Name, y.Metadata.Name) })
	n := int(r.turn.Add(1)-1) % len(ready)
	return append(ready[n:len(ready):len(ready)], ready[:n]...), nil
}

// selector writes labels as the API server reads them.
func selector(labels map[string]string) string {
	var parts []string
	for k, v := range labels {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// grpcPort is the pod's port for calls.
func (p *pod) grpcPort() string {
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if port.Name == portName {
				return strconv.Itoa(int(port.ContainerPort))
			}
		}
	}
	return "8077"
}
