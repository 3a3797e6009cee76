// How a move is shown: phase by phase on a terminal, line by line elsewhere.

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// movePhase is a part of a move, as people see it.
type movePhase int

const (
	copying   movePhase = iota // the session works
	holding                    // its messages wait, and the rest is copied
	restoring                  // it begins on its target
	moved
	movePhases
)

var movePhaseText = [movePhases]string{copying: "copying", holding: "holding", restoring: "restoring", moved: "done"}

// phaseOf tells which part of a move a session is in.
func phaseOf(s *apiv1.Session) movePhase {
	m := s.GetMigration()
	switch {
	case m.GetState() == apiv1.Session_Migration_DONE:
		return moved
	case m.GetState() == apiv1.Session_Migration_MOVING && s.GetPhase() != apiv1.Session_MIGRATING:
		return restoring
	case m.GetState() == apiv1.Session_Migration_MOVING, m.GetProgress().GetStep() == stepHolding, m.GetProgress().GetStep() == stepSaving, m.GetBlackoutMs() > 0, m.GetMode() == modeCold:
		return holding
	default:
		return copying
	}
}

// migrationView shows a move. Its methods belong to one goroutine.
type migrationView struct {
	live
	s     *apiv1.Session            // as it was seen last
	began [movePhases + 1]time.Time // when each part was seen first; a part that was not seen has its successor's
	at    movePhase
	total int64 // what there is to copy, as the last checkpoint tells; 0 when that is not known
	paces paces
}

func (a *app) newMigrationView(s *apiv1.Session) *migrationView {
	v := &migrationView{s: s, paces: paces{}, total: s.GetCheckpoint().GetBytes(), at: copying}
	v.live = a.newLive(v.lines, v.step)
	v.began[copying] = time.Now()
	v.take(s)
	return v
}

func (v *migrationView) phase() string { return movePhaseText[v.at] }

// take takes in what the session has become.
func (v *migrationView) take(s *apiv1.Session) {
	v.s = s
	v.paces.update(s.GetMigration().GetProgress())
	for p := phaseOf(s); v.at < p; {
		v.at++
		v.began[v.at] = time.Now()
	}
	v.total = max(v.total, s.GetCheckpoint().GetBytes())
}

// lines are what a terminal shows: where from and to, and a line for each part of the move.
func (v *migrationView) lines() []string {
	m := v.s.GetMigration()
	head := fmt.Sprintf("%s  %s ─▶ %s  %s", v.color(text.Bold, clean(first(v.s.GetName(), v.s.GetId()))), clean(m.GetSource()), clean(m.GetTarget()), clean(m.GetMode()))
	out := []string{head}
	for p := copying; p < moved; p++ {
		mark, detail := v.color(text.Faint, "·"), ""
		switch {
		case p < v.at:
			mark, detail = v.color(text.FgGreen, "✓"), v.detail(p)
		case p == v.at && underWay(m):
			mark, detail = v.spin(), v.detail(p)
		case p == v.at:
			mark, detail = v.color(text.FgRed, "✗"), v.detail(p)
		}
		out = append(out, strings.TrimRight(fmt.Sprintf("  %s %-10s %s", mark, movePhaseText[p], detail), " "))
		if p == copying {
			out = append(out, v.beneath()...)
		}
	}
	switch m.GetState() {
	case apiv1.Session_Migration_DONE:
		out = append(out, fmt.Sprintf("  %s %-10s %s on %s, %s without an answer", v.color(text.FgGreen, "✓"), "done", millisText(m.GetTotalMs()), clean(m.GetTarget()), millisText(m.GetBlackoutMs())))
	case apiv1.Session_Migration_FAILED, apiv1.Session_Migration_CANCELLED:
		out = append(out, fmt.Sprintf("  %s %s", v.color(text.FgRed, "✗"), strings.ToLower(m.GetState().String())))
	default:
		out = append(out, fmt.Sprintf("    %-10s %s", "elapsed", secondsText(time.Since(v.began[copying]))))
	}
	return out
}

// beneath are the lines below the copying: what was copied, and what its target has ready of that.
func (v *migrationView) beneath() (out []string) {
	m := v.s.GetMigration()
	var parts []string
	if p := v.paces[stepCopying]; p.known() && v.at == copying {
		parts = append(parts, p.bytes()+" read")
	}
	if m.GetRounds() > 0 {
		parts = append(parts, bytesText(m.GetBytesSent())+" sent", bytesText(m.GetBytesReused())+" there already")
	}
	if len(parts) > 0 {
		out = append(out, fmt.Sprintf("    %-10s %s", "", strings.Join(parts, ", ")))
	}
	if ready := v.paced(stepPreparing); ready != "" && v.at == copying {
		out = append(out, fmt.Sprintf("    %-10s %s", "preparing", ready))
	}
	return out
}

