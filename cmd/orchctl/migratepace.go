// How far a step of a move is, how fast it goes, and when it may be done.

package main

import (
	"strings"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// The steps that a move tells of.
const (
	stepWaiting   = "waiting"
	stepCopying   = "copying"
	stepPreparing = "preparing"
	stepHolding   = "holding"
	stepSaving    = "saving"
	stepRestoring = "restoring"
)

// pace is one step of a move. Times are those of the node that tells, so that what comes late on its way changes no rate.
type pace struct {
	round       uint32
	done, total int64
	from        int64 // bytes that were done when it was heard of first
	began, last time.Time
}

// paces are the steps that were told of, by name.
type paces map[string]*pace

// update takes in what was told; one that was told before changes nothing.
func (ps paces) update(t *apiv1.Session_Progress) {
	if t.GetStep() == "" {
		return
	}
	p, at := ps[t.GetStep()], t.GetTime().AsTime()
	switch {
	case p == nil || p.round != t.GetRound() || t.GetBytesDone() < p.done:
		p = &pace{round: t.GetRound(), from: t.GetBytesDone(), began: at}
		ps[t.GetStep()] = p
	case !at.After(p.last):
		return
	}
	p.done, p.total, p.last = t.GetBytesDone(), t.GetBytesTotal(), at
}

// known reports whether it can be said how far the step is.
func (p *pace) known() bool { return p != nil && p.total > 0 }

// share is what is done, from 0 to 1.
func (p *pace) share() float64 { return min(float64(p.done)/float64(p.total), 1) }

// rate is bytes a second; 0 when it cannot be said yet.
func (p *pace) rate() float64 {
	took := p.last.Sub(p.began)
	if took < rateAfter || p.done <= p.from {
		return 0
	}
	return float64(p.done-p.from) / took.Seconds()
}

// bytes is how much is done of how much.
func (p *pace) bytes() string { return bytesText(p.done) + " of " + bytesText(p.total) }

// speed is the rate, and the time left.
func (p *pace) speed() (parts []string) {
	rate := p.rate()
	if rate == 0 {
		return nil
	}
	parts = append(parts, bytesText(int64(rate))+"/s")
	if left := p.total - p.done; left > 0 {
		parts = append(parts, "ETA "+secondsText(time.Duration(float64(left)/rate*float64(time.Second))))
	}
	return parts
}

// paced is a step with its bar; empty when it is not known how far it is.
func (v *migrationView) paced(step string, more ...string) string {
	p := v.paces[step]
	if !p.known() {
		return ""
	}
	return strings.Join(append(append([]string{v.percent(p.share())}, more...), p.speed()...), "  ")
}

// now is the step that was told of last; empty when none is.
func (v *migrationView) now() string { return v.s.GetMigration().GetProgress().GetStep() }
