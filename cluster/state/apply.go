// Applying: one entry of the log, from its commands to its transaction and its change.

package state

import (
	"slices"

	"github.com/hashicorp/go-memdb"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/session"
)

// applier applies one entry. Commands check first and write after: a command that has written cannot be refused.
type applier struct {
	limits *Limits
	intern *interner
	meta   meta
	w      *memdb.Txn // what is written; read only by flush
	base   *memdb.Txn // the state as of the last flush
	before *View      // the state before the entry
	trees  trees      // the rest of the state as of the last flush

	sessions   overlay[string, session.Session]
	mailboxes  overlay[string, mailboxRow]
	dead       overlay[LetterKey, deadRow]
	nodes      overlay[string, Node]
	tokens     overlay[string, Token]
	calls      overlay[queue.Key, queue.Call]
	clients    overlay[queue.ClientKey, clientRow]
	orders     overlay[string, orderRow]
	talkers    overlay[string, talkerRow]
	deadOwners overlay[string, deadOwnerRow]

	conversations overlay[ConversationKey, Conversation]

	keys  keyIndex
	ops   []setOp            // on sets, not written yet
	names map[nameKey]string // names taken ("" for freed) by ops not written yet

	buried  map[LetterKey]*session.DeadLetter // of this entry
	events  []*Event
	queued  []*session.Message // that became queued
	undone  bool               // some turn that ended was undone, perhaps one of this entry
	left    bool               // some message has left its queue, perhaps one that became queued before
	results []*session.Result
	rekeyed []Rekeyed
}

// nameKey is a name within its namespace.
type nameKey struct{ namespace, name string }

// newApplier returns the applier of an entry of about so many commands.
func newApplier(limits *Limits, intern *interner, keys keyIndex, w *memdb.Txn, before *View, t trees, r room, commands int) *applier {
	return &applier{
		limits: limits, intern: intern, keys: keys, meta: *before.meta, w: w, base: before.txn, before: before, trees: t,
		sessions:   overTree(t.sessions, r.sessions, commands),
		mailboxes:  overTree(t.mailboxes, r.mailboxes, commands),
		dead:       newOverlay[LetterKey, deadRow](tableDead, LetterKey.bytes, commands),
		nodes:      overTree(t.nodes, r.nodes, commands),
		tokens:     newOverlay[string, Token](tableTokens, idBytes, commands),
		calls:      newOverlay[queue.Key, queue.Call](tableCalls, callKeyBytes, commands),
		clients:    newOverlay[queue.ClientKey, clientRow](tableClients, func(k queue.ClientKey) []byte { return clientKeyBytes(k, 0) }, commands),
		orders:     newOverlay[string, orderRow](tableOrders, idBytes, commands),
		talkers:    newOverlay[string, talkerRow](tableTalkers, idBytes, commands),
		deadOwners: newOverlay[string, deadOwnerRow](tableDeadOwners, idBytes, 1),

		conversations: newOverlay[ConversationKey, Conversation](tableConversations, ConversationKey.bytes, commands),
	}
}

// apply applies one command, or says what it did when it comes again.
func (a *applier) apply(c *clusterv1.Command) Result {
	once := c.GetOnce()
	if once.GetKey() == "" {
		return a.applyKind(c)
	}
	if len(once.GetScope()) > maxScopeBytes {
		return Result{Err: fault.New(fault.Invalid, "idempotency key: its scope is %d bytes, more than %d", len(once.GetScope()), maxScopeBytes)}
	}
	key := idempotencyKey{keyOnce, once.GetScope(), once.GetKey()}
	known, err := a.seen(key, once.GetRequestHash())
	if err != nil {
		return Result{Err: err}
	}
	if known != nil {
		return a.again(c, known)
	}
	if err := a.roomForKey(once.GetKey()); err != nil {
		return Result{Err: err}
	}
	r := a.applyKind(c)
	if r.Err == nil {
		key.owner = a.intern.str(key.owner)
		a.remember(key, once.GetRequestHash(), r.about(), uint64(r.Count))
	}
	return r
}

