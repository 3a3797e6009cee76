// Latencies of many operations, and what is said of them.

package measure

import (
	"math"
	"slices"
	"time"
)

// Latencies are the times of single operations, in any order.
type Latencies []time.Duration

// Summary is what one run says of its operations. Times are in milliseconds.
type Summary struct {
	Operations int     `json:"operations"`
	Errors     int     `json:"errors"`
	FirstError string  `json:"firstError,omitempty"`
	Seconds    float64 `json:"seconds"`
	PerSecond  float64 `json:"perSecond"`
	P50        float64 `json:"p50Ms"`
	P99        float64 `json:"p99Ms"`
	Max        float64 `json:"maxMs"`
	// CPU is the processor time of the process that measured, in cores.
	CPU float64 `json:"cpuCores"`
}

// Summarize sorts the latencies and describes them; took is how long the run measured.
func (l Latencies) Summarize(took time.Duration) Summary {
	slices.Sort(l)
	s := Summary{Operations: len(l), Seconds: took.Seconds(), P50: ms(l.quantile(0.5)), P99: ms(l.quantile(0.99)), Max: ms(l.quantile(1))}
	if took > 0 {
		s.PerSecond = float64(len(l)) / took.Seconds()
	}
	return s
}

// quantile is the nearest-rank quantile of sorted latencies; 0 when there are none.
func (l Latencies) quantile(q float64) time.Duration {
	if len(l) == 0 {
		return 0
	}
	return l[rank(len(l), q)]
}

// rank is the place of a quantile among n sorted values.
func rank(n int, q float64) int {
	return min(max(int(math.Ceil(q*float64(n)))-1, 0), n-1)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
