// doctor: is everything between here and a running session well? Each line says ok, warn or fail, and what to do.

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

const (
	doctorDial       = 3 * time.Second
	skewWarn         = 2 * time.Second
	skewFail         = 30 * time.Second
	certificateWarn  = 14 * 24 * time.Hour
	pendingWarn      = time.Minute
	doctorPageMax    = 1000
	doctorNamedNodes = 5
	criu             = "criu" // a node's capability
)

// finding is one line of the doctor's.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, warn or fail
	Detail string `json:"detail"`
	Remedy string `json:"remedy"`
}

// doctor collects findings.
type doctor struct {
	a        *app
	findings []finding
	target   *target
	status   *apiv1.GetStatusResponse
	skew     time.Duration // between the server's clock and ours
}

func (d *doctor) ok(check, format string, args ...any) {
	d.findings = append(d.findings, finding{check, "ok", fmt.Sprintf(format, args...), ""})
}

func (d *doctor) warn(check, remedy, format string, args ...any) {
	d.findings = append(d.findings, finding{check, "warn", fmt.Sprintf(format, args...), remedy})
}

func (d *doctor) fail(check, remedy, format string, args ...any) {
	d.findings = append(d.findings, finding{check, "fail", fmt.Sprintf(format, args...), remedy})
}

func (a *app) doctorCommand() *cobra.Command {
	return a.command("doctor", "Check everything between here and a running session; exit code 1 when something fails", exactly(0), brief, func(ctx context.Context, _ []string) error {
		d := &doctor{a: a}
		for _, check := range []func(context.Context) bool{d.config, d.addresses, d.transport, d.api, d.leader, d.members, d.clock, d.nodes, d.pending, d.checkpoints} {
			if !check(ctx) {
				break // the rest would only say the same again
			}
		}
		if err := d.print(); err != nil {
			return err
		}
		failed := 0
		for _, f := range d.findings {
			if f.Result == "fail" {
				failed++
			}
		}
		if failed > 0 {
			return &exitError{exitcode.Failed, fmt.Errorf("%d of %d checks failed; see the remedies above", failed, len(d.findings))}
		}
		return nil
	})
}

func (d *doctor) print() error {
	a := d.a
	if o := a.flags.output; o == "json" || o == "yaml" {
		raw, err := json.Marshal(map[string]any{"findings": d.findings})
		if err != nil {
			return fault.New(fault.Internal, "print the findings: %w", err)
		}
		return a.printJSON(raw)
	}
	for _, f := range d.findings {
		line := fmt.Sprintf("%s %-8s %s", a.paint(f.Result)+strings.Repeat(" ", 4-len(f.Result)), f.Check, clean(f.Detail))
		if f.Remedy != "" {
			line += "; " + f.Remedy
		}
		if _, err := fmt.Fprintln(a.out(), line); err != nil {
			return err
		}
	}
	return nil
}

func (d *doctor) config(ctx context.Context) bool {
	t, err := d.a.resolve()
	if err == nil {
		err = d.a.reach(ctx, t)
	}
	if err == nil {
		_, err = t.tlsConfig()
	}
	if err != nil {
		d.fail("config", "mend the flags, the environment or the context", "%v", err)
		return false
	}
	from := t.origin
	if t.context != "" && !strings.HasPrefix(from, "context") {
		from += ", identity of context " + t.context
	}
	d.ok("config", "%s from %s, namespace %s", strings.Join(t.addresses, ","), from, t.namespace)
	d.target = t
	return true
}

// addresses tries each one by itself, as a client goes on with the next and would not tell.
func (d *doctor) addresses(ctx context.Context) bool {
	reached := 0
	for _, address := range d.target.addresses {
		begun := time.Now()
		conn, err := d.dial(ctx, address)
		if err != nil {
			report := d.fail
			if len(d.target.addresses) > 1 {
				report = d.warn
			}
			var op *net.OpError
			if errors.As(err, &op) {
				err = op.Err // the address is named already
			}
			report("address", "start the server there, or correct the address", "%s: %v", address, err)
			continue
		}
		_ = conn.Close() // it carried nothing
		d.ok("address", "%s answers in %.1f ms", address, float64(time.Since(begun).Microseconds())/1000)
		reached++
	}
	if reached == 0 && len(d.target.addresses) > 1 {
		d.fail("address", "start the servers, or correct --addr, ORCHCTL_ADDR or the context", "none of %d addresses answers", len(d.target.addresses))
	}
	return reached > 0
}

// dial makes a connection as the client would.
func (d *doctor) dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, doctorDial)
	defer cancel()
	if d.target.dial != nil {
		return d.target.dial(ctx, address)
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", address)
}

