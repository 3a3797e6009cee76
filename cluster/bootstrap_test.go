// The first configuration: all servers that should be there, or none.

package cluster

import (
	"strings"
	"testing"
)

func TestFirstConfiguration(t *testing.T) {
	member := func(id, status string, expect int, formed bool) gossipMember {
		return gossipMember{ID: id, Status: status, Meta: memberMeta{RaftAddress: id + ":1", Expect: expect, Formed: formed}}
	}
	alive := func(id string) gossipMember { return member(id, memberAlive, 3, false) }
	for name, c := range map[string]struct {
		members []gossipMember
		want    string // ids, or
		waits   string // why not yet
	}{
		"all there":          {[]gossipMember{alive("c"), alive("a"), alive("b")}, "a b c", ""},
		"one missing":        {[]gossipMember{alive("a"), alive("b")}, "", "fewer"},
		"one dead":           {[]gossipMember{alive("a"), alive("b"), member("c", memberFailed, 3, false)}, "", "fewer"},
		"one left, replaced": {[]gossipMember{alive("a"), alive("b"), member("c", memberLeft, 3, false), alive("d")}, "a b d", ""},
		"too many":           {[]gossipMember{alive("a"), alive("b"), alive("c"), alive("d")}, "", "more"},
		"a cluster exists":   {[]gossipMember{alive("a"), alive("b"), member("c", memberAlive, 3, true)}, "", "belongs to a cluster"},
		"they disagree":      {[]gossipMember{alive("a"), alive("b"), member("c", memberAlive, 5, false)}, "", "expects another"},
		"one only joins":     {[]gossipMember{alive("a"), alive("b"), alive("c"), member("d", memberAlive, 0, false)}, "a b c", ""},
	} {
		servers, waits := firstConfiguration(c.members, 3)
		var ids []string
		for _, s := range servers {
			ids = append(ids, string(s.ID))
			if string(s.Address) != string(s.ID)+":1" {
				t.Errorf("%s: server %s has address %s", name, s.ID, s.Address)
			}
		}
		if got := strings.Join(ids, " "); got != c.want || (c.waits == "") != (waits == "") || !strings.Contains(waits, c.waits) {
			t.Errorf("%s: got %q, waits: %q", name, got, waits)
		}
	}
}
