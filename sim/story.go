// Stories: what happens to a world, as text, one thing a line.
//
//	cluster servers=3 nodes=3 turn=0s lease=12s the first line, with the defaults
//	spawn NAME [restart=always] [command=fail-start] [every=turn|5s]
//	send NAME COUNT [critical|high|normal|low]  messages, one after the other
//	say NAME TEXT…                              one message; package fake says what the words mean
//	terminate NAME
//	checkpoint NAME, migrate NAME [to NODE] [cold], cancel NAME, pause NAME, resume NAME
//	fork NAME NEW; rewind NAME [2]              to its head; to the checkpoint that is so many before
//	… &                                         the story goes on before the clients have their answers
//
//	kill WHO        SIGKILL to a server or a node's agent      start WHO, start all
//	crash NODE      the machine, with all that runs on it      destroy NODE: for good
//	die NAME        SIGKILL to a session's process
//	store down      nobody reaches the chunks                  store up
//	stop NODE 20s   SIGSTOP to the agent, SIGCONT after
//	partition WHO   from everybody                             heal
//	cut A B         between two, both ways; A > B one way
//	reset WHO       breaks its links
//	slow NODE 5s    how long it takes there to start a process
//	delay NODE 2s   how much longer its frames take, both ways, until heal
//	lose NODE COUNT TYPE  the next frames of a type between it and the leader, facts or facts_ack say, until heal
//	disorder P      frames are doubled and overtaken with this probability, until heal
//	lose-answers P  clients do not get their answers with this probability, until heal
//	transfer        the leadership to another server
//
//	arm NAME|* STEP   the session's next STEP of a move (steps.go) is noticed, and held up for a moment
//	await [60s]       until it was
//	sleep 5s
//	wait NAME PHASE [60s]                       until a session is in a phase
//	wait leader|quiet|clean [60s]               until a server leads; nothing is on its way; nothing is ready on nodes
//	expect NAME move DONE|FAILED|CANCELLED
//	expect NAME PHASE|epoch N|restarts N|acked N|dead N|on NODE|cause C|order 1 3 2
//	remember NAME, expect NAME moved|stayed     whether it runs where, and as, it ran
//	check quiet                                 what must hold when nothing is on its way
//
// WHO is a server's or a node's name, or leader, follower (one that is not the leader), or holder:NAME for the node where a
// session runs, source:NAME and target:NAME for those of its last move. With a question mark behind it, nothing is done when there is nobody.

package sim

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing/synctest"
	"time"

	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/leader"
	"github.com/neolith/orchestrator/session"
)

const (
	waitDefault = time.Minute
	waitStep    = 100 * time.Millisecond
)

// teller tells one story.
type teller struct {
	w          *World
	remembered map[string]session.Session
}

// Tell makes a world, lets a story happen to it, and returns what went wrong: what must never be, and what the story
// expected and did not find. It must be called in a testing/synctest bubble of its own.
func Tell(o Options, story string) (failures []string, stats Stats) {
	lines := strings.Split(strings.TrimSpace(story), "\n")
	if err := o.configure(&lines); err != nil {
		return []string{err.Error()}, stats
	}
	w, err := New(o)
	defer w.Close() //nolint:staticcheck // a world that did not come up is returned too: it has parts to end
	if err != nil {
		return []string{err.Error()}, stats
	}
	t := &teller{w: w, remembered: map[string]session.Session{}}
	for n, line := range lines {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		w.at(strings.Join(words, " "))
		if err := t.do(words); err != nil {
			w.fail("line %d: %v", n+1, err)
		}
		synctest.Wait()
		w.Check()
		if failures := w.Failures(); len(failures) > 0 {
			return failures, w.stats()
		}
	}
	return nil, w.stats()
}

// Stats say how much happened.
type Stats struct {
	Simulated       time.Duration
	Starts, Given   int
	Restored, Moved int // starts from a checkpoint; those of them that came elsewhere
	Terms, Entries  uint64
	Sessions, Acked uint64
}

func (w *World) stats() Stats {
	w.watch.mu.Lock()
	s := Stats{Simulated: time.Since(begin), Starts: w.watch.starts, Given: w.watch.taken, Restored: w.watch.restored, Moved: w.watch.moved}
	w.watch.mu.Unlock()
	if i := w.freshest(); i != nil {
		v := i.store.View()
		s.Terms, s.Entries, s.Sessions = i.node.Term(), v.Index(), v.PhaseCounts().Total()
		for row := range v.Sessions("") {
			s.Acked += uint64(v.Mailbox(row.ID).Acked)
		}
	}
	return s
}

