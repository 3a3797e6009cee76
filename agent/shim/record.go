// What a shim is started with, and what it leaves on disk: parameters, the run record, the exit record.
//
// Both records lie in the state file, each in a slot of its own: "ORSR", a version byte (1), three zero bytes, the CRC-32
// (IEEE) of the fields, their length (4 bytes each), then the fields. After the slots comes what the shim had to say.

package shim

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The names in a session's directory.
const (
	StateName = "shim.state"
	SockName  = "shim.sock"
)

// InputsMax is how many of the latest inputs a shim remembers.
const InputsMax = 1024

// Params is what a shim is started with.
type Params struct {
	Session string
	Epoch   uint32
	Args    []string // Args[0] is the program's path
	Env     []string
	Dir     string // the working directory
	LogDir  string
	Lease   string // the node's lease file
	// StartBy is the end of the lease under which the start was ordered, ns of CLOCK_BOOTTIME; 0 for no bound.
	StartBy int64
	Base    uint64 // the last output line of earlier epochs
	// Terminal gives the process a terminal instead of pipes.
	Terminal      bool
	Columns, Rows uint16
	// FlushIdle is after how long a terminal's line without a newline is logged.
	FlushIdle    time.Duration
	SegmentBytes int64 // of the log; 0 for the default
	TotalBytes   int64
	Cgroup2      string   // the directory to start the process in; empty for none
	Cgroup1      []string // the same of version 1 hierarchies
	// Exec runs a further command of the session on the shim's own stdin, stdout and stderr.
	Exec bool
}

func (p *Params) encode() []byte {
	var f fields
	f.str(tagSession, p.Session)
	f.num(tagEpoch, uint64(p.Epoch))
	for _, a := range p.Args {
		f.str(tagArg, a)
	}
	for _, e := range p.Env {
		f.str(tagEnv, e)
	}
	f.str(tagDir, p.Dir)
	f.str(tagLogDir, p.LogDir)
	f.str(tagLease, p.Lease)
	f.num(tagStartBy, uint64(p.StartBy))
	f.num(tagBase, p.Base)
	var flags uint64
	if p.Terminal {
		flags |= flagTerminal
	}
	if p.Exec {
		flags |= flagExec
	}
	f.num(tagFlags, flags)
	f.num(tagColumns, uint64(p.Columns))
	f.num(tagRows, uint64(p.Rows))
	f.num(tagFlushIdle, uint64(p.FlushIdle))
	f.num(tagSegmentBytes, uint64(p.SegmentBytes))
	f.num(tagTotalBytes, uint64(p.TotalBytes))
	f.str(tagCgroup2, p.Cgroup2)
	for _, c := range p.Cgroup1 {
		f.str(tagCgroup1, c)
	}
	return f
}

func decodeParams(b []byte) (*Params, error) {
	p := new(Params)
	err := each(b, func(t tag, v []byte) {
		switch t {
		case tagSession:
			p.Session = string(v)
		case tagEpoch:
			p.Epoch = uint32(num(v))
		case tagArg:
			p.Args = append(p.Args, string(v))
		case tagEnv:
			p.Env = append(p.Env, string(v))
		case tagDir:
			p.Dir = string(v)
		case tagLogDir:
			p.LogDir = string(v)
		case tagLease:
			p.Lease = string(v)
		case tagStartBy:
			p.StartBy = int64(num(v))
		case tagBase:
			p.Base = num(v)
		case tagFlags:
			p.Terminal = num(v)&flagTerminal != 0
			p.Exec = num(v)&flagExec != 0
		case tagColumns:
			p.Columns = uint16(num(v))
		case tagRows:
			p.Rows = uint16(num(v))
		case tagFlushIdle:
			p.FlushIdle = time.Duration(num(v))
		case tagSegmentBytes:
			p.SegmentBytes = int64(num(v))
		case tagTotalBytes:
			p.TotalBytes = int64(num(v))
		case tagCgroup2:
			p.Cgroup2 = string(v)
		case tagCgroup1:
			p.Cgroup1 = append(p.Cgroup1, string(v))
		}
	})
	if err == nil && len(p.Args) == 0 {
		err = refuse(CodeInvalid, "there is no command to start")
	}
	return p, err
}

