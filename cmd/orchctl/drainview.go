// How a drain is shown: a bar on a terminal, line by line elsewhere.

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// drainView shows a drain. Its methods belong to one goroutine.
type drainView struct {
	live
	n     *apiv1.Node // as it was seen last
	began time.Time
}

func (a *app) newDrainView(n *apiv1.Node) *drainView {
	v := &drainView{n: n, began: time.Now()}
	v.live = a.newLive(v.lines, v.step)
	return v
}

// lines are what a terminal shows: how far it is, and why it waits where it does.
func (v *drainView) lines() []string {
	d := v.n.GetDrain()
	mark := map[apiv1.Drain_State]string{
		apiv1.Drain_DRAINING: v.spin(), apiv1.Drain_DRAINED: v.color(text.FgGreen, "✓"),
	}[d.GetState()]
	if mark == "" {
		mark = v.color(text.FgRed, "✗")
	}
	gone, share := int(d.GetTotal())-int(d.GetRemaining()), 1.0
	if d.GetTotal() > 0 {
		share = float64(gone) / float64(d.GetTotal())
	}
	parts := []string{
		fmt.Sprintf("%s draining %s", mark, v.color(text.Bold, clean(v.n.GetName()))),
		v.bar(share) + fmt.Sprintf(" %d/%d", max(gone, 0), d.GetTotal()),
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
	return out
}

// step is how far it is.
func (v *drainView) step() (part, line string) {
	d := v.n.GetDrain()
	if d.GetState() != apiv1.Drain_DRAINING {
		return "", "" // its figures follow
	}
	step := fmt.Sprintf("node/%s: %d of %d moved, %d paused, %d left", v.n.GetName(), d.GetMoved(), d.GetTotal(), d.GetPaused(), d.GetRemaining())
	if d.GetReason() != "" {
		step += ": " + d.GetReason()
	}
	return step, step
}
