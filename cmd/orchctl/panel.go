// A few lines at the bottom of a terminal that change while something goes on.

package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/term"
)

// panel is where they are.
type panel struct {
	a      *app
	height int // lines on it
}

// redraw writes the lines over those of before. What was shorter is cleared.
func (s *panel) redraw(lines []string) {
	width := 80
	if f, ok := s.a.stderr.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 1 {
			width = w
		}
	}
	var b strings.Builder
	if s.height > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", s.height)
	}
	for _, l := range lines {
		// The terminal may be raw while a question is open.
		b.WriteString("\r" + fit(l, width-1) + text.Reset.EscapeSeq() + clearLine + "\r\n")
	}
	b.WriteString(clearBelow)
	s.height = len(lines)
	_, _ = io.WriteString(s.a.stderr, b.String()) // decoration
}