// ProcessID names a process for good: pids are used again, pids with their start time are not.
type ProcessID struct {
	PID   int
	Start uint64 // clock ticks since boot, as /proc/PID/stat has it
}

// Run is what a shim runs.
type Run struct {
	Session   string
	Epoch     uint32
	Process   ProcessID // the main process
	Shim      ProcessID
	Boot      string // boot id, 16 bytes
	Started   int64  // Unix nanoseconds
	FirstLine uint64 // the number that the epoch's first line has or would have
	Cgroup2   string
	Cgroup1   []string
}

func (r *Run) encode() []byte {
	var f fields
	f.str(tagSession, r.Session)
	f.num(tagEpoch, uint64(r.Epoch))
	f.num(tagPID, uint64(r.Process.PID))
	f.num(tagStartTime, r.Process.Start)
	f.num(tagShimPID, uint64(r.Shim.PID))
	f.num(tagShimStart, r.Shim.Start)
	f.str(tagBoot, r.Boot)
	f.num(tagStarted, uint64(r.Started))
	f.num(tagFirstLine, r.FirstLine)
	f.str(tagCgroup2, r.Cgroup2)
	for _, c := range r.Cgroup1 {
		f.str(tagCgroup1, c)
	}
	return f
}

func (r *Run) field(t tag, v []byte) {
	switch t {
	case tagSession:
		r.Session = string(v)
	case tagEpoch:
		r.Epoch = uint32(num(v))
	case tagPID:
		r.Process.PID = int(num(v))
	case tagStartTime:
		r.Process.Start = num(v)
	case tagShimPID:
		r.Shim.PID = int(num(v))
	case tagShimStart:
		r.Shim.Start = num(v)
	case tagBoot:
		r.Boot = string(v)
	case tagStarted:
		r.Started = int64(num(v))
	case tagFirstLine:
		r.FirstLine = num(v)
	case tagCgroup2:
		r.Cgroup2 = string(v)
	case tagCgroup1:
		r.Cgroup1 = append(r.Cgroup1, string(v))
	}
}

// Exit is how a session's process ended.
type Exit struct {
	Session   string
	Epoch     uint32
	Code      int32  // 128 + the signal's number when a signal ended it
	Signal    string // such as SIGKILL; empty when none
	Cause     string // completed, failed, oom-killed, lost, or what a stop or kill that came first said
	Message   string
	LastLine  uint64
	FirstLine uint64
	// InputsFrom is the last line before the oldest of the InputsMax latest inputs: the turns worth reading begin there.
	InputsFrom uint64
	LastInput  uint64 // the sequence of the last input; 0 for none
	Ended      int64  // Unix nanoseconds
	Boot       string
}

func (e *Exit) encode() []byte {
	var f fields
	f.str(tagSession, e.Session)
	f.num(tagEpoch, uint64(e.Epoch))
	f.num(tagExitCode, uint64(int64(e.Code)))
	f.str(tagExitSignal, e.Signal)
	f.str(tagCause, e.Cause)
	f.str(tagMessage, e.Message)
	f.num(tagLine, e.LastLine)
	f.num(tagFirstLine, e.FirstLine)
	f.num(tagInputsFrom, e.InputsFrom)
	f.num(tagLastInput, e.LastInput)
	f.num(tagEnded, uint64(e.Ended))
	f.str(tagBoot, e.Boot)
	return f
}

func decodeExit(b []byte) (*Exit, error) {
	e := new(Exit)
	err := each(b, func(t tag, v []byte) {
		switch t {
		case tagSession:
			e.Session = string(v)
		case tagEpoch:
			e.Epoch = uint32(num(v))
		case tagExitCode:
			e.Code = int32(num(v))
		case tagExitSignal:
			e.Signal = string(v)
		case tagCause:
			e.Cause = string(v)
		case tagMessage:
			e.Message = string(v)
		case tagLine:
			e.LastLine = num(v)
		case tagFirstLine:
			e.FirstLine = num(v)
		case tagInputsFrom:
			e.InputsFrom = num(v)
		case tagLastInput:
			e.LastInput = num(v)
		case tagEnded:
			e.Ended = int64(num(v))
		case tagBoot:
			e.Boot = string(v)
		}
	})
	return e, err
}

