// Package clientcontext keeps the contexts of orchctl: named answers to "which cluster, as whom", in one file.
//
//	current: dev
//	contexts:
//	  - name: dev
//	    addresses: [127.0.0.1:8077, 127.0.0.1:8087]
//	    token_file: /home/me/.orchestrator/admin.token
//	    tls_ca: /home/me/.orchestrator/ca.pem
//	trusted_signers:
//	  - SHA256:uNiVztksCsDhcc0u9e8BrFoHiUqsQrKDcB1YLF6GmyY
//
// The file is $XDG_CONFIG_HOME/orchctl/config.yaml, or ~/.config/orchctl/config.yaml. It may hold tokens, so it is
// readable by its owner only, and it is replaced as a whole, so that a reader never sees half of it.
package clientcontext

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/renameio/v2"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/internal/fault"
)

// MaxFileBytes bounds the file.
const MaxFileBytes = 1 << 20

// Context is one cluster and one identity. Files are named by absolute paths.
type Context struct {
	Name          string   `yaml:"name" json:"name"`
	Addresses     []string `yaml:"addresses" json:"addresses"`
	TokenFile     string   `yaml:"token_file,omitempty" json:"tokenFile"`
	Token         string   `yaml:"token,omitempty" json:"-"`
	TLSCA         string   `yaml:"tls_ca,omitempty" json:"tlsCa"`
	TLSCert       string   `yaml:"tls_cert,omitempty" json:"tlsCert"`
	TLSKey        string   `yaml:"tls_key,omitempty" json:"tlsKey"`
	TLSServerName string   `yaml:"tls_server_name,omitempty" json:"tlsServerName"`
	Namespace     string   `yaml:"namespace,omitempty" json:"namespace"`
	// Gateways are client ports, where they are not those of Addresses plus two.
	Gateways []string `yaml:"gateways,omitempty" json:"gateways,omitempty"`
}

// File is all contexts, in the order in which they were added.
type File struct {
	Current  string    `yaml:"current"`
	Contexts []Context `yaml:"contexts"`
	// TrustedSigners are fingerprints (SHA256:…) of those whose exported sessions are imported.
	TrustedSigners []string `yaml:"trusted_signers,omitempty"`
}

// DefaultPath is where the file is, by the environment.
func DefaultPath(getenv func(string) string) (string, error) {
	if dir := getenv("XDG_CONFIG_HOME"); dir != "" {
		return filepath.Join(dir, "orchctl", "config.yaml"), nil
	}
	home := getenv("HOME")
	if home == "" {
		return "", fault.New(fault.Invalid, "find the contexts file: neither XDG_CONFIG_HOME nor HOME is set; set one of them")
	}
	return filepath.Join(home, ".config", "orchctl", "config.yaml"), nil
}

// Load reads the file; one that is not there is empty. Errors name the file and are of kind fault.Invalid.
func Load(path string) (*File, error) {
	f := &File{}
	in, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "read the contexts file: %w", err)
	}
	defer in.Close()
	data, err := io.ReadAll(io.LimitReader(in, MaxFileBytes+1))
	if err != nil {
		return nil, fault.New(fault.Invalid, "read the contexts file: %w", err)
	}
	if len(data) > MaxFileBytes {
		return nil, fault.New(fault.Invalid, "read the contexts file %s: it is larger than %d bytes", path, MaxFileBytes)
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(f); err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Invalid, "read the contexts file %s: %w; mend the file", path, err)
	}
	seen := map[string]bool{}
	for _, c := range f.Contexts {
		if c.Name == "" || seen[c.Name] {
			return nil, fault.New(fault.Invalid, "read the contexts file %s: every context needs a name of its own, %q is empty or there twice; mend the file", path, c.Name)
		}
		seen[c.Name] = true
	}
	return f, nil
}

// Save replaces the file, readable by its owner only.
func (f *File) Save(path string) error {
	data, err := yaml.Marshal(f)
	if err != nil {
		return fault.New(fault.Internal, "write the contexts file: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fault.New(fault.Invalid, "write the contexts file: %w", err)
	}
	if err := renameio.WriteFile(path, data, 0o600, renameio.IgnoreUmask()); err != nil {
		return fault.New(fault.Invalid, "write the contexts file: %w", err)
	}
	return nil
}

// Update loads the file, changes it and saves it, alone: of two updates at a time one waits for the other.
func Update(path string, change func(*File) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fault.New(fault.Invalid, "write the contexts file: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fault.New(fault.Invalid, "lock the contexts file: %w", err)
	}
	defer lock.Close()
	for {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fault.New(fault.Invalid, "lock the contexts file: %w", err)
	}
	f, err := Load(path)
	if err != nil {
		return err
	}
	if err := change(f); err != nil {
		return err
	}
	return f.Save(path)
}

// Get returns the context of a name.
func (f *File) Get(name string) (Context, bool) {
	i := f.index(name)
	if i < 0 {
		return Context{}, false
	}
	return f.Contexts[i], true
}

// Set adds a context, or replaces the one of the same name.
func (f *File) Set(c Context) {
	if i := f.index(c.Name); i >= 0 {
		f.Contexts[i] = c
		return
	}
	f.Contexts = append(f.Contexts, c)
}

// Use makes a context the current one. Errors are of kind fault.NotFound.
func (f *File) Use(name string) error {
	if f.index(name) < 0 {
		return fault.New(fault.NotFound, "there is no context %q; 'orchctl context list' shows those there are", name)
	}
	f.Current = name
	return nil
}

// ByAddresses returns the context that lists all the addresses, the current one first. All of them, because what the
// context holds (a token) is for its own servers only.
func (f *File) ByAddresses(addresses []string) (Context, bool) {
	lists := func(c Context) bool {
		return len(addresses) > 0 && !slices.ContainsFunc(addresses, func(a string) bool { return !slices.Contains(c.Addresses, a) })
	}
	if c, ok := f.Get(f.Current); ok && lists(c) {
		return c, true
	}
	if i := slices.IndexFunc(f.Contexts, lists); i >= 0 {
		return f.Contexts[i], true
	}
	return Context{}, false
}

func (f *File) index(name string) int {
	return slices.IndexFunc(f.Contexts, func(c Context) bool { return c.Name == name })
}
