// What a spec and a message must look like, with the remedy in each refusal; and the defaults.

package session

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/neolith/orchestrator/internal/fault"
)

// The limits of a spec and a message. Bytes unless the name says otherwise.
const (
	MaxNameBytes      = 253
	MaxMessageBytes   = 256 << 10
	MaxSpecBytes      = 256 << 10 // of all strings together
	MaxListEntries    = 1024      // arguments, env, labels, …
	MaxResultBytes    = 64 << 10
	MaxKeyBytes       = 128 // idempotency keys
	DefaultGrace      = 10 * time.Second
	DefaultRestarts   = 5
	DefaultTurnIdle   = 500 * time.Millisecond
	MaxGrace          = time.Hour
	DefaultNamespace  = "default"
	restartDelayFirst = time.Second
	restartDelayMax   = time.Minute
)

var (
	nameRE  = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)
	labelRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_./-]*[A-Za-z0-9])?$`)
	envRE   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// Normalize fills in defaults, in place.
func (s *Spec) Normalize() {
	if s.Type == "" {
		s.Type = TypeProcess
	}
	if s.Namespace == "" {
		s.Namespace = DefaultNamespace
	}
	if s.Priority == 0 {
		s.Priority = Normal
	}
	if s.Protocol == "" {
		s.Protocol = ProtocolLines
	}
	if s.Restart == "" {
		s.Restart = RestartNever
	}
	if s.MaxRestarts == 0 && s.Restart != RestartNever {
		s.MaxRestarts = DefaultRestarts
	}
	if s.Grace == 0 {
		s.Grace = DefaultGrace
	}
}

// Validate says what is wrong with a normalized spec; nil when nothing is. Errors are of kind fault.Invalid.
func (s *Spec) Validate() error {
	bad := func(field, format string, args ...any) error {
		return fault.New(fault.Invalid, "spec.%s: "+format, append([]any{field}, args...)...).WithField("spec." + field)
	}
	switch s.Type {
	case TypeProcess, TypeClaudeCode, TypeClaudeFlow, TypeACP:
	default:
		return bad("type", "%q is not a session type; use process, claude-code, claude-flow or acp", clip(s.Type))
	}
	if err := CheckName(s.Name); s.Name != "" && err != "" {
		return bad("name", "%s", err)
	}
	if err := CheckName(s.Namespace); err != "" {
		return bad("namespace", "%s", err)
	}
	if s.Priority < Critical || s.Priority > Low {
		return bad("priority", "%d is not a priority; use critical, high, normal or low", s.Priority)
	}
	if s.Type == TypeProcess && (len(s.Command) == 0 || s.Command[0] == "") {
		return bad("command", "is empty; give the program to run after --")
	}
	switch s.Protocol {
	case ProtocolLines, ProtocolJSON, ProtocolRaw, ProtocolNone:
	default:
		return bad("protocol", "%q is not a protocol; use lines, json, raw or none", clip(s.Protocol))
	}
	switch s.Restart {
	case RestartNever, RestartOnFailure, RestartAlways:
	default:
		return bad("restart", "%q is not a restart policy; use never, on-failure or always", clip(string(s.Restart)))
	}
	if s.CPUMilli < 0 {
		return bad("cpu_milli", "%d is negative; give thousandths of a core, or 0 for none reserved", s.CPUMilli)
	}
	if s.MemoryBytes < 0 {
		return bad("memory_bytes", "%d is negative; give bytes, or 0 for none reserved", s.MemoryBytes)
	}
	if s.TTL < 0 {
		return bad("ttl", "%s is negative", s.TTL)
	}
	if s.Grace < 0 || s.Grace > MaxGrace {
		return bad("grace", "%s is outside 0s–%s", s.Grace, MaxGrace)
	}
	if s.TurnIdle < 0 || s.TurnIdle > MaxGrace {
		return bad("turn_idle", "%s is outside 0s–%s", s.TurnIdle, MaxGrace)
	}
	if why := s.checkpointEvery(); why != "" {
		return bad("checkpointEvery", "%s", why)
	}
	switch s.State {
	case "", StateFiles, StateMemory:
	default:
		return bad("state", "%q is not what a checkpoint can keep; use %s or %s", clip(s.State), StateFiles, StateMemory)
	}
	if field, why := s.keeping(); why != "" {
		return bad(field, "%s", why)
	}
	if why := s.pauseAfter(); why != "" {
		return bad("pause_after", "%s", why)
	}
	for _, k := range s.Require {
		if !labelRE.MatchString(k) || len(k) > MaxNameBytes {
			return bad("require", "%q is not a capability's name", clip(k))
		}
	}
	for _, p := range s.Env {
		if !envRE.MatchString(p.Key) {
			return bad("env", "%q is not a variable's name", clip(p.Key))
		}
		if strings.HasPrefix(p.Key, "ORCH_") {
			return bad("env", "%q is set by the node itself; choose another name", clip(p.Key))
		}
		if strings.ContainsRune(p.Value, 0) {
			return bad("env", "the value of %q holds a NUL byte", clip(p.Key))
		}
	}
	for _, l := range []struct {
		field string
		pairs []Pair
	}{{"labels", s.Labels}, {"node_selector", s.NodeSelector}} {
		for _, p := range l.pairs {
			if !labelRE.MatchString(p.Key) || len(p.Key) > MaxNameBytes || (p.Value != "" && !labelRE.MatchString(p.Value)) || len(p.Value) > MaxNameBytes {
				return bad(l.field, "%q=%q: keys and values are at most %d bytes of letters, digits and _./-", clip(p.Key), clip(p.Value), MaxNameBytes)
			}
		}
	}
	return s.checkSize(bad)
}

// checkSize bounds lists and the spec as a whole, and refuses text that is not UTF-8.
func (s *Spec) checkSize(bad func(field, format string, args ...any) error) error {
	total := len(s.Strategy) + len(s.MemoryProfile) + len(s.Name)
	for _, l := range []struct {
		field   string
		entries []string
	}{{"command", s.Command}, {"require", s.Require}, {"secrets", s.Secrets}} {
		if len(l.entries) > MaxListEntries {
			return bad(l.field, "has %d entries, more than %d", len(l.entries), MaxListEntries)
		}
		for _, v := range l.entries {
			total += len(v)
			if !utf8.ValidString(v) || strings.ContainsRune(v, 0) {
				return bad(l.field, "%q is not UTF-8 text without NUL", clip(v))
			}
		}
	}
	for _, l := range []struct {
		field string
		pairs []Pair
	}{{"env", s.Env}, {"labels", s.Labels}, {"node_selector", s.NodeSelector}} {
		if len(l.pairs) > MaxListEntries {
			return bad(l.field, "has %d entries, more than %d", len(l.pairs), MaxListEntries)
		}
		for _, p := range l.pairs {
			total += len(p.Key) + len(p.Value)
		}
	}
	if total > MaxSpecBytes {
		return fault.New(fault.Invalid, "spec: is %d bytes in all, more than %d; put large content into the workspace", total, MaxSpecBytes).WithField("spec")
	}
	return nil
}

// CheckName says what is wrong with a name of a session, node or namespace; empty when nothing is.
func CheckName(n string) string {
	if len(n) > MaxNameBytes {
		return fmt.Sprintf("is %d bytes, more than %d", len(n), MaxNameBytes)
	}
	if !nameRE.MatchString(n) {
		return fmt.Sprintf("%q is not a name; use lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit", clip(n))
	}
	return ""
}

// ValidateMessage says what is wrong with a message to a session of this spec; nil when nothing is.
func (s *Spec) ValidateMessage(text []byte) error {
	if len(text) > MaxMessageBytes {
		return fault.New(fault.Invalid, "message: is %d bytes, more than %d; write it to a file in the workspace and send its name", len(text), MaxMessageBytes).WithField("text")
	}
	switch {
	case s.Protocol == ProtocolNone:
		return fault.New(fault.FailedPrecondition, "the session takes no messages; spawn it with --protocol lines, json or raw")
	case s.Protocol == ProtocolLines && bytes.ContainsAny(text, "\n\r"):
		return fault.New(fault.Invalid, "message: holds a line break, and the session's protocol is lines; spawn it with --protocol json, or send one message a line").WithField("text")
	case s.Protocol == ProtocolJSON && !utf8.Valid(text):
		return fault.New(fault.Invalid, "message: is not UTF-8, and the session's protocol is json").WithField("text")
	}
	return nil
}

// HealthyRun is how long a process must have run for its session's restarts to be counted anew: ten times the longest delay.
// Kubernetes takes the same time, so what is seldom started again is started at once, and what dies every few minutes is not
// started for ever.
const HealthyRun = 10 * restartDelayMax

// RestartsInRow returns how many restarts there were since the last healthy run. They decide how long the next one waits, and
// whether there is one.
func (s *Session) RestartsInRow() uint32 { return s.Restarts - min(s.RestartsForgiven, s.Restarts) }

// RestartDelay is how long to wait before the n-th restart in a row (from 1): 1 s, doubling to 1 min.
func RestartDelay(n uint32) time.Duration {
	if n == 0 {
		return 0
	}
	if n > 6 {
		return restartDelayMax
	}
	return min(restartDelayFirst<<(n-1), restartDelayMax)
}

// SortPairs sorts by key, in place, and returns the list.
func SortPairs(p []Pair) []Pair {
	slices.SortFunc(p, func(a, b Pair) int { return strings.Compare(a.Key, b.Key) })
	return p
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
