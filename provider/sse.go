// Server-sent events, bounded.

package provider

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// eventBytesMax bounds one event.
const eventBytesMax = 1 << 20

var errEventTooLong = errors.New("an event of the stream is longer than 1 MiB")

// sseEvent is one event. Its data is valid until the next is read.
type sseEvent struct {
	name string
	data []byte
}

// sseReader reads events off a stream.
type sseReader struct {
	lines *bufio.Reader
	line  []byte
	data  []byte
	alive func() // called with each line, comments included
}

func newSSEReader(r io.Reader, alive func()) *sseReader {
	return &sseReader{lines: bufio.NewReaderSize(r, 16<<10), alive: alive}
}

// next returns the next event that has data. io.EOF comes between events; io.ErrUnexpectedEOF within one.
func (s *sseReader) next() (sseEvent, error) {
	var e sseEvent
	s.data = s.data[:0]
	begun := false
	for {
		line, err := s.readLine()
		if err != nil {
			if errors.Is(err, io.EOF) && (begun || len(line) > 0) {
				err = io.ErrUnexpectedEOF
			}
			return e, err
		}
		s.alive()
		if len(line) == 0 {
			if begun {
				e.data = s.data
				return e, nil
			}
			e.name = ""
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			e.name = string(value)
		case "data":
			if begun {
				s.data = append(s.data, '\n')
			}
			begun = true
			if s.data = append(s.data, value...); len(s.data) > eventBytesMax {
				return e, errEventTooLong
			}
		}
	}
}

// readLine returns a line without its end.
func (s *sseReader) readLine() ([]byte, error) {
	s.line = s.line[:0]
	for {
		part, err := s.lines.ReadSlice('\n')
		if s.line = append(s.line, part...); len(s.line) > eventBytesMax {
			return nil, errEventTooLong
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return s.line, err
		}
		return bytes.TrimRight(s.line, "\r\n"), nil
	}
}
