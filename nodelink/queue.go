// The bounded queue of encoded frames that wait for a carrier.

package nodelink

// sendQueue holds encoded frames in two lanes. Control frames go first: a heartbeat must not wait behind megabytes of
// logs, or the lease lapses. Its owner locks it.
type sendQueue struct {
	control, bulk lane
	bytes         int
	reserved      int // frames beyond SendQueueMax that a reconnect has put in; see reserve
}

// lane is a first-in first-out list that costs nothing while it is empty.
type lane struct {
	items [][]byte
	head  int
}

func (l *lane) len() int { return len(l.items) - l.head }

func (l *lane) push(b []byte) { l.items = append(l.items, b) }

func (l *lane) pop() []byte {
	b := l.items[l.head]
	l.items[l.head] = nil
	if l.head++; l.head == len(l.items) {
		l.head = 0
		if cap(l.items) > 4 {
			l.items = nil // an idle link keeps no memory for its busiest hour
		} else {
			l.items = l.items[:0]
		}
	} else if l.head > 64 && l.head > len(l.items)/2 {
		n := copy(l.items, l.items[l.head:])
		clear(l.items[n:])
		l.items, l.head = l.items[:n], 0
	}
	return b
}

func (q *sendQueue) len() int { return q.control.len() + q.bulk.len() }

// push reports whether there was room. One frame always fits into an empty queue.
func (q *sendQueue) push(b []byte, bulk bool) bool {
	maxFrames, maxBytes, n := SendQueueMax+q.reserved, SendQueueMaxBytes, q.len()
	if bulk {
		maxFrames, maxBytes = SendQueueMax/2, SendQueueMaxBytes/2
	}
	if n >= maxFrames || (n > 0 && q.bytes+len(b) > maxBytes) {
		return false
	}
	q.bytes += len(b)
	if bulk {
		q.bulk.push(b)
	} else {
		q.control.push(b)
	}
	return true
}

// pop returns the next frame, nil when there is none.
func (q *sendQueue) pop() []byte {
	var b []byte
	switch {
	case q.control.len() > 0:
		b = q.control.pop()
	case q.bulk.len() > 0:
		b = q.bulk.pop()
	default:
		return nil
	}
	if q.bytes -= len(b); q.len() == 0 {
		q.reserved = 0
	}
	return b
}

// clear drops everything and returns how many frames that were.
func (q *sendQueue) clear() int {
	n := q.len()
	*q = sendQueue{}
	return n
}

// reserve makes room for n more control frames until the queue is empty again, so that what waited for a link does not
// take the place of what is sent when it is up.
func (q *sendQueue) reserve(n int) { q.reserved = n }