// configure takes the first line, if it says what cluster to make.
func (o *Options) configure(lines *[]string) error {
	if o.Servers == 0 {
		o.Servers = 3
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	for n, l := range *lines {
		words := strings.Fields(l)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if words[0] != "cluster" {
			return nil
		}
		for _, word := range words[1:] {
			key, value, _ := strings.Cut(word, "=")
			var err error
			switch key {
			case "servers":
				o.Servers, err = strconv.Atoi(value)
			case "nodes":
				o.Nodes, err = strconv.Atoi(value)
			case "turn":
				o.TurnTime, err = time.ParseDuration(value)
			case "lease":
				var d time.Duration
				d, err = time.ParseDuration(value)
				o.Lease = leader.Lease{Duration: d, Margin: d / 6, Renew: d / 4, Heartbeat: 10 * time.Second, Offline: time.Minute}
			default:
				err = fmt.Errorf("%q is no property of a cluster", key)
			}
			if err != nil {
				return fmt.Errorf("line %d: %w", n+1, err)
			}
		}
		(*lines)[n] = ""
		return nil
	}
	return nil
}

// do does one line.
func (t *teller) do(words []string) error {
	verb, args := words[0], words[1:]
	background := len(args) > 0 && args[len(args)-1] == "&"
	if background {
		args = args[:len(args)-1]
	}
	if f, err := t.clientVerb(verb, args); f != nil || err != nil {
		return t.perform(f, err, background)
	}
	if f, err := t.w.client.moveVerb(verb, args); f != nil || err != nil {
		return t.perform(f, err, background)
	}
	if f := t.faultVerb(verb); f != nil {
		return f(args)
	}
	switch verb {
	case "sleep":
		d, err := duration(args, 0, 0)
		if err != nil {
			return err
		}
		t.w.pass(d)
		return nil
	case "wait":
		return t.wait(args)
	case "arm":
		if len(args) < 2 {
			return fmt.Errorf("arm: which step of which session?")
		}
		return t.w.steps.arm(t.w.client.id(args[0]), args[1]) // the id of * is empty
	case "await":
		return t.await(args)
	case "remember":
		return t.remember(args)
	case "expect":
		return t.expect(args)
	case "check":
		t.w.CheckQuiet()
		return nil
	}
	return fmt.Errorf("%q is no verb of a story", verb)
}

// perform does what a client does, and waits for its answers or not.
func (t *teller) perform(f func(), err error, background bool) error {
	switch {
	case err != nil:
		return err
	case background:
		t.w.client.background(f)
	default:
		t.during(f)
	}
	return nil
}

// await waits until the armed step was reached.
func (t *teller) await(args []string) error {
	limit, err := duration(args, 0, waitDefault)
	if err != nil {
		return err
	}
	reached := t.w.steps.waiting()
	if reached == nil {
		return fmt.Errorf("await: no step is armed")
	}
	tick := time.NewTicker(waitStep)
	defer tick.Stop()
	for until := time.Now().Add(limit); ; {
		select {
		case <-reached:
			return nil
		case <-tick.C:
		}
		t.w.Check()
		if len(t.w.Failures()) > 0 {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("await: the step was not reached within %s", limit)
		}
	}
}

// during runs something that takes its time, and looks at the world meanwhile.
func (t *teller) during(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	tick := time.NewTicker(waitStep)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			t.w.Check()
		}
	}
}

// pass lets time pass, and looks at the world now and then.
func (w *World) pass(d time.Duration) {
	for d > 0 && len(w.Failures()) == 0 {
		step := min(d, 5*waitStep)
		time.Sleep(step)
		d -= step
		w.Check()
	}
}

// clientVerb returns what a client does.
func (t *teller) clientVerb(verb string, args []string) (func(), error) {
	need := map[string]int{"spawn": 1, "send": 2, "say": 2, "terminate": 1}
	n, ok := need[verb]
	if !ok {
		return nil, nil
	}
	if len(args) < n {
		return nil, fmt.Errorf("%s: says too little", verb)
	}
	c, name := t.w.client, args[0]
	switch verb {
	case "spawn":
		options := map[string]string{}
		for _, a := range args[1:] {
			key, value, _ := strings.Cut(a, "=")
			options[key] = value
		}
		return func() { c.spawn(name, options) }, nil
	case "say":
		return func() { c.send(name, strings.Join(args[1:], " ")) }, nil
	case "terminate":
		return func() { c.terminate(name) }, nil
	}
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	return func() {
		for i := range count {
			text := strconv.Itoa(i + 1)
			if len(args) > 2 {
				text = args[2] + ": " + text
			}
			c.send(name, text)
		}
	}, nil
}

// wait waits for a phase, a leader or quiet.
func (t *teller) wait(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("wait: for what?")
	}
	at := 1
	var missing func() string
	switch args[0] {
	case "leader":
		missing = func() string {
			if t.w.leading() == nil {
				return "nobody leads"
			}
			return ""
		}
	case "quiet":
		missing = t.w.settled()
	case "clean":
		missing = t.w.unclean
	default:
		if len(args) < 2 {
			return fmt.Errorf("wait %s: for which phase?", args[0])
		}
		at = 2
		missing = func() string {
			_, s := t.session(args[0])
			if s != nil && s.Phase.String() == args[1] {
				return ""
			}
			return describe(s)
		}
	}
	limit, err := duration(args, at, waitDefault)
	if err != nil {
		return err
	}
	until := time.Now().Add(limit)
	for {
		why := missing()
		if why == "" {
			return nil
		}
		if !time.Now().Before(until) {
			return fmt.Errorf("wait %s: not within %s: %s", strings.Join(args, " "), limit, why)
		}
		t.w.pass(waitStep)
		if len(t.w.Failures()) > 0 {
			return nil
		}
	}
}

