// Print: the effective configuration, with the origin of each value.

package config

import (
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// mask stands for a secret that is set.
const mask = "********"

// Print writes the effective configuration as YAML. Each setting is followed by a comment with its origin; secrets that
// are set are masked. But for those, Load reads the output as the same configuration.
func (l *Loaded[T]) Print(w io.Writer) error {
	root := &yaml.Node{Kind: yaml.MappingNode}
	l.printSection(root, reflect.ValueOf(l.Config), "")
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return fmt.Errorf("config: print: %w", err)
	}
	return enc.Close()
}

// printSection appends the settings of one struct. An origin is shown for what Load can name: not inside lists.
func (l *Loaded[T]) printSection(to *yaml.Node, v reflect.Value, path string) {
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		name := sf.Tag.Get("yaml")
		if !sf.IsExported() || name == "-" {
			continue
		}
		key := &yaml.Node{Kind: yaml.ScalarNode, Value: name}
		value := l.printValue(v.Field(i), join(path, name), sf.Tag.Get("secret") == "true")
		if _, setting := l.schema.byKey[join(path, name)]; setting {
			comment := l.Origin(join(path, name)).String()
			if value.Kind != yaml.ScalarNode && value.Style&yaml.FlowStyle == 0 {
				key.LineComment = comment
			} else {
				value.LineComment = comment
			}
		}
		to.Content = append(to.Content, key, value)
	}
}

func (l *Loaded[T]) printValue(v reflect.Value, path string, secret bool) *yaml.Node {
	t := v.Type()
	switch {
	case secret && !v.IsZero():
		return &yaml.Node{Kind: yaml.ScalarNode, Value: mask, Style: yaml.DoubleQuotedStyle}
	case isScalar(t):
		return scalarNode(v)
	case t.Kind() == reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		l.printSection(n, v, path)
		return n
	case t == stringMapType:
		n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
		m := v.Interface().(map[string]string)
		for _, k := range slices.Sorted(maps.Keys(m)) {
			n.Content = append(n.Content, textNode(k), textNode(m[k]))
		}
		return n
	}
	n := &yaml.Node{Kind: yaml.SequenceNode}
	if !isSections(t) || v.Len() == 0 {
		n.Style = yaml.FlowStyle
	}
	for i := range v.Len() {
		n.Content = append(n.Content, l.printValue(v.Index(i), fmt.Sprintf("%s[%d]", path, i), false))
	}
	return n
}

func scalarNode(v reflect.Value) *yaml.Node {
	if k := v.Kind(); k == reflect.Bool || isPlainNumber(v.Type()) && v.Type() != durationType {
		return &yaml.Node{Kind: yaml.ScalarNode, Value: textOf(v)}
	}
	return textNode(textOf(v))
}

// textNode is a string, quoted where YAML would take it for something else.
func textNode(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	if s == "" || strings.ContainsAny(s, "#:\n") {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}
