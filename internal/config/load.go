// Load: the sources in order, merged, checked.

package config

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"github.com/neolith/orchestrator/internal/fault"
)

// reserved are variables that begin as settings do and are none: a node sets them for its sessions, and a program of
// ours may well be started inside one.
var reserved = []string{"ORCH_SESSION_*", "ORCH_NODE", "ORCH_WORKSPACE"}

// Options say where settings come from.
type Options struct {
	// File is the path of a YAML file; empty for none.
	File string
	// Environ is the environment as KEY=VALUE; nil for the process's own.
	Environ []string
	// AllowEnv names further ORCH_ variables that are not settings; a "*" at the end stands for anything.
	AllowEnv []string
	// Flags holds what Flags added to it; only those that were set on the command line count. nil for none.
	Flags *pflag.FlagSet
}

// Validator is implemented by a configuration that can contradict itself. Validate is called once all sources are
// merged; an error made with Bad is shown with the place the key was set at.
type Validator interface{ Validate() error }

// Loaded is a configuration and where each value of it came from.
type Loaded[T any] struct {
	Config T
	// Warnings are for the log, once there is one.
	Warnings []string

	schema  *schema
	origins map[string]Origin
}

// Origin is where a value came from: a file's line, a variable, a flag; the zero Origin is a default.
type Origin struct {
	File string
	Line int
	Env  string
	Flag string
}

// String says it in one or two words.
func (o Origin) String() string {
	switch {
	case o.Flag != "":
		return "--" + o.Flag
	case o.Env != "":
		return o.Env
	case o.File != "":
		return fmt.Sprintf("%s:%d", o.File, o.Line)
	}
	return "default"
}

// Bad refuses a setting, in a Validate method. The key is its path, such as link.lease; the rest says why and what to do.
func Bad(key, format string, args ...any) error {
	return fault.New(fault.Invalid, "%s: "+format, append([]any{key}, args...)...).WithField(key)
}

// Flags adds a flag for each setting of T to a flag set, with the defaults in their help.
func Flags[T any](fs *pflag.FlagSet, defaults T) error {
	s, err := newSchema(reflect.TypeFor[T]())
	if err != nil {
		return err
	}
	root := reflect.ValueOf(&defaults).Elem()
	for _, f := range s.fields {
		if f.flag == "" {
			continue
		}
		if fs.Lookup(f.flag) != nil {
			return fmt.Errorf("config: %s: the flag --%s is taken", f.key, f.flag)
		}
		fl := fs.VarPF(&flagValue{typ: f.typ, text: flagText(root.FieldByIndex(f.index))}, f.flag, "", f.help)
		if f.typ.Kind() == reflect.Bool {
			fl.NoOptDefVal = "true"
		}
	}
	return nil
}

// flagValue is a setting as a flag: text that is parsed when it is set, so that cobra shows what is wrong with it.
type flagValue struct {
	typ  reflect.Type
	text string
}

func (v *flagValue) String() string { return v.text }

// Type names what to write, in the help.
func (v *flagValue) Type() string {
	switch {
	case v.typ == durationType:
		return "duration"
	case v.typ == reflect.TypeFor[Bytes]():
		return "size"
	case v.typ == stringMapType:
		return "key=value,…"
	case v.typ.Kind() == reflect.Slice:
		return "list"
	case v.typ.Kind() == reflect.Bool:
		return "bool"
	case v.typ.Kind() == reflect.String, !isPlainNumber(v.typ):
		return "string"
	}
	return "number"
}

func (v *flagValue) Set(text string) error {
	_, err := parseText(v.typ, text)
	v.text = text
	return err
}

func isPlainNumber(t reflect.Type) bool {
	return !reflect.PointerTo(t).Implements(unmarshalerType) && t.Kind() >= reflect.Int && t.Kind() <= reflect.Float64
}

// Load reads all sources over the defaults. Every error is of kind fault.Invalid, except for a T that cannot be a
// configuration at all, which is a defect.
func Load[T any](defaults T, o Options) (*Loaded[T], error) {
	s, err := newSchema(reflect.TypeFor[T]())
	if err != nil {
		return nil, err
	}
	l := &Loaded[T]{Config: defaults, schema: s, origins: map[string]Origin{}}
	root := reflect.ValueOf(&l.Config).Elem()
	v := viper.New()
	for _, f := range s.fields {
		v.SetDefault(f.key, root.FieldByIndex(f.index).Interface())
	}
	for _, source := range []func(Options) (map[string]any, error){l.fromFile, l.fromEnv, l.fromFlags} {
		values, err := source(o)
		if err != nil {
			return nil, err
		}
		if err := v.MergeConfigMap(nest(values)); err != nil {
			return nil, fault.New(fault.Invalid, "config: merge: %w", err)
		}
	}
	for _, f := range s.fields {
		// Every value has its setting's own type since it was parsed; viper only chose among them.
		root.FieldByIndex(f.index).Set(reflect.ValueOf(v.Get(f.key)))
	}
	if check, ok := any(&l.Config).(Validator); ok {
		if err := check.Validate(); err != nil {
			return nil, l.locate(err)
		}
	}
	return l, nil
}

