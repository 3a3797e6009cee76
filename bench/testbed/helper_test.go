// The conversation with a helper, by this test program as its own helper.

package testbed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain is also the helper.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == RoleCommand {
		if err := Serve(context.Background(), os.Stdin, os.Stdout, testHandlers()); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	// The launcher lives as long as the program, which is what it is for.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/neolith/orchestrator/bench/testbed.init.func1.1"))
}

type sumArgs struct{ A, B int }

func testHandlers() Handlers {
	return Handlers{
		"sum":  Handle(func(_ context.Context, a sumArgs) (int, error) { return a.A + a.B, nil }),
		"fail": Handle(func(context.Context, struct{}) (int, error) { return 0, errors.New("as asked") }),
		"die":  Handle(func(context.Context, struct{}) (int, error) { os.Exit(3); return 0, nil }),
		"hang": Handle(func(context.Context, struct{}) (int, error) { select {} }),
		"pid":  Handle(func(context.Context, struct{}) (int, error) { return os.Getpid(), nil }),
	}
}

func TestHelperAnswers(t *testing.T) {
	h, err := StartHelper("test")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := h.Ask(t.Context(), "sum", sumArgs{2, 3}, &n); err != nil || n != 5 {
		t.Errorf("2 + 3 is %d, %v", n, err)
	}
	if err := h.Ask(t.Context(), "pid", nil, &n); err != nil || n != h.PID() || n == os.Getpid() {
		t.Errorf("its pid is %d, not %d: %v", n, h.PID(), err)
	}
	if err := h.Ask(t.Context(), "fail", nil, nil); err == nil || !strings.Contains(err.Error(), "as asked") {
		t.Errorf("an error came as %v", err)
	}
	if err := h.Ask(t.Context(), "dance", nil, nil); err == nil || !strings.Contains(err.Error(), "dance") {
		t.Errorf("an unknown question gave %v", err)
	}
	if err := h.Ask(t.Context(), "sum", sumArgs{20, 3}, &n); err != nil || n != 23 {
		t.Errorf("after errors, 20 + 3 is %d, %v", n, err)
	}
	if err := h.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestHelperThatDiesIsAnError(t *testing.T) {
	h, err := StartHelper("test")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Kill()
	if err := h.Ask(t.Context(), "die", nil, nil); err == nil {
		t.Error("it died and answered")
	}
	if err := h.Ask(t.Context(), "sum", sumArgs{1, 1}, nil); err == nil {
		t.Error("a dead helper answered")
	}
}

func TestHelperIsKilledWhenItsCallerGivesUp(t *testing.T) {
	h, err := StartHelper("test")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := h.Ask(ctx, "hang", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestServeRefusesGarbage(t *testing.T) {
	var out bytes.Buffer
	if err := Serve(t.Context(), strings.NewReader("not json\n"), &out, testHandlers()); err == nil {
		t.Error("garbage was taken")
	}
	out.Reset()
	if err := Serve(t.Context(), strings.NewReader(`{"ask":"sum","args":"x"}`+"\n"), &out, testHandlers()); err != nil {
		t.Fatal(err)
	}
	var r reply
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Error == "" {
		t.Errorf("bad arguments gave %s", &out)
	}
}

func TestFreePortsDiffer(t *testing.T) {
	ports, err := freePorts(20)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range ports {
		if seen[p] {
			t.Errorf("%s came twice", p)
		}
		seen[p] = true
	}
}
