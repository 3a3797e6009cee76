// What happens to the cluster while messages go on.

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// event is one thing that happens.
type event struct {
	name, title string
	prepare     func(*test, context.Context) error // before anything is measured; may be nil
	do          func(*test, context.Context) (note string, err error)
}

// result is what one event did.
type result struct {
	event
	took time.Duration
	note string
	measured
	silent   bool          // nothing was sent meanwhile, so there is nothing measured
	moved    int           // sessions that moved
	blackout time.Duration // the longest of them, as the cluster says
}

// events are all, in their order.
func events() []event {
	return []event{
		{"install", "`helm install`, until the first session runs", nil, (*test).install},
		{"helm-test", "`helm test`", nil, (*test).helmTest},
		{"orchctl", "`orchctl --kube-release` from outside", nil, (*test).outside},
		{"clients", "a provider of models is added, and a client calls tools over a WebSocket while its server is deleted", nil, (*test).clients},
		{"roll-servers", "rolling restart of the servers", nil, func(t *test, ctx context.Context) (string, error) { return t.roll(ctx, "server") }},
		{"roll-agents", "rolling restart of the node agents", nil, func(t *test, ctx context.Context) (string, error) { return t.roll(ctx, "agent") }},
		{"upgrade", "`helm upgrade` to another image", nil, (*test).upgrade},
		{"rollback", "`helm rollback`", nil, (*test).rollback},
		{"drain", "`kubectl drain` of each machine in turn", nil, (*test).drain},
		{"drain-crowd", "`kubectl drain` of a machine with all 20 sessions", (*test).crowd, (*test).drainCrowd},
		{"delete-leader", "`kubectl delete pod --force` of the leader", nil, (*test).deleteLeader},
		{"kill-agent", "`kill -9` of a node agent", nil, (*test).killAgent},
		{"crash", "crash of a machine", (*test).spread, (*test).crash},
		{"all-servers", "all server pods deleted at once, and with them all addresses", nil, (*test).deleteServers},
		{"server-volume", "the volume of a server is lost", nil, (*test).loseServerVolume},
		{"agent-volume", "the volume of a node agent with all 20 sessions is lost", (*test).crowd, (*test).loseAgentVolume},
		{"scale-servers-up", "3 to 5 servers", nil, func(t *test, ctx context.Context) (string, error) { return t.scaleServers(ctx, 5) }},
		{"scale-servers-down", "5 to 3 servers", nil, func(t *test, ctx context.Context) (string, error) { return t.scaleServers(ctx, 3) }},
		{"scale-agents-up", "3 to 5 node agents", nil, func(t *test, ctx context.Context) (string, error) { return t.scaleAgents(ctx, 5) }},
		{"scale-agents-down", "5 to 2 node agents, all 20 sessions on the last", (*test).crowd, func(t *test, ctx context.Context) (string, error) { return t.scaleAgents(ctx, 2) }},
		{"audit", "the ledgers are compared with what was accepted", nil, (*test).audit},
		{"restore", "`cluster snapshot save`, and `restore`", nil, (*test).restore},
		{"uninstall", "`helm uninstall`", nil, (*test).uninstall},
	}
}

// happen runs one event and measures it, until everything is as it should be again.
func (t *test) happen(ctx context.Context, e event) error {
	step("%s", strings.ReplaceAll(e.title, "`", ""))
	if e.prepare != nil {
		if err := e.prepare(t, ctx); err != nil {
			t.results = append(t.results, result{event: e, note: failure(err)})
			return err
		}
	}
	before, err := t.epochs(ctx)
	if err != nil {
		return err
	}
	if t.load != nil {
		t.load.meter.mark()
	}
	begun := time.Now()
	r := result{event: e, silent: t.load == nil || t.audited || e.name == "audit"}
	r.note, err = e.do(t, ctx)
	r.took = time.Since(begun)
	if t.load != nil {
		r.measured = t.load.meter.mark()
	}
	if err == nil {
		r.moved, r.blackout, err = t.moves(ctx, before)
	}
	if err != nil {
		r.note = strings.TrimPrefix(r.note+"; "+failure(err), "; ")
	}
	t.results = append(t.results, r)
	if r.silent {
		say("%s; %s", round(r.took), r.note)
		return err
	}
	say("%s; longest without an accepted message %s, for an answer %s; %d calls failed; %d sessions moved, blackout at most %s; %s",
		round(r.took), round(r.gap), round(r.answer), r.failed, r.moved, round(r.blackout), r.note)
	return err
}

