// How a drain is shown: a bar on a terminal, line by line elsewhere.

package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// drainView shows a drain. Its methods belong to one goroutine.
type drainView struct {
	a     *app
	where movePlace
	n     *apiv1.Node
	began time.Time
	said  string // below the bar
	frame int
	panel panel

	line     string // what was printed last as a line
	lineTime time.Time
}

func (a *app) newDrainView(n *apiv1.Node) *drainView {
	v := &drainView{a: a, n: n, began: time.Now(), panel: panel{a: a}}
	switch {
	case a.flags.quiet:
	case isTerminal(a.stderr) && a.getenv("TERM") != "dumb":
		v.where = asScreen
	default:
		v.where = asLines
	}
	v.draw()
	return v
}

// update takes in how the node is now.
func (v *drainView) update(n *apiv1.Node) {
	v.n = n
	v.draw()
}

// tick lets time be seen to pass.
func (v *drainView) tick() {
	v.frame++
	if v.where == asScreen {
		v.draw()
	}
}

// say shows a text below the bar, until another one takes its place.
func (v *drainView) say(text string) {
	v.said = clean(text)
	if v.where == asLines && v.said != "" {
		v.println("orchctl: " + v.said)
	}
	v.draw()
}

// end shows the last state, and leaves it.
func (v *drainView) end(n *apiv1.Node) {
	v.n, v.said = n, ""
	v.draw()
	v.where = nowhere
}

func (v *drainView) draw() {
	switch v.where {
	case asScreen:
		v.panel.redraw(v.lines())
	case asLines:
		v.printLine()
	}
}

// lines are what a terminal shows: how far it is, and why it waits where it does.
func (v *drainView) lines() []string {
	d := v.n.GetDrain()
	mark := map[apiv1.Drain_State]string{
		apiv1.Drain_DRAINING: v.color(text.FgCyan, spinner[v.frame%len(spinner)]), apiv1.Drain_DRAINED: v.color(text.FgGreen, "✓"),
	}[d.GetState()]
	if mark == "" {
		mark = v.color(text.FgRed, "✗")
	}
	gone, share := int(d.GetTotal())-int(d.GetRemaining()), 1.0
	if d.GetTotal() > 0 {
		share = min(max(float64(gone)/float64(d.GetTotal()), 0), 1)
	}
	full := int(share * barCells)
	parts := []string{
		fmt.Sprintf("%s draining %s", mark, v.color(text.Bold, clean(v.n.GetName()))),
		v.color(text.FgCyan, strings.Repeat("█", full)) + v.color(text.Faint, strings.Repeat("░", barCells-full)) + fmt.Sprintf(" %d/%d", max(gone, 0), d.GetTotal()),
	}
	if d.GetPaused() > 0 {
		parts = append(parts, fmt.Sprintf("%d paused", d.GetPaused()))
	}
	if d.GetLongestBlackoutMs() > 0 {
		parts = append(parts, "blackout ≤ "+millisText(d.GetLongestBlackoutMs()))
	}
	out := []string{strings.Join(append(parts, secondsText(time.Since(v.began))), "  ")}
	if d.GetReason() != "" {
		out = append(out, "  "+v.color(text.Faint, clean("waits: "+d.GetReason())))
	}
	if v.said != "" {
		out = append(out, v.said)
	}
	return out
}

func (v *drainView) color(c text.Color, s string) string {
	if v.a.getenv("NO_COLOR") != "" {
		return s
	}
	return c.EscapeSeq() + s + text.Reset.EscapeSeq()
}

// printLine says how far it is, where that is news.
func (v *drainView) printLine() {
	d := v.n.GetDrain()
	if d.GetState() != apiv1.Drain_DRAINING {
		return // its figures follow
	}
	step := fmt.Sprintf("node/%s: %d of %d moved, %d paused, %d left", v.n.GetName(), d.GetMoved(), d.GetTotal(), d.GetPaused(), d.GetRemaining())
	if d.GetReason() != "" {
		step += ": " + d.GetReason()
	}
	if step == v.line && time.Since(v.lineTime) < v.a.patience {
		return
	}
	v.line, v.lineTime = step, time.Now()
	v.println(step)
}

func (v *drainView) println(s string) {
	_, _ = io.WriteString(v.a.stderr, clean(s)+"\n") // there is nowhere left to say that it failed
}
