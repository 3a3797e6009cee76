// Fresh contact: which followers have answered this leader, and when what they answered was sent.
//
// Raft's own VerifyLeader counts any answer that it reads after the question, also one to a request that was sent, and
// answered, long before: a leader that was stopped and goes on finds such answers waiting, and would take them for proof
// that it still leads while a successor does. Leases and linearizable reads rest on that proof, so this one counts only
// answers to requests that were sent after the question.

package cluster

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// contact is a raft transport that notes answers to AppendEntries, which heartbeats are too.
type contact struct {
	transport
	now func() time.Time

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

// answered is the latest request that a server has answered in this leader's term, and when its answer came.
type answered struct {
	term, request uint64
	at            time.Time
}

func newContact(t raft.Transport, now func() time.Time) (*contact, error) {
	full, ok := t.(transport)
	if !ok {
		return nil, errors.New("the raft transport has no pre-vote")
	}
	return &contact{transport: full, now: now, answers: map[raft.ServerID]answered{}, changed: make(chan struct{})}, nil
}

// AppendEntries implements raft.Transport.
func (c *contact) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	request := c.ask()
	err := c.transport.AppendEntries(id, target, args, resp)
	if err == nil && resp.Term == args.Term {
		c.answered(id, answered{args.Term, request, c.now()})
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

// heard returns when a server last answered; zero for never.
func (c *contact) heard(id raft.ServerID) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answers[id].at
}

// Presence is what a leader knows of whether a server is there.
type Presence struct {
	ID string
	// Heard is when it last answered this server, which led then; zero for never. Of this server itself it is now.
	Heard time.Time
	// Left: it has said that it stops.
	Left bool
}

// Presences describes the servers of the raft configuration, by id. Only the leader hears of the others.
func (n *Node) Presences() []Presence {
	var all []Presence
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		p := Presence{ID: string(s.ID), Heard: n.contact.heard(s.ID), Left: n.gossiped(string(s.ID)) == memberLeft}
		if p.ID == n.opts.ID {
			p.Heard = n.opts.Now()
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Presence) int { return strings.Compare(a.ID, b.ID) })
	return all
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