// session is a session's row in the freshest state.
func (t *teller) session(name string) (*state.View, *session.Session) {
	i := t.w.freshest()
	if i == nil {
		return nil, nil
	}
	v := i.store.View()
	return v, v.Session(t.w.client.id(name))
}

func (t *teller) remember(args []string) error {
	for _, name := range args {
		_, s := t.session(name)
		if s == nil {
			return fmt.Errorf("remember %s: it is not known", name)
		}
		t.remembered[name] = *s
	}
	return nil
}

// expect compares what is with what the story says.
func (t *teller) expect(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("expect: says too little")
	}
	v, s := t.session(args[0])
	if s == nil {
		return fmt.Errorf("expect %s: it is not known", args[0])
	}
	was := t.remembered[args[0]]
	arg := strings.Join(args[2:], " ")
	is, should := "", arg
	switch args[1] {
	case "epoch":
		is = fmt.Sprint(s.Epoch)
	case "restarts":
		is = fmt.Sprint(s.Restarts)
	case "acked":
		is = fmt.Sprint(v.Mailbox(s.ID).Acked)
	case "dead":
		is = fmt.Sprint(v.Mailbox(s.ID).Dead)
	case "on":
		is = v.Node(s.NodeID).Name
	case "move":
		is = "none"
		if s.Migration != nil {
			is = moveStates[s.Migration.State]
		}
	case "cause":
		if s.Exit != nil {
			is = s.Exit.Cause
		}
	case "order":
		is = strings.Trim(fmt.Sprint(t.w.watch.orderOf(s.ID)), "[]")
	case "stayed":
		is, should = fmt.Sprint(s.NodeID, s.Epoch, s.PID), fmt.Sprint(was.NodeID, was.Epoch, was.PID)
	case "moved":
		is, should = fmt.Sprint(s.NodeID != was.NodeID && s.Epoch > was.Epoch), "true"
	default:
		is, should = s.Phase.String(), args[1]
	}
	if is != should {
		return fmt.Errorf("expect %s: it is %s; the session is %s", strings.Join(args, " "), is, describe(s))
	}
	return nil
}

var moveStates = [...]string{
	session.MigrationCopying: "COPYING", session.MigrationMoving: "MOVING", session.MigrationDone: "DONE",
	session.MigrationFailed: "FAILED", session.MigrationCancelled: "CANCELLED",
}

func duration(args []string, at int, otherwise time.Duration) (time.Duration, error) {
	if len(args) <= at {
		if otherwise == 0 {
			return 0, fmt.Errorf("for how long?")
		}
		return otherwise, nil
	}
	return time.ParseDuration(args[at])
}

// who resolves a name.
func (t *teller) who(name string) (string, error) {
	switch {
	case name == "leader":
		l := t.w.leading()
		if l == nil {
			return "", fmt.Errorf("nobody leads")
		}
		return l.id, nil
	case name == "follower":
		l := t.w.leading()
		for _, s := range t.w.servers {
			if i := s.running(); i != nil && (l == nil || i.id != l.id) {
				return s.id, nil
			}
		}
		return "", fmt.Errorf("there is no follower")
	case strings.HasPrefix(name, "holder:"):
		v, s := t.session(strings.TrimPrefix(name, "holder:"))
		if s == nil || v.Node(s.NodeID) == nil {
			return "", fmt.Errorf("%s: it has no node", name)
		}
		return v.Node(s.NodeID).Name, nil
	case strings.HasPrefix(name, "source:"), strings.HasPrefix(name, "target:"):
		end, of, _ := strings.Cut(name, ":")
		v, s := t.session(of)
		if s == nil || s.Migration == nil {
			return "", fmt.Errorf("%s: it has never moved", name)
		}
		id := s.Migration.Source
		if end == "target" {
			id = s.Migration.Target
		}
		if n := v.Node(id); n != nil {
			return n.Name, nil
		}
		return "", fmt.Errorf("%s: it is not known any more", name)
	case !slices.Contains(t.w.machines(), name):
		return "", fmt.Errorf("there is no %s", name)
	}
	return name, nil
}

// transfer hands the leadership over.
func (t *teller) transfer(context.Context) error {
	l := t.w.leading()
	if l == nil {
		return nil
	}
	t.during(func() {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		_ = l.node.TransferLeadership(ctx, "") // it may fail as anything may
	})
	return nil
}
