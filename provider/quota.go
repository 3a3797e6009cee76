// Limits by the minute: our own, and what the provider says is left.

package provider

import "time"

// slices is how finely a minute is looked at: a limit holds in any minute, to the second.
const slicesPerMinute = 60

// quota counts what was taken in the last minute against a limit, and keeps what the provider said is left. It is not safe for
// concurrent use: its lane's pool guards it. rate.Limiter is no help here: its burst would let twice the limit pass in the first minute,
// and it can be told neither what a provider says is left nor that less was used than taken.
type quota struct {
	perMinute int64 // 0 does not limit
	taken     [slicesPerMinute]int64
	second    int64 // of the newest slice

	leftN     int64 // what the provider says
	leftUntil time.Time
}

// advance forgets what is older than a minute.
func (q *quota) advance(now time.Time) {
	s := now.Unix()
	if s-q.second >= slicesPerMinute {
		q.taken = [slicesPerMinute]int64{}
	} else {
		for i := q.second + 1; i <= s; i++ {
			q.taken[i%slicesPerMinute] = 0
		}
	}
	q.second = max(q.second, s)
}

// sum is what was taken in the last minute.
func (q *quota) sum() (n int64) {
	for _, t := range q.taken {
		n += t
	}
	return n
}

// wait returns how long until n may be taken; 0 when they may be now. What is more than the limit by itself has a minute of its own.
func (q *quota) wait(n int64, now time.Time) time.Duration {
	q.advance(now)
	var d time.Duration
	if now.Before(q.leftUntil) && q.leftN < n {
		d = q.leftUntil.Sub(now)
	}
	if q.perMinute == 0 {
		return d
	}
	total := q.sum()
	if total == 0 || total+n <= q.perMinute {
		return d
	}
	for i := q.second - slicesPerMinute + 1; i <= q.second; i++ {
		if total -= q.taken[((i%slicesPerMinute)+slicesPerMinute)%slicesPerMinute]; total == 0 || total+n <= q.perMinute {
			return max(d, time.Unix(i+slicesPerMinute, 0).Sub(now))
		}
	}
	return max(d, time.Minute)
}

// take takes n, whether there is room or not, and returns the second in which it did, for settle.
func (q *quota) take(n int64, now time.Time) int64 {
	q.advance(now)
	q.taken[q.second%slicesPerMinute] += n
	if now.Before(q.leftUntil) {
		q.leftN = max(q.leftN-n, 0)
	}
	return q.second
}

// settle corrects what was taken in a second to what was used.
func (q *quota) settle(second, took, used int64, now time.Time) {
	q.advance(now)
	if q.second-second >= slicesPerMinute {
		second = q.second // long ago: what was used beyond it counts now
		took = min(took, used)
	}
	i := second % slicesPerMinute
	q.taken[i] = max(q.taken[i]+used-took, 0)
}

// told takes what a provider says is left. Without the time of its reset, a minute is assumed.
func (q *quota) told(l left, now time.Time) {
	if !l.known {
		return
	}
	if l.reset == 0 {
		l.reset = time.Minute
	}
	q.leftN, q.leftUntil = l.n, now.Add(l.reset)
}

// room is what is left, by what is known; -1 when nothing is.
func (q *quota) room(now time.Time) int64 {
	q.advance(now)
	n := int64(-1)
	if q.perMinute > 0 {
		n = max(q.perMinute-q.sum(), 0)
	}
	if now.Before(q.leftUntil) && (n < 0 || q.leftN < n) {
		n = q.leftN
	}
	return n
}
