// Fresh contact: which followers have answered this leader, and when what they answered was sent.
//
// Raft's own VerifyLeader counts any answer that it reads after the question, also one to a request that was sent, and
// answered, long before: a leader that was stopped and goes on finds such answers waiting, and would take them for proof
// that it still leads while a successor does. Leases and linearizable reads rest on that proof, so this one counts only
// answers to requests that were sent after the question.

package cluster

import (
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// contact is a raft transport that notes answers to AppendEntries, which heartbeats are too.
type contact struct {
	transport

	mu      sync.Mutex
	sent    uint64 // counts requests and questions, so that they can be ordered
	answers map[raft.ServerID]answered
	changed chan struct{}
}

// transport is what raft wants of one.
type transport interface {
	raft.Transport
	raft.WithPreVote
}

// answered is the latest request that a server has answered in this leader's term.
type answered struct{ term, request uint64 }

func newContact(t raft.Transport) (*contact, error) {
	full, ok := t.(transport)
	if !ok {
		return nil, errors.New("the raft transport has no pre-vote")
	}
	return &contact{transport: full, answers: map[raft.ServerID]answered{}, changed: make(chan struct{})}, nil
}

// AppendEntries implements raft.Transport.
func (c *contact) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	request := c.ask()
	err := c.transport.AppendEntries(id, target, args, resp)
	if err == nil && resp.Term == args.Term {
		c.answered(id, answered{args.Term, request})
	}
	return err
}

// ask numbers a request or a question: larger numbers were given out later.
func (c *contact) ask() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent++
	return c.sent
}

// answered notes that the server was still in the request's term, at some moment after it was sent.
func (c *contact) answered(id raft.ServerID, a answered) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.answers[id]; old.term > a.term || old.request > a.request {
		return
	}
	c.answers[id] = a
	close(c.changed)
	c.changed = make(chan struct{})
}

// since reports whether a majority of the voters, self among them, have answered requests of the term that were sent
// after the question; if not, the channel is closed at the next answer.
func (c *contact) since(question, term uint64, self raft.ServerID, servers []raft.Server) (bool, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	voters, fresh := 0, 0
	for _, s := range servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if a := c.answers[s.ID]; s.ID == self || a.term == term && a.request > question {
			fresh++
		}
	}
	return fresh > voters/2, c.changed
}

// confirm returns nil when this server led in the term at some moment after the call began.
func (n *Node) confirm() error {
	l, _ := n.watch.get()
	if !l.Self || !l.Ready {
		return raft.ErrNotLeader
	}
	question := n.contact.ask()
	for {
		// It fails when this server does not lead any more, and has heartbeats sent at once.
		if err := n.raft.VerifyLeader().Error(); err != nil {
			return err
		}
		again := time.NewTimer(n.opts.Timings.Heartbeat / 4)
		fresh, err := n.awaitContact(question, l.Term, again.C)
		again.Stop()
		if fresh || err != nil {
			return err
		}
	}
}

// awaitContact waits until a majority has answered, or for as long as again says.
func (n *Node) awaitContact(question, term uint64, again <-chan time.Time) (bool, error) {
	for {
		if n.raft.CurrentTerm() != term {
			return false, raft.ErrLeadershipLost
		}
		fresh, changed := n.contact.since(question, term, raft.ServerID(n.opts.ID), n.raft.GetConfiguration().Configuration().Servers)
		if fresh {
			return true, nil
		}
		select {
		case <-changed:
		case <-again:
			return false, nil
		}
	}
}
