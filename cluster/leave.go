// Leaving: a server that is about to stop hands over what it does, and says so. It stays a member, for most of them come back.

package cluster

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// handOverAgain is the pause before a transfer of the leadership that failed is tried again.
	handOverAgain = 100 * time.Millisecond
	// successorPatience bounds the wait for the one who leads next to say so.
	successorPatience = time.Second
)

// Leave takes this server out of service as far as that can be done before ctx ends: the others are told that it goes, and another
// one leads. It may be called again, for this server may have been elected meanwhile.
func (n *Node) Leave(ctx context.Context) {
	if n.gossip != nil {
		n.gossip.leave(ctx) // first, so that nobody hands its leadership to this one
	}
	handedOver := false
	for n.raft.State() == raft.Leader {
		heir, ok := n.heir()
		if !ok {
			return
		}
		err := n.transfer(ctx, heir)
		if err == nil {
			handedOver = true
			break
		}
		n.log.Warn("could not hand the leadership over", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(handOverAgain):
		}
	}
	if handedOver {
		n.awaitSuccessor(ctx)
	}
}

// awaitSuccessor waits until this server knows who leads, so that calls that still come can be passed on.
func (n *Node) awaitSuccessor(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, successorPatience)
	defer cancel()
	for {
		l, changed := n.Leader()
		if !l.Self && l.Address != "" {
			n.log.Info("handed the leadership over", "to", l.ID)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// heir is the voter to hand the leadership to; empty for raft's own choice, which is the one with the longest log. Raft does not know
// who is about to stop as well: where somebody is, it is another one, the one that has applied most. It is false where nobody stays.
func (n *Node) heir() (heir string, ok bool) {
	health, _ := n.Health()
	voters, left, missing := 0, 0, 0
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		id := string(s.ID)
		if s.Suffrage != raft.Voter || id == n.opts.ID {
			continue
		}
		voters++
		switch n.gossiped(id) {
		case memberLeft:
			left++
		case memberAlive:
			if heir == "" || health[id].Applied > health[heir].Applied {
				heir = id
			}
		default: // raft may know better
			missing++
		}
	}
	if left+missing == 0 {
		heir = ""
	}
	return heir, voters > left
}

// gossiped is what gossip says of a server; without gossip all are there.
func (n *Node) gossiped(id string) string {
	if n.gossip == nil {
		return memberAlive
	}
	m, _ := n.gossip.member(id)
	return m.Status
}
