// What is shown while something long goes on in the cluster, and what Ctrl-C asks of whoever looks on.

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
)

// place says how something that goes on is shown.
type place int

const (
	nowhere place = iota
	asLines
	asScreen
)

// barCells is how long a bar is.
const barCells = 24

// spinner turns while something goes on.
var spinner = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}

// live shows something that goes on: drawn anew in its place on a terminal, line by line elsewhere. Its methods belong to one goroutine.
type live struct {
	a     *app
	where place
	lines func() []string // what a terminal shows
	// step is what is told elsewhere: the part that makes it news, and the whole line. Without a part nothing is.
	step func() (part, line string)

	said  string // below the lines
	frame int
	panel panel

	part     string // what was printed last
	partTime time.Time
}

// newLive makes a view. It shows nothing yet.
func (a *app) newLive(lines func() []string, step func() (part, line string)) live {
	v := live{a: a, lines: lines, step: step, panel: panel{a: a}}
	switch {
	case a.flags.quiet:
	case isTerminal(a.stderr) && a.getenv("TERM") != "dumb":
		v.where = asScreen
	default:
		v.where = asLines
	}
	return v
}

// tick lets time be seen to pass.
func (v *live) tick() {
	v.frame++
	if v.where == asScreen {
		v.draw()
	}
}

// say shows a text below the lines, until another one takes its place.
func (v *live) say(text string) {
	v.said = clean(text)
	if v.where == asLines && v.said != "" {
		v.println("orchctl: " + v.said)
	}
	v.draw()
}

// leave shows the last state, and lets it stand.
func (v *live) leave() {
	v.said = ""
	v.draw()
	v.where = nowhere
}

func (v *live) draw() {
	switch v.where {
	case asScreen:
		lines := v.lines()
		if v.said != "" {
			lines = append(lines, v.color(text.FgYellow, v.said))
		}
		v.panel.redraw(lines)
	case asLines:
		part, line := v.step()
		if part == "" || part == v.part && time.Since(v.partTime) < v.a.patience {
			return
		}
		v.part, v.partTime = part, time.Now()
		v.println(line)
	}
}

func (v *live) println(s string) {
	_, _ = io.WriteString(v.a.stderr, clean(s)+"\n") // there is nowhere left to say that it failed
}

// spin is the mark of what goes on.
func (v *live) spin() string { return v.color(text.FgCyan, spinner[v.frame%len(spinner)]) }

// bar is a bar of which a share from 0 to 1 is full.
func (v *live) bar(share float64) string {
	full := int(min(max(share, 0), 1) * barCells)
	return v.color(text.FgCyan, strings.Repeat("█", full)) + v.color(text.Faint, strings.Repeat("░", barCells-full))
}

func (v *live) color(c text.Color, s string) string {
	if v.a.getenv("NO_COLOR") != "" {
		return s
	}
	return c.EscapeSeq() + s + text.Reset.EscapeSeq()
}

// percent is a bar with its share in figures.
func (v *live) percent(share float64) string {
	return v.bar(share) + fmt.Sprintf(" %3.0f%%", share*100)
}

// question asks whoever looks on, after Ctrl-C, what is to become of what goes on.
type question struct {
	show   *live
	text   string
	key    byte   // of ending it, in lower case
	ending string // what is shown once that was asked for
	end    func() // begins to end it
	asked  *terminal
}

// ask asks, and reports whether there is anybody to ask: not where it was asked already.
func (q *question) ask(ctx context.Context) bool {
	a := q.show.a
	if a.flags.quiet || !isTerminal(a.stdin) || !isTerminal(a.stderr) || q.asked != nil {
		return false
	}
	t, err := a.openTerminal(ctx, nil, true)
	if err != nil {
		return false
	}
	t.start(a.stdin)
	q.asked = t
	q.show.say(q.text)
	return true
}

// keys is where what is typed comes while the question is open; nil while none is.
func (q *question) keys() <-chan []byte {
	if q.asked == nil {
		return nil
	}
	return q.asked.input
}

// close ends the question.
func (q *question) close() {
	if q.asked != nil {
		q.asked.close()
		q.asked = nil
	}
}

// answer takes what was typed, and reports whether the user leaves. The terminal is gone when there is nothing.
func (q *question) answer(typed []byte) (leave bool) {
	if len(typed) == 0 {
		typed = []byte{keyCtrlD}
	}
	for _, key := range typed {
		switch key {
		case 'b', 'B', keyCtrlC, keyCtrlD:
			q.close()
			return true
		case q.key, q.key - 'a' + 'A':
			q.close()
			q.show.say(q.ending)
			q.end()
			return false
		case 'w', 'W', '\r', '\n':
			q.close()
			q.show.say("")
			return false
		}
	}
	return false
}
