// A provider of models beside the cluster: pods reach it over TLS, with a key.

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/internal/fakeprovider"
)

const (
	modelProvider = "beside"
	modelName     = "small"
	modelAnswer   = "somebody is here"
	modelKey      = "sk-only-in-a-secret"
	// Secrets of Kubernetes.
	modelKeySecret, modelCASecret = "model-key", "model-ca"
)

// models is the provider.
type models struct {
	fake   *fakeprovider.Server
	server *http.Server
	served chan struct{}
	url    string
	ca     string // the file of its authority
}

// serveModels starts it in the control plane's network, which pods can reach.
func (c *cluster) serveModels() (*models, error) {
	dir := filepath.Join(c.state, "models")
	ca, err := auth.InitCA(filepath.Join(dir, "ca"), "models", time.Now)
	if err != nil {
		return nil, err
	}
	issued, err := ca.Issue(auth.CertRequest{Role: auth.Server, Name: "models", Hosts: []string{controlIP}})
	if err != nil {
		return nil, err
	}
	files, err := issued.Write(dir)
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return nil, err
	}
	ln, err := listenIn(controlNetns, net.JoinHostPort(controlIP, "0"))
	if err != nil {
		return nil, err
	}
	m := &models{fake: fakeprovider.New(), served: make(chan struct{}), url: "https://" + ln.Addr().String() + "/v1", ca: files.CA}
	m.fake.Accept(modelKey)
	m.fake.Usually(fakeprovider.Step{Text: modelAnswer})
	m.server = &http.Server{
		Handler: m.fake, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}},
		ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0), // of connections that pods take with them
	}
	go func() {
		defer close(m.served)
		_ = m.server.ServeTLS(ln, "", "") // ends with close
	}()
	return m, nil
}

func (m *models) close() {
	_ = m.server.Close() // nobody waits for an answer any more
	<-m.served
}

// listenIn listens in a network. The thread that entered it is given up with its goroutine.
func listenIn(netns, address string) (net.Listener, error) {
	type made struct {
		ln  net.Listener
		err error
	}
	done := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		var m made
		if m.err = enter(netns); m.err == nil {
			m.ln, m.err = net.Listen("tcp4", address)
		}
		done <- m
	}()
	m := <-done
	return m.ln, m.err
}

// offerModels adds the provider to the release, as the chart's README says: its key and its authority are Secrets.
func (t *test) offerModels(ctx context.Context) (err error) {
	if t.models, err = t.serveModels(); err != nil {
		return err
	}
	for _, secret := range [][]string{{modelKeySecret, "--from-literal=key=" + modelKey}, {modelCASecret, "--from-file=ca.crt=" + t.models.ca}} {
		if _, err := t.kubectl(ctx, append([]string{"-n", namespace, "create", "secret", "generic"}, secret...)...); err != nil {
			return err
		}
	}
	type object = map[string]any
	values, err := json.Marshal(object{"providers": object{"pools": []object{{
		"name": modelProvider, "dialect": "openai", "url": t.models.url, "models": []object{{"name": modelName}},
		"keySecret": object{"name": modelKeySecret, "key": "key"}, "caSecret": modelCASecret,
	}}}})
	if err != nil {
		return err
	}
	file := filepath.Join(t.state, "models-values.json")
	if err := os.WriteFile(file, values, 0o600); err != nil {
		return err
	}
	t.values = append(t.values, "--values", file)
	return t.rolled(ctx, func() error {
		_, err := t.helm(ctx, append([]string{"upgrade", release, chart}, t.values...)...)
		return err
	}, "server")
}

// askedModels checks what came of a client's chat: the provider was shown the Secret's key, and operators see its pools on all servers.
func (t *test) askedModels(ctx context.Context) error {
	calls := t.models.fake.Calls()
	if len(calls) == 0 {
		return errors.New("nobody asked the model")
	}
	for _, c := range calls {
		if c.Key != modelKey || c.Model != modelName {
			return fmt.Errorf("the model was asked as %q with the key %q", c.Model, c.Key)
		}
	}
	return poll(ctx, time.Minute, "providers list shows the pools of three servers, all well, and the calls", func(ctx context.Context) (bool, error) {
		out, err := t.orchctl(ctx, "providers", "list", "-o", "json")
		if err != nil {
			return false, err
		}
		var list struct {
			Providers []struct {
				Name    string
				Healthy bool
				Calls   int `json:",string"`
			}
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return false, err
		}
		well, made := 0, 0
		for _, p := range list.Providers {
			if p.Name == modelProvider && p.Healthy {
				well++
				made += p.Calls
			}
		}
		if well < 3 || made != len(calls) {
			return false, fmt.Errorf("%d are well, and made %d of %d calls", well, made, len(calls))
		}
		return true, nil
	})
}