// transport makes a TLS connection by itself, to look at the certificate.
func (d *doctor) transport(ctx context.Context) bool {
	cfg, err := d.target.tlsConfig()
	if err != nil || cfg == nil {
		switch {
		case d.a.flags.insecure:
			d.warn("tls", "configure TLS with --tls-ca", "plain text, as --insecure asks for")
		case d.target.dial != nil:
			d.ok("tls", "plain text, within the connection to the Kubernetes API server")
		default:
			d.ok("tls", "plain text, which stays on this machine")
		}
		return true
	}
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"h2"}
	worked := false
	for _, address := range d.target.addresses {
		raw, err := d.dial(ctx, address)
		if err != nil {
			continue // said already
		}
		conn, err := handshake(ctx, raw, address, cfg)
		if err != nil {
			d.fail("tls", "give the cluster's CA with --tls-ca, and --tls-server-name when the certificate has another name", "%s: %v", address, err)
			continue
		}
		end := conn.ConnectionState().PeerCertificates[0].NotAfter
		_ = conn.Close() // it carried nothing
		worked = true
		left := end.Sub(d.a.now())
		if left < certificateWarn {
			d.warn("tls", "issue a new certificate", "%s: the certificate ends in %s", address, ageText(left))
		} else {
			d.ok("tls", "%s: the certificate is good for %s", address, ageText(left))
		}
	}
	return worked
}

// handshake makes a connection a TLS one. It closes it when it cannot.
func handshake(ctx context.Context, raw net.Conn, address string, cfg *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, doctorDial)
	defer cancel()
	if cfg.ServerName == "" {
		cfg = cfg.Clone()
		cfg.ServerName, _, _ = net.SplitHostPort(address) // what cannot be split was not dialled
	}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // it carried nothing
		return nil, err
	}
	return conn, nil
}

// api asks a server the first question, which takes a token.
func (d *doctor) api(ctx context.Context) bool {
	cl, err := d.a.connect(ctx)
	if err != nil {
		d.fail("token", "mend the configuration", "%v", err)
		return false
	}
	before := d.a.now()
	d.status, err = cl.Cluster.GetStatus(ctx, &apiv1.GetStatusRequest{})
	switch {
	case fault.Is(err, fault.Unauthenticated):
		d.fail("token", "give a good token with --token-file, ORCHCTL_TOKEN_FILE or a context", "%v", err)
	case fault.Is(err, fault.PermissionDenied):
		d.fail("token", "use a token whose role may look", "%v", err)
	case err != nil:
		d.fail("server", "look at the server's log", "%v", err)
	case d.target.token == "":
		d.ok("token", "none, and %s asks for none", d.status.GetServer())
	default:
		d.ok("token", "accepted by %s", d.status.GetServer())
	}
	// The server's clock was read somewhere between the question and the answer.
	middle := before.Add(d.a.now().Sub(before) / 2)
	d.skew = d.status.GetTime().AsTime().Sub(middle).Abs()
	return err == nil
}

func (d *doctor) leader(context.Context) bool {
	if d.status.GetLeader() == "" {
		d.fail("leader", "start enough servers for a majority, and see their logs", "there is none: nothing can be changed")
		return true
	}
	d.ok("leader", "%s, term %d", d.status.GetLeader(), d.status.GetTerm())
	return true
}

func (d *doctor) members(context.Context) bool {
	var bad []string
	for _, m := range d.status.GetMembers() {
		if !m.GetHealthy() {
			bad = append(bad, m.GetId())
		}
	}
	n := len(d.status.GetMembers())
	switch {
	case len(bad) > 0:
		d.warn("members", "start them, or take them out with 'orchctl cluster remove'", "%d of %d are not healthy: %s", len(bad), n, strings.Join(bad, ", "))
	case n > 1 && d.status.GetFailureTolerance() == 0:
		d.warn("members", "add a server", "%d healthy, and none may fail", n)
	default:
		d.ok("members", "%d healthy, %d may fail", n, d.status.GetFailureTolerance())
	}
	return true
}

func (d *doctor) clock(context.Context) bool {
	const remedy = "set the clocks, with NTP"
	switch apart := fmt.Sprintf("%s and this machine are %s apart", d.status.GetServer(), d.skew.Round(time.Millisecond)); {
	case d.status.GetTime() == nil:
		d.warn("clock", "bring the server up to date", "%s does not tell its time", d.status.GetServer())
	case d.skew > skewFail:
		d.fail("clock", remedy, "%s", apart)
	case d.skew > skewWarn:
		d.warn("clock", remedy, "%s", apart)
	default:
		d.ok("clock", "%s and this machine agree within %s", d.status.GetServer(), skewWarn)
	}
	return true
}