// Origin says where the value of a setting came from.
func (l *Loaded[T]) Origin(key string) Origin { return l.origins[key] }

// locate adds to a refusal where the setting was set.
func (l *Loaded[T]) locate(err error) error {
	field, where := "", ""
	if e := fault.As(err); e != nil {
		field = e.Field
	}
	if o, ok := l.origins[field]; ok {
		where = o.String() + ": "
	}
	return fault.New(fault.Invalid, "config: %s%w", where, err).WithField(field)
}

func (l *Loaded[T]) fromFile(o Options) (map[string]any, error) {
	if o.File == "" {
		return nil, nil
	}
	f, err := readFile(o.File, l.schema)
	if err != nil {
		return nil, err
	}
	for key := range f.values {
		l.origins[key] = Origin{File: o.File, Line: f.lines[key]}
		if l.schema.byKey[key].secret {
			l.warnIfOpen(o.File)
		}
	}
	return f.values, nil
}

// warnIfOpen notes a file with secrets that others can read.
func (l *Loaded[T]) warnIfOpen(name string) {
	if st, err := os.Stat(name); err == nil && st.Mode().Perm()&0o077 != 0 && len(l.Warnings) == 0 {
		l.Warnings = append(l.Warnings, fmt.Sprintf("config: %s holds secrets and other users can read it (mode %04o); chmod 600 it", name, st.Mode().Perm()))
	}
}

func (l *Loaded[T]) fromEnv(o Options) (map[string]any, error) {
	environ, values := o.Environ, map[string]any{}
	if environ == nil {
		environ = os.Environ()
	}
	for _, e := range slices.Sorted(slices.Values(environ)) { // so that the same mistake is named each time
		name, text, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, envPrefix) || listed(name, reserved) || listed(name, o.AllowEnv) {
			continue
		}
		f := l.schema.byEnv[name]
		if f == nil {
			return nil, fault.New(fault.Invalid, "config: %s: unknown variable%s", name, l.schema.suggestEnv(name)).WithField(name)
		}
		v, err := parseText(f.typ, text)
		if err != nil {
			return nil, fault.New(fault.Invalid, "config: %s: %s: %w", name, f.key, hide(f, err)).WithField(f.key)
		}
		values[f.key], l.origins[f.key] = v.Interface(), Origin{Env: name}
	}
	return values, nil
}

func (l *Loaded[T]) fromFlags(o Options) (map[string]any, error) {
	values := map[string]any{}
	if o.Flags == nil {
		return values, nil
	}
	for _, f := range l.schema.fields {
		fl := o.Flags.Lookup(f.flag)
		if fl == nil || !fl.Changed {
			continue
		}
		v, err := parseText(f.typ, fl.Value.String())
		if err != nil {
			return nil, fault.New(fault.Invalid, "config: --%s: %s: %w", f.flag, f.key, err).WithField(f.key)
		}
		values[f.key], l.origins[f.key] = v.Interface(), Origin{Flag: f.flag}
	}
	return values, nil
}

// hide keeps a secret's text out of the refusal.
func hide(f *field, err error) error {
	if f.secret {
		return fmt.Errorf("the value (not shown) is not a %s", f.typ)
	}
	return err
}

// listed reports whether a name is in a list whose entries may end in *.
func listed(name string, list []string) bool {
	for _, entry := range list {
		if prefix, ok := strings.CutSuffix(entry, "*"); entry == name || ok && strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// nest turns paths into nested maps, as viper keeps them.
func nest(values map[string]any) map[string]any {
	root := map[string]any{}
	for key, value := range values {
		path := strings.Split(key, ".")
		m := root
		for _, p := range path[:len(path)-1] {
			next, ok := m[p].(map[string]any)
			if !ok {
				next = map[string]any{}
				m[p] = next
			}
			m = next
		}
		m[path[len(path)-1]] = value
	}
	return root
}