// failure is an error as a note.
func failure(err error) string { return "FAILED: " + strings.Join(strings.Fields(err.Error()), " ") }

// epochs are those of the sessions, by id; nil before there are any.
func (t *test) epochs(ctx context.Context) (map[string]uint32, error) {
	if t.load == nil || t.load.c == nil || t.audited {
		return nil, nil
	}
	r, err := t.load.c.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{PageSize: 1000})
	if err != nil {
		return nil, err
	}
	out := map[string]uint32{}
	for _, s := range r.GetSessions() {
		out[s.GetId()] = s.GetEpoch()
	}
	return out, nil
}

// moves counts the sessions that moved since, and finds the longest blackout of their last moves.
func (t *test) moves(ctx context.Context, before map[string]uint32) (n int, longest time.Duration, err error) {
	if before == nil || t.audited {
		return 0, 0, nil
	}
	r, err := t.load.c.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{PageSize: 1000})
	if err != nil {
		return 0, 0, err
	}
	for _, s := range r.GetSessions() {
		m := s.GetMigration()
		if old, ok := before[s.GetId()]; ok && m.GetState() == apiv1.Session_Migration_DONE && m.GetEpoch() > old {
			n++
			longest = max(longest, time.Duration(m.GetBlackoutMs()*float64(time.Millisecond)))
		}
	}
	return n, longest, nil
}

// settle waits until all ledgers run and have no backlog.
func (t *test) settle(ctx context.Context) error {
	return poll(ctx, 3*time.Minute, "all sessions run", func(ctx context.Context) (bool, error) {
		r, err := t.load.c.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{PageSize: 1000})
		if err != nil {
			return false, err
		}
		running := 0
		for _, s := range r.GetSessions() {
			if slices.Contains(t.load.ids, s.GetId()) && s.GetPhase() == apiv1.Session_RUNNING && s.GetMailbox().GetQueued() < 50 {
				running++
			}
		}
		return running == len(t.load.ids), nil
	})
}

// install types what the chart's README says, and waits for the first session to run.
func (t *test) install(ctx context.Context) (string, error) {
	lines, err := readme()
	if err != nil {
		return "", err
	}
	t.values = []string{"--set-string", "image.tag=" + tagA}
	var first, all time.Duration
	for _, words := range lines {
		switch command := strings.Join(words[:min(2, len(words))], " "); command {
		case "helm install":
			if first, all, err = t.helmInstall(ctx, words); err != nil {
				return "", err
			}
		case "helm test":
			t.testLine = words
		default:
			if _, err := t.typed(ctx, words); err != nil {
				return "", err
			}
		}
	}
	if first == 0 || t.testLine == nil {
		return "", errors.New("the README of the chart has no `helm install` and `helm test` below Install")
	}
	if err := errors.Join(t.awaitPods(ctx, "server", 3), t.awaitPods(ctx, "agent", 3)); err != nil {
		return "", err
	}
	if err := t.load.start(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("first session RUNNING after %s, helm done after %s", round(first), round(all)), nil
}

// helmInstall runs `helm install`, and meanwhile tries to spawn a session.
func (t *test) helmInstall(ctx context.Context, words []string) (first, all time.Duration, err error) {
	begun := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := t.typed(ctx, words, t.values...)
		all = time.Since(begun)
		done <- err
	}()
	err = poll(ctx, 3*time.Minute, "the first session runs", func(ctx context.Context) (bool, error) {
		if t.load == nil {
			c, err := t.connect(ctx)
			if err != nil {
				return false, err
			}
			t.load = &load{c: c}
		}
		s, err := t.load.spawn(ctx, "ledger-01")
		if err == nil {
			t.load.ids = []string{s.GetId()}
		}
		return err == nil, err
	})
	first = time.Since(begun)
	return first, all, errors.Join(<-done, err)
}

func (t *test) helmTest(ctx context.Context) (string, error) {
	out, err := t.typed(ctx, t.testLine)
	if err != nil {
		return "", err
	}
	// `helm test` passes with no tests at all.
	if n := strings.Count(out, "Phase:          Succeeded"); n > 0 {
		return fmt.Sprintf("%d hooks succeeded", n), nil
	}
	return "", fmt.Errorf("no test ran: %s", out)
}

