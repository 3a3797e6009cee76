// What a lease promises: it holds until its deadline and no longer, whoever reads while it is written.
package lease

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T) (*Writer, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lease")
	w, err := OpenWriter(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w, path
}

func TestWhatIsNoLeaseIsLapsed(t *testing.T) {
	w, path := open(t)
	if _, err := Read(path); !errors.Is(err, ErrLapsed) {
		t.Fatalf("a fresh file: %v", err)
	}
	if _, err := Read(path + ".missing"); !errors.Is(err, ErrLapsed) {
		t.Fatalf("a missing file: %v", err)
	}
	if err := w.Renew(Now() + int64(time.Hour)); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		broken := append([]byte(nil), whole...)
		broken[i] ^= 0x40
		if err := os.WriteFile(path, broken, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); !errors.Is(err, ErrLapsed) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	other := slot{boot: BootID{1, 2, 3}, generation: 9, deadline: 1 << 62}
	var b [slotBytes]byte
	other.encode(&b)
	if err := os.WriteFile(path, b[:], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); !errors.Is(err, ErrLapsed) {
		t.Fatalf("a file of another boot: %v", err)
	}
}

func TestRenewNeverMovesBackAndSurvivesTheWriter(t *testing.T) {
	w, path := open(t)
	for _, d := range []int64{100, 300, 200, 300} {
		if err := w.Renew(d); err != nil {
			t.Fatal(err)
		}
	}
	if d, err := Read(path); err != nil || d != 300 {
		t.Fatalf("got %d, %v; want 300", d, err)
	}
	again, err := OpenWriter(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Deadline() != 300 {
		t.Fatalf("the next writer knows %d, want 300", again.Deadline())
	}
	if err := again.Renew(250); err != nil {
		t.Fatal(err)
	}
	if d, _ := Read(path); d != 300 {
		t.Fatalf("the next writer moved it back to %d", d)
	}
	if err := again.Renew(400); err != nil {
		t.Fatal(err)
	}
	if d, _ := Read(path); d != 400 {
		t.Fatalf("got %d, want 400", d)
	}
}

// One torn slot, as a reader may meet it, leaves the other one to count.
func TestATornSlotLeavesTheOther(t *testing.T) {
	w, path := open(t)
	for _, d := range []int64{100, 200} {
		if err := w.Renew(d); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{0xff, 0xff}, slotBytes+30); err != nil {
		t.Fatal(err)
	}
	if d, err := Read(path); err != nil || d != 100 {
		t.Fatalf("got %d, %v; want the older slot's 100", d, err)
	}
}

func TestReadersNeverSeeATornLease(t *testing.T) {
	w, path := open(t)
	if err := w.Renew(1); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			var last int64
			for {
				select {
				case <-stop:
					return
				default:
				}
				d, err := Read(path)
				if err != nil || d < last {
					t.Errorf("read %d after %d: %v", d, last, err)
					return
				}
				last = d
			}
		})
	}
	for i := int64(2); i < 20000; i++ {
		if err := w.Renew(i); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestWaitEndsAtTheLastDeadline(t *testing.T) {
	w, path := open(t)
	first := Now() + int64(30*time.Millisecond)
	if err := w.Renew(first); err != nil {
		t.Fatal(err)
	}
	watch, err := NewWatch(path)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	if err := watch.Held(); err != nil {
		t.Fatalf("held: %v", err)
	}
	second := first + int64(60*time.Millisecond)
	if err := w.Renew(second); err != nil {
		t.Fatal(err)
	}
	if err := watch.Wait(); !errors.Is(err, ErrLapsed) {
		t.Fatalf("wait: %v", err)
	}
	if now := Now(); now < second {
		t.Fatalf("ended %s before the renewed deadline", time.Duration(second-now))
	}
}

func TestCloseEndsWait(t *testing.T) {
	w, path := open(t)
	if err := w.Renew(Now() + int64(time.Hour)); err != nil {
		t.Fatal(err)
	}
	watch, err := NewWatch(path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- watch.Wait() }()
	watch.Close()
	if err := <-ended; err != nil {
		t.Fatalf("wait after close: %v", err)
	}
}
