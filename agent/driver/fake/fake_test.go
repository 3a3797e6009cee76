// The fake passes the suite of all drivers, and does what a simulation needs of it.
package fake

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

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
