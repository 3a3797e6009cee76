// Quantities as people write and read them.

package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// parseCPU reads thousandths of a core: 500 or 500m; or cores, with a point: 0.5, 2.0.
func parseCPU(s string) (int64, error) {
	digits, milli := strings.CutSuffix(s, "m")
	if !milli && strings.Contains(s, ".") {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || f < 0 || f > 1e6 {
			return 0, fmt.Errorf("%q is not a number of cores", s)
		}
		return int64(math.Ceil(f * 1000)), nil
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not an amount of CPU; write thousandths of a core as 500 or 500m, cores as 0.5 or 2.0", s)
	}
	return n, nil
}

// byteUnits are the suffixes of sizes; powers of two with an i, of ten without.
var byteUnits = func() map[string]float64 {
	m := map[string]float64{"": 1, "b": 1}
	for i, u := range []string{"k", "m", "g", "t"} {
		two, ten := math.Pow(1024, float64(i+1)), math.Pow(1000, float64(i+1))
		m[u+"i"], m[u+"ib"], m[u], m[u+"b"] = two, two, ten, ten
	}
	return m
}()

// parseBytes reads a size: 536870912, 512Mi, 512MiB, 1.5G, 500MB.
func parseBytes(s string) (int64, error) {
	i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	number, unit := s, ""
	if i >= 0 {
		number, unit = s[:i], s[i:]
	}
	f, err := strconv.ParseFloat(number, 64)
	factor, ok := byteUnits[strings.ToLower(strings.TrimSpace(unit))]
	if err != nil || !ok || f*factor >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is not a size; write bytes, or 512Mi, 1GiB, 2G", s)
	}
	return int64(f * factor), nil
}

// bytesText is a size for people.
func bytesText(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	f, units := float64(n), []string{"KiB", "MiB", "GiB", "TiB"}
	for i, u := range units {
		f /= 1024
		if f < 1024 || i == len(units)-1 {
			return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") + u
		}
	}
	return ""
}

// millisText is a span of milliseconds with three digits: 0.42ms, 42.5ms, 1.23s; from a minute on as ageText.
func millisText(ms float64) string {
	switch {
	case ms <= 0:
		return "0ms"
	case ms < 1000:
		return strconv.FormatFloat(round3(ms), 'f', -1, 64) + "ms"
	case ms < 60_000:
		return strconv.FormatFloat(round3(ms/1000), 'f', -1, 64) + "s"
	default:
		return ageText(time.Duration(ms * float64(time.Millisecond)))
	}
}

// round3 keeps three digits.
func round3(f float64) float64 {
	scale := math.Pow(10, 2-math.Floor(math.Log10(f)))
	return math.Round(f*scale) / scale
}

// ageText is a span as kubectl writes it: 5s, 3m10s, 5m, 2h30m, 4d.
func ageText(d time.Duration) string {
	s := int64(max(d, 0).Seconds())
	two := func(n int64, unit string, rest int64, restUnit string, small int64) string {
		if n < small && rest > 0 {
			return fmt.Sprintf("%d%s%d%s", n, unit, rest, restUnit)
		}
		return fmt.Sprintf("%d%s", n, unit)
	}
	switch {
	case s < 120:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return two(s/60, "m", s%60, "s", 10)
	case s < 86400:
		return two(s/3600, "h", s%3600/60, "m", 8)
	default:
		return two(s/86400, "d", s%86400/3600, "h", 3)
	}
}

// age is how long ago something was; empty when it was not.
func (a *app) age(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return ageText(a.now().Sub(t.AsTime()))
}

// at is a time and how long ago it was; empty when it was not.
func (a *app) at(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return fmt.Sprintf("%s (%s ago)", t.AsTime().Format(time.RFC3339), a.age(t))
}

// pairsText is a map as k=v,k=v, sorted.
func pairsText[V any](m map[string]V) string {
	out := make([]string, 0, len(m))
	for k, v := range m {
		out = append(out, fmt.Sprintf("%s=%v", k, v))
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// parsePairs reads k=v arguments.
func parsePairs(flag string, list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(list))
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("--%s: %q is not of the form KEY=VALUE", flag, kv)
		}
		m[k] = v
	}
	return m, nil
}

func number[N int | int32 | int64 | uint32 | uint64](n N) string { return fmt.Sprint(n) }

// some is the number, empty for 0.
func some[N int | int32 | int64 | uint32 | uint64](n N) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// several is so many of a thing: 1 chunk, 2 chunks.
func several(n uint32, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// fit is the line cut to a terminal's width; colours do not count.
func fit(line string, width int) string {
	return text.Trim(line, width)
}
