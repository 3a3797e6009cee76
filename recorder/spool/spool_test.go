// What the spool promises: whatever was synced is read until it is confirmed, in order, whenever the power goes.

package spool

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var small = Options{MaxBytes: 4 << 10, SegmentBytes: 512}

func openSpool(t testing.TB, dir string, o Options) *Spool {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// model is what is known of a spool from outside: record i has the number i in its text.
type model struct {
	t interface {
		Fatal(args ...any)
		Fatalf(format string, args ...any)
	}
	fs        *memFS
	s         *Spool
	next      int   // number of the next record
	unsynced  []int // taken, and not synced
	synced    []int // and not known to be confirmed
	confirmed map[int]bool
	maybe     map[int]bool // confirmed when the power went
}

func (m *model) text(n int) []byte {
	return fmt.Appendf(nil, "%d %s", n, strings.Repeat("x", n*37%200))
}

// number reads a record back; damage must not get through.
func (m *model) number(r []byte) int {
	var n int
	if _, err := fmt.Sscanf(string(r), "%d ", &n); err != nil || string(r) != string(m.text(n)) {
		m.t.Fatalf("a record that nobody wrote: %q", r)
	}
	return n
}

// died opens the spool again after a crash.
func (m *model) died(powerLost bool) {
	m.fs.restart(powerLost)
	if powerLost || m.fs.failed {
		m.unsynced = nil // they may be there or not
	}
	// What a process had written when it was killed is there, and is made durable by whoever opens the spool next.
	m.settle()
	m.reopen()
}

func (m *model) reopen() {
	s, err := open(m.fs, small)
	if err != nil {
		m.t.Fatalf("open: %v", err)
	}
	m.s = s
}

func (m *model) append(count int) {
	var records [][]byte
	for i := range count {
		records = append(records, m.text(m.next+i))
	}
	n, err := m.s.Append(records...)
	for i := range n {
		m.unsynced = append(m.unsynced, m.next+i)
	}
	m.next += count // what was not taken is given up here
	if n < count && err == nil {
		m.t.Fatal("not all was taken, and no error")
	}
	most := small.MaxBytes
	if m.fs.failed {
		most += small.SegmentBytes
	}
	if size := m.s.Size(); size > most {
		m.t.Fatalf("%d bytes, more than %d", size, most)
	}
}

func (m *model) sync() {
	if m.s.Sync() == nil {
		m.settle()
	}
}

// settle says that all that was taken must be there from now on. A segment that was full was synced before, and may have been confirmed.
func (m *model) settle() {
	m.synced = append(m.synced, slices.DeleteFunc(m.unsynced, func(n int) bool { return m.confirmed[n] || m.maybe[n] })...)
	m.unsynced = nil
}

// read reads, checks that nothing synced is missing or out of order, and confirms a part.
func (m *model) read(most int, confirm bool) {
	b, err := m.s.Next(most, 1<<20)
	if err != nil {
		if !m.fs.dead && m.fs.failAt == 0 {
			m.t.Fatalf("read: %v", err)
		}
		return
	}
	// What a sync that failed has left behind may be found in the middle of a file once the power has gone.
	if b.Damaged > 0 && !m.fs.failed {
		m.t.Fatalf("%d bytes are damaged", b.Damaged)
	}
	var got []int
	for _, r := range b.Records {
		got = append(got, m.number(r))
	}
	m.check(got, len(b.Records) < most)
	if !confirm {
		return
	}
	if m.s.Confirm(b.End) == nil || !m.fs.dead {
		for _, n := range got {
			m.confirmed[n] = true
		}
		m.synced = slices.DeleteFunc(m.synced, func(n int) bool { return m.confirmed[n] })
	} else { // whether it is confirmed is seen when it is read again
		for _, n := range got {
			m.maybe[n] = true
		}
		m.synced = slices.DeleteFunc(m.synced, func(n int) bool { return m.maybe[n] })
	}
}

// check compares what was read with what was synced: nothing of it may be left out before the last record that was read.
func (m *model) check(got []int, all bool) {
	want := m.synced
	for _, n := range got {
		if m.confirmed[n] && !m.fs.dead && m.strict() {
			m.t.Fatalf("record %d is confirmed and was read again", n)
		}
		if i := slices.Index(want, n); i > 0 {
			m.t.Fatalf("read %v, which leaves out %v", got, want[:i])
		} else if i == 0 {
			want = want[1:]
		}
	}
	if all && len(want) > 0 {
		m.t.Fatalf("read %v, and nothing of %v, which was synced", got, want)
	}
}

// strict says whether nothing may be read twice: a sync that failed makes it possible.
func (m *model) strict() bool { return !m.fs.failed }

// Any order of appends, syncs, reads, confirmations, failing operations, kills and losses of power.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fs := newMemFS(func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "chance") })
		m := &model{t: t, fs: fs, confirmed: map[int]bool{}, maybe: map[int]bool{}}
		m.reopen()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if fs.dead {
				m.died(rapid.Bool().Draw(t, "power"))
			}
			switch rapid.IntRange(0, 9).Draw(t, "what") {
			case 0, 1, 2:
				m.append(rapid.IntRange(1, 8).Draw(t, "records"))
			case 3, 4:
				m.sync()
			case 5, 6:
				m.read(rapid.IntRange(1, 10).Draw(t, "most"), true)
			case 7:
				m.read(rapid.IntRange(1, 10).Draw(t, "most"), false)
			case 8:
				fs.dieAt = fs.ops + rapid.IntRange(1, 6).Draw(t, "in")
			case 9:
				fs.failAt, fs.failed = fs.ops+rapid.IntRange(1, 4).Draw(t, "fails in"), true
			}
		}
		if fs.dead {
			m.died(true)
		}
		fs.dieAt, fs.failAt = 0, 0
		m.sync()
		if len(m.unsynced) > 0 {
			t.Fatal("a sync fails on a disk that works")
		}
		for range 1000 {
			if m.read(7, true); len(m.synced) == 0 {
				return
			}
		}
		t.Fatalf("never read: %v", m.synced)
	})
}

