// Interning shares what is equal and nothing else.

package state

import (
	"reflect"
	"testing"
	"unsafe"

	"github.com/neolith/orchestrator/session"
)

// TestEveryFieldOfASpecTellsItApart fails when a field is added to session.Spec and forgotten by the interner, which
// would give a session the spec of another one.
func TestEveryFieldOfASpecTellsItApart(t *testing.T) {
	in := newInterner()
	empty := string(in.specKey(&session.Spec{}))
	kinds := reflect.TypeFor[session.Spec]()
	for i := range kinds.NumField() {
		field := kinds.Field(i)
		if field.Name == "Name" {
			continue
		}
		var s session.Spec
		v := reflect.ValueOf(&s).Elem().Field(i)
		switch v.Interface().(type) {
		case []string:
			v.Set(reflect.ValueOf([]string{"x"}))
		case []session.Pair:
			v.Set(reflect.ValueOf([]session.Pair{{Key: "x"}}))
		default:
			switch v.Kind() {
			case reflect.String:
				v.SetString("x")
			case reflect.Int64:
				v.SetInt(1)
			case reflect.Uint8, reflect.Uint32:
				v.SetUint(1)
			default:
				t.Fatalf("field %s is of a type that this test does not know", field.Name)
			}
		}
		if string(in.specKey(&s)) == empty {
			t.Errorf("specs that differ in %s have the same key", field.Name)
		}
	}
}

func TestInterning(t *testing.T) {
	in := newInterner()
	make1 := func(name string) *session.Spec {
		return in.spec(&session.Spec{Name: name, Command: []string{string([]byte("agent"))}, Labels: []session.Pair{{Key: "k", Value: "v"}}})
	}
	a, b, c := make1(""), make1(""), make1("n")
	if a != b {
		t.Error("equal specs without a name are two")
	}
	if c == a || c.Name != "n" || a.Name != "" || unsafe.SliceData(c.Command) != unsafe.SliceData(a.Command) {
		t.Errorf("a named spec: %+v beside %+v", c, a)
	}
	in = newInterner()
	first, second := make1("x"), make1("y")
	if first.Name != "x" || second.Name != "y" || make1("").Name != "" {
		t.Error("names were mixed up")
	}
	for i := range internStrings + 10 {
		in.str(string(rune(i)) + "#")
	}
	if len(in.strings) > internStrings {
		t.Errorf("%d strings are held", len(in.strings))
	}
}
