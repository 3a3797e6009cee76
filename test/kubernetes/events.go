// What happens to the cluster while messages go on.

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// event is one thing that happens.
type event struct {
	name, title string
	do          func(*test, context.Context) (note string, err error)
}

// result is what one event did.
type result struct {
	event
	took time.Duration
	note string
	measured
	moved    int           // sessions that moved
	blackout time.Duration // the longest of them, as the cluster says
}

// events are all, in their order.
func events() []event {
	return []event{
		{"install", "`helm install`, until the first session runs", (*test).install},
		{"helm-test", "`helm test`", (*test).helmTest},
		{"orchctl", "`orchctl --kube-release` from outside", (*test).outside},
		{"roll-servers", "rolling restart of the servers", func(t *test, ctx context.Context) (string, error) { return t.roll(ctx, "server") }},
		{"roll-agents", "rolling restart of the node agents", func(t *test, ctx context.Context) (string, error) { return t.roll(ctx, "agent") }},
		{"upgrade", "`helm upgrade` to another image", (*test).upgrade},
		{"rollback", "`helm rollback`", (*test).rollback},
		{"drain", "`kubectl drain` of each machine in turn", (*test).drain},
		{"drain-crowd", "`kubectl drain` of a machine with all 20 sessions", (*test).drainCrowd},
		{"delete-leader", "`kubectl delete pod --force` of the leader", (*test).deleteLeader},
		{"kill-agent", "`kill -9` of a node agent", (*test).killAgent},
		{"crash", "crash of a machine", (*test).crash},
		{"all-servers", "all server pods deleted at once, and with them all addresses", (*test).deleteServers},
		{"server-volume", "the volume of a server is lost", (*test).loseServerVolume},
		{"agent-volume", "the volume of a node agent is lost", (*test).loseAgentVolume},
		{"scale-servers-up", "3 to 5 servers", func(t *test, ctx context.Context) (string, error) { return t.scaleServers(ctx, 5) }},
		{"scale-servers-down", "5 to 3 servers", func(t *test, ctx context.Context) (string, error) { return t.scaleServers(ctx, 3) }},
		{"scale-agents-up", "3 to 5 node agents", func(t *test, ctx context.Context) (string, error) { return t.scaleAgents(ctx, 5) }},
		{"scale-agents-down", "5 to 2 node agents", func(t *test, ctx context.Context) (string, error) { return t.scaleAgents(ctx, 2) }},
		{"audit", "the ledgers are compared with what was accepted", (*test).audit},
		{"uninstall", "`helm uninstall`", (*test).uninstall},
	}
}

// happen runs one event and measures it, until everything is as it should be again.
func (t *test) happen(ctx context.Context, e event) error {
	step("%s", strings.ReplaceAll(e.title, "`", ""))
	before, err := t.epochs(ctx)
	if err != nil {
		return err
	}
	if t.load != nil {
		t.load.meter.mark()
	}
	begun := time.Now()
	r := result{event: e}
	r.note, err = e.do(t, ctx)
	r.took = time.Since(begun)
	if t.load != nil {
		r.measured = t.load.meter.mark()
	}
	if err == nil {
		r.moved, r.blackout, err = t.moves(ctx, before)
	}
	if err != nil {
		r.note = strings.TrimPrefix(r.note+"; FAILED: "+strings.Join(strings.Fields(err.Error()), " "), "; ")
	}
	t.results = append(t.results, r)
	say("%s; longest without an accepted message %s, for an answer %s; %d calls failed; %d sessions moved, blackout at most %s; %s",
		round(r.took), round(r.gap), round(r.answer), r.failed, r.moved, round(r.blackout), r.note)
	return err
}

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

// install installs the chart as its README says, and waits for the first session to run.
func (t *test) install(ctx context.Context) (string, error) {
	if _, err := t.kubectl(ctx, "create", "namespace", namespace); err != nil {
		return "", err
	}
	// What a careful administrator would have set.
	if _, err := t.kubectl(ctx, "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted"); err != nil {
		return "", err
	}
	t.values = []string{"--set-string", "image.tag=" + tagA, "--set", "agent.drainOnStop=2m"}
	begun := time.Now()
	if _, err := t.helm(ctx, append([]string{"install", release, chart}, t.values...)...); err != nil {
		return "", err
	}
	c, err := t.connect(ctx)
	if err != nil {
		return "", err
	}
	t.load = &load{c: c}
	err = poll(ctx, 3*time.Minute, "the first session runs", func(ctx context.Context) (bool, error) {
		s, err := t.load.spawn(ctx, "ledger-01")
		if err == nil {
			t.load.ids = []string{s.GetId()}
		}
		return err == nil, err
	})
	if err != nil {
		return "", err
	}
	first := time.Since(begun)
	if err := errors.Join(t.awaitPods(ctx, "server", 3), t.awaitPods(ctx, "agent", 3)); err != nil {
		return "", err
	}
	all := time.Since(begun)
	if err := t.load.start(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("first session RUNNING after %s, all pods ready after %s", round(first), round(all)), nil
}

func (t *test) helmTest(ctx context.Context) (string, error) {
	out, err := t.helm(ctx, "test", release, "--timeout", "3m")
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
		_, err := t.kubectl(ctx, "-n", namespace, "rollout", "restart", "statefulset/"+release+"-"+component)
		return err
	}, component)
}

