// The shim's side: waiting for the end.

package lease

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Watch waits for the lease of one file to lapse.
type Watch struct {
	path   string
	boot   BootID
	timer  *os.File // a timerfd on CLOCK_BOOTTIME: Go's own timers stand still while the machine is suspended
	closed atomic.Bool
}

// NewWatch makes a watch; Close frees it.
func NewWatch(path string) (*Watch, error) {
	boot, err := Boot()
	if err != nil {
		return nil, err
	}
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("lease: make a timer: %w", err)
	}
	return &Watch{path: path, boot: boot, timer: os.NewFile(uintptr(fd), "timerfd")}, nil
}

// Boot is the boot that the watch holds leases of.
func (w *Watch) Boot() BootID { return w.boot }

// Held reads the file now: nil while the lease is held, otherwise an error that says why it is not and matches ErrLapsed.
func (w *Watch) Held() error {
	_, err := w.deadline()
	return err
}

func (w *Watch) deadline() (int64, error) {
	deadline, err := read(w.path, w.boot)
	if err != nil {
		return 0, err
	}
	if late := Now() - deadline; late >= 0 {
		return 0, fmt.Errorf("%w: it ended %s ago", ErrLapsed, time.Duration(late).Round(time.Millisecond))
	}
	return deadline, nil
}

// Wait returns when the lease has lapsed, with an error that matches ErrLapsed, or nil after Close. Whatever else goes
// wrong counts as lapsed: who cannot tell whether he may run must not.
func (w *Watch) Wait() error {
	for {
		deadline, err := w.deadline()
		if err != nil {
			if w.closed.Load() {
				return nil
			}
			if !errors.Is(err, ErrLapsed) {
				err = fmt.Errorf("%w: %w", ErrLapsed, err)
			}
			return err
		}
		if err := w.sleepUntil(deadline); err != nil {
			if w.closed.Load() {
				return nil
			}
			return fmt.Errorf("%w: %w", ErrLapsed, err)
		}
	}
}

func (w *Watch) sleepUntil(deadline int64) error {
	at := unix.ItimerSpec{Value: unix.NsecToTimespec(deadline)}
	rc, err := w.timer.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := rc.Control(func(fd uintptr) { set = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &at, nil) }); err != nil {
		return err
	}
	if set != nil {
		return fmt.Errorf("lease: set the timer: %w", set)
	}
	var expirations [8]byte
	_, err = w.timer.Read(expirations[:])
	return err
}

// Close ends Wait.
func (w *Watch) Close() {
	if w.closed.CompareAndSwap(false, true) {
		w.timer.Close()
	}
}
