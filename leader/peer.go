// Peers: a node that a session moves to may fetch its chunks from the node that it comes from.
//
// The leader makes a token for each move and tells it to both: to the source with the order to leave, to the target with what it
// is to have ready and to run. Tokens are in this leader's memory and nowhere else; the next one makes its own, and a target whose
// token is of no use any more asks the store.

package leader

import (
	"crypto/rand"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/session"
)

// lending is the token of one move.
type lending struct {
	move  uint64
	token string
}

// peerOf is where the target of a session's move may fetch chunks from, and with which token; nil when the session does not move, or
// its source serves none.
func (r *reign) peerOf(s *session.Session) *nodev1.Peer {
	m := s.Migration
	if !movesOn(s) {
		return nil
	}
	source := r.nodes[m.Source]
	if source == nil || source.link == nil {
		return nil
	}
	address := source.link.Hello().GetChunkAddress()
	if address == "" {
		return nil
	}
	l, ok := r.lending[s.ID]
	if !ok || l.move != m.Number {
		if s.Phase != session.Migrating {
			return nil // its source was told another leader's
		}
		l = lending{move: m.Number, token: rand.Text()}
		r.lending[s.ID] = l
	}
	return &nodev1.Peer{Address: address, Token: l.token}
}

// movesOn reports whether a session is on its way from its source to its target.
func movesOn(s *session.Session) bool {
	return s.Migration.Under() && (s.Phase == session.Migrating || s.Phase == session.Restoring && s.Epoch == s.Migration.Epoch)
}
