// What the ledgers say in the end.

package main

import (
	"fmt"
	"strconv"
	"strings"
)

// verdict compares what was accepted with what is in the ledgers, in messages.
type verdict struct {
	accepted, found, lost, doubled int
	unknown                        int // under way at the end, and not accepted
	wrongSums                      int // sessions
	dead                           int // dead letters
	examples                       []string
}

const (
	// unknown marks a message of which nobody knows whether it was accepted.
	unknown = "?"
	// maxExamples bounds what is told of what is wrong.
	maxExamples = 10
)

func (v *verdict) note(format string, args ...any) {
	if len(v.examples) < maxExamples {
		v.examples = append(v.examples, fmt.Sprintf(format, args...))
	}
}

// compare adds one session: sent are its messages with their amounts, ledger is its file.
func (v *verdict) compare(session string, sent map[string]int, ledger string) {
	times, sum, want := map[string]int{}, 0, 0
	for line := range strings.Lines(ledger) {
		name, amount, _ := strings.Cut(strings.TrimSpace(line), " ")
		times[name]++
		n, _ := strconv.Atoi(amount) // what is no number makes the sum wrong
		sum += n
	}
	for name, amount := range sent {
		name, open := strings.CutPrefix(name, unknown)
		n := times[name]
		delete(times, name)
		if open && n == 0 {
			v.unknown++
			continue
		}
		v.accepted++
		want += amount
		switch {
		case n == 0:
			v.lost++
			v.note("%s was accepted and is not in %s", name, session)
		case n > 1:
			v.doubled++
			v.found++
			v.note("%s is in %s %d times", name, session, n)
		default:
			v.found++
		}
	}
	for name := range times {
		v.doubled++
		v.note("%q is in %s and was never sent", name, session)
	}
	if sum != want {
		v.wrongSums++
		v.note("%s has the sum %d, not %d", session, sum, want)
	}
}

// good reports whether everything is there once.
func (v *verdict) good() bool { return v.accepted > 0 && v.lost+v.doubled+v.wrongSums+v.dead == 0 }