// rolled does what changes pods, and waits until they have all been replaced and all sessions run.
func (t *test) rolled(ctx context.Context, do func() error, components ...string) error {
	if err := do(); err != nil {
		return err
	}
	for _, c := range components {
		if _, err := t.kubectl(ctx, "-n", namespace, "rollout", "status", "statefulset/"+release+"-"+c, "--timeout=12m"); err != nil {
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

// crowd moves all sessions to one node, so that the next event meets all of them.
func (t *test) crowd(ctx context.Context) (string, error) {
	nodes, err := t.load.c.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{Filter: "status=HEALTHY"})
	if err != nil {
		return "", err
	}
	if len(nodes.GetNodes()) == 0 {
		return "", errors.New("no node is healthy")
	}
	target := nodes.GetNodes()[0].GetName()
	for _, id := range t.load.ids {
		s, err := t.load.c.Sessions.GetSession(ctx, &apiv1.GetSessionRequest{Id: id})
		if err != nil {
			return "", err
		}
		if s.GetSession().GetNode() == target {
			continue
		}
		r, err := t.load.c.Sessions.MigrateSession(ctx, &apiv1.MigrateSessionRequest{Id: id, Target: target, Wait: true})
		if err != nil {
			return "", err
		}
		if m := r.GetSession().GetMigration(); m.GetState() != apiv1.Session_Migration_DONE {
			return "", fmt.Errorf("the move of %s ended as %s: %s", id, m.GetState(), m.GetError())
		}
	}
	return target, nil
}

// drainCrowd empties the machine on whose node all sessions are.
func (t *test) drainCrowd(ctx context.Context) (string, error) {
	target, err := t.crowd(ctx)
	if err != nil {
		return "", err
	}
	agents, err := t.pods(ctx, "agent")
	if err != nil {
		return "", err
	}
	took, err := t.drainOne(ctx, agents[target])
	return fmt.Sprintf("%d sessions on %s; the drain took %s", len(t.load.ids), target, round(took)), err
}

// machines are the nodes, as Kubernetes calls them.
func machines() []string { return []string{"n1", "n2", "n3"} }

// leader is the pod of the server that leads.
func (t *test) leader(ctx context.Context) (string, error) {
	members, err := t.load.c.Cluster.ListMembers(ctx, &apiv1.ListMembersRequest{})
	if err != nil {
		return "", err
	}
	for _, m := range members.GetMembers() {
		if m.GetRole() == apiv1.Member_LEADER {
			return m.GetId(), nil
		}
	}
	return "", errors.New("no server leads")
}

func (t *test) deleteLeader(ctx context.Context) (string, error) {
	pod, err := t.leader(ctx)
	if err != nil {
		return "", err
	}
	if _, err := t.kubectl(ctx, "-n", namespace, "delete", "pod", pod, "--force", "--grace-period=0"); err != nil {
		return "", err
	}
	return pod, errors.Join(t.awaitPods(ctx, "server", 3), t.settle(ctx))
}

// killAgent kills the agent of the node with the most sessions. It is the first process of its container: its sessions end with it.
func (t *test) killAgent(ctx context.Context) (string, error) {
	nodes, err := t.load.c.Nodes.ListNodes(ctx, &apiv1.ListNodesRequest{})
	if err != nil {
		return "", err
	}
	victim := slices.MaxFunc(nodes.GetNodes(), func(a, b *apiv1.Node) int { return int(a.GetSessions()) - int(b.GetSessions()) })
	pid, err := processOf(victim.GetName(), "/node-agent")
	if err != nil {
		return "", err
	}
	before, err := t.epochs(ctx)
	if err != nil {
		return "", err
	}
	begun := time.Now()
	if err := kill(pid); err != nil {
		return "", err
	}
	n := int(victim.GetSessions())
	if err := t.restored(ctx, before, n); err != nil {
		return "", err
	}
	took := time.Since(begun)
	return fmt.Sprintf("%s had %d sessions; they ran again after %s", victim.GetName(), n, round(took)),
		errors.Join(t.awaitPods(ctx, "agent", 3), t.settle(ctx))
}

// restored waits until at least n sessions run under newer epochs, and all run.
func (t *test) restored(ctx context.Context, before map[string]uint32, n int) error {
	return poll(ctx, 3*time.Minute, "the sessions run again", func(ctx context.Context) (bool, error) {
		r, err := t.load.c.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{PageSize: 1000})
		if err != nil {
			return false, err
		}
		again, all := 0, true
		for _, s := range r.GetSessions() {
			if !slices.Contains(t.load.ids, s.GetId()) {
				continue
			}
			all = all && s.GetPhase() == apiv1.Session_RUNNING
			if s.GetEpoch() > before[s.GetId()] {
				again++
			}
		}
		return all && again >= n, nil
	})
}

// crash cuts the power of the machine with the most sessions, and gives it back once Kubernetes knows.
func (t *test) crash(ctx context.Context) (string, error) {
	agents, err := t.pods(ctx, "agent")
	if err != nil {
		return "", err
	}
	servers, err := t.pods(ctx, "server")
	if err != nil {
		return "", err
	}
	r, err := t.load.c.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{PageSize: 1000})
	if err != nil {
		return "", err
	}
	on := map[string]int{}
	for _, s := range r.GetSessions() {
		on[agents[s.GetNode()]]++
	}
	machine := slices.MaxFunc(machines(), func(a, b string) int { return on[a] - on[b] })
	// The client goes on from another machine.
	t.clientOn.Store(machines()[(slices.Index(machines(), machine)+1)%len(machines())])
	before, err := t.epochs(ctx)
	if err != nil {
		return "", err
	}
	begun := time.Now()
	if err := t.script(ctx, "node.sh", "crash", machine[1:]); err != nil {
		return "", err
	}
	if err := t.restored(ctx, before, on[machine]); err != nil {
		return "", err
	}
	took := time.Since(begun)
	here := slices.Sorted(maps.Keys(agents))
	here = append(here, slices.Sorted(maps.Keys(servers))...)
	here = slices.DeleteFunc(here, func(pod string) bool { return agents[pod] != machine && servers[pod] != machine })
	note := fmt.Sprintf("%s had %s and %d sessions; they ran again after %s", machine, strings.Join(here, ", "), on[machine], round(took))
	ready := func(want string) error {
		return poll(ctx, 2*time.Minute, machine+" is Ready="+want, func(ctx context.Context) (bool, error) {
			have, err := t.kubectl(ctx, "get", "node", machine, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
			return have == want, err
		})
	}
	if err := ready("Unknown"); err != nil {
		return note, err
	}
	if err := t.script(ctx, "node.sh", "start", machine[1:]); err != nil {
		return note, err
	}
	return note, errors.Join(ready("True"), t.awaitPods(ctx, "server", 3), t.awaitPods(ctx, "agent", 3), t.settle(ctx))
}

// deleteServers takes away all servers: what comes back has the volumes and the names, and nothing else.
func (t *test) deleteServers(ctx context.Context) (string, error) {
	_, err := t.kubectl(ctx, "-n", namespace, "delete", "pod", "--force", "--grace-period=0", "-l", "app.kubernetes.io/instance="+release+",app.kubernetes.io/component=server")
	if err != nil {
		return "", err
	}
	return "", errors.Join(t.awaitPods(ctx, "server", 3), t.settle(ctx))
}

// loseServerVolume goes by docs/operating/kubernetes.md: the old member is taken out, and its name comes back as a new one.
func (t *test) loseServerVolume(ctx context.Context) (string, error) {
	leader, err := t.leader(ctx)
	if err != nil {
		return "", err
	}
	servers, err := t.pods(ctx, "server")
	if err != nil {
		return "", err
	}
	delete(servers, leader)
	pod := slices.Min(slices.Collect(maps.Keys(servers)))
	if _, err := t.orchctl(ctx, "cluster", "remove", pod); err != nil {
		return "", err
	}
	return pod, errors.Join(t.loseVolume(ctx, pod, "server"), t.voters(ctx, 3), t.settle(ctx))
}

func (t *test) loseAgentVolume(ctx context.Context) (string, error) {
	agents, err := t.pods(ctx, "agent")
	if err != nil {
		return "", err
	}
	pod := slices.Min(slices.Collect(maps.Keys(agents)))
	return pod, errors.Join(t.loseVolume(ctx, pod, "agent"), t.settle(ctx))
}

// loseVolume deletes a pod at once, and its claim with it.
func (t *test) loseVolume(ctx context.Context, pod, component string) error {
	claim := "data-" + pod
	before, err := t.read(ctx, "pvc/"+claim, "{.metadata.uid}")
	if err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "-n", namespace, "delete", "pvc", claim, "--wait=false"); err != nil {
		return err
	}
	// A pod that was made before the old claim was gone hangs on it: it is deleted until it has a new one.
	err = poll(ctx, 2*time.Minute, claim+" is a new claim", func(ctx context.Context) (bool, error) {
		if _, err := t.kubectl(ctx, "-n", namespace, "delete", "pod", pod, "--force", "--grace-period=0", "--ignore-not-found"); err != nil {
			return false, err
		}
		var now string
		err := poll(ctx, 10*time.Second, claim+" is a new claim", func(ctx context.Context) (bool, error) {
			var err error
			now, err = t.read(ctx, "pvc/"+claim, "{.metadata.uid}")
			return now != before && now != "", err
		})
		return err == nil, err
	})
	return errors.Join(err, t.awaitPods(ctx, component, 3))
}

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
