// The bytes of the protocol and of the files; the shim's process itself is tested through driver/process.
package shim

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

func TestParamsSurviveTheWire(t *testing.T) {
	want := &Params{
		Session: "s", Epoch: 3, Args: []string{"/bin/sh", "-c", ""}, Env: []string{"A=b"}, Dir: "/w", LogDir: "/l", Lease: "/x", Base: 9,
		Terminal: true, Columns: 120, Rows: 40, FlushIdle: 5, SegmentBytes: 1, TotalBytes: 2, Cgroup2: "/c", Cgroup1: []string{"/d", "/e"}, Exec: true,
	}
	got, err := decodeParams(want.encode())
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v\n got %+v\nwant %+v", err, got, want)
	}
}

// A later version's fields are skipped, whatever they hold.
func TestUnknownFieldsAreSkipped(t *testing.T) {
	var f fields
	f.str(tag(200), "of a later version")
	f.num(tagSequence, 7)
	var a args
	if err := each(f, a.field); err != nil || a.sequence != 7 {
		t.Fatalf("%v, %+v", err, a)
	}
}

func TestGarbageIsRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "bytes")
		_, _ = decodeParams(b)
		_, _ = decodeExit(b)
		_, _ = decodeStatus(b)
		if len(b) > 2 {
			b[0], b[1] = frameMagic, protocolVersion
		}
		_, _ = readFrame(bytes.NewReader(b)) // none of it may panic
	})
	long := encodeFrame(typeInput, 1, nil)
	long[11] = 0xff
	if _, err := readFrame(bytes.NewReader(long)); !errors.Is(err, errMalformed) {
		t.Fatalf("a frame of 4 GB: %v", err)
	}
	other := encodeFrame(typeInput, 1, nil)
	other[1] = 2
	if _, err := readFrame(bytes.NewReader(other)); !errors.Is(err, errMalformed) {
		t.Fatalf("another version: %v", err)
	}
}

// A record is whole or none, and one slot does not touch the other.
func TestRecordsAreWholeOrNone(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadExit(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("no file: %v", err)
	}
	run := &Run{Session: "s", Epoch: 2, Process: ProcessID{10, 11}, Shim: ProcessID{12, 13}, Boot: "b", Started: 5, FirstLine: 6, Cgroup2: "/c"}
	if err := writeRecord(dir, slotRun, run.encode(), false); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadExit(dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("an empty slot: %v", err)
	}
	exit := &Exit{Session: "s", Epoch: 2, Code: 137, Signal: "SIGKILL", Cause: "failed", Message: "m", LastLine: 4, FirstLine: 1, InputsFrom: 2, LastInput: 3, Ended: 9, Boot: "b"}
	if err := WriteExit(dir, exit); err != nil {
		t.Fatal(err)
	}
	gotRun, err := ReadRun(dir)
	if err != nil || !reflect.DeepEqual(gotRun, run) {
		t.Fatalf("%+v, %v", gotRun, err)
	}
	gotExit, err := ReadExit(dir)
	if err != nil || *gotExit != *exit {
		t.Fatalf("%+v, %v", gotExit, err)
	}
	path := filepath.Join(dir, StateName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := slotBytes; cut < len(whole); cut++ { // the exit record torn anywhere
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadExit(dir); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
	if _, err := ReadRun(dir); err != nil {
		t.Fatalf("the run record beside it: %v", err)
	}
}

func TestLockIsExclusiveAndGivenBack(t *testing.T) {
	dir := t.TempDir()
	lock, err := TryLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TryLock(dir); !errors.Is(err, ErrLives) {
		t.Fatalf("a second one: %v", err)
	}
	Unlock(lock)
	lock, err = TryLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	Unlock(lock)
}

// A pid that is another's now is not killed and does not live.
func TestProcessIDIsNotThePID(t *testing.T) {
	self, err := Identify(os.Getpid())
	if err != nil || !self.Alive() {
		t.Fatalf("%+v, %v", self, err)
	}
	other := ProcessID{PID: self.PID, Start: self.Start + 1}
	other.Kill() // would end the test
	if other.Alive() {
		t.Fatal("a process with another start time lives")
	}
}
