// What goes into the spool comes out again, also from builds that know more fields.

package recorder

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"
)

// Every field of an Interaction is kept: the generator fills them all by reflection.
func TestCodec(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want Interaction
		v := reflect.ValueOf(&want).Elem()
		for n := range v.NumField() {
			f, name := v.Field(n), v.Type().Field(n).Name
			switch f.Kind() {
			case reflect.String:
				f.SetString(rapid.String().Draw(t, name))
			case reflect.Int, reflect.Int64:
				f.SetInt(rapid.Int64().Draw(t, name))
			case reflect.Uint64:
				f.SetUint(rapid.Uint64().Draw(t, name))
			case reflect.Bool:
				f.SetBool(rapid.Bool().Draw(t, name))
			default:
				f.Set(reflect.ValueOf(time.UnixMicro(rapid.Int64Range(1, 1<<52).Draw(t, name)).UTC()))
			}
		}
		b := encode(nil, &want)
		b = protowire.AppendTag(b, 99, protowire.BytesType) // of a newer build
		b = protowire.AppendString(b, "new")
		got, err := decode(b)
		if err != nil || got != want {
			t.Fatalf("%v\ngot  %+v\nwant %+v", err, got, want)
		}
		if cut := rapid.IntRange(0, len(b)).Draw(t, "cut"); cut < len(b) {
			_, _ = decode(b[:cut]) // it may fail, and does not panic
		}
	})
}

func TestIDs(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var ids []string
	for i := range 1000 {
		ids = append(ids, newID(at.Add(time.Duration(i)*time.Microsecond)))
	}
	if !slices.IsSorted(ids) || len(slices.Compact(ids)) != 1000 {
		t.Fatal("ids made later do not sort later")
	}
	if id := ids[0]; len(id) != 36 || id[14] != '7' || id[8] != '-' || id[23] != '-' {
		t.Fatal(id)
	}
}
