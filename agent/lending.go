// Lending what a session is made of to the node that it moves to.

package agent

import (
	"time"

	"github.com/neolith/orchestrator/agent/checkpoint"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

// lentAfterEnd is how long a session that has ended here can still be fetched from here: its target is about to.
const lentAfterEnd = time.Minute

// lend lets who has the token fetch the session's chunks from here, if the order to leave says so.
func (s *supervisor) lend(e *entry, p *nodev1.Peer) {
	if p.GetToken() == "" {
		return
	}
	s.host.keeper.Lend(e.id, p.GetToken())
	e.lent = true
	if !e.live() { // a new leader says it anew
		s.recall(e, lentAfterEnd)
	}
}

// recall ends that after a while.
func (s *supervisor) recall(e *entry, after time.Duration) {
	if e.lent {
		s.host.keeper.Recall(e.id, after)
		e.lent = after > 0 // and may be ended sooner
	}
}

// peerOf is where a session's chunks may be fetched from before the store is asked; nil for nowhere.
func peerOf(d *nodev1.DesiredSession) *checkpoint.Peer {
	if p := d.GetPeer(); p.GetAddress() != "" && p.GetToken() != "" {
		return &checkpoint.Peer{Address: p.GetAddress(), Token: p.GetToken()}
	}
	return nil
}