func (a *applier) applyKind(c *clusterv1.Command) (r Result) {
	switch k := c.GetKind().(type) {
	case *clusterv1.Command_InitCluster:
		r.Err = a.initCluster(k.InitCluster)
	case *clusterv1.Command_SpawnSession:
		return a.spawnSession(k.SpawnSession)
	case *clusterv1.Command_PlaceSession:
		r.Session, r.Err = a.placeSession(k.PlaceSession)
	case *clusterv1.Command_TerminateSession:
		r.Session, r.Err = a.terminateSession(k.TerminateSession)
	case *clusterv1.Command_SendMessage:
		return a.sendMessage(k.SendMessage)
	case *clusterv1.Command_ApplyFacts:
		r.Node, r.Count, r.Err = a.applyFacts(k.ApplyFacts)
	case *clusterv1.Command_RegisterNode:
		r.Node, r.Err = a.registerNode(k.RegisterNode)
	case *clusterv1.Command_SetNodeStatus:
		r.Node, r.Err = a.setNodeStatus(k.SetNodeStatus)
	case *clusterv1.Command_LoseNode:
		r.Node, r.Count, r.Err = a.loseNode(k.LoseNode)
	case *clusterv1.Command_SetNodeSchedulable:
		r.Node, r.Err = a.setNodeSchedulable(k.SetNodeSchedulable)
	case *clusterv1.Command_RemoveNode:
		r.Node, r.Err = a.removeNode(k.RemoveNode)
	case *clusterv1.Command_CreateToken:
		r.Token, r.Duplicate, r.Err = a.createToken(k.CreateToken)
	case *clusterv1.Command_RevokeToken:
		r.Err = a.revokeToken(k.RevokeToken)
	case *clusterv1.Command_RetryDeadLetters:
		r.Count, r.Err = a.retryDeadLetters(k.RetryDeadLetters)
	case *clusterv1.Command_PurgeDeadLetters:
		r.Count, r.Err = a.purgeDeadLetters(k.PurgeDeadLetters)
	case *clusterv1.Command_BuryMessages:
		r.Count, r.Err = a.buryMessages(k.BuryMessages)
	case *clusterv1.Command_CollectGarbage:
		r.Count = a.collectGarbage(k.CollectGarbage)
	case *clusterv1.Command_SetPendingReason:
		r.Session, r.Err = a.setPendingReason(k.SetPendingReason)
	case *clusterv1.Command_RemoveSession:
		r.Err = a.removeSession(k.RemoveSession)
	case *clusterv1.Command_Remember:
		r.Subject = clip(k.Remember.GetSubject(), maxIDBytes)
	case *clusterv1.Command_CheckpointSession:
		return a.checkpointSession(k.CheckpointSession)
	case *clusterv1.Command_MigrateSession:
		r.Session, r.Err = a.migrateSession(k.MigrateSession)
	case *clusterv1.Command_CancelMigration:
		r.Session, r.Err = a.cancelMigration(k.CancelMigration)
	case *clusterv1.Command_PauseSession:
		r.Session, r.Err = a.pauseSession(k.PauseSession)
	case *clusterv1.Command_ResumeSession:
		r.Session, r.Err = a.resumeSession(k.ResumeSession)
	case *clusterv1.Command_ForkSession:
		return a.forkSession(k.ForkSession)
	case *clusterv1.Command_RewindSession:
		r.Session, r.Err = a.rewindSession(k.RewindSession)
	case *clusterv1.Command_DrainNode:
		r.Node, r.Err = a.drainNode(k.DrainNode)
	case *clusterv1.Command_EndDrain:
		r.Node, r.Err = a.endDrain(k.EndDrain)
	case *clusterv1.Command_DeleteCheckpoint:
		r.Session, r.Err = a.deleteCheckpoint(k.DeleteCheckpoint)
	case *clusterv1.Command_KeepTurn:
		return a.keepTurn(k.KeepTurn)
	case *clusterv1.Command_DropConversation:
		r.Err = a.dropConversation(k.DropConversation)
	default:
		if r, ok := a.applyCall(c); ok {
			return r
		}
		r.Err = fault.New(fault.Unimplemented, "state: this release does not know the command; upgrade every server before using what is new")
	}
	return r
}

// initCluster gives the cluster its id.
func (a *applier) initCluster(c *clusterv1.InitCluster) error {
	switch {
	case c.GetClusterId() == "" || len(c.GetClusterId()) > maxIDBytes:
		return fault.New(fault.Invalid, "init cluster: the id is empty or over %d bytes", maxIDBytes).WithField("cluster_id")
	case a.meta.clusterID == "":
		a.meta.clusterID = c.GetClusterId()
	case a.meta.clusterID != c.GetClusterId():
		return fault.New(fault.FailedPrecondition, "init cluster: this is cluster %s already; a server of another cluster needs a data directory of its own", a.meta.clusterID)
	}
	return nil
}

// flush writes what is pending and moves the base on, so that walks see it.
func (a *applier) flush() {
	a.write()
	a.base = a.w.Snapshot()
}