func (d *doctor) nodes(ctx context.Context) bool {
	all, _, err := pages(doctorPageMax, func(size int32, token string) ([]*apiv1.Node, string, error) {
		r, err := d.a.client.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{PageSize: size, PageToken: token})
		return r.GetNodes(), r.GetNextPageToken(), err
	})
	if err != nil {
		d.fail("nodes", "look at the servers' logs", "%v", err)
		return false
	}
	var bad []string
	usable := 0
	for _, n := range all {
		if n.GetStatus() != apiv1.Node_HEALTHY {
			bad = append(bad, fmt.Sprintf("%s is %s (%s)", n.GetName(), n.GetStatus(), first(n.GetReason(), "no reason given")))
		}
		// A degraded node is the second choice, and takes sessions all the same.
		if n.GetSchedulable() && (n.GetStatus() == apiv1.Node_HEALTHY || n.GetStatus() == apiv1.Node_DEGRADED) {
			usable++
		}
	}
	if len(bad) > doctorNamedNodes {
		bad = append(bad[:doctorNamedNodes], fmt.Sprintf("and %d more", len(bad)-doctorNamedNodes))
	}
	switch {
	case len(all) == 0:
		d.fail("nodes", "start a node-agent", "there is none: no session can run")
	case usable == 0:
		d.fail("nodes", "start node-agents, or uncordon nodes with 'orchctl nodes uncordon'", "none of %d takes sessions: %s", len(all), first(strings.Join(bad, ", "), "all are cordoned"))
	case len(bad) > 0:
		d.warn("nodes", "see 'orchctl nodes list -o wide'", "%d of %d take sessions; %s", usable, len(all), strings.Join(bad, ", "))
	default:
		d.ok("nodes", "%d of %d take sessions", usable, len(all))
	}
	d.memory(all)
	return true
}

// memory says which nodes could checkpoint the memory of processes. None needs to.
func (d *doctor) memory(nodes []*apiv1.Node) {
	able, why := 0, ""
	for _, n := range nodes {
		if n.GetCapabilities().GetCustomCapabilities()[criu] {
			able++
		} else if reason := n.GetCapabilities().GetAbsent()[criu]; reason != "" {
			why = first(why, fmt.Sprintf("; %s: %s", n.GetName(), reason))
		}
	}
	if len(nodes) > 0 {
		d.ok("memory", "%d of %d nodes have criu, which this release does not use yet%s", able, len(nodes), why)
	}
}

func (d *doctor) pending(ctx context.Context) bool {
	r, err := d.a.client.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{Filter: "phase=PENDING", PageSize: doctorPageMax})
	if err != nil {
		d.fail("pending", "look at the servers' logs", "%v", err)
		return false
	}
	old, why := 0, ""
	for _, s := range r.GetSessions() {
		if d.a.now().Sub(s.GetCreateTime().AsTime()) > pendingWarn {
			old++
			why = first(why, s.GetReason())
		}
	}
	if old > 0 {
		d.warn("pending", "add nodes, or see 'orchctl sessions list --filter phase=PENDING -o wide'", "%d sessions have waited for a node for more than %s: %s", old, pendingWarn, first(why, "no reason given"))
		return true
	}
	d.ok("pending", "%d sessions wait for a node", len(r.GetSessions()))
	return true
}

// checkpoints looks for sessions whose last attempt at a checkpoint failed. They go on, and their lag grows.
func (d *doctor) checkpoints(ctx context.Context) bool {
	r, err := d.a.client.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{Filter: "checkpoint=failing", PageSize: doctorPageMax})
	if err != nil {
		d.fail("lag", "look at the servers' logs", "%v", err)
		return false
	}
	var worst *apiv1.Session
	failing := 0
	for _, s := range r.GetSessions() {
		if session.Phase(s.GetPhase()).Ended() {
			continue
		}
		if failing++; worst == nil || s.GetLag().GetSeconds() > worst.GetLag().GetSeconds() {
			worst = s
		}
	}
	if failing == 0 {
		d.ok("lag", "of no session the last attempt at a checkpoint failed")
		return true
	}
	more := ""
	if r.GetNextPageToken() != "" {
		more = " or more"
	}
	d.warn("lag", "see 'orchctl sessions list --filter checkpoint=failing -o wide', and the room of the chunk store",
		"%d%s sessions could not be checkpointed the last time; session/%s: %s; at stake: %s", failing, more, worst.GetId(), worst.GetCheckpointError(), first(lagText(worst.GetLag()), "nothing"))
	return true
}
