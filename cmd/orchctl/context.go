// context: which clusters there are, and which one is meant.

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	clientcontext "github.com/neolith/orchestrator/client/context"
	"github.com/neolith/orchestrator/internal/fault"
)

func (a *app) contextCommand() *cobra.Command {
	return a.group("context", "See, choose and write down clusters", a.contextListCommand(), a.contextUseCommand(), a.contextSetCommand())
}

func (a *app) contextListCommand() *cobra.Command {
	return a.command("list", "List contexts; * is the current one", exactly(0), brief, func(context.Context, []string) error {
		path, err := clientcontext.DefaultPath(a.getenv)
		if err != nil {
			return err
		}
		f, err := clientcontext.Load(path)
		if err != nil {
			return err
		}
		if o := a.flags.output; o == "json" || o == "yaml" {
			raw, err := json.Marshal(map[string]any{"current": f.Current, "contexts": append([]clientcontext.Context{}, f.Contexts...)})
			if err != nil {
				return fault.New(fault.Internal, "print the contexts: %w", err)
			}
			return a.printJSON(raw)
		}
		k := kind[clientcontext.Context]{
			noun: "contexts", columns: []string{"CURRENT", "NAME", "ADDRESSES", "NAMESPACE", "+TOKEN", "+TLS-CA", "+TLS-CERT"},
			row: func(c clientcontext.Context) []string {
				current, token := "", c.TokenFile
				if c.Name == f.Current {
					current = "*"
				}
				if c.Token != "" {
					token = "(in the file)"
				}
				return []string{current, c.Name, strings.Join(c.Addresses, ","), c.Namespace, token, c.TLSCA, c.TLSCert}
			},
			name: func(c clientcontext.Context) string { return c.Name },
		}
		return printList(a, k, f.Contexts, nil)
	})
}

func (a *app) contextUseCommand() *cobra.Command {
	c := a.command("use NAME", "Make a context the current one", exactly(1), brief, func(_ context.Context, args []string) error {
		path, err := clientcontext.DefaultPath(a.getenv)
		if err != nil {
			return err
		}
		if err := clientcontext.Update(path, func(f *clientcontext.File) error { return f.Use(args[0]) }); err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out(), "context %s is the current one\n", clean(args[0]))
		return err
	})
	c.ValidArgsFunction = a.completeContexts
	return c
}

func (a *app) contextSetCommand() *cobra.Command {
	var use bool
	var gateways string
	c := a.command("set NAME", "Write a context down, from --addr, --token-file, --tls-…, -n, --gateway; what is not given stays", exactly(1), brief, func(_ context.Context, args []string) error {
		path, err := clientcontext.DefaultPath(a.getenv)
		if err != nil {
			return err
		}
		err = clientcontext.Update(path, func(f *clientcontext.File) error {
			c, _ := f.Get(args[0])
			c.Name = args[0]
			if err := a.fill(&c); err != nil {
				return err
			}
			if gateways != "" {
				c.Gateways = split(gateways)
				if err := checkGateways(c.Gateways); err != nil {
					return err
				}
			}
			f.Set(c)
			if use || f.Current == "" {
				return f.Use(c.Name)
			}
			return nil
		})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out(), "context %s written to %s\n", clean(args[0]), path)
		return err
	})
	c.Flags().BoolVar(&use, "use", false, "and make it the current one")
	c.Flags().StringVar(&gateways, "gateway", "", "client ports for 'orchctl tools', where they are not those of --addr plus two")
	c.ValidArgsFunction = a.completeContexts
	return c
}

// fill takes what was given as flags into a context. Files are kept by their absolute names.
func (a *app) fill(c *clientcontext.Context) error {
	g := &a.flags
	if g.addr != "" {
		c.Addresses = split(g.addr)
	}
	if len(c.Addresses) == 0 {
		return fault.New(fault.Invalid, "a context needs an address; give --addr HOST:PORT")
	}
	for _, address := range c.Addresses {
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
			return fault.New(fault.Invalid, "--addr: %q is not a server address; write it as host:port", address)
		}
	}
	if g.token != "" {
		c.Token, c.TokenFile = g.token, ""
	}
	if g.tokenFile != "" {
		c.Token = ""
	}
	for _, f := range []struct {
		from string
		to   *string
	}{{g.tokenFile, &c.TokenFile}, {g.tlsCA, &c.TLSCA}, {g.tlsCert, &c.TLSCert}, {g.tlsKey, &c.TLSKey}} {
		if f.from == "" {
			continue
		}
		abs, err := filepath.Abs(f.from)
		if err != nil {
			return fault.New(fault.Invalid, "find %s: %w", f.from, err)
		}
		*f.to = abs
	}
	c.TLSServerName = first(g.tlsServerName, c.TLSServerName)
	c.Namespace = first(g.namespace, c.Namespace)
	return nil
}
