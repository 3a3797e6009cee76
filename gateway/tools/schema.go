// Schemas: what arguments must look like, as JSON Schema for clients and as a check that names the field.

package tools

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/neolith/orchestrator/internal/fault"
)

// Schema is the part of JSON Schema that tools need. It marshals to JSON Schema (draft 2020-12).
type Schema struct {
	Type        string             `json:"type"`
	Description string             `json:"description,omitempty"`
	Properties  map[string]*Schema `json:"properties,omitempty"` // of an object; others are refused
	Required    []string           `json:"required,omitempty"`
	Closed      *bool              `json:"additionalProperties,omitempty"` // false for an object with Properties
	Values      *Schema            `json:"-"`                              // of an object that is a map
	Items       *Schema            `json:"items,omitempty"`
	MaxItems    int                `json:"maxItems,omitempty"`
	Enum        []string           `json:"enum,omitempty"`
	MinLength   int                `json:"minLength,omitempty"` // characters
	MaxLength   int                `json:"maxLength,omitempty"`
	Pattern     string             `json:"pattern,omitempty"`
	Minimum     *int64             `json:"minimum,omitempty"`
	Maximum     *int64             `json:"maximum,omitempty"`
	Default     any                `json:"default,omitempty"`

	pattern *regexp.Regexp
}

// MarshalJSON implements json.Marshaler: the values of a map are additionalProperties too.
func (s *Schema) MarshalJSON() ([]byte, error) {
	type plain Schema
	if s.Values == nil {
		return json.Marshal((*plain)(s))
	}
	return json.Marshal(struct {
		*plain
		Closed *Schema `json:"additionalProperties"`
	}{(*plain)(s), s.Values})
}

// The ways to write a schema.

func object(required []string, properties map[string]*Schema) *Schema {
	closed := false
	return &Schema{Type: "object", Properties: properties, Required: required, Closed: &closed}
}

func text(description string, maxLength int) *Schema {
	return &Schema{Type: "string", Description: description, MaxLength: maxLength}
}

func named(description string, maxLength int) *Schema {
	return &Schema{Type: "string", Description: description, MinLength: 1, MaxLength: maxLength}
}

func oneOf(description string, values ...string) *Schema {
	return &Schema{Type: "string", Description: description, Enum: values}
}

func flag(description string, byDefault bool) *Schema {
	return &Schema{Type: "boolean", Description: description, Default: byDefault}
}

func whole(description string, least, most int64) *Schema {
	return &Schema{Type: "integer", Description: description, Minimum: &least, Maximum: &most}
}

// durationPattern is what time.ParseDuration reads, without a sign.
const durationPattern = `^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$`

func duration(description string) *Schema {
	return &Schema{Type: "string", Description: description + ", such as 90s or 1h30m", MaxLength: 32, Pattern: durationPattern,
		pattern: regexp.MustCompile(durationPattern)}
}

func listOf(description string, most int, item *Schema) *Schema {
	return &Schema{Type: "array", Description: description, Items: item, MaxItems: most}
}

func mapOf(description string, value *Schema) *Schema {
	return &Schema{Type: "object", Description: description, Values: value}
}

// Check reports what is wrong with arguments. Errors are of kind fault.Invalid and name the field, such as command[2].
func (s *Schema) Check(arguments json.RawMessage) error {
	if string(arguments) == "{}" && s.Type == "object" && len(s.Required) == 0 { // as many calls have it
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(arguments))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return wrong("", "is not JSON: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return wrong("", "has something behind its end")
	}
	return s.check("", v)
}

// wrong is a refusal of one field; the empty path is the arguments as a whole.
func wrong(path, format string, args ...any) error {
	field := path
	if field == "" {
		field = "arguments"
	}
	return fault.New(fault.Invalid, "%s: %w", field, fmt.Errorf(format, args...)).WithField(field)
}

func (s *Schema) check(path string, v any) error {
	switch v := v.(type) {
	case map[string]any:
		if s.Type == "object" {
			return s.checkObject(path, v)
		}
	case []any:
		if s.Type == "array" {
			return s.checkArray(path, v)
		}
	case string:
		if s.Type == "string" {
			return s.checkString(path, v)
		}
	case json.Number:
		if s.Type == "integer" {
			return s.checkInteger(path, v)
		}
	case bool:
		if s.Type == "boolean" {
			return nil
		}
	}
	return wrong(path, "is %s; give %s", kindOf(v), article(s.Type))
}

func kindOf(v any) string {
	switch v.(type) {
	case map[string]any:
		return "an object"
	case []any:
		return "an array"
	case string:
		return "a string"
	case json.Number:
		return "a number"
	case bool:
		return "a boolean"
	default:
		return "null"
	}
}

func article(t string) string {
	if strings.ContainsRune("aio", rune(t[0])) {
		return "an " + t
	}
	return "a " + t
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func (s *Schema) checkObject(path string, v map[string]any) error {
	for _, name := range s.Required {
		if _, ok := v[name]; !ok {
			return wrong(join(path, name), "is missing")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(v)) { // the same refusal each time
		p := s.Values
		if p == nil {
			p = s.Properties[name]
		}
		if p == nil {
			return wrong(join(path, clip(name)), "is not known; give %s", strings.Join(slices.Sorted(maps.Keys(s.Properties)), ", "))
		}
		if err := p.check(join(path, clip(name)), v[name]); err != nil {
			return err
		}
	}
	return nil
}

func (s *Schema) checkArray(path string, v []any) error {
	if s.MaxItems > 0 && len(v) > s.MaxItems {
		return wrong(path, "has %d items, more than %d", len(v), s.MaxItems)
	}
	for i, item := range v {
		if err := s.Items.check(fmt.Sprintf("%s[%d]", path, i), item); err != nil {
			return err
		}
	}
	return nil
}

func (s *Schema) checkString(path, v string) error {
	switch n := utf8.RuneCountInString(v); {
	case n < s.MinLength:
		return wrong(path, "is empty")
	case s.MaxLength > 0 && n > s.MaxLength:
		return wrong(path, "has %d characters, more than %d", n, s.MaxLength)
	case len(s.Enum) > 0 && !slices.Contains(s.Enum, v):
		return wrong(path, "%q is not one of %s", clip(v), strings.Join(s.Enum, ", "))
	case s.pattern != nil && !s.pattern.MatchString(v):
		return wrong(path, "%q does not look like %s", clip(v), s.Pattern)
	}
	return nil
}

func (s *Schema) checkInteger(path string, v json.Number) error {
	n, err := v.Int64()
	switch {
	case err != nil:
		return wrong(path, "%s is not a whole number of 64 bits", clip(v.String()))
	case s.Minimum != nil && n < *s.Minimum:
		return wrong(path, "%d is less than %d", n, *s.Minimum)
	case s.Maximum != nil && n > *s.Maximum:
		return wrong(path, "%d is more than %d", n, *s.Maximum)
	}
	return nil
}

// maxShown is how many bytes of something wrong are shown.
const maxShown = 64

func clip(s string) string {
	if len(s) <= maxShown {
		return s
	}
	cut := maxShown
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
