// The first configuration: when as many new servers have found each other as each expects, all of them write the same one.

package cluster

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// bootstrap waits until this server knows the servers it expects, none of which has formed a cluster yet, and gives raft
// its first configuration. Every one of them computes and writes the same one, so it does not matter who is first. A cluster has formed
// when it has committed something: until then, those that have written nothing yet still do, for they vote for nobody before (novice.go).
func (n *Node) bootstrap(ctx context.Context) {
	for n.opts.BootstrapExpect > 0 {
		changed := n.gossip.changes()
		if n.raft.LastIndex() > 0 {
			break // formed before, or a leader has taken us in
		}
		servers, wait := firstConfiguration(n.gossip.members(), n.opts.BootstrapExpect)
		if wait != "" {
			n.log.Debug("not forming a cluster yet", "reason", wait)
		} else {
			// The mark goes first: a server that stops in between is a novice again for its log being empty.
			n.novice.grow("it writes the first configuration")
			err := n.raft.BootstrapCluster(raft.Configuration{Servers: servers}).Error()
			switch {
			case errors.Is(err, raft.ErrCantBootstrap): // a leader was faster
				n.novice.remain()
			case err != nil:
				n.novice.remain()
				n.log.Error("could not write the first configuration", "error", err)
			default:
				n.log.Info("wrote the first configuration", "servers", len(servers))
			}
			if err == nil || errors.Is(err, raft.ErrCantBootstrap) {
				break
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(time.Second):
		}
	}
	for n.raft.CommitIndex() <= firstConfigurationIndex {
		select {
		case <-ctx.Done():
			return
		case <-time.After(formedPoll):
		}
	}
	n.gossip.update(ctx, func(m *memberMeta) { m.Formed = true })
}

const (
	// firstConfigurationIndex is where raft's BootstrapCluster writes.
	firstConfigurationIndex = 1
	// formedPoll is how often a new server looks whether anything is committed.
	formedPoll = 50 * time.Millisecond
)

// firstConfiguration returns the configuration that all expected servers agree on, or why it must wait.
func firstConfiguration(members []gossipMember, expect int) ([]raft.Server, string) {
	var servers []raft.Server
	for _, m := range members {
		switch {
		case m.Status != memberAlive:
			continue
		case m.Meta.Formed:
			return nil, "server " + m.ID + " belongs to a cluster already; waiting for its leader to take this one in"
		case m.Meta.Expect == 0:
			continue
		case m.Meta.Expect != expect:
			return nil, "server " + m.ID + " expects another number of servers"
		}
		servers = append(servers, raft.Server{ID: raft.ServerID(m.ID), Address: raft.ServerAddress(m.Meta.RaftAddress)})
	}
	if len(servers) < expect {
		return nil, "fewer servers than expected"
	}
	if len(servers) > expect {
		return nil, "more servers than expected"
	}
	slices.SortFunc(servers, func(a, b raft.Server) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return servers, ""
}

// admit, while this server leads, takes servers that gossip and are not in the raft configuration in as non-voters;
// autopilot makes them voters once they have proven stable. It also follows changes of address.
func (n *Node) admit(ctx context.Context) {
	for {
		changed := n.gossip.changes()
		if l, _ := n.watch.get(); l.Self && l.Ready {
			n.admitOnce()
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(2 * time.Second):
		}
	}
}

func (n *Node) admitOnce() {
	f := n.raft.GetConfiguration()
	if f.Error() != nil {
		return
	}
	present := map[string]raft.Server{}
	for _, s := range f.Configuration().Servers {
		present[string(s.ID)] = s
	}
	for _, m := range n.gossip.members() {
		if m.Status != memberAlive || m.Meta.RaftAddress == "" {
			continue
		}
		s, ok := present[m.ID]
		id, address := raft.ServerID(m.ID), raft.ServerAddress(m.Meta.RaftAddress)
		var err error
		switch {
		case !ok:
			n.log.Info("a new server joins", "server", m.ID, "address", address)
			err = n.raft.AddNonvoter(id, address, 0, configurationTimeout).Error()
		case s.Address != address && s.Suffrage == raft.Voter:
			n.log.Info("a server has a new address", "server", m.ID, "from", s.Address, "to", address)
			err = n.raft.AddVoter(id, address, 0, configurationTimeout).Error()
		case s.Address != address:
			err = n.raft.AddNonvoter(id, address, 0, configurationTimeout).Error()
		}
		if err != nil {
			n.log.Warn("could not change the raft configuration", "server", m.ID, "error", err)
		}
	}
}

// missing reports whether a server of the cluster is not there as far as gossip knows, or the cluster is yet to be formed.
func (n *Node) missing() bool {
	f := n.raft.GetConfiguration()
	if f.Error() != nil {
		return false // raft has ended
	}
	servers := f.Configuration().Servers
	if len(servers) == 0 {
		return true
	}
	for _, s := range servers {
		if m, ok := n.gossip.member(string(s.ID)); !ok || m.Status != memberAlive {
			return true
		}
	}
	return false
}

func pid() int { return os.Getpid() }

func sortStrings(s []string) { slices.Sort(s) }

func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\t' }), " ")
}

// clipVersion keeps the version from crowding the addresses out of the metadata.
func clipVersion(v string) string {
	if len(v) > 48 {
		return v[:48]
	}
	return v
}
