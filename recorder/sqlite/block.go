// A block: some interactions in one row, in the order of their times, and what is looked at to find one of them.

package sqlite

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/neolith/orchestrator/recorder"
)

const (
	// spanMicros bounds the time between the first and the last interaction of a block, so that those that may hold a time are found by their
	// first one.
	spanMicros = 10_000_000
	// blockRecordsMax and blockBytesMax bound what is read to get at one interaction; one that is larger has a block of its own.
	blockRecordsMax = 1024
	blockBytesMax   = 512 << 10
	// rowBytes is what an interaction takes beside its payloads, roughly.
	rowBytes = 300
	// markBytes is what a mark takes; schema says what is in it.
	markBytes = 28
)

// errBlock is that of a block whose parts do not fit each other.
var errBlock = errors.New("a row of batches is damaged")

// keyed is an interaction with its place in the order.
type keyed struct {
	at int64 // Unix microseconds
	i  *recorder.Interaction
}

// inOrder returns a batch in the order of times and ids; of two with one id the first one counts.
func inOrder(batch []recorder.Interaction) []keyed {
	all := make([]keyed, len(batch))
	for n := range batch {
		all[n] = keyed{batch[n].Time.UnixMicro(), &batch[n]}
	}
	slices.SortStableFunc(all, func(a, b keyed) int {
		if c := cmp.Compare(a.at, b.at); c != 0 {
			return c
		}
		return cmp.Compare(a.i.ID, b.i.ID)
	})
	return slices.CompactFunc(all, func(a, b keyed) bool { return a.at == b.at && a.i.ID == b.i.ID })
}

// blockLength returns how many of the first interactions become one block.
func blockLength(all []keyed) int {
	bytes := 0
	for n, k := range all {
		bytes += rowBytes + len(k.i.Request) + len(k.i.Response)
		if n > 0 && (n == blockRecordsMax || bytes > blockBytesMax || k.at-all[0].at > spanMicros) {
			return n
		}
	}
	return len(all)
}

// mark is what is known of an interaction without reading it.
type mark struct {
	at                 int64  // Unix microseconds
	id                 uint64 // hash of the id
	session, namespace uint32 // hashes
	end                uint32 // where its JSON ends in the row's text; it begins behind the end, and the comma, of the one before
}

// hash is kept on disk: it may not change.
func hash(text string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211 // FNV-1a, without the allocation of hash/fnv
	h := uint64(offset)
	for n := range len(text) {
		h = (h ^ uint64(text[n])) * prime
	}
	return h
}

// newBlock encodes interactions that are in order.
func newBlock(all []keyed) (marks []mark, text []byte) {
	bytes := 2
	for _, k := range all {
		bytes += rowBytes + len(k.i.Request) + len(k.i.Response) + len(k.i.Error)
	}
	marks, text = make([]mark, len(all)), make([]byte, 0, bytes)
	for n, k := range all {
		text = append(text, `[,`[min(n, 1)])
		text = k.i.AppendJSON(text)
		marks[n] = mark{k.at, hash(k.i.ID), uint32(hash(k.i.Session)), uint32(hash(k.i.Namespace)), uint32(len(text))}
	}
	return marks, append(text, ']')
}

func appendMarks(b []byte, marks []mark) []byte {
	for _, m := range marks {
		b = binary.LittleEndian.AppendUint64(b, uint64(m.at))
		b = binary.LittleEndian.AppendUint64(b, m.id)
		b = binary.LittleEndian.AppendUint32(b, m.session)
		b = binary.LittleEndian.AppendUint32(b, m.namespace)
		b = binary.LittleEndian.AppendUint32(b, m.end)
	}
	return b
}

func parseMarks(b []byte) ([]mark, error) {
	if len(b) == 0 || len(b)%markBytes != 0 {
		return nil, errBlock
	}
	marks := make([]mark, 0, len(b)/markBytes)
	for ; len(b) > 0; b = b[markBytes:] {
		marks = append(marks, mark{
			int64(binary.LittleEndian.Uint64(b)), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint32(b[16:]), binary.LittleEndian.Uint32(b[20:]),
			binary.LittleEndian.Uint32(b[24:]),
		})
	}
	return marks, nil
}

// jsonOf returns the text of the n-th interaction.
func jsonOf(marks []mark, text []byte, n int) ([]byte, error) {
	from := uint32(1)
	if n > 0 {
		from = marks[n-1].end + 1
	}
	to := marks[n].end
	if from >= to || int64(to) >= int64(len(text)) {
		return nil, errBlock
	}
	return text[from:to], nil
}

// decode reads the n-th interaction.
func decode(marks []mark, text []byte, n int) (i recorder.Interaction, err error) {
	b, err := jsonOf(marks, text, n)
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal(b, &i); err != nil {
		return i, fmt.Errorf("%w: %w", errBlock, err)
	}
	return i, nil
}

// cutFront removes the first n interactions, of more.
func cutFront(marks []mark, text []byte, n int) ([]mark, []byte, error) {
	gone := marks[n-1].end
	if int64(gone)+1 >= int64(len(text)) {
		return nil, nil, errBlock
	}
	rest := slices.Clone(marks[n:])
	for k := range rest {
		rest[k].end -= gone
	}
	return rest, append([]byte{'['}, text[gone+1:]...), nil
}
