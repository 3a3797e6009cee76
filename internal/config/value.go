// From text to a setting's own type, with the remedy in each refusal.

package config

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// parseText reads a setting from the text of a variable or a flag.
func parseText(t reflect.Type, text string) (reflect.Value, error) {
	switch {
	case isScalar(t):
		return parseScalar(t, text)
	case t == stringMapType:
		m := map[string]string{}
		for _, part := range splitList(text) {
			k, v, ok := strings.Cut(part, "=")
			if !ok || k == "" {
				return reflect.Value{}, fmt.Errorf("%q is not key=value", part)
			}
			if _, double := m[k]; double {
				return reflect.Value{}, fmt.Errorf("%q is given twice", k)
			}
			m[k] = v
		}
		return reflect.ValueOf(m), nil
	case t.Kind() == reflect.Slice && isScalar(t.Elem()):
		parts := splitList(text)
		list := reflect.MakeSlice(t, 0, len(parts))
		for _, part := range parts {
			v, err := parseScalar(t.Elem(), part)
			if err != nil {
				return reflect.Value{}, err
			}
			list = reflect.Append(list, v)
		}
		return list, nil
	}
	return reflect.Value{}, errors.New("can be given in the file only")
}

func splitList(text string) []string {
	var parts []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			parts = append(parts, part)
		}
	}
	return parts
}

// parseScalar reads one value. Text around it is kept for strings and refused elsewhere.
func parseScalar(t reflect.Type, text string) (reflect.Value, error) {
	v := reflect.New(t).Elem()
	if text == "" && t.Kind() != reflect.String {
		return v, errors.New("is empty; give a value, or leave it out for the default")
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return v, u.UnmarshalText([]byte(text))
	}
	switch {
	case t == durationType:
		d, err := parseDuration(text)
		v.SetInt(int64(d))
		return v, err
	case t.Kind() == reflect.String:
		v.SetString(text)
	case t.Kind() == reflect.Bool:
		if text != "true" && text != "false" {
			return v, fmt.Errorf("%q is neither true nor false", text)
		}
		v.SetBool(text == "true")
	case v.CanInt():
		n, err := strconv.ParseInt(text, 10, t.Bits())
		if err != nil {
			return v, numberError(text, err)
		}
		v.SetInt(n)
	case v.CanUint():
		n, err := strconv.ParseUint(text, 10, t.Bits())
		if err != nil {
			return v, numberError(text, err)
		}
		v.SetUint(n)
	case v.CanFloat():
		f, err := strconv.ParseFloat(text, t.Bits())
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return v, fmt.Errorf("%q is not a number", text)
		}
		v.SetFloat(f)
	}
	return v, nil
}

func numberError(text string, err error) error {
	if errors.Is(err, strconv.ErrRange) {
		return fmt.Errorf("%s is out of range", text)
	}
	if strings.HasPrefix(text, "-") {
		return fmt.Errorf("%q is not a whole number from 0 on", text)
	}
	return fmt.Errorf("%q is not a whole number", text)
}

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		if _, bare := strconv.ParseFloat(text, 64); bare == nil {
			return 0, fmt.Errorf("%q has no unit; write %ss for seconds, or ms, m, h", text, text)
		}
		return 0, fmt.Errorf("%q is not a duration; write 500ms, 12s, 5m or 1h30m", text)
	}
	if d < 0 {
		return 0, fmt.Errorf("%q is negative", text)
	}
	return d, nil
}

// textOf writes a scalar so that parseScalar reads it again.
func textOf(v reflect.Value) string {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		if text, err := m.MarshalText(); err == nil {
			return string(text)
		}
	}
	if v.Type() == durationType {
		s := v.Interface().(time.Duration).String()
		if rest, ok := strings.CutSuffix(s, "m0s"); ok {
			s = rest + "m"
		}
		if rest, ok := strings.CutSuffix(s, "h0m"); ok {
			s = rest + "h"
		}
		return s
	}
	return fmt.Sprint(v.Interface())
}

// flagText writes any setting but a list of structs so that parseText reads it again.
func flagText(v reflect.Value) string {
	switch t := v.Type(); {
	case t == stringMapType:
		m := v.Interface().(map[string]string)
		parts := make([]string, 0, len(m))
		for _, k := range slices.Sorted(maps.Keys(m)) {
			parts = append(parts, k+"="+m[k])
		}
		return strings.Join(parts, ",")
	case t.Kind() == reflect.Slice && !isScalar(t):
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = textOf(v.Index(i))
		}
		return strings.Join(parts, ",")
	}
	return textOf(v)
}
