// Commands against a release on Kubernetes.

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neolith/orchestrator/client/clienttest"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/internal/kube/kubetest"
)

// newKubeRig is a cluster behind an API server, whose servers' certificate is for their Service.
func newKubeRig(t *testing.T) (*rig, *kubetest.Server, *clienttest.Server) {
	t.Helper()
	r := newRig(t)
	r.c.Tokens = map[string]string{"admin-token": "admin"}
	ca, pair := issue(t, "prod-orchestrator.agents.svc")
	cluster := r.c.Serve(t, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
	s := kubetest.New(t, "agents")
	s.AddRelease("prod", "admin-token", ca)
	s.Pods = []kubetest.Pod{{Name: "prod-orchestrator-server-0", Ready: true, Backend: cluster.Address}}
	r.env = []string{"HOME=" + t.TempDir()}
	t.Setenv("KUBECONFIG", s.Kubeconfig)
	return r, s, cluster
}

func TestKubeRelease(t *testing.T) {
	r, s, cluster := newKubeRig(t)
	if got := r.run("--kube-namespace agents --kube-release prod nodes list -o name"); got.code != 0 || got.out != "node-1\n" {
		t.Fatalf("by flags: %+v", got)
	}
	r.env = append(r.env, "ORCHCTL_KUBE_RELEASE=prod")
	if got := r.run("nodes list -o name"); got.code != 0 || got.out != "node-1\n" {
		t.Errorf("by the environment: %+v", got)
	}
	got := r.run("doctor")
	if !strings.Contains(got.out, "prod-orchestrator.agents.svc:8077 from release prod in namespace agents") || !strings.Contains(got.out, "the certificate is good for") {
		t.Errorf("doctor says %+v", got)
	}
	// Another pod takes over when the one in use has gone.
	s.Lock()
	s.Pods = append(s.Pods, kubetest.Pod{Name: "prod-orchestrator-server-1", Ready: true, Backend: cluster.Address})
	s.Pods[0].Backend = ""
	s.Unlock()
	if got := r.run("nodes list -o name"); got.code != 0 {
		t.Errorf("with one of two pods: %+v", got)
	}
}

func TestKubeReleaseRefusals(t *testing.T) {
	r, s, _ := newKubeRig(t)
	other := filepath.Join(t.TempDir(), "ca.pem")
	ca, _ := issue(t, "elsewhere")
	if err := os.WriteFile(other, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		line string
		env  string
		code int
		want string
	}{
		{"--kube-release prod --addr 127.0.0.1:1 nodes list", "", exitcode.Usage, "name different ways"},
		{"nodes list", "ORCHCTL_KUBE_RELEASE=prod ORCHCTL_ADDR=127.0.0.1:1", exitcode.Usage, "name different ways"},
		{"--kubeconfig " + s.Kubeconfig + " nodes list", "", exitcode.Usage, "--kube-release"},
		{"--kube-release prod --insecure nodes list", "", exitcode.Usage, "--insecure"},
		{"--kube-release other nodes list", "", exitcode.NotFound, `no release "other"`},
		{"--kube-release prod --kube-context stranger nodes list", "", exitcode.Refused, "--kube-context"},
		{"--kube-release prod --timeout 5s --tls-ca " + other + " nodes list", "", exitcode.Unreachable, "certificate"},
	} {
		env := r.env
		r.env = append(append([]string{}, env...), strings.Fields(c.env)...)
		got := r.run(c.line)
		r.env = env
		if got.code != c.code || !strings.Contains(got.err, c.want) {
			t.Errorf("%s %s: %d %q, not %d with %q", c.env, c.line, got.code, got.err, c.code, c.want)
		}
	}
}

// issue makes a certificate that is its own authority.
func issue(t *testing.T, host string) (ca []byte, pair tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