// detail is what is known of a part of the move.
func (v *migrationView) detail(p movePhase) string {
	took := ""
	if p < v.at {
		took = spanSince(v.began[p], v.began[p+1])
	}
	switch p {
	case copying:
		return v.copied(took)
	case holding:
		what := "its messages wait; the rest is copied"
		if v.s.GetMigration().GetMode() == modeCold {
			what = "it stands still; all is copied"
		}
		switch saved := v.paced(stepSaving, v.savedBytes()); {
		case p < v.at:
			what = took
		case saved != "" && v.now() == stepSaving:
			what = saved
		case v.paces[stepHolding].known() && v.now() == stepHolding:
			what = v.paced(stepHolding, v.paces[stepHolding].bytes()+" read")
		}
		return what
	default:
		if p < v.at {
			return took
		}
		if fetched := v.paced(stepRestoring); fetched != "" {
			return fetched
		}
		return "it begins on " + clean(v.s.GetMigration().GetTarget())
	}
}

// copied is how far the copying is, and how fast; a line of 80 columns holds it.
func (v *migrationView) copied(took string) string {
	m := v.s.GetMigration()
	elapsed := time.Since(v.began[copying])
	if v.at > copying {
		elapsed = v.began[copying+1].Sub(v.began[copying])
	}
	if v.now() == stepWaiting && v.at == copying {
		return "it waits for its turn among other moves, and works on"
	}
	if p := v.paces[stepCopying]; p.known() && v.at == copying {
		return v.paced(stepCopying, fmt.Sprintf("round %d", p.round))
	}
	parts := []string{fmt.Sprintf("round %d", m.GetRounds())}
	if seconds := elapsed.Seconds(); seconds > rateAfter.Seconds() && m.GetBytesSent() > 0 {
		parts = append(parts, bytesText(int64(float64(m.GetBytesSent())/seconds))+"/s")
	}
	if v.at > copying {
		return strings.Join(append(parts, took), "  ")
	}
	if m.GetRounds() == 0 && m.GetBytesSent()+m.GetBytesReused() == 0 { // nothing was told yet
		if v.total == 0 {
			return "it works on meanwhile"
		}
		return bytesText(v.total) + ", while it works on"
	}
	if v.total > 0 && m.GetRounds() <= 1 { // later rounds copy what has changed, and nobody knows how much that will be
		share := min(float64(m.GetBytesSent()+m.GetBytesReused())/float64(v.total), 1)
		parts = append([]string{v.percent(share)}, parts...)
		if elapsed > rateAfter && share > 0 && share < 1 {
			parts = append(parts, "ETA "+secondsText(time.Duration(float64(elapsed)*(1-share)/share)))
		}
	}
	return strings.Join(parts, "  ")
}

// savedBytes is how much of the last piece is stored.
func (v *migrationView) savedBytes() string {
	if p := v.paces[stepSaving]; p.known() {
		return p.bytes() + " stored"
	}
	return ""
}

// rateAfter is when a rate means something.
const rateAfter = 200 * time.Millisecond

// secondsText is a span that changes while it is looked at.
func secondsText(d time.Duration) string {
	if d >= time.Minute {
		return ageText(d)
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}

func spanSince(from, to time.Time) string {
	return millisText(float64(to.Sub(from)) / float64(time.Millisecond))
}

// step is how far it is: news are another part, and another round.
func (v *migrationView) step() (part, line string) {
	m := v.s.GetMigration()
	if !underWay(m) {
		return "", "" // its figures follow
	}
	part = fmt.Sprintf("session/%s: %s, %s to %s", v.s.GetId(), movePhaseText[v.at], m.GetSource(), m.GetTarget())
	if m.GetRounds() > 0 {
		part += fmt.Sprintf(", round %d", m.GetRounds())
	}
	line = part
	if p := v.paces[v.now()]; p.known() {
		line += ", " + v.now() + " " + strings.Join(append([]string{p.bytes()}, p.speed()...), ", ")
	}
	if m.GetRounds() > 0 {
		line += fmt.Sprintf(", %s sent, %s there already", bytesText(m.GetBytesSent()), bytesText(m.GetBytesReused()))
	}
	return part, line
}
