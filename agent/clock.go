// The clock that leases run on.

package agent

import "golang.org/x/sys/unix"

// Boottime reads CLOCK_BOOTTIME in nanoseconds: the time since the machine started, counting what it was suspended for.
func Boottime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("agent: read CLOCK_BOOTTIME: " + err.Error()) // Linux has had it since 2.6.39
	}
	return ts.Nano()
}
