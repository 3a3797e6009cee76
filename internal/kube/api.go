// The few questions to the API server. Its objects have only the fields that are read: the generated client with all
// of them would make orchctl several times as large.

package kube

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"

	"k8s.io/client-go/rest"

	"github.com/neolith/orchestrator/internal/fault"
)

// maxAnswerBytes bounds one answer; a thousand pods fit.
const maxAnswerBytes = 32 << 20

type list[T any] struct {
	Items []T `json:"items"`
}

type metadata struct {
	Name              string            `json:"name"`
	Labels            map[string]string `json:"labels"`
	Annotations       map[string]string `json:"annotations"`
	DeletionTimestamp string            `json:"deletionTimestamp"`
}

type service struct {
	Metadata metadata `json:"metadata"`
	Spec     struct {
		Selector map[string]string `json:"selector"`
	} `json:"spec"`
}

type secret struct {
	Data map[string][]byte `json:"data"`
}

type pod struct {
	Metadata metadata `json:"metadata"`
	Spec     struct {
		Containers []struct {
			Ports []struct {
				Name          string `json:"name"`
				ContainerPort int32  `json:"containerPort"`
			} `json:"ports"`
		} `json:"containers"`
	} `json:"spec"`
	Status struct {
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
	} `json:"status"`
}

// ready reports whether the pod takes calls, and is not on its way out.
func (p *pod) ready() bool {
	if p.Metadata.DeletionTimestamp != "" {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// api asks about one namespace.
type api struct {
	config    *rest.Config
	client    *http.Client
	base      *url.URL
	namespace string
}

func newAPI(config *rest.Config, namespace string) (*api, error) {
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the kubeconfig's server %q: %w; correct its address", config.Host, err)
	}
	c, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the kubeconfig's user: %w; correct its certificate, or what it logs in with", err)
	}
	return &api{config: config, client: c, base: base, namespace: namespace}, nil
}

// close drops idle connections.
func (a *api) close() { a.client.CloseIdleConnections() }

// url is that of something in the namespace.
func (a *api) url(path string, query url.Values) *url.URL {
	u := a.base.JoinPath("api", "v1", "namespaces", a.namespace, path)
	u.RawQuery = query.Encode()
	return u
}

// get reads an object, or a list of them.
func (a *api) get(ctx context.Context, path string, query url.Values, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url(path, query).String(), nil)
	if err != nil {
		return fault.New(fault.Internal, "ask the Kubernetes API server: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := a.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fault.New(fault.Unavailable, "ask the Kubernetes API server at %s: %w; see whether 'kubectl get pods' works", a.base.Host, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return fault.New(fault.Unavailable, "read the Kubernetes API server's answer: %w", err)
	case len(b) > maxAnswerBytes:
		return fault.New(fault.Exhausted, "the Kubernetes API server's answer is above %d bytes", maxAnswerBytes)
	case resp.StatusCode != http.StatusOK:
		return refusal(resp.StatusCode, b)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fault.New(fault.Unavailable, "read the Kubernetes API server's answer: %w; is %s one?", err, a.base.Host)
	}
	return nil
}

// refusal is the API server's no.
func refusal(code int, body []byte) error {
	var status struct{ Message string }
	if json.Unmarshal(body, &status) != nil || status.Message == "" {
		status.Message = http.StatusText(code)
	}
	kind, remedy := fault.Unavailable, "try again"
	switch code {
	case http.StatusUnauthorized:
		kind, remedy = fault.Unauthenticated, "log in to the Kubernetes cluster, or choose another context with --kube-context"
	case http.StatusForbidden:
		kind, remedy = fault.PermissionDenied, "get and list of services, pods and secrets, and create of pods/portforward are needed in the namespace"
	case http.StatusNotFound:
		kind, remedy = fault.NotFound, "see 'kubectl get' in the namespace"
	}
	return fault.New(kind, "the Kubernetes API server says: %s; %s", status.Message, remedy)
}