// write writes the overlays and the operations on sets.
func (a *applier) write() {
	a.sessions.flush(a.base, a.w)
	a.mailboxes.flush(a.base, a.w)
	a.dead.flush(a.base, a.w)
	a.nodes.flush(a.base, a.w)
	a.tokens.flush(a.base, a.w)
	a.calls.flush(a.base, a.w)
	a.clients.flush(a.base, a.w)
	a.orders.flush(a.base, a.w)
	a.talkers.flush(a.base, a.w)
	a.deadOwners.flush(a.base, a.w)
	a.conversations.flush(a.base, a.w)
	applyOps(a.base, a.w, a.ops)
	a.ops = a.ops[:0]
	clear(a.names)
}

// set and unset change a set.
func (a *applier) set(kind setKind, owner, key, value string) {
	a.ops = append(a.ops, setOp{setID: setID{kind, owner}, setEntry: setEntry{key, value}})
}

func (a *applier) unset(kind setKind, owner, key string) {
	a.ops = append(a.ops, setOp{setID: setID{kind, owner}, setEntry: setEntry{key: key}, remove: true})
}

// event adds to what happened.
func (a *applier) event(e Event) {
	a.meta.event++
	e.Number, e.Index, e.Time = a.meta.event, a.meta.index, a.meta.time
	a.events = append(a.events, &e)
}

// finish writes everything and says what changed. Only Commit is left to do.
func (a *applier) finish() *Change {
	a.boundDeadLetters()
	a.boundDeadCalls()
	a.write()
	a.writeEvents()
	m := a.meta
	must(a.w.Insert(tableMeta, &m))
	c := &Change{Index: a.meta.index, Time: a.meta.time, Events: a.events, Results: a.results, Rekeyed: a.rekeyed}
	c.Sessions = make([]*session.Session, 0, len(a.sessions.cells))
	for _, s := range a.sessions.cells {
		if s.row != nil {
			c.Sessions = append(c.Sessions, s.row)
		} else if was := a.before.Session(s.key); was != nil {
			c.RemovedSessions = append(c.RemovedSessions, was)
		}
	}
	for _, n := range a.nodes.cells {
		if n.row != nil {
			c.Nodes = append(c.Nodes, n.row)
		} else {
			c.RemovedNodes = append(c.RemovedNodes, n.key)
		}
	}
	if a.undone {
		c.Results = slices.DeleteFunc(c.Results, func(r *session.Result) bool {
			return a.mailboxes.get(a.base, r.SessionID).find(r.Sequence) != nil
		})
	}
	if !a.left {
		c.Messages, a.queued = a.queued, nil
	}
	for _, m := range a.queued {
		if a.mailboxes.get(a.base, m.SessionID).find(m.Sequence) == m { // it is still as it became
			c.Messages = append(c.Messages, m)
		}
	}
	for _, l := range a.dead.cells {
		if k := l.key; l.row != nil {
			c.Dead = append(c.Dead, l.row.letter)
		} else if d := a.buried[k]; d != nil && a.mailboxes.get(a.base, k.SessionID).find(k.Sequence) == nil {
			c.Dead = append(c.Dead, d) // buried and purged at once: its message is gone all the same
		}
	}
	for _, call := range a.calls.cells {
		if call.row != nil {
			c.Calls = append(c.Calls, call.row)
		}
	}
	c.TokensChanged = len(a.tokens.cells) > 0
	return c
}

// writeEvents appends the entry's events and lets the oldest go.
func (a *applier) writeEvents() {
	if len(a.events) == 0 {
		return
	}
	fresh := a.events
	if drop := len(fresh) - a.limits.Events; drop > 0 {
		fresh = fresh[drop:]
	}
	total := int(a.meta.stats.Events) + len(fresh)
	from(a.base, tableEvents, byID, numberBytes(0), func(r *eventsRow) bool {
		excess := total - a.limits.Events
		if excess <= 0 {
			return false
		}
		if excess < len(r.events) {
			must(a.w.Insert(tableEvents, &eventsRow{index: r.index, events: r.events[excess:]}))
			total -= excess
			return false
		}
		must(a.w.Delete(tableEvents, r))
		total -= len(r.events)
		return true
	})
	must(a.w.Insert(tableEvents, &eventsRow{index: a.meta.index, events: fresh}))
	a.meta.stats.Events = uint64(total)
}

// clip cuts a text that others wrote to at most n bytes, at the end of a rune.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}

func (a *applier) reason(s string) string { return a.intern.str(clip(s, a.limits.ReasonBytes)) }
