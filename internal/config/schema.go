// The settings of a struct: their keys, types, environment variables and flags, found by reflection once.

package config

import (
	"encoding"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"time"
)

// envPrefix begins every environment variable that is a setting.
const envPrefix = "ORCH_"

// field is one setting.
type field struct {
	key    string // link.lease
	env    string // ORCH_LINK_LEASE
	flag   string // link-lease; empty where a flag makes no sense
	help   string
	secret bool
	index  []int
	typ    reflect.Type
}

// schema is all settings of a struct type, in the order of its fields.
type schema struct {
	fields   []*field
	byKey    map[string]*field
	byEnv    map[string]*field
	sections map[string]bool // paths of nested structs
	secrets  bool            // whether any setting is secret, in lists too
}

var (
	keyRE           = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	durationType    = reflect.TypeFor[time.Duration]()
	unmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
	stringMapType   = reflect.TypeFor[map[string]string]()
)

// newSchema reads a struct type. Its errors are defects of the program, not of a configuration.
func newSchema(t reflect.Type) (*schema, error) {
	s := &schema{byKey: map[string]*field{}, byEnv: map[string]*field{}, sections: map[string]bool{}}
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("config: %s is not a struct", t)
	}
	return s, s.walk(t, "", nil)
}

func (s *schema) walk(t reflect.Type, prefix string, index []int) error {
	for i := range t.NumField() {
		sf := t.Field(i)
		name := sf.Tag.Get("yaml")
		if !sf.IsExported() || name == "-" {
			continue
		}
		if !keyRE.MatchString(name) {
			return fmt.Errorf("config: %s.%s: needs a yaml tag of lower-case letters, digits and _, not %q", t, sf.Name, name)
		}
		f := &field{key: prefix + name, help: sf.Tag.Get("help"), secret: sf.Tag.Get("secret") == "true", typ: sf.Type}
		f.index = append(append([]int(nil), index...), i)
		if sf.Type.Kind() == reflect.Struct && !isScalar(sf.Type) {
			s.sections[f.key] = true
			if err := s.walk(sf.Type, f.key+".", f.index); err != nil {
				return err
			}
			continue
		}
		if err := s.add(f); err != nil {
			return err
		}
	}
	return nil
}

func (s *schema) add(f *field) error {
	if err := checkType(f.typ); err != nil {
		return fmt.Errorf("config: %s: %w", f.key, err)
	}
	f.env = envPrefix + strings.ToUpper(strings.ReplaceAll(f.key, ".", "_"))
	if !f.secret && !isSections(f.typ) { // a secret on a command line is seen by every user of the machine
		f.flag = strings.NewReplacer(".", "-", "_", "-").Replace(f.key)
	}
	if other := s.byEnv[f.env]; other != nil {
		return fmt.Errorf("config: %s and %s are both %s", other.key, f.key, f.env)
	}
	if listed(f.env, reserved) {
		return fmt.Errorf("config: %s: %s is set inside sessions and cannot be a setting", f.key, f.env)
	}
	s.fields, s.byKey[f.key], s.byEnv[f.env] = append(s.fields, f), f, f
	s.secrets = s.secrets || f.secret || isSections(f.typ) && hasSecret(f.typ.Elem())
	return nil
}

// checkType says whether a setting may have the type.
func checkType(t reflect.Type) error {
	switch {
	case isScalar(t), t == stringMapType:
		return nil
	case t.Kind() == reflect.Slice && isScalar(t.Elem()):
		return nil
	case isSections(t):
		_, err := newSchema(t.Elem())
		return err
	}
	return fmt.Errorf("a setting cannot be a %s", t)
}

// isScalar reports whether a type is read from one piece of text.
func isScalar(t reflect.Type) bool {
	if reflect.PointerTo(t).Implements(unmarshalerType) {
		return true
	}
	switch t.Kind() {
	case reflect.String, reflect.Bool, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	}
	return false
}

// isSections reports whether a type is a list of structs.
func isSections(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct && !isScalar(t.Elem())
}

func hasSecret(t reflect.Type) bool {
	s, err := newSchema(t)
	return err == nil && s.secrets
}

// Keys returns the paths of all settings of T, in the order of its fields.
func Keys[T any]() ([]string, error) {
	s, err := newSchema(reflect.TypeFor[T]())
	if err != nil {
		return nil, err
	}
	keys := make([]string, len(s.fields))
	for i, f := range s.fields {
		keys[i] = f.key
	}
	return keys, nil
}

// Value returns the value of one setting of a configuration; nil for a key that does not exist.
func Value[T any](c T, key string) any {
	s, err := newSchema(reflect.TypeFor[T]())
	if err != nil || s.byKey[key] == nil {
		return nil
	}
	return reflect.ValueOf(c).FieldByIndex(s.byKey[key].index).Interface()
}
