// Certificates that are read again when their files change.

package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/internal/fault"
)

// Files are the paths of a certificate (its chain behind it), its key, and the authorities to trust.
type Files struct {
	Cert string
	Key  string
	CA   string // empty trusts the system's authorities
}

// DefaultRecheck is how long a look at the files holds.
const DefaultRecheck = time.Second

// Certs holds what the files say. There is no goroutine: a handshake looks at the files when the last look is older than
// the interval. Files that cannot be used leave the old ones in force, and the log says so, once for each change.
type Certs struct {
	files   Files
	recheck time.Duration
	log     *slog.Logger
	now     func() time.Time

	mu       sync.Mutex
	checked  time.Time
	stamp    stamp // of the files last read, whether they could be used or not
	current  *certSet
	failures uint64
	reloads  uint64
}

// certSet is one reading of the files; never changed.
type certSet struct {
	pair  *tls.Certificate // nil for a client without a certificate
	roots *x509.CertPool   // nil for the system's
}

// stamp tells a file from its successor: replaced files differ in identity, rewritten ones in time or size.
type stamp [3]os.FileInfo

// LoadCerts reads the files. Cert and Key may both be empty, for a client that shows no certificate. Errors are of kind
// fault.Invalid and name the file.
func LoadCerts(files Files, recheck time.Duration, log *slog.Logger, now func() time.Time) (*Certs, error) {
	if (files.Cert == "") != (files.Key == "") {
		return nil, fault.New(fault.Invalid, "tls: a certificate and its key belong together; give both files or neither")
	}
	c := &Certs{files: files, recheck: recheck, log: log, now: now}
	set, err := c.read()
	if err != nil {
		return nil, err
	}
	c.current, c.stamp, c.checked = set, c.stat(), now()
	return c, nil
}

// get returns what is in force, after a look at the files when it is time for one.
func (c *Certs) get() *certSet {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.Sub(c.checked) >= c.recheck || now.Before(c.checked) {
		c.checked = now
		c.refresh()
	}
	return c.current
}

// refresh reads changed files. The stamp is taken first: a file that changes meanwhile is seen at the next look.
func (c *Certs) refresh() {
	stamp := c.stat()
	if stamp.same(c.stamp) {
		return
	}
	c.stamp = stamp
	set, err := c.read()
	if err != nil {
		c.failures++
		c.log.Error("the changed certificate files cannot be used; the old certificate stays in force until it expires",
			"cert", c.files.Cert, "key", c.files.Key, "ca", c.files.CA, "expires", c.current.notAfter(), "error", err)
		return
	}
	c.reloads++
	c.current = set
	c.log.Info("certificates read again", "cert", c.files.Cert, "expires", set.notAfter())
}

func (c *Certs) stat() (s stamp) {
	for i, name := range []string{c.files.Cert, c.files.Key, c.files.CA} {
		if name != "" {
			s[i], _ = os.Stat(name)
		}
	}
	return s
}

func (s stamp) same(t stamp) bool {
	for i := range s {
		a, b := s[i], t[i]
		if (a == nil) != (b == nil) {
			return false
		}
		if a != nil && (!os.SameFile(a, b) || a.Size() != b.Size() || !a.ModTime().Equal(b.ModTime())) {
			return false
		}
	}
	return true
}

// read reads all files and checks that they belong together.
func (c *Certs) read() (*certSet, error) {
	set := &certSet{}
	if c.files.CA != "" {
		text, err := os.ReadFile(c.files.CA)
		if err != nil {
			return nil, fault.New(fault.Invalid, "tls: %w", err)
		}
		set.roots = x509.NewCertPool()
		if !set.roots.AppendCertsFromPEM(text) {
			return nil, fault.New(fault.Invalid, "tls: %s: holds no certificate", c.files.CA)
		}
	}
	if c.files.Cert == "" {
		return set, nil
	}
	pair, err := tls.LoadX509KeyPair(c.files.Cert, c.files.Key)
	if err != nil {
		return nil, fault.New(fault.Invalid, "tls: %s with %s: %w", c.files.Cert, c.files.Key, err)
	}
	if now := c.now(); now.After(pair.Leaf.NotAfter) {
		return nil, fault.New(fault.Invalid, "tls: %s: expired at %s; issue a new one (`orchestrator ca issue`)", c.files.Cert, pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	set.pair = &pair
	return set, nil
}

func (s *certSet) notAfter() time.Time {
	if s.pair == nil {
		return time.Time{}
	}
	return s.pair.Leaf.NotAfter
}

// verify checks a chain against the authorities in force, for a use.
func (s *certSet) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("tls: the other side showed no certificate")
	}
	o := x509.VerifyOptions{Roots: s.roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}, Intermediates: x509.NewCertPool()}
	for _, cert := range chain[1:] {
		o.Intermediates.AddCert(cert)
	}
	if _, err := chain[0].Verify(o); err != nil {
		return fmt.Errorf("tls: the certificate of %q: %w", chain[0].Subject.CommonName, err)
	}
	return nil
}

// Describe and Collect make Certs a prometheus.Collector: when the certificate in force ends, and how reloads went.

var (
	expiryDesc = prometheus.NewDesc("orchestrator_tls_certificate_expiry_timestamp_seconds",
		"When the certificate in force expires, in seconds since 1970.", []string{"file"}, nil)
	reloadsDesc = prometheus.NewDesc("orchestrator_tls_certificate_reloads_total",
		"How often changed certificate files were read again, by result.", []string{"file", "result"}, nil)
)

// Describe sends the descriptions of the metrics.
func (c *Certs) Describe(ch chan<- *prometheus.Desc) {
	ch <- expiryDesc
	ch <- reloadsDesc
}

// Collect looks at the files, as a handshake does, and sends the metrics.
func (c *Certs) Collect(ch chan<- prometheus.Metric) {
	set := c.get()
	c.mu.Lock()
	reloads, failures := c.reloads, c.failures
	c.mu.Unlock()
	if set.pair != nil {
		ch <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, float64(set.notAfter().Unix()), c.files.Cert)
	}
	ch <- prometheus.MustNewConstMetric(reloadsDesc, prometheus.CounterValue, float64(reloads), c.files.Cert, "ok")
	ch <- prometheus.MustNewConstMetric(reloadsDesc, prometheus.CounterValue, float64(failures), c.files.Cert, "failed")
}
