// The rules by which a node is judged, as data, and the one function that applies them.

package health

import (
	"fmt"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
)

// Sample is one measurement of the machine.
type Sample struct {
	CPUPercent      float64 // of all cores, since the sample before, 0–100
	CPUSustained    float64 // the same over the last SustainedFor; this is what is judged
	MemoryPercent   float64 // 0–100
	DiskFreePercent float64 // where the data directory is
	DiskFreeBytes   uint64
	// Missing names what could not be measured, as a Measure; it is not judged.
	Missing map[Measure]bool
}

// SustainedFor is the time over which CPU use is judged: a compiler that runs for a few seconds is no state of a machine.
const SustainedFor = 30 * time.Second

// Input is everything that a node is judged by.
type Input struct {
	Sample
	// ResponseTime is the last round trip of a heartbeat, or how long the one under way has waited when that is longer.
	ResponseTime time.Duration
}

// Measure names a number that a rule looks at.
type Measure string

// The measures.
const (
	CPU          Measure = "cpu"
	Memory       Measure = "memory"
	ResponseTime Measure = "response time"
	DiskPercent  Measure = "disk free percent"
	DiskBytes    Measure = "disk free"
)

// Rule is one row of the table.
type Rule struct {
	Measure Measure
	Status  apiv1.Node_Status
	Enter   float64 // the rule begins to hold beyond it
	Leave   float64 // and ends to hold within it
	Below   bool    // beyond means less
	Unit    string
}

const mebibyte = 1 << 20

// Rules is the table of the package's doc comment; the worst status comes first.
func Rules() []Rule {
	return []Rule{
		{Measure: Memory, Status: apiv1.Node_UNHEALTHY, Enter: 97, Leave: 95, Unit: "%"},
		{Measure: DiskPercent, Status: apiv1.Node_UNHEALTHY, Enter: 1, Leave: 1.5, Below: true, Unit: "%"},
		{Measure: DiskBytes, Status: apiv1.Node_UNHEALTHY, Enter: 256, Leave: 320, Below: true, Unit: " MiB"},
		{Measure: ResponseTime, Status: apiv1.Node_UNHEALTHY, Enter: 15, Leave: 10, Unit: " s"},
		{Measure: CPU, Status: apiv1.Node_DEGRADED, Enter: 90, Leave: 85, Unit: "%"},
		{Measure: Memory, Status: apiv1.Node_DEGRADED, Enter: 90, Leave: 87, Unit: "%"},
		{Measure: DiskPercent, Status: apiv1.Node_DEGRADED, Enter: 5, Leave: 6, Below: true, Unit: "%"},
		{Measure: ResponseTime, Status: apiv1.Node_DEGRADED, Enter: 10, Leave: 5, Unit: " s"},
	}
}

func (in Input) value(m Measure) float64 {
	switch m {
	case CPU:
		return in.CPUSustained
	case Memory:
		return in.MemoryPercent
	case ResponseTime:
		return in.ResponseTime.Seconds()
	case DiskPercent:
		return in.DiskFreePercent
	default:
		return float64(in.DiskFreeBytes) / mebibyte
	}
}

// beyond reports whether a value is beyond a bound of the rule.
func (r Rule) beyond(v, bound float64) bool {
	if r.Below {
		return v < bound
	}
	return v > bound
}

// Verdict is a status with why, in one line. The zero Verdict is that of a node nobody has judged yet.
type Verdict struct {
	Status apiv1.Node_Status
	Reason string
	// holding are the rules, by their place in the table, that hold: those end to hold later than they began.
	holding uint16
}

// Judge says how a node is, given how it was.
func Judge(before Verdict, in Input) Verdict {
	v := Verdict{Status: apiv1.Node_HEALTHY}
	for i, r := range Rules() {
		if in.Missing[r.Measure] {
			continue
		}
		bit := uint16(1) << i
		bound := r.Enter
		if before.holding&bit != 0 {
			bound = r.Leave
		}
		value := in.value(r.Measure)
		if !r.beyond(value, bound) {
			continue
		}
		v.holding |= bit
		if v.Status == apiv1.Node_HEALTHY {
			word := "above"
			if r.Below {
				word = "below"
			}
			if r.beyond(value, r.Enter) {
				bound = r.Enter
			}
			v.Status = r.Status
			v.Reason = fmt.Sprintf("%s is %.4g%s, %s %.4g%s", r.Measure, value, r.Unit, word, bound, r.Unit)
		}
	}
	return v
}
