// What both ends agree on: paths, bounds, records, and how errors are said.

package http

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

// Path is where chunks are, below a server's address.
const Path = "/v1/chunks/"

// The bounds of requests.
const (
	MissingMax       = 16 << 10 // ids in a question what is missing
	BatchMax         = 1 << 10  // chunks in a batch
	PutBatchMaxBytes = 16 << 20 // the body of a batch that is put

	errorMaxBytes  = 64 << 10                       // an error's body
	resultMaxBytes = BatchMax*1<<10 + errorMaxBytes // the answer to a batch that is put
	messageMax     = 600                            // bytes of an error's sentence
)

// What stands in bodies.
const (
	idBytes        = len(chunk.ID{})
	putRecordBytes = idBytes + 4     // before each frame of a batch that is put
	gotRecordBytes = idBytes + 1 + 4 // before each frame of a batch that is got
	gotFrame       = 0               // a record holds a frame
	gotError       = 1               // a record holds an error, as JSON

	typeBinary = "application/octet-stream" // of ids, frames and records
	typeJSON   = "application/json"         // of errors and results
)

// kinds says each kind of error on the wire, as a google.rpc.Code and a status.
var kinds = map[fault.Kind]struct {
	code   string
	status int
}{
	fault.Internal:           {"INTERNAL", http.StatusInternalServerError},
	fault.Invalid:            {"INVALID_ARGUMENT", http.StatusBadRequest},
	fault.NotFound:           {"NOT_FOUND", http.StatusNotFound},
	fault.AlreadyExists:      {"ALREADY_EXISTS", http.StatusConflict},
	fault.FailedPrecondition: {"FAILED_PRECONDITION", http.StatusConflict},
	fault.Exhausted:          {"RESOURCE_EXHAUSTED", http.StatusTooManyRequests},
	fault.Unavailable:        {"UNAVAILABLE", http.StatusServiceUnavailable},
	fault.Unauthenticated:    {"UNAUTHENTICATED", http.StatusUnauthorized},
	fault.PermissionDenied:   {"PERMISSION_DENIED", http.StatusForbidden},
	fault.Timeout:            {"DEADLINE_EXCEEDED", http.StatusGatewayTimeout},
	fault.Aborted:            {"ABORTED", http.StatusConflict},
	fault.Unimplemented:      {"UNIMPLEMENTED", http.StatusNotImplemented},
}

// failure is an error as JSON.
type failure struct {
	Index        *int   `json:"index,omitempty"` // of the frame in a batch
	Error        string `json:"error"`
	Code         string `json:"code"`
	Corrupt      bool   `json:"corrupt,omitempty"` // it matches chunk.ErrCorrupt
	RetryAfterMs int64  `json:"retryAfterMs,omitempty"`
}

// putResult is the answer to a batch that is put.
type putResult struct {
	Stored int       `json:"stored"`
	Failed []failure `json:"failed,omitempty"`
}

// failureOf says an error.
func failureOf(err error) (failure, int) {
	kind := fault.KindOf(err)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		kind = fault.Timeout
	case errors.Is(err, context.Canceled):
		kind = fault.Unavailable
	}
	said, ok := kinds[kind]
	if !ok {
		said = kinds[fault.Internal]
	}
	f := failure{Error: err.Error(), Code: said.code, Corrupt: errors.Is(err, chunk.ErrCorrupt)}
	if len(f.Error) > messageMax {
		f.Error = f.Error[:messageMax] + "…"
	}
	if e := fault.As(err); e != nil && e.RetryAfter > 0 {
		f.RetryAfterMs = max(e.RetryAfter.Milliseconds(), 1)
	}
	return f, said.status
}

// err is the inverse of failureOf; where says who answered.
func (f failure) err(where string) error {
	kind := fault.Internal
	for k, said := range kinds {
		if said.code == f.Code {
			kind = k
		}
	}
	cause := errors.New(f.Error)
	if f.Corrupt {
		cause = fmt.Errorf("%w: %s", chunk.ErrCorrupt, f.Error)
	}
	retry := time.Duration(min(max(f.RetryAfterMs, 0), math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
	return fault.New(kind, "%s answered: %w", where, cause).WithRetry(retry)
}

// writeError answers a request with an error.
func writeError(w http.ResponseWriter, err error) {
	f, status := failureOf(err)
	w.Header().Set("Content-Type", typeJSON)
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="orchestrator"`)
	}
	if f.RetryAfterMs > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt((f.RetryAfterMs+999)/1000, 10))
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(f) // the caller has gone
}

// putRecord returns what stands before a frame in a batch that is put.
func putRecord(id chunk.ID, frameBytes int) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, putRecordBytes), id[:]...), uint32(frameBytes))
}

// readPutRecord reads a record; io.EOF when there is no more.
func readPutRecord(r io.Reader) (id chunk.ID, frame []byte, err error) {
	var head [putRecordBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return id, nil, err
	}
	n := binary.BigEndian.Uint32(head[idBytes:])
	if n > chunk.MaxFrameBytes {
		return id, nil, fault.New(fault.Invalid, "chunks: a record of %d bytes, a frame has at most %d", n, chunk.MaxFrameBytes)
	}
	frame = make([]byte, n)
	if _, err := io.ReadFull(r, frame); err != nil {
		return id, nil, noEOF(err)
	}
	return chunk.ID(head[:idBytes]), frame, nil
}

// gotRecord returns what stands before a frame, or before an error, in the answer to a batch that is got.
func gotRecord(id chunk.ID, what byte, n int) []byte {
	b := append(append(make([]byte, 0, gotRecordBytes), id[:]...), what)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

// readGotRecord reads a record of an answer.
func readGotRecord(r io.Reader) (id chunk.ID, what byte, body []byte, err error) {
	var head [gotRecordBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return id, 0, nil, noEOF(err)
	}
	id, what = chunk.ID(head[:idBytes]), head[idBytes]
	n := binary.BigEndian.Uint32(head[idBytes+1:])
	if what != gotFrame && what != gotError || n > chunk.MaxFrameBytes {
		return id, what, nil, fmt.Errorf("a record of kind %d with %d bytes", what, n)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(r, body)
	return id, what, body, noEOF(err)
}

// noEOF is err for something that must not end here.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// packIDs and unpackIDs are lists of ids on the wire: 32 bytes each.
func packIDs(ids []chunk.ID) []byte {
	b := make([]byte, 0, len(ids)*idBytes)
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	return b
}

func unpackIDs(b []byte) ([]chunk.ID, error) {
	if len(b)%idBytes != 0 {
		return nil, fault.New(fault.Invalid, "chunks: a list of ids of %d bytes, which is no multiple of %d", len(b), idBytes)
	}
	ids := make([]chunk.ID, 0, len(b)/idBytes)
	for ; len(b) > 0; b = b[idBytes:] {
		ids = append(ids, chunk.ID(b))
	}
	return ids, nil
}
