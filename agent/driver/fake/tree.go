// A process tree that is none: what it was given, what it said, how it ended. The Machine's lock guards all of it.

package fake

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/session"
)

type tree struct {
	m           *Machine
	s           driver.Start
	pid         int
	exit        *session.Exit
	lines       []*apiv1.LogLine // the latest linesMax
	last        uint64
	given       map[uint64]bool
	order       []uint64 // of given, oldest first
	outstanding uint64
	turns       []driver.Turn  // the latest turnsMax that ended
	before      []Seen         // what the epochs were given that it goes on from
	restored    *[32]byte      // the checkpoint that it began with; nil for none
	notice      *apiv1.LogLine // stands behind line noticeAt; nil for none
	noticeAt    uint64
	count       int // messages given
	sum         int64
	deaf        bool // ignores SIGTERM
	ending      *session.Exit
	timer       *time.Timer // kills after the grace, or ends after StopTime
	handle      *proc       // who has it; nil after a Release
	more        chan struct{}
	taps        map[chan []byte]bool // attached terminals
}

func (t *tree) attach() *proc {
	p := &proc{
		t: t, done: make(chan struct{}), released: make(chan struct{}),
		turns: make(chan driver.Turn, len(t.turns)+spareMax),
	}
	for _, e := range t.turns {
		p.turns <- e
	}
	t.handle = p
	return p
}

func (t *tree) detach() {
	if t.handle != nil {
		t.handle.letGo()
		t.handle = nil
	}
}

func (t *tree) write(stream apiv1.LogLine_Stream, text []byte) {
	t.last++
	t.lines = append(t.lines, &apiv1.LogLine{Number: t.last, Stream: stream, Time: timestamppb.Now(), Epoch: t.s.Epoch, Text: text})
	if len(t.lines) > linesMax {
		t.lines = append(t.lines[:0:0], t.lines[len(t.lines)-linesMax:]...)
	}
	for tap := range t.taps {
		select {
		case tap <- append(bytes.Clone(text), '\n'):
		default: // a terminal that is too slow misses it
		}
	}
	t.ring()
}

func (t *tree) ring() {
	if t.more != nil {
		close(t.more)
		t.more = nil
	}
}

func (t *tree) wait() <-chan struct{} {
	if t.more == nil {
		t.more = make(chan struct{})
	}
	return t.more
}

func (t *tree) remember(sequence uint64) {
	if len(t.order) >= givenMax {
		delete(t.given, t.order[0])
		t.order = append(t.order[:0], t.order[1:]...)
	}
	t.given[sequence] = true
	t.order = append(t.order, sequence)
}

// take is given a message, or with sequence 0 a line that somebody typed.
func (t *tree) take(sequence uint64, text string) {
	t.count++
	word, rest, _ := strings.Cut(text, " ")
	n, _ := strconv.Atoi(strings.SplitN(rest, " ", 2)[0])
	answer := fmt.Sprintf("ok %d", t.count)
	switch word {
	case "exit":
		e := session.Exit{Code: int32(n), Cause: session.CauseFailed, Message: fmt.Sprintf("exit code %d", n)}
		if n == 0 {
			e.Cause = session.CauseCompleted
		}
		t.end(e)
		return
	case "die":
		t.end(session.Exit{Code: 137, Signal: "SIGKILL", Cause: session.CauseFailed, Message: "killed by SIGKILL"})
		return
	case "hang":
		return
	case "ignore-term":
		t.deaf = true
	case "say":
		_, what, _ := strings.Cut(rest, " ")
		for range n {
			t.write(apiv1.LogLine_STDERR, []byte(what))
		}
	case "long":
		answer = strings.Repeat("x", n)
	default:
		if v, err := strconv.ParseInt(text, 10, 64); err == nil {
			t.sum += v
			answer = fmt.Sprintf("sum %d", t.sum)
		}
	}
	if t.m.opt.TurnTime == 0 {
		t.answer(sequence, answer)
		return
	}
	time.AfterFunc(t.m.opt.TurnTime, func() {
		t.m.mu.Lock()
		defer t.m.mu.Unlock()
		if t.exit == nil {
			t.answer(sequence, answer)
		}
	})
}

func (t *tree) answer(sequence uint64, text string) {
	t.write(apiv1.LogLine_STDOUT, []byte(text))
	if sequence == 0 {
		return
	}
	turn := driver.Turn{Sequence: sequence, Result: []byte(text), OutputLine: t.last}
	if len(text) > session.MaxResultBytes {
		turn.Result, turn.Truncated = turn.Result[:session.MaxResultBytes], true
	}
	t.outstanding = 0
	t.endTurn(turn)
}

func (t *tree) endTurn(turn driver.Turn) {
	t.turns = append(t.turns, turn)
	if len(t.turns) > turnsMax {
		t.turns = append(t.turns[:0:0], t.turns[len(t.turns)-turnsMax:]...)
	}
	if t.handle != nil {
		t.handle.turns <- turn // Send looked whether there is room
	}
}

// stop is SIGTERM, and SIGKILL after the grace.
func (t *tree) stop(grace time.Duration, exit session.Exit) {
	if t.exit != nil || t.ending != nil {
		return
	}
	t.ending = &exit
	wait, signal := t.m.opt.StopTime, "SIGTERM"
	if t.deaf || wait > grace {
		wait, signal = grace, "SIGKILL"
	}
	end := func() {
		t.kill(session.Exit{}, signal)
	}
	if wait <= 0 {
		end()
		return
	}
	t.timer = time.AfterFunc(wait, func() {
		t.m.mu.Lock()
		defer t.m.mu.Unlock()
		end()
	})
}

func (t *tree) kill(exit session.Exit, signal string) {
	if t.ending != nil {
		exit = *t.ending
	}
	exit.Signal, exit.Code = signal, 137
	if signal == "SIGTERM" {
		exit.Code = 143
	}
	t.end(exit)
}

func (t *tree) end(exit session.Exit) {
	if t.exit != nil {
		return
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	t.exit = &exit
	t.m.observe(t, true)
	if t.handle != nil {
		t.handle.exit = exit
		close(t.handle.done)
		close(t.handle.turns)
		t.handle = nil
	}
	t.ring()
}
