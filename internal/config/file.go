// Reading a YAML file strictly: every refusal knows its line.

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/neolith/orchestrator/internal/fault"
)

// maxFileBytes bounds a configuration file.
const maxFileBytes = 1 << 20

// file is what a configuration file says, each value in its setting's type.
type file struct {
	name   string
	schema *schema
	values map[string]any
	lines  map[string]int // of settings and sections
}

// readFile reads and checks a whole file.
func readFile(name string, s *schema) (*file, error) {
	f := &file{name: name, schema: s, values: map[string]any{}, lines: map[string]int{}}
	r, err := os.Open(name)
	if err != nil {
		return nil, fault.New(fault.Invalid, "config: %w; name a readable file with --config", err)
	}
	defer func() { _ = r.Close() }()
	text, err := io.ReadAll(io.LimitReader(r, maxFileBytes+1))
	if err != nil {
		return nil, fault.New(fault.Invalid, "config: %w", err)
	}
	if len(text) > maxFileBytes {
		return nil, fault.New(fault.Invalid, "config: %s: is larger than %s", name, Bytes(maxFileBytes))
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return f, nil
	case err != nil:
		return nil, f.syntax(err)
	}
	var more yaml.Node
	switch err := dec.Decode(&more); {
	case err == nil:
		return nil, f.bad(more.Line, "", "a second YAML document begins here; a configuration is one document")
	case !errors.Is(err, io.EOF):
		return nil, f.syntax(err)
	}
	return f, f.section(doc.Content[0], "")
}

var syntaxRE = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

// syntax turns the parser's complaint into ours.
func (f *file) syntax(err error) error {
	m := syntaxRE.FindStringSubmatch(strings.ReplaceAll(err.Error(), "\n", " "))
	if m == nil {
		return fault.New(fault.Invalid, "config: %s: is not YAML: %w", f.name, err)
	}
	line, _ := strconv.Atoi(m[1])
	return f.bad(line, "", "is not YAML: %s", m[2])
}

// bad refuses something in the file. Line 0 and an empty key are left out.
func (f *file) bad(line int, key, format string, args ...any) error {
	where := f.name
	if line > 0 {
		where += ":" + strconv.Itoa(line)
	}
	if key != "" {
		where += ": " + key
	}
	return fault.New(fault.Invalid, "config: %s: "+format, append([]any{where}, args...)...).WithField(key)
}

// section reads a mapping whose keys are settings or sections.
func (f *file) section(n *yaml.Node, path string) error {
	n = target(n)
	if isNull(n) {
		return nil // all its settings are commented out
	}
	if n.Kind != yaml.MappingNode {
		return f.bad(n.Line, path, "is %s; it holds settings, as \"key: value\" lines", describe(n))
	}
	for i := 0; i < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		key := join(path, k.Value)
		if first := f.lines[key]; first != 0 {
			return f.bad(k.Line, key, "is set twice; the first is on line %d", first)
		}
		f.lines[key] = k.Line
		if f.schema.sections[key] {
			if err := f.section(v, key); err != nil {
				return err
			}
			continue
		}
		setting := f.schema.byKey[key]
		if setting == nil {
			return f.bad(k.Line, key, "unknown key%s", f.schema.suggestKey(key))
		}
		value, err := f.value(v, setting.typ, key)
		if err != nil {
			return err
		}
		f.values[key] = value.Interface()
	}
	return nil
}

// value reads one setting, whatever its type.
func (f *file) value(n *yaml.Node, t reflect.Type, key string) (reflect.Value, error) {
	n = target(n)
	none := reflect.Value{}
	if isNull(n) {
		return none, f.bad(n.Line, key, "is empty; give a value, or remove the line for the default")
	}
	switch {
	case isScalar(t):
		return f.scalar(n, t, key)
	case t == stringMapType:
		return f.stringMap(n, key)
	}
	if n.Kind != yaml.SequenceNode {
		return none, f.bad(n.Line, key, "is %s; give a list, such as [a, b]", describe(n))
	}
	list := reflect.MakeSlice(t, 0, len(n.Content))
	for i, item := range n.Content {
		itemKey := fmt.Sprintf("%s[%d]", key, i)
		v, err := f.item(item, t.Elem(), itemKey)
		if err != nil {
			return none, err
		}
		list = reflect.Append(list, v)
	}
	return list, nil
}

// item reads one entry of a list: a scalar, or a struct with settings of its own.
func (f *file) item(n *yaml.Node, t reflect.Type, key string) (reflect.Value, error) {
	if isScalar(t) {
		return f.value(n, t, key)
	}
	s, err := newSchema(t)
	if err != nil {
		return reflect.Value{}, err
	}
	inner := &file{name: f.name, schema: s, values: map[string]any{}, lines: map[string]int{}}
	if err := inner.section(n, ""); err != nil {
		if e := fault.As(err); e != nil && e.Field != "" { // name the entry, too
			e.Message = strings.Replace(e.Message, ": "+e.Field+": ", ": "+key+"."+e.Field+": ", 1)
			e.Field = key + "." + e.Field
		}
		return reflect.Value{}, err
	}
	v := reflect.New(t).Elem()
	for k, value := range inner.values {
		v.FieldByIndex(s.byKey[k].index).Set(reflect.ValueOf(value))
	}
	return v, nil
}

// scalar reads one value, and refuses what YAML took for another type.
func (f *file) scalar(n *yaml.Node, t reflect.Type, key string) (reflect.Value, error) {
	none := reflect.Value{}
	if n.Kind != yaml.ScalarNode {
		return none, f.bad(n.Line, key, "is %s; give one value", describe(n))
	}
	tag := n.ShortTag()
	text := reflect.PointerTo(t).Implements(unmarshalerType) || t == durationType
	switch kind := t.Kind(); {
	case text, kind == reflect.String:
		if tag == "!!bool" {
			return none, f.bad(n.Line, key, "is %s, not text; put it into quotes", describe(n))
		}
	case kind == reflect.Bool:
		if tag != "!!bool" {
			return none, f.bad(n.Line, key, "%q is neither true nor false", n.Value)
		}
	case tag == "!!str" && n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0:
		return none, f.bad(n.Line, key, "is text, not a number; remove the quotes")
	}
	v, err := parseScalar(t, n.Value)
	if err != nil {
		return none, f.bad(n.Line, key, "%w", err)
	}
	return v, nil
}

func (f *file) stringMap(n *yaml.Node, key string) (reflect.Value, error) {
	none := reflect.Value{}
	if n.Kind != yaml.MappingNode {
		return none, f.bad(n.Line, key, "is %s; give \"key: value\" pairs", describe(n))
	}
	m := map[string]string{}
	for i := 0; i < len(n.Content); i += 2 {
		k, v := n.Content[i], target(n.Content[i+1])
		if _, double := m[k.Value]; double {
			return none, f.bad(k.Line, join(key, k.Value), "is set twice")
		}
		value, err := f.scalar(v, stringMapType.Elem(), join(key, k.Value))
		if err != nil {
			return none, err
		}
		m[k.Value] = value.String()
	}
	return reflect.ValueOf(m), nil
}

// target follows an alias to what it stands for. The schema bounds the depth, so aliases cannot blow up.
func target(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// describe names what stands in the file, for people.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a group of keys"
	case yaml.SequenceNode:
		return "a list"
	}
	return strconv.Quote(n.Value)
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
