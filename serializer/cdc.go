// Where large files are cut: FastCDC, normalized. The cuts are no part of the format; but releases that cut alike find
// each other's chunks.

package serializer

import "math/bits"

// The sizes of the chunks of large files, in bytes.
const (
	minCutBytes = 16 << 10
	avgCutBytes = 64 << 10
	maxCutBytes = 256 << 10
	// Up to the average a cut needs so many zero bits at the top of the hash, behind it so many: most chunks are near it.
	bitsBelowAvg = 18
	bitsAboveAvg = 14
)

// gear gives each byte a random number, the same for ever: splitmix64 from 0.
var gear = func() (t [256]uint64) {
	var state uint64
	for i := range t {
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		t[i] = z ^ z>>31
	}
	return t
}()

// cut returns how many bytes of data, at least one, are the next chunk. Data that is shorter than maxCutBytes is taken for all that is left.
func cut(data []byte) int {
	n := min(len(data), maxCutBytes)
	if n <= minCutBytes {
		return n
	}
	// The hash of a byte sees the 64 bytes before it: the top bits depend on all of them.
	var h uint64
	i := minCutBytes
	for end := min(n, avgCutBytes); i < end; i++ {
		if h = h<<1 + gear[data[i]]; bits.LeadingZeros64(h) >= bitsBelowAvg {
			return i + 1
		}
	}
	for ; i < n; i++ {
		if h = h<<1 + gear[data[i]]; bits.LeadingZeros64(h) >= bitsAboveAvg {
			return i + 1
		}
	}
	return n
}
