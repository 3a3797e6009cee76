// Quantities as people write and read them.

package main

import (
	"testing"
	"time"
)

func TestQuantities(t *testing.T) {
	for in, want := range map[string]int64{"500": 500, "500m": 500, "0.5": 500, "2.0": 2000, "1.2345": 1235, "0": 0, "-1": -1, "x": -1, "1.5m": -1, "": -1} {
		if got, err := parseCPU(in); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("CPU %q: %d, %v", in, got, err)
		}
	}
	for in, want := range map[string]int64{"1024": 1024, "512Mi": 512 << 20, "512MiB": 512 << 20, "1GiB": 1 << 30, "1.5g": 1500000000, "2KB": 2000, "1Ti": 1 << 40, "7b": 7,
		"-1": -1, "1X": -1, "": -1, "9999999999Ti": -1, "Mi": -1} {
		if got, err := parseBytes(in); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("memory %q: %d, %v", in, got, err)
		}
	}
	for in, want := range map[time.Duration]string{-1: "0s", 5 * time.Second: "5s", 119 * time.Second: "119s", 190 * time.Second: "3m10s", 300 * time.Second: "5m",
		45 * time.Minute: "45m", 150 * time.Minute: "2h30m", 20 * time.Hour: "20h", 50 * time.Hour: "2d2h", 240 * time.Hour: "10d"} {
		if got := ageText(in); got != want {
			t.Errorf("age %s: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1KiB", 1536: "1.5KiB", 8 << 30: "8GiB"} {
		if got := bytesText(in); got != want {
			t.Errorf("bytes %d: %s, want %s", in, got, want)
		}
	}
}