const (
	recordMagic   = "ORSR"
	recordVersion = 1
	recordHead    = 16
	slotBytes     = 16 << 10
	slotRun       = 0
	slotExit      = 1
	slots         = 2
)

// writeRecord fills a slot of the state file. A record that is written only in part is none, by its checksum, so it needs
// no file of its own to be renamed: each file costs a session's start more than all else that is done here.
func writeRecord(dir string, slot int64, payload []byte, sync bool) error {
	if len(payload) > slotBytes-recordHead {
		return fmt.Errorf("a record of %d bytes has no room", len(payload))
	}
	b := make([]byte, recordHead, recordHead+len(payload))
	copy(b, recordMagic)
	b[4] = recordVersion
	binary.LittleEndian.PutUint32(b[8:], crc32.ChecksumIEEE(payload))
	binary.LittleEndian.PutUint32(b[12:], uint32(len(payload)))
	path := filepath.Join(dir, StateName)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if n, err := unix.Pwrite(fd, append(b, payload...), slot*slotBytes); err != nil || n < recordHead+len(payload) {
		return &os.PathError{Op: "write", Path: path, Err: cmp.Or(err, error(unix.ENOSPC))}
	}
	if !sync {
		return nil
	}
	if err := unix.Fsync(fd); err != nil {
		return &os.PathError{Op: "fsync", Path: path, Err: err}
	}
	return syncDir(dir)
}

// readRecord reads a slot; the error matches os.ErrNotExist when it holds no whole record.
func readRecord(dir string, slot int64) ([]byte, error) {
	path := filepath.Join(dir, StateName)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("shim: read a record: %w", err)
	}
	defer f.Close()
	b := make([]byte, slotBytes)
	n, err := f.ReadAt(b, slot*slotBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("shim: read a record: %w", err)
	}
	none := fmt.Errorf("shim: %s holds no record %d: %w", path, slot, os.ErrNotExist)
	if n < recordHead || string(b[:4]) != recordMagic || b[4] != recordVersion {
		return nil, none
	}
	length := binary.LittleEndian.Uint32(b[12:])
	if uint64(length) > uint64(n-recordHead) {
		return nil, none
	}
	payload := b[recordHead : recordHead+length]
	if crc32.ChecksumIEEE(payload) != binary.LittleEndian.Uint32(b[8:]) {
		return nil, none
	}
	return payload, nil
}

// clearState empties the state file: the next epoch begins.
func clearState(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("shim: clear the state: %w", err)
	}
	if err := f.Truncate(slots * slotBytes); err != nil {
		return fmt.Errorf("shim: clear the state: %w", err)
	}
	return nil
}

// LastWords is what the shim of a directory wrote to its standard error, at most 512 bytes of it.
func LastWords(dir string) string {
	f, err := os.Open(filepath.Join(dir, StateName))
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 512)
	n, _ := f.ReadAt(b, slots*slotBytes) // what can be read; mostly nothing
	return string(b[:n])
}

// ReadRun reads the run record of a session's directory; the error matches os.ErrNotExist when there is none.
func ReadRun(dir string) (*Run, error) {
	b, err := readRecord(dir, slotRun)
	if err != nil {
		return nil, err
	}
	r := new(Run)
	return r, each(b, r.field)
}

// ReadExit reads the exit record of a session's directory; the error matches os.ErrNotExist when there is none.
func ReadExit(dir string) (*Exit, error) {
	b, err := readRecord(dir, slotExit)
	if err != nil {
		return nil, err
	}
	return decodeExit(b)
}

// WriteExit writes the exit record; it is on disk when it returns.
func WriteExit(dir string, e *Exit) error {
	if err := writeRecord(dir, slotExit, e.encode(), true); err != nil {
		return fmt.Errorf("shim: write the exit record: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
