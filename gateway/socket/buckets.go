// Token buckets: for all, by address, and by user.

package socket

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// buckets hold what callers may still ask for.
type buckets struct {
	limits Limits
	global *rate.Limiter

	mu       sync.Mutex
	ip, user map[string]*rate.Limiter
}

func newBuckets(l Limits) *buckets {
	return &buckets{limits: l, global: limiter(l.Global), ip: map[string]*rate.Limiter{}, user: map[string]*rate.Limiter{}}
}

// limiter makes a bucket; nil is no limit.
func limiter(r Rate) *rate.Limiter {
	if r.PerSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(r.PerSecond), max(r.Burst, 1))
}

// of returns the bucket of one key, nil for no limit.
func (b *buckets) of(m map[string]*rate.Limiter, key string, r Rate) *rate.Limiter {
	if r.PerSecond <= 0 || key == "" {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := m[key]
	if l == nil {
		if len(m) >= maxBuckets {
			b.purge(m)
		}
		l = limiter(r)
		if len(m) < maxBuckets { // otherwise it is limited with all, and not by itself
			m[key] = l
		}
	}
	return l
}

// take takes one token of each bucket, or none and says when there will be one. An empty user has no bucket.
func (b *buckets) take(ip, user string) (retry time.Duration, ok bool) {
	var now time.Time
	var taken []*rate.Reservation
	for _, l := range []*rate.Limiter{b.of(b.user, user, b.limits.PerUser), b.of(b.ip, ip, b.limits.PerIP), b.global} {
		if l == nil {
			continue
		}
		if now.IsZero() {
			now = time.Now()
		}
		r := l.ReserveN(now, 1)
		taken = append(taken, r)
		if wait := r.DelayFrom(now); wait > 0 {
			for _, r := range taken {
				r.CancelAt(now)
			}
			return wait, false
		}
	}
	return 0, true
}

// purge drops buckets that are full: a new one would be the same. b.mu is held.
func (b *buckets) purge(m map[string]*rate.Limiter) {
	for key, l := range m {
		if l.Tokens() >= float64(l.Burst()) {
			delete(m, key)
		}
	}
}

func (b *buckets) sweep() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.purge(b.ip)
	b.purge(b.user)
}
