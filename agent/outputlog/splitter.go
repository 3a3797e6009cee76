// From bytes to lines.

package outputlog

import "bytes"

// Splitter cuts one stream into lines. The zero value is ready.
type Splitter struct {
	pending []byte // a line whose newline has not come, shorter than MaxLineBytes
}

// Write takes the next bytes of the stream and calls line for each line that they complete, and for each MaxLineBytes
// of one that is longer. The text is valid during the call.
func (s *Splitter) Write(b []byte, line func(text []byte, partial bool)) {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		room := MaxLineBytes - len(s.pending)
		switch {
		case i >= 0 && i <= room:
			text := b[:i]
			if len(s.pending) > 0 {
				s.pending = append(s.pending, text...)
				text = s.pending
			}
			line(text, false)
			s.reset()
			b = b[i+1:]
		case len(b) > room: // the line is longer than one record
			text := b[:room]
			if len(s.pending) > 0 {
				s.pending = append(s.pending, text...)
				text = s.pending
			}
			line(text, true)
			s.reset()
			b = b[room:]
		default:
			s.pending = append(s.pending, b...)
			return
		}
	}
}

// Pending is how many bytes wait for their newline.
func (s *Splitter) Pending() int { return len(s.pending) }

// Flush calls line with what waits for its newline, if anything does.
func (s *Splitter) Flush(partial bool, line func(text []byte, partial bool)) {
	if len(s.pending) > 0 {
		line(s.pending, partial)
		s.reset()
	}
}

func (s *Splitter) reset() {
	if cap(s.pending) > 64<<10 { // one long line must not cost its memory for ever
		s.pending = nil
	}
	s.pending = s.pending[:0]
}
