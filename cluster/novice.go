// A server whose log is empty has no say in who leads until it has caught up.
//
// It may be a member that lost its disk: what it had acknowledged then counts as stored by a majority, and is not. Were it
// to vote, somebody who never had those entries could be elected, and they would be lost for good. Raft knows a server by its name and
// does not see the difference; so an empty server says that it is new, votes for nobody and stands for nothing until it holds an entry
// that the present leader has committed in its own term: then it holds all that was ever committed.
//
// A cluster that forms needs no votes of empty servers: each of those that form it writes the first configuration by itself (bootstrap.go),
// and is no novice then.

package cluster

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// noviceKey marks, on disk, a server that has not caught up: it stays a novice if it starts again meanwhile.
var noviceKey = []byte("orchestrator-novice")

// errNovice is what a novice says to candidates, and to itself.
var errNovice = errors.New("this server's log was empty: it votes for nobody, and stands for nothing, until it has caught up")

// novice is a raft transport of a server that has yet to catch up; of one that has, it only passes everything on.
type novice struct {
	transport
	log    raft.LogStore
	stable raft.StableStore
	logger *slog.Logger
	is     atomic.Bool

	requests chan raft.RPC // what raft consumes, while it is a novice at the start; else nil
	done     chan struct{}
	close    sync.Once
	wait     sync.WaitGroup
}

// newNovice wraps a transport. empty says that the server has neither log nor snapshots, and is given no configuration.
func newNovice(t raft.Transport, empty bool, log raft.LogStore, stable raft.StableStore, logger *slog.Logger) (*novice, error) {
	full, ok := t.(transport)
	if !ok {
		return nil, errors.New("the raft transport has no pre-vote")
	}
	n := &novice{transport: full, log: log, stable: stable, logger: logger, done: make(chan struct{})}
	if empty {
		if err := stable.Set(noviceKey, []byte{1}); err != nil {
			return nil, fmt.Errorf("note that the log is empty: %w", err)
		}
	}
	mark, err := stable.Get(noviceKey)
	if err != nil && err.Error() != "not found" { // stores of raft have no error of their own for it
		return nil, fmt.Errorf("look whether the log was empty: %w", err)
	}
	if len(mark) == 0 || mark[0] == 0 {
		return n, nil
	}
	n.is.Store(true)
	n.requests = make(chan raft.RPC)
	n.wait.Go(n.pass)
	return n, nil
}

// Consumer implements raft.Transport.
func (n *novice) Consumer() <-chan raft.RPC {
	if n.requests != nil {
		return n.requests
	}
	return n.transport.Consumer()
}

// pass hands raft what others ask, but for votes, until the server ends.
func (n *novice) pass() {
	for {
		select {
		case r := <-n.transport.Consumer():
			if !n.admits(r) {
				continue
			}
			select {
			case n.requests <- r:
			case <-n.done:
				r.Respond(nil, raft.ErrTransportShutdown)
				return
			}
		case <-n.done:
			return
		}
	}
}

// admits reports whether raft is to see a request; one that it is not to see is answered.
func (n *novice) admits(r raft.RPC) bool {
	if !n.is.Load() {
		return true
	}
	switch c := r.Command.(type) {
	case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest:
		r.Respond(nil, errNovice)
		return false
	case *raft.AppendEntriesRequest:
		n.look(c)
	}
	return true
}

// look ends the noviciate when this server holds the last entry that the leader has committed, and that is of the leader's own term. No
// other leader can have written an entry of that term, so all before it is here as the leader has it; and whatever was
// committed before is before it.
func (n *novice) look(c *raft.AppendEntriesRequest) {
	var last raft.Log
	if c.LeaderCommitIndex == 0 || n.log.GetLog(c.LeaderCommitIndex, &last) != nil || last.Term != c.Term {
		return
	}
	n.grow("it has caught up")
}

// grow ends the noviciate.
func (n *novice) grow(why string) {
	if !n.is.Load() {
		return
	}
	if err := n.stable.Set(noviceKey, []byte{0}); err != nil {
		n.logger.Error("could not note that this server has a say in who leads", "error", err)
		return // it is tried again with what comes next
	}
	n.is.Store(false)
	n.logger.Info("this server has a say in who leads from now on", "reason", why)
}

// remain takes back what grow did: there was no reason.
func (n *novice) remain() {
	if n.requests == nil {
		return // it never was one
	}
	n.is.Store(true)
	if err := n.stable.Set(noviceKey, []byte{1}); err != nil {
		n.logger.Error("could not note that this server has yet to catch up", "error", err)
	}
}

// RequestVote implements raft.Transport.
func (n *novice) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if n.is.Load() {
		return errNovice
	}
	return n.transport.RequestVote(id, target, args, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (n *novice) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if n.is.Load() {
		return errNovice
	}
	return n.transport.RequestPreVote(id, target, args, resp)
}

// end stops passing requests on. Raft must have been shut down.
func (n *novice) end() {
	n.close.Do(func() { close(n.done) })
	n.wait.Wait()
}
