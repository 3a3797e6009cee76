// What breaks: pods, processes, machines and volumes.

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
	servers, err := t.pods(ctx, "server")
	if err != nil {
		return "", err
	}
	agents, err := t.pods(ctx, "agent")
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

// spread has the servers on machines of their own. Kubernetes moves no pod back to a machine that was drained, and two servers on one
// machine are a majority that goes with it.
func (t *test) spread(ctx context.Context) error {
	for {
		servers, err := t.pods(ctx, "server")
		if err != nil {
			return err
		}
		on, again := map[string]bool{}, ""
		for _, pod := range slices.Sorted(maps.Keys(servers)) {
			if on[servers[pod]] {
				again = pod
			}
			on[servers[pod]] = true
		}
		if again == "" {
			return t.settle(ctx)
		}
		if _, err := t.kubectl(ctx, "-n", namespace, "delete", "pod", again); err != nil {
			return err
		}
		if err := t.awaitPods(ctx, "server", 3); err != nil {
			return err
		}
	}
}