// outside uses orchctl with a kubeconfig, and nothing else.
func (t *test) outside(ctx context.Context) (string, error) {
	begun := time.Now()
	out, err := t.orchctl(ctx, "sessions", "list", "-o", "name")
	if err != nil {
		return "", err
	}
	took := time.Since(begun)
	if n := len(strings.Fields(out)); n < sessions {
		return "", fmt.Errorf("it lists %d sessions", n)
	}
	if out, err = t.orchctl(ctx, "doctor"); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return fmt.Sprintf("`sessions list` took %s", round(took)), nil
}

// roll restarts all pods of a component, one after the other.
func (t *test) roll(ctx context.Context, component string) (string, error) {
	return "", t.rolled(ctx, func() error {
		_, err := t.kubectl(ctx, "-n", namespace, "rollout", "restart", "statefulset/"+full+"-"+component)
		return err
	}, component)
}

// rolled does what changes pods, and waits until they have all been replaced and all sessions run.
func (t *test) rolled(ctx context.Context, do func() error, components ...string) error {
	if err := do(); err != nil {
		return err
	}
	for _, c := range components {
		if _, err := t.kubectl(ctx, "-n", namespace, "rollout", "status", "statefulset/"+full+"-"+c, "--timeout=12m"); err != nil {
			return err
		}
	}
	return t.settle(ctx)
}

func (t *test) upgrade(ctx context.Context) (string, error) {
	err := t.rolled(ctx, func() error {
		_, err := t.helm(ctx, append(append([]string{"upgrade", release, chart}, t.values...), "--set-string", "image.tag="+tagB)...)
		return err
	}, "server", "agent")
	if err != nil {
		return "", err
	}
	return t.version(ctx, tagB)
}

func (t *test) rollback(ctx context.Context) (string, error) {
	err := t.rolled(ctx, func() error {
		_, err := t.helm(ctx, "rollback", release)
		return err
	}, "server", "agent")
	if err != nil {
		return "", err
	}
	return t.version(ctx, tagA)
}

// version checks that every server and every node is of a version.
func (t *test) version(ctx context.Context, want string) (string, error) {
	members, err := t.load.c.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
	if err != nil {
		return "", err
	}
	for _, m := range members.GetMembers() {
		if !strings.HasPrefix(m.GetVersion(), want) {
			return "", fmt.Errorf("server %s is of version %q, not %s", m.GetId(), m.GetVersion(), want)
		}
	}
	nodes, err := t.load.c.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{})
	if err != nil {
		return "", err
	}
	for _, n := range nodes.GetNodes() {
		if !strings.HasPrefix(n.GetVersion(), want) {
			return "", fmt.Errorf("node %s is of version %q, not %s", n.GetName(), n.GetVersion(), want)
		}
	}
	return fmt.Sprintf("%d servers and %d nodes of %s", len(members.GetMembers()), len(nodes.GetNodes()), want), nil
}

// drain empties one machine after the other, as before its maintenance.
func (t *test) drain(ctx context.Context) (string, error) {
	var took []string
	for _, machine := range machines() {
		d, err := t.drainOne(ctx, machine)
		if err != nil {
			return "", err
		}
		took = append(took, round(d).String())
	}
	return "the drains took " + strings.Join(took, ", "), nil
}

// drainOne empties a machine, and waits until everything runs elsewhere.
func (t *test) drainOne(ctx context.Context, machine string) (time.Duration, error) {
	begun := time.Now()
	if _, err := t.kubectl(ctx, "drain", machine, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=10m"); err != nil {
		return 0, err
	}
	took := time.Since(begun)
	if _, err := t.kubectl(ctx, "uncordon", machine); err != nil {
		return 0, err
	}
	return took, errors.Join(t.awaitPods(ctx, "server", 3), t.awaitPods(ctx, "agent", 3), t.settle(ctx))
}

// crowd moves all sessions to one node, the last by name, so that what happens to it meets all of them: a StatefulSet that gets smaller
// loses its last.
func (t *test) crowd(ctx context.Context) error {
	r, err := t.load.c.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{})
	if err != nil {
		return err
	}
	nodes := slices.DeleteFunc(r.GetNodes(), func(n *apiv1.Node) bool { return n.GetConnection() != "connected" || !n.GetSchedulable() })
	if len(nodes) == 0 {
		return errors.New("no node takes sessions")
	}
	target := slices.MaxFunc(nodes, func(a, b *apiv1.Node) int { return strings.Compare(a.GetName(), b.GetName()) }).GetName()
	for _, id := range t.load.ids {
		s, err := t.load.c.Sessions.GetSession(ctx, &apiv1.GetSessionRequest{Id: id})
		if err != nil {
			return err
		}
		if s.GetSession().GetNode() == target {
			continue
		}
		r, err := t.load.c.Sessions.MigrateSession(ctx, &apiv1.MigrateSessionRequest{Id: id, Target: target, Wait: true})
		if err != nil {
			return err
		}
		if m := r.GetSession().GetMigration(); m.GetState() != apiv1.Session_Migration_DONE {
			return fmt.Errorf("the move of %s ended as %s: %s", id, m.GetState(), m.GetError())
		}
	}
	return nil
}

