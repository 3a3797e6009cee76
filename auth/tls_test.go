// The authority, the four TLS configurations over real connections, and certificates that change under them.

package auth

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/telemetry/metricstest"
)

// newCA makes an authority in a directory of its own.
func newCA(t *testing.T, now func() time.Time) *CA {
	t.Helper()
	ca, err := InitCA(filepath.Join(t.TempDir(), "ca"), "test", now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// issue signs and writes a certificate, and loads it.
func issue(t *testing.T, ca *CA, role Role, name string, hosts ...string) *Certs {
	t.Helper()
	issued, err := ca.Issue(CertRequest{Role: role, Name: name, Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	files, err := issued.Write(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return loadCerts(t, files, time.Now)
}

func loadCerts(t *testing.T, files Files, now func() time.Time) *Certs {
	t.Helper()
	c, err := LoadCerts(files, 0, slog.New(slog.DiscardHandler), now)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shake runs a handshake over loopback with a byte each way, and returns both sides' errors and the server's view.
func shake(t *testing.T, accept, dial *tls.Config, host string) (state tls.ConnectionState, acceptErr, dialErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			acceptErr = err
			return
		}
		conn := tls.Server(raw, accept)
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if acceptErr = conn.Handshake(); acceptErr != nil {
			return
		}
		state = conn.ConnectionState()
		_, acceptErr = conn.Write([]byte{1})
	}()
	dial = dial.Clone()
	dial.ServerName = host
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, dial)
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	// The client's certificate is judged after its handshake has ended: only a read tells.
	if dialErr = conn.Handshake(); dialErr == nil {
		_, dialErr = conn.Read(make([]byte, 1))
	}
	conn.Close()
	<-done
	return state, acceptErr, dialErr
}

func TestConversations(t *testing.T) {
	ca, foreign := newCA(t, time.Now), newCA(t, time.Now)
	server, server2 := issue(t, ca, Server, "s1", "127.0.0.1", "s1.example"), issue(t, ca, Server, "s2", "10.0.0.1")
	node, client, stranger := issue(t, ca, Node, "n1"), issue(t, ca, Client, "alice"), issue(t, foreign, Server, "s3", "127.0.0.1")
	trusting := loadCerts(t, Files{CA: server.files.CA}, time.Now)

	must := func(cfg *tls.Config, err error) *tls.Config {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	none, optional, required := must(server.ServerTLS(NoClientCert)), must(server.ServerTLS(OptionalClientCert)), must(server.ServerTLS(RequireClientCert))
	acceptPeer, dialPeer, err := server.PeerTLS()
	if err != nil {
		t.Fatal(err)
	}
	_, dialPeer2, err := server2.PeerTLS()
	if err != nil {
		t.Fatal(err)
	}
	acceptForeign, dialForeign, err := stranger.PeerTLS()
	if err != nil {
		t.Fatal(err)
	}
	acceptNode, dialNode := must(node.NodePeerAccept()), must(trusting.NodePeerDial())
	old := trusting.ClientTLS()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12

	for _, c := range []struct {
		name         string
		accept, dial *tls.Config
		host         string
		want         string // part of either side's error
		who          string // as the server sees the client
	}{
		{"client without certificate", none, trusting.ClientTLS(), "s1.example", "", ""},
		{"optional, not shown", optional, trusting.ClientTLS(), "s1.example", "", ""},
		{"optional, shown", optional, client.ClientTLS(), "s1.example", "", "client:alice"},
		{"optional, of another authority", optional, withCA(t, stranger, server).ClientTLS(), "s1.example", "unknown authority", ""},
		{"required, not shown", required, trusting.ClientTLS(), "s1.example", "didn't provide a certificate", ""},
		{"required, node", required, node.NodeTLS(), "", "", "node:n1"},
		{"peers", acceptPeer, dialPeer2, "", "", "server:s2"},
		{"peer under another name", acceptPeer, dialPeer2, "whatever.example", "", "server:s2"},
		{"node as a peer", acceptPeer, node.NodeTLS(), "", `the certificate of "n1" is a node's, not a server's`, ""},
		{"client as a peer", acceptPeer, client.ClientTLS(), "", "not a server's", ""},
		{"foreign peer dials", acceptPeer, dialForeign, "", "unknown authority", ""},
		{"peer dials a foreign one", acceptForeign, dialPeer, "", "unknown authority", ""},
		{"server of another authority", must(stranger.ServerTLS(NoClientCert)), trusting.ClientTLS(), "s1.example", "unknown authority", ""},
		{"node poses as a server", posing(t, node), trusting.ClientTLS(), "n1", "incompatible key usage", ""},
		{"nodes", acceptNode, must(node.NodePeerDial()), "", "", "node:n1"},
		{"a node without a certificate", acceptNode, dialNode, "", "", ""},
		{"nobody asks a node", acceptNode, trusting.ClientTLS(), "n1", "incompatible key usage", ""},
		{"node asks a server as a node", optional, dialNode, "", "not a node's", ""},
		{"server asks a node", acceptNode, withCheck(dialNode, dialPeer), "", "not a node's", ""},
		{"foreign node", posing(t, issue(t, foreign, Node, "n1")), dialNode, "", "unknown authority", ""},
		{"client poses as a node", posing(t, client), dialNode, "", "not a node's", ""},
		{"TLS 1.2", none, old, "s1.example", "protocol version", ""},
		{"system's authorities", none, loadCerts(t, Files{}, time.Now).ClientTLS(), "s1.example", "unknown authority", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			state, aErr, dErr := shake(t, c.accept, c.dial, c.host)
			got := errors.Join(aErr, dErr)
			if (got == nil) != (c.want == "") || got != nil && !strings.Contains(got.Error(), c.want) {
				t.Fatalf("got %v, want %q", got, c.want)
			}
			if got != nil {
				return
			}
			if state.Version != tls.VersionTLS13 {
				t.Errorf("version %x", state.Version)
			}
			who, ok := PeerIdentity(&state)
			if ok != (c.who != "") || ok && who.String() != c.who {
				t.Errorf("the client is %s, %v; want %q", who, ok, c.who)
			}
		})
	}
}

// withCheck is a client that checks the other side as one configuration does, and shows the certificate of another.
func withCheck(checks, shows *tls.Config) *tls.Config {
	cfg := checks.Clone()
	cfg.GetClientCertificate = shows.GetClientCertificate
	return cfg
}

// withCA is a client that shows from's certificate and trusts of's authority.
func withCA(t *testing.T, from, of *Certs) *Certs {
	t.Helper()
	return loadCerts(t, Files{Cert: from.files.Cert, Key: from.files.Key, CA: of.files.CA}, time.Now)
}

// posing is a server that shows a certificate which is none of a server.
func posing(t *testing.T, c *Certs) *tls.Config {
	t.Helper()
	cfg, err := c.ServerTLS(NoClientCert)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// A certificate without a role, as a public authority gives, is good under its host name only.
func TestServerWithoutRole(t *testing.T) {
	ca := newCA(t, time.Now)
	server := issue(t, ca, Server, "s1", "s1.example")
	plain, err := ca.Issue(CertRequest{Role: Server, Name: "plain", Hosts: []string{"plain.example"}})
	if err != nil {
		t.Fatal(err)
	}
	template := *plain.Cert
	template.URIs = nil
	der, err := x509.CreateCertificate(bytes.NewReader(make([]byte, 1<<16)), &template, ca.cert, plain.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if plain.Cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	files, err := plain.Write(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	certs := loadCerts(t, files, time.Now)
	accept := posing(t, certs)
	for host, want := range map[string]string{
		"plain.example": "",
		"other.example": "valid for plain.example, not other.example",
		"":              "names no role; dial it by a host name",
	} {
		_, _, err := shake(t, accept, server.ClientTLS(), host)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", host, err, want)
		}
	}
	if _, _, err := certs.PeerTLS(); err == nil || !strings.Contains(err.Error(), "names no role") {
		t.Errorf("a peer without a role: %v", err)
	}
}

func TestReload(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	ca := newCA(t, clock)
	dir := t.TempDir()
	put := func(ca *CA, name string) Files {
		t.Helper()
		issued, err := ca.Issue(CertRequest{Role: Server, Name: name, Hosts: []string{"x"}})
		if err != nil {
			t.Fatal(err)
		}
		files, err := issued.Write(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		to := Files{Cert: filepath.Join(dir, "c.pem"), Key: filepath.Join(dir, "k.pem"), CA: filepath.Join(dir, "ca.pem")}
		for from, dest := range map[string]string{files.Cert: to.Cert, files.Key: to.Key, files.CA: to.CA} {
			if err := os.Rename(from, dest); err != nil {
				t.Fatal(err)
			}
		}
		return to
	}
	files := put(ca, "first")
	var log bytes.Buffer
	certs, err := LoadCerts(files, time.Second, slog.New(slog.NewTextHandler(&log, nil)), clock)
	if err != nil {
		t.Fatal(err)
	}
	inForce := func() string { return certs.get().pair.Leaf.Subject.CommonName }

	put(ca, "second")
	if got := inForce(); got != "first" {
		t.Errorf("%s is in force before it is time to look", got)
	}
	now = now.Add(time.Second)
	if got := inForce(); got != "second" {
		t.Errorf("%s is in force after a change", got)
	}

	if err := os.WriteFile(files.Cert, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		now = now.Add(time.Second)
		if got := inForce(); got != "second" {
			t.Errorf("%s is in force with a broken file", got)
		}
	}
	if n := strings.Count(log.String(), "cannot be used"); n != 1 {
		t.Errorf("the log complains %d times of one change:\n%s", n, &log)
	}
	if err := os.Remove(files.Key); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Second)
	if got := inForce(); got != "second" {
		t.Errorf("%s is in force with a missing key", got)
	}
	put(ca, "third")
	now = now.Add(time.Second)
	if got := inForce(); got != "third" {
		t.Errorf("%s is in force after the files were mended", got)
	}
	if certs.reloads != 2 || certs.failures != 2 {
		t.Errorf("%d reloads, %d failures", certs.reloads, certs.failures)
	}

	// The authority changes, too: a configuration made before trusts the new one.
	accept, dial, err := certs.PeerTLS()
	if err != nil {
		t.Fatal(err)
	}
	put(newCA(t, clock), "fourth")
	now = now.Add(time.Second)
	if state, aErr, dErr := shake(t, accept, dial, ""); aErr != nil || dErr != nil || state.PeerCertificates[0].Subject.CommonName != "fourth" {
		t.Errorf("after the authority changed: %v, %v", aErr, dErr)
	}

	registry := prometheus.NewRegistry()
	registry.MustRegister(certs)
	metricstest.Lint(t, registry)
	want := fmt.Sprintf("orchestrator_tls_certificate_expiry_timestamp_seconds{file=%q} %v", files.Cert, float64(certs.get().notAfter().Unix()))
	if text := metricstest.Text(t, registry); !strings.Contains(text, want) {
		t.Errorf("no %s in\n%s", want, text)
	}
}

func TestLoadRefuses(t *testing.T) {
	now := time.Now()
	ca := newCA(t, func() time.Time { return now })
	a, b := issue(t, ca, Server, "a", "x").files, issue(t, ca, Server, "b", "x").files
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files Files
		want  string
	}{
		"no key":       {Files{Cert: a.Cert}, "belong together"},
		"another key":  {Files{Cert: a.Cert, Key: b.Key}, a.Cert + " with " + b.Key},
		"missing":      {Files{Cert: "/nowhere/c", Key: "/nowhere/k"}, "/nowhere/c: no such file"},
		"missing CA":   {Files{CA: "/nowhere/ca"}, "/nowhere/ca: no such file"},
		"CA is empty":  {Files{CA: empty}, empty + ": holds no certificate"},
		"key as CA":    {Files{CA: a.Key}, a.Key + ": holds no certificate"},
		"cert is none": {Files{Cert: empty, Key: a.Key}, empty},
	} {
		_, err := LoadCerts(c.files, 0, slog.New(slog.DiscardHandler), time.Now)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	_, err := LoadCerts(a, 0, slog.New(slog.DiscardHandler), func() time.Time { return now.Add(2 * DefaultLeafValidity) })
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("expired: %v", err)
	}
	if _, err := loadCerts(t, Files{CA: a.CA}, time.Now).ServerTLS(NoClientCert); err == nil {
		t.Error("a server without a certificate")
	}
	if _, err := loadCerts(t, Files{Cert: a.Cert, Key: a.Key}, time.Now).ServerTLS(OptionalClientCert); err == nil {
		t.Error("clients' certificates without an authority")
	}
}

func TestCA(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	dir := filepath.Join(t.TempDir(), "deep", "ca")
	ca, err := InitCA(dir, "prod", clock)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{CAKeyFile: 0o600, CACertFile: 0o644} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	before, _ := os.ReadFile(filepath.Join(dir, CAKeyFile))
	if _, err := InitCA(dir, "prod", clock); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("a second init: %v", err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, CAKeyFile)); !bytes.Equal(before, after) {
		t.Error("the second init changed the key")
	}
	if _, err := OpenCA(t.TempDir(), clock); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "orchestrator ca init") {
		t.Errorf("no authority: %v", err)
	}
	again, err := OpenCA(dir, clock)
	if err != nil {
		t.Fatal(err)
	}

	// Refusals.
	for name, r := range map[string]CertRequest{
		"name":            {Role: Node, Name: "../evil"},
		"upper case":      {Role: Node, Name: "Node"},
		"role":            {Role: Admin, Name: "x"},
		"no host":         {Role: Server, Name: "x"},
		"host":            {Role: Server, Name: "x", Hosts: []string{"a b"}},
		"negative period": {Role: Node, Name: "x", Validity: -time.Second},
	} {
		if _, err := again.Issue(r); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}

	issued, err := again.Issue(CertRequest{Role: Node, Name: "n-1", Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if who, ok := CertIdentity(issued.Cert); !ok || who != (Identity{Name: "n-1", Role: Node}) || issued.Cert.Subject.OrganizationalUnit[0] != "node" {
		t.Errorf("identity %+v, %v", who, ok)
	}
	if got := issued.Cert.NotAfter.Sub(now); got > time.Hour || got < time.Hour-2*time.Second {
		t.Errorf("holds for %s", got)
	}
	to := t.TempDir()
	files, err := issued.Write(to)
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(files.Key); st.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode is %s", st.Mode())
	}
	key, _ := os.ReadFile(files.Key)
	other, err := again.Issue(CertRequest{Role: Node, Name: "n-1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Write(to); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("a certificate was overwritten: %v", err)
	}
	if still, _ := os.ReadFile(files.Key); !bytes.Equal(key, still) {
		t.Error("a key was overwritten")
	}
	if err := os.Remove(files.Cert); err != nil { // only the key is left of the first
		t.Fatal(err)
	}
	if _, err := other.Write(to); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("a key was overwritten: %v", err)
	}
	if still, _ := os.ReadFile(files.Key); !bytes.Equal(key, still) {
		t.Error("a key was overwritten")
	}
	if got := other.Cert.NotAfter.Sub(now); got > DefaultLeafValidity || got < DefaultLeafValidity-2*time.Second {
		t.Errorf("the default holds for %s", got)
	}

	// Replaced where that was asked for, whoever signed the one before.
	fourth, err := newCA(t, time.Now).Issue(CertRequest{Role: Node, Name: "n-1"})
	if err != nil {
		t.Fatal(err)
	}
	third, err := fourth.Replace(to)
	if err != nil {
		t.Fatal(err)
	}
	if now, _ := os.ReadFile(third.Key); bytes.Equal(key, now) || third != files {
		t.Error("the key was not replaced")
	}
	loadCerts(t, third, time.Now)

	// Near the authority's end, certificates end with it; after it, there are none.
	now = ca.cert.NotAfter.Add(-time.Hour)
	last, err := again.Issue(CertRequest{Role: Node, Name: "last"})
	if err != nil || !last.Cert.NotAfter.Equal(ca.cert.NotAfter) {
		t.Errorf("the last one: %v", err)
	}
	if _, err := last.Write(dir); err != nil { // beside the authority: its ca.pem is the same
		t.Error(err)
	}
	if _, err := mustIssue(t, newCA(t, time.Now)).Write(dir); !fault.Is(err, fault.AlreadyExists) || !strings.Contains(err.Error(), "another authority") {
		t.Errorf("mixed authorities: %v", err)
	}
	now = ca.cert.NotAfter.Add(time.Second)
	if _, err := again.Issue(CertRequest{Role: Node, Name: "late"}); !fault.Is(err, fault.FailedPrecondition) {
		t.Errorf("after the end: %v", err)
	}

	// A key that is not the certificate's.
	if err := os.Rename(files.Key, filepath.Join(dir, CAKeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCA(dir, clock); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "is not the key of") {
		t.Errorf("a wrong key: %v", err)
	}
}

func mustIssue(t *testing.T, ca *CA) *Issued {
	t.Helper()
	issued, err := ca.Issue(CertRequest{Role: Client, Name: "other"})
	if err != nil {
		t.Fatal(err)
	}
	return issued
}

// An authority that was made elsewhere has its key in SEC 1.
func TestCAFromElsewhere(t *testing.T) {
	dir := t.TempDir()
	ca, err := InitCA(dir, "prod", time.Now)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, CAKeyFile)
	put := func(kind string, der []byte) {
		t.Helper()
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	der, err := x509.MarshalECPrivateKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	put("EC PRIVATE KEY", der)
	if _, err := OpenCA(dir, time.Now); err != nil {
		t.Error(err)
	}
	put("EC PRIVATE KEY", der[1:])
	if _, err := OpenCA(dir, time.Now); !fault.Is(err, fault.Invalid) {
		t.Errorf("rubbish: %v", err)
	}
	_, other, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if der, err = x509.MarshalPKCS8PrivateKey(other); err != nil {
		t.Fatal(err)
	}
	put("PRIVATE KEY", der)
	if _, err := OpenCA(dir, time.Now); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "elliptic curve") {
		t.Errorf("another kind of key: %v", err)
	}
}
