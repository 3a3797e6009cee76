// Interning: strings and specs that many sessions share are held once.

package state

import (
	"encoding/binary"
	"slices"

	"github.com/neolith/orchestrator/session"
)

// The interner's bounds. When a table is full it is emptied: what is shared stays shared, new rows begin anew.
const (
	internStrings     = 1 << 16
	internStringBytes = 256
	internSpecs       = 1 << 12
	internSpecBytes   = 4 << 10
)

// interner belongs to the one goroutine that applies.
type interner struct {
	strings map[string]string
	specs   map[string]*session.Spec // by everything but the name
	scratch []byte
}

func newInterner() *interner {
	return &interner{strings: map[string]string{}, specs: map[string]*session.Spec{}}
}

// str returns an equal string that is shared.
func (in *interner) str(s string) string {
	if s == "" || len(s) > internStringBytes {
		return s
	}
	if v, ok := in.strings[s]; ok {
		return v
	}
	if len(in.strings) >= internStrings {
		clear(in.strings)
	}
	in.strings[s] = s
	return s
}

// bytes is str of a text that is not a string yet, and makes one only where there is none.
func (in *interner) bytes(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if v, ok := in.strings[string(b)]; ok {
		return v
	}
	return in.str(string(b))
}

// list and pairs return copies: what they are given may belong to a message that others read.
func (in *interner) list(l []string) []string {
	l = slices.Clone(l)
	for i := range l {
		l[i] = in.str(l[i])
	}
	return l
}

func (in *interner) pairs(l []session.Pair) []session.Pair {
	l = slices.Clone(l)
	for i := range l {
		l[i].Key, l[i].Value = in.str(l[i].Key), in.str(l[i].Value)
	}
	return l
}

// spec returns an equal spec that shares what it can: the whole of it when it has no name. It takes over s, not its lists.
func (in *interner) spec(s *session.Spec) *session.Spec {
	k := in.specKey(s)
	if len(k) > internSpecBytes {
		return in.share(s)
	}
	if t, ok := in.specs[string(k)]; ok {
		if t.Name == s.Name {
			return t
		}
		named := *t
		named.Name = s.Name
		return &named
	}
	if len(in.specs) >= internSpecs {
		clear(in.specs)
	}
	key := string(k)
	s = in.share(s)
	if s.Name == "" {
		in.specs[key] = s
		return s
	}
	unnamed := *s
	unnamed.Name = ""
	in.specs[key] = &unnamed
	return s
}

func (in *interner) share(s *session.Spec) *session.Spec {
	s.Type, s.Namespace, s.Protocol = in.str(s.Type), in.str(s.Namespace), in.str(s.Protocol)
	s.Restart, s.Strategy, s.MemoryProfile = session.RestartPolicy(in.str(string(s.Restart))), in.str(s.Strategy), in.str(s.MemoryProfile)
	s.Command, s.Secrets, s.Require = in.list(s.Command), in.list(s.Secrets), in.list(s.Require)
	s.Env, s.Labels, s.NodeSelector = in.pairs(s.Env), in.pairs(s.Labels), in.pairs(s.NodeSelector)
	return s
}

// specKey writes everything but the name, so that equal keys are equal specs. It is valid until the next call.
func (in *interner) specKey(s *session.Spec) []byte {
	b := in.scratch[:0]
	str := func(v string) {
		b = binary.AppendUvarint(b, uint64(len(v)))
		b = append(b, v...)
	}
	num := func(v int64) { b = binary.AppendVarint(b, v) }
	list := func(l []string) {
		num(int64(len(l)))
		for _, v := range l {
			str(v)
		}
	}
	pairs := func(l []session.Pair) {
		num(int64(len(l)))
		for _, p := range l {
			str(p.Key)
			str(p.Value)
		}
	}
	str(s.Type)
	str(s.Namespace)
	num(int64(s.Priority))
	list(s.Command)
	pairs(s.Env)
	list(s.Secrets)
	list(s.Require)
	pairs(s.Labels)
	pairs(s.NodeSelector)
	num(s.CPUMilli)
	num(s.MemoryBytes)
	str(s.MemoryProfile)
	str(s.Protocol)
	str(string(s.Restart))
	num(int64(s.MaxRestarts))
	num(int64(s.TTL))
	num(int64(s.Grace))
	str(s.Strategy)
	num(int64(s.TurnIdle))
	str(s.CheckpointEvery)
	num(int64(s.KeepCheckpoints))
	num(int64(s.KeepCheckpointsFor))
	num(int64(s.PauseAfter))
	str(s.State)
	in.scratch = b
	return b
}
