// Kinds survive the way to codes and back, and codes that are nobody's become the kind nearest to them.
package faultcode

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/neolith/orchestrator/internal/fault"
)

func TestEachKindComesBack(t *testing.T) {
	of := map[codes.Code]fault.Kind{}
	for k := fault.Internal; k <= fault.Unimplemented; k++ {
		c := Of(k)
		if other, taken := of[c]; taken || c == codes.OK {
			t.Errorf("%s is %s, as is %s", k, c, other)
		}
		of[c] = k
		if got := Kind(c); got != k {
			t.Errorf("%s comes back as %s", k, got)
		}
	}
	if len(of) != len(ofKind) {
		t.Errorf("the table has %d kinds, and there are %d", len(ofKind), len(of))
	}
	for c := codes.OK; c <= codes.Unauthenticated; c++ {
		want, ok := of[c]
		switch c {
		case codes.OutOfRange:
			want, ok = fault.Invalid, true
		case codes.Canceled:
			want, ok = fault.Aborted, true
		}
		if got := Kind(c); got != want || !ok && got != fault.Internal {
			t.Errorf("%s is %s, want %s", c, got, want)
		}
	}
	if Of(99) != codes.Internal || Kind(99) != fault.Internal {
		t.Error("what nobody knows is not internal")
	}
}
