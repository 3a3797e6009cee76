// Frames and fields: the bytes of the protocol and of the files.

package shim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	frameMagic       = 'S'
	protocolVersion  = 1
	frameHeaderBytes = 12
	// MaxFrameBytes bounds a payload.
	MaxFrameBytes = 4 << 20
)

type frameType byte

const (
	typeStart      frameType = 1
	typeStatus     frameType = 2
	typeInput      frameType = 3
	typeCloseStdin frameType = 4
	typeSignal     frameType = 5
	typeStop       frameType = 6
	typeKill       frameType = 7
	typeResize     frameType = 8
	typeSubscribe  frameType = 9
	typeAttach     frameType = 10
	typeListen     frameType = 11
	typeOK         frameType = 64
	typeError      frameType = 65
	typeGrew       frameType = 96
	typeExited     frameType = 97
	typeOutput     frameType = 98
	typeSkipped    frameType = 99
)

type tag byte

const (
	tagSession      tag = 1
	tagEpoch        tag = 2
	tagArg          tag = 3
	tagEnv          tag = 4
	tagDir          tag = 5
	tagLogDir       tag = 6
	tagLease        tag = 7
	tagBase         tag = 8
	tagFlags        tag = 9
	tagColumns      tag = 10
	tagRows         tag = 11
	tagFlushIdle    tag = 12
	tagSegmentBytes tag = 13
	tagTotalBytes   tag = 14
	tagCgroup2      tag = 15
	tagCgroup1      tag = 16
	tagStartBy      tag = 17
	tagPID          tag = 20
	tagStartTime    tag = 21
	tagStarted      tag = 22
	tagLine         tag = 23
	tagFirstLine    tag = 24
	tagInput        tag = 25
	tagStdinBytes   tag = 26
	tagSequence     tag = 30
	tagData         tag = 31
	tagSignal       tag = 32
	tagGrace        tag = 33
	tagCause        tag = 34
	tagMessage      tag = 35
	tagErrorCode    tag = 36
	tagSkipped      tag = 38
	tagExitCode     tag = 40
	tagExitSignal   tag = 41
	tagEnded        tag = 42
	tagInputsFrom   tag = 43
	tagLastInput    tag = 44
	tagBoot         tag = 45
	tagShimPID      tag = 46
	tagShimStart    tag = 47
	tagExit         tag = 50
)

const (
	flagTerminal = 1
	flagExec     = 2
)

// ErrorCode says what kind of refusal an Error is.
type ErrorCode uint64

// The codes, as the protocol has them.
const (
	CodeInternal    ErrorCode = 1
	CodeFull        ErrorCode = 2
	CodeEnded       ErrorCode = 3
	CodeUnsupported ErrorCode = 4
	CodeStartFailed ErrorCode = 5
	CodeBrokenPipe  ErrorCode = 6
	CodeLog         ErrorCode = 7
	CodeLapsed      ErrorCode = 8
	CodeInvalid     ErrorCode = 9
)

// Error is a shim's refusal of a request.
type Error struct {
	Code    ErrorCode
	Message string
}

func (e *Error) Error() string { return "shim: " + e.Message }

func refuse(code ErrorCode, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

var errMalformed = errors.New("shim: the bytes are not what the protocol has")

// fields builds a payload.
type fields []byte

func (f *fields) bytes(t tag, v []byte) {
	*f = append(*f, byte(t))
	*f = binary.LittleEndian.AppendUint32(*f, uint32(len(v)))
	*f = append(*f, v...)
}

func (f *fields) str(t tag, v string) {
	*f = append(*f, byte(t))
	*f = binary.LittleEndian.AppendUint32(*f, uint32(len(v)))
	*f = append(*f, v...)
}

func (f *fields) num(t tag, v uint64) {
	*f = append(*f, byte(t), 8, 0, 0, 0)
	*f = binary.LittleEndian.AppendUint64(*f, v)
}

// each calls get for every field; values stay in b.
func each(b []byte, get func(t tag, v []byte)) error {
	for len(b) > 0 {
		if len(b) < 5 {
			return errMalformed
		}
		n := binary.LittleEndian.Uint32(b[1:])
		if uint64(n) > uint64(len(b)-5) {
			return errMalformed
		}
		get(tag(b[0]), b[5:5+n])
		b = b[5+n:]
	}
	return nil
}

// num reads a number's value; a value of another length is 0.
func num(v []byte) uint64 {
	if len(v) != 8 {
		return 0
	}
	return binary.LittleEndian.Uint64(v)
}

// lookup returns the first field of a tag as a number.
func lookup(b []byte, want tag) (n uint64) {
	found := false
	_ = each(b, func(t tag, v []byte) {
		if t == want && !found {
			n, found = num(v), true
		}
	})
	return n
}

type frame struct {
	typ     frameType
	request uint32
	payload []byte
}

func encodeFrame(typ frameType, request uint32, payload []byte) []byte {
	b := make([]byte, frameHeaderBytes, frameHeaderBytes+len(payload))
	b[0], b[1], b[2] = frameMagic, protocolVersion, byte(typ)
	binary.LittleEndian.PutUint32(b[4:], request)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(payload)))
	return append(b, payload...)
}

func readFrame(r io.Reader) (frame, error) {
	var h [frameHeaderBytes]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, err
	}
	n := binary.LittleEndian.Uint32(h[8:])
	if h[0] != frameMagic || h[1] != protocolVersion || n > MaxFrameBytes {
		return frame{}, errMalformed
	}
	f := frame{typ: frameType(h[2]), request: binary.LittleEndian.Uint32(h[4:]), payload: make([]byte, n)}
	if _, err := io.ReadFull(r, f.payload); err != nil {
		return frame{}, err
	}
	return f, nil
}
