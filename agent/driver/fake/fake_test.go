// The fake passes the suite of all drivers, and does what a simulation needs of it.
package fake

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"

	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/driver/drivertest"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(id string) driver.Start {
	spec := &session.Spec{Command: []string{"toy"}}
	spec.Normalize()
	return driver.Start{SessionID: id, Epoch: 1, Spec: spec}
}

func TestConformance(t *testing.T) {
	machines := make(map[*testing.T]*Machine)
	machine := func(t *testing.T) *Machine {
		if machines[t] == nil {
			machines[t] = NewMachine("n", Options{})
			t.Cleanup(machines[t].Close)
			if err := machines[t].Renew(math.MaxInt64 / 2); err != nil {
				t.Fatal(err)
			}
		}
		return machines[t]
	}
	n := 0
	drivertest.Run(t, drivertest.Harness{
		New: func(t *testing.T) driver.Driver { return machine(t).Driver() },
		Start: func(t *testing.T, name string) driver.Start {
			n++
			return start(fmt.Sprintf("%s-%d", name, n))
		},
	})
}

// The lease ends everything in its moment, and nothing starts without one.
func TestLeaseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []Event
		m := NewMachine("n1", Options{Observer: func(e Event) { events = append(events, e) }})
		if _, err := m.Driver().Start(t.Context(), start("a")); !fault.Is(err, fault.Aborted) {
			t.Fatalf("start without a lease: %v", err)
		}
		if err := m.Renew(m.Now() + int64(10*time.Second)); err != nil {
			t.Fatal(err)
		}
		p, err := m.Driver().Start(t.Context(), start("a"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Second)
		if err := m.Renew(m.Now() + int64(10*time.Second)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Second)
		if len(m.Live()) != 1 {
			t.Fatal("it ended within the lease")
		}
		began := time.Now()
		<-p.Done()
		if took := time.Since(began); took != time.Second {
			t.Fatalf("it ended %s later, want 1s", took)
		}
		if e := p.Exit(); e.Cause != session.CauseLost {
			t.Fatalf("%+v", e)
		}
		if len(events) != 2 || events[0].End || !events[1].End || events[1].Node != "n1" || events[1].SessionID != "a" || events[1].Epoch != 1 {
			t.Fatalf("%+v", events)
		}
	})
}

// A crash of the machine tells nobody; the next agent finds out.
func TestCrash(t *testing.T) {
	m := NewMachine("n1", Options{})
	defer m.Close()
	if err := m.Renew(math.MaxInt64 / 2); err != nil {
		t.Fatal(err)
	}
	s := start("a")
	p, err := m.Driver().Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	m.Crash()
	select {
	case <-p.Done():
		t.Fatal("the dead agent was told")
	default:
	}
	var gone *driver.Gone
	if _, err := m.Driver().Adopt(t.Context(), s); !errors.As(err, &gone) || gone.Exit.Cause != session.CauseLost {
		t.Fatalf("adopt: %v", err)
	}
}

// Turns that take time end in their time, also when another agent has taken over.
func TestTurnTimeOutlivesTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMachine("n1", Options{TurnTime: 5 * time.Second, StopTime: time.Second})
		defer m.Close()
		if err := m.Renew(int64(time.Hour)); err != nil {
			t.Fatal(err)
		}
		s := start("a")
		p, err := m.Driver().Start(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Send(t.Context(), driver.Input{Sequence: 1, Text: []byte("2")}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if p, err = m.Driver().Adopt(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if turn := <-p.Turns(); string(turn.Result) != "sum 2" || time.Since(began) != 4*time.Second {
			t.Fatalf("%+v after %s", turn, time.Since(began))
		}
		began = time.Now()
		p.Stop(10*time.Second, session.Exit{Cause: session.CauseTerminated})
		<-p.Done()
		if took := time.Since(began); took != time.Second {
			t.Fatalf("stopped after %s, want 1s", took)
		}
	})
}

func BenchmarkStart(b *testing.B) {
	m := NewMachine("n", Options{})
	defer m.Close()
	if err := m.Renew(math.MaxInt64 / 2); err != nil {
		b.Fatal(err)
	}
	d := m.Driver()
	for i := 0; b.Loop(); i++ {
		if _, err := d.Start(b.Context(), start(fmt.Sprint(i))); err != nil {
			b.Fatal(err)
		}
	}
}

func TestVault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := NewVault(VaultOptions{ReadTime: time.Second})
		a, b := NewMachine("a", Options{}), NewMachine("b", Options{})
		defer a.Close()
		defer b.Close()
		spec := &session.Spec{Command: []string{"x"}}
		spec.Normalize()
		begin := func(m *Machine, epoch uint32, base uint64) driver.Process {
			t.Helper()
			if err := m.Renew(m.Now() + int64(time.Hour)); err != nil {
				t.Fatal(err)
			}
			p, err := m.Driver().Start(t.Context(), driver.Start{SessionID: "s", Epoch: epoch, Spec: spec, OutputBase: base})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		send := func(p driver.Process, seq uint64, text string) string {
			t.Helper()
			if err := p.Send(t.Context(), driver.Input{Sequence: seq, Text: []byte(text)}); err != nil {
				t.Fatal(err)
			}
			return string((<-p.Turns()).Result)
		}
		p := begin(a, 1, 0)
		send(p, 1, "40")
		send(p, 2, "2")
		at := checkpoint.Session{ID: "s", Epoch: 1, Sequence: 1, Turn: 2, OutputLine: p.OutputLine()}
		c, err := a.Keeper(v).Capture(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		send(p, 3, "1000")
		v.SetDown(true)
		if _, err := c.Store(t.Context()); !fault.Is(err, fault.Unavailable) {
			t.Fatalf("a store that is down said %v", err)
		}
		v.SetDown(false)
		st, err := c.Store(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if given, ok := v.Given(st.Manifest); !ok || !slices.Equal(given, []Seen{{"s", 1}, {"s", 2}}) {
			t.Errorf("the checkpoint has seen %v", given)
		}
		if err := p.Send(t.Context(), driver.Input{Sequence: 4, Text: []byte("hang")}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Keeper(v).Capture(t.Context(), at); err == nil {
			t.Error("a session was captured while a turn was under way")
		}
		if _, err := b.Keeper(v).Restore(t.Context(), checkpoint.Restore{SessionID: "s", Manifest: st.Manifest, Epoch: 2, OutputLine: 2, Notice: "line 3 is lost"}); err != nil {
			t.Fatal(err)
		}
		q := begin(b, 2, 2)
		if got := send(q, 3, "1"); got != "sum 43" {
			t.Errorf("it goes on with %q", got)
		}
		var log []string
		if err := q.ReadLogs(t.Context(), 1, false, func(ls []*apiv1.LogLine) error {
			for _, l := range ls {
				log = append(log, fmt.Sprintf("%d %s", l.GetNumber(), l.GetText()))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if want := []string{"1 sum 40", "2 sum 42", "0 line 3 is lost", "3 sum 43"}; !slices.Equal(log, want) {
			t.Errorf("the log is %q, want %q", log, want)
		}
		v.Delete(st.Manifest)
		if _, err := b.Keeper(v).Restore(t.Context(), checkpoint.Restore{SessionID: "s", Manifest: st.Manifest}); !fault.Is(err, fault.NotFound) {
			t.Errorf("of a checkpoint that is gone: %v", err)
		}
	})
}