// drainCrowd empties the machine on whose node all sessions are.
func (t *test) drainCrowd(ctx context.Context) (string, error) {
	s, err := t.load.c.Sessions.GetSession(ctx, &apiv1.GetSessionRequest{Id: t.load.ids[0]})
	if err != nil {
		return "", err
	}
	agents, err := t.pods(ctx, "agent")
	if err != nil {
		return "", err
	}
	node := s.GetSession().GetNode()
	took, err := t.drainOne(ctx, agents[node])
	return fmt.Sprintf("%s had them; the drain took %s", node, round(took)), err
}

// machines are the nodes, as Kubernetes calls them.
func machines() []string { return []string{"n1", "n2", "n3"} }

// voters waits until the cluster has so many members, all of them voters.
func (t *test) voters(ctx context.Context, n int) error {
	return poll(ctx, 3*time.Minute, fmt.Sprintf("the cluster has %d voters", n), func(ctx context.Context) (bool, error) {
		r, err := t.load.c.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
		voters := 0
		for _, m := range r.GetMembers() {
			if m.GetRole() == apiv1.Member_LEADER || m.GetRole() == apiv1.Member_FOLLOWER {
				voters++
			}
		}
		return voters == n && len(r.GetMembers()) == n, err
	})
}

func (t *test) scaleServers(ctx context.Context, n int) (string, error) {
	t.values = append(t.values, "--set", fmt.Sprintf("servers.replicas=%d", n))
	if _, err := t.helm(ctx, append([]string{"upgrade", release, chart}, t.values...)...); err != nil {
		return "", err
	}
	if err := t.awaitPods(ctx, "server", n); err != nil {
		return "", err
	}
	// Members come and go by themselves.
	return "", errors.Join(t.voters(ctx, n), t.settle(ctx))
}

func (t *test) scaleAgents(ctx context.Context, n int) (string, error) {
	t.values = append(t.values, "--set", fmt.Sprintf("agent.replicas=%d", n))
	if _, err := t.helm(ctx, append([]string{"upgrade", release, chart}, t.values...)...); err != nil {
		return "", err
	}
	if err := t.awaitPods(ctx, "agent", n); err != nil {
		return "", err
	}
	return "", t.settle(ctx)
}

func (t *test) audit(ctx context.Context) (string, error) {
	var err error
	t.verdict, err = t.load.audit(ctx)
	t.audited = err == nil
	v := t.verdict
	return fmt.Sprintf("%d accepted, %d found, %d lost, %d doubled", v.accepted, v.found, v.lost, v.doubled), err
}

// uninstall takes the release away, and looks at what stays.
func (t *test) uninstall(ctx context.Context) (string, error) {
	if _, err := t.helm(ctx, "uninstall", release, "--wait", "--timeout", "5m"); err != nil {
		return "", err
	}
	err := poll(ctx, time.Minute, "the pods are gone", func(ctx context.Context) (bool, error) {
		out, err := t.kubectl(ctx, "-n", namespace, "get", "pods", "-o", "name")
		return strings.TrimSpace(out) == "", err
	})
	if err != nil {
		return "", err
	}
	kinds, err := t.kubectl(ctx, "api-resources", "--namespaced", "--verbs=list", "-o", "name")
	if err != nil {
		return "", err
	}
	skip := []string{"events", "events.events.k8s.io"}
	names := slices.DeleteFunc(strings.Fields(kinds), func(k string) bool { return slices.Contains(skip, k) })
	out, err := t.kubectl(ctx, "-n", namespace, "get", strings.Join(names, ","), "-o", "name", "--ignore-not-found")
	if err != nil {
		return "", err
	}
	for _, object := range strings.Fields(out) {
		if object != "configmap/kube-root-ca.crt" && object != "serviceaccount/default" { // every namespace has them
			t.left = append(t.left, object)
		}
	}
	return fmt.Sprintf("%d objects stay", len(t.left)), nil
}

func round(d time.Duration) time.Duration {
	if d > 10*time.Second {
		return d.Round(time.Second)
	}
	return d.Round(10 * time.Millisecond)
}