// One story, and the power taken at each of its operations in turn.
func TestPowerGoesAtEveryOperation(t *testing.T) {
	for _, lost := range []bool{false, true} {
		for at := 1; ; at++ {
			if done := powerGoesAt(t, at, lost); done {
				if at < 50 {
					t.Errorf("the story has only %d operations", at)
				}
				break
			}
		}
	}
}

func powerGoesAt(t *testing.T, at int, lost bool) (done bool) {
	for seed := range uint64(8) { // what is half done differs
		fs := newMemFS(rand.New(rand.NewPCG(seed, uint64(at))).IntN)
		fs.dieAt = at
		m := &model{t: t, fs: fs, confirmed: map[int]bool{}, maybe: map[int]bool{}}
		s, err := open(fs, small)
		if err == nil {
			m.s = s
			for range 12 {
				m.append(4)
				m.sync()
				m.append(1)
				m.sync()
				m.read(3, true)
				m.read(4, true)
			}
		}
		done = !fs.dead
		m.died(lost)
		for before := 1; before > 0; {
			before = len(m.synced)
			m.read(5, true)
		}
	}
	return done
}

// Linux forgets what a failed sync could not write, and tells the next sync that all is well.
func TestAFailedSyncIsNotBelieved(t *testing.T) {
	fs := newMemFS(func(int) int { return 0 })
	s, err := open(fs, small)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two"} {
		if _, err := s.Append([]byte(text)); err != nil {
			t.Fatal(err)
		}
		fs.failAt = fs.ops + 1
		if err := s.Sync(); err == nil {
			t.Fatal("the sync did not fail")
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	fs.restart(true)
	expect(t, fs, "one", "two")
}

// Whoever opens a spool after a process was killed makes durable what that had written, before it can be read and confirmed.
func TestWhatAKilledProcessWroteIsMadeDurable(t *testing.T) {
	fs := newMemFS(func(int) int { return 0 })
	s, err := open(fs, small)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append([]byte("one")); err != nil {
		t.Fatal(err)
	}
	fs.restart(false)
	if _, err := open(fs, small); err != nil {
		t.Fatal(err)
	}
	fs.restart(true)
	expect(t, fs, "one")
}

// expect opens the spool and reads all.
func expect(t *testing.T, fs filesystem, want ...string) {
	t.Helper()
	s, err := open(fs, small)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Next(100, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range b.Records {
		got = append(got, string(r))
	}
	if !slices.Equal(got, want) || b.Damaged > 0 {
		t.Fatalf("read %q, %d bytes damaged; want %q", got, b.Damaged, want)
	}
}

func TestFullSpoolTakesNothingUntilThereIsRoom(t *testing.T) {
	s := openSpool(t, t.TempDir(), small)
	defer s.Close()
	record := make([]byte, 100)
	taken := 0
	for {
		n, err := s.Append(record)
		taken += n
		if fault.Is(err, fault.Exhausted) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if size := s.Size(); size > small.MaxBytes || size < small.MaxBytes-200 {
		t.Fatalf("full at %d bytes of %d", size, small.MaxBytes)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	b, err := s.Next(5, 1<<20)
	if err != nil || len(b.Records) != 5 {
		t.Fatalf("%d records, %v", len(b.Records), err)
	}
	if err := s.Confirm(b.End); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Append(record); n != 1 || err != nil {
		t.Fatalf("a segment has gone, and there is no room: %v", err)
	}
	if _, err := s.Append(make([]byte, small.MaxBytes)); !fault.Is(err, fault.Invalid) {
		t.Fatalf("a record that never fits: %v", err)
	}
}

func TestReopenedWhereItStopped(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, dir, small)
	for i := range 20 {
		if _, err := s.Append(fmt.Appendf(nil, "record %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := s.Next(1, 1); err != nil || len(b.Records) != 0 {
		t.Fatalf("what is not durable was read: %q, %v", b.Records, err)
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	b, err := s.Next(7, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Confirm(b.End); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, small); !fault.Is(err, fault.FailedPrecondition) {
		t.Fatalf("opened twice: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openSpool(t, dir, small)
	defer s.Close()
	if b, err = s.Next(100, 1<<20); err != nil || len(b.Records) != 13 || string(b.Records[0]) != "record 7" {
		t.Fatalf("%q, %v", b.Records, err)
	}
	if err := s.Confirm(b.End); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.seg")); len(left) > 0 || s.Size() != 0 {
		t.Fatalf("all has arrived, and %v are left, %d bytes", left, s.Size())
	}
}

func TestDamageInTheMiddleIsSkippedAndCounted(t *testing.T) {
	for _, c := range []struct {
		name string
		at   int // of the damaged byte
		want string
	}{
		{"data", segmentHeader + 110 + recordHeader + 3, "0 2 3 4 5"},
		{"length", segmentHeader + 110, "0 3 4 5"}, // the rest of the segment with it
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := openSpool(t, dir, Options{MaxBytes: 4 << 10, SegmentBytes: segmentHeader + 3*110})
			for i := range 6 {
				if _, err := s.Append(fmt.Appendf(nil, "%d%97d", i, 0)); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(dir, segmentName(1))
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			b[c.at] ^= 1
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			s = openSpool(t, dir, small)
			defer s.Close()
			batch, err := s.Next(10, 1<<20)
			if err != nil || batch.Damaged == 0 {
				t.Fatalf("%d bytes are called damaged, %v", batch.Damaged, err)
			}
			var got []string
			for _, r := range batch.Records {
				got = append(got, string(r[:1]))
			}
			if strings.Join(got, " ") != c.want {
				t.Fatalf("read %v, want %s", got, c.want)
			}
		})
	}
}

func TestTornTailAtEveryByte(t *testing.T) {
	dir := t.TempDir()
	s := openSpool(t, dir, small)
	for i := range 3 {
		if _, err := s.Append(fmt.Appendf(nil, "record %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, segmentName(1))
	all, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	const record = recordHeader + 8
	for cut := range len(all) + 1 {
		if err := os.WriteFile(name, all[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		want := max(cut-segmentHeader, 0) / record
		s := openSpool(t, dir, small)
		if _, err := s.Append([]byte("after")); err != nil {
			t.Fatal(err)
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		b, err := s.Next(10, 1<<20)
		if err != nil || len(b.Records) != want+1 || string(b.Records[want]) != "after" || b.Damaged > 0 {
			t.Fatalf("cut at %d: read %q, %d damaged, %v; want %d and one more", cut, b.Records, b.Damaged, err, want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for n := uint64(1); n < 3; n++ {
			os.Remove(filepath.Join(dir, segmentName(n)))
		}
	}
}

func TestNewerFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	h := newSegmentHeader(1, 1)
	h[4] = 9
	le.PutUint32(h[28:], crc32.Checksum(h[:28], table))
	if err := os.WriteFile(filepath.Join(dir, segmentName(1)), h, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, small); !fault.Is(err, fault.FailedPrecondition) {
		t.Fatal(err)
	}
	if _, err := Open(t.TempDir(), Options{MaxBytes: 100, SegmentBytes: 50}); !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
}

func BenchmarkAppendAndSync(b *testing.B) {
	s := openSpool(b, b.TempDir(), Options{MaxBytes: 8 << 30, SegmentBytes: 8 << 20})
	defer s.Close()
	records := make([][]byte, 100)
	for i := range records {
		records[i] = make([]byte, 1024)
	}
	for b.Loop() {
		if _, err := s.Append(records...); err != nil {
			b.Fatal(err)
		}
		if err := s.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*len(records))/b.Elapsed().Seconds(), "records/s")
}
