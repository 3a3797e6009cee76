// Free ports that no other story, and no other run of the stories on this machine, is given too.
package stories

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
)

// The ports of stories: blocks below the range that the kernel gives to clients. The last port of a block is its guard:
// whoever listens there owns the block.
const (
	firstPort  = 10_000
	blockPorts = 32 // three servers, each ten ports after the other, and the guard
	blocks     = 60
)

// nextBlock is where this run looks first, so that blocks are not used again at once.
var nextBlock struct {
	sync.Mutex
	n int
}

// takePorts finds a free block and keeps it until the guard is closed.
func takePorts() (base int, guard io.Closer, err error) {
	nextBlock.Lock()
	defer nextBlock.Unlock()
	if nextBlock.n == 0 {
		nextBlock.n = os.Getpid()
	}
	for range blocks {
		nextBlock.n++
		base := firstPort + nextBlock.n%blocks*blockPorts
		guard, err := net.Listen("tcp", loopback(base+blockPorts-1))
		if err != nil {
			continue
		}
		if allFree(base) {
			return base, guard, nil
		}
		_ = guard.Close()
	}
	return 0, nil, errors.New("there are no free ports")
}

// allFree reports whether nobody listens on the ports of a block.
func allFree(base int) bool {
	for port := base; port < base+blockPorts-1; port++ {
		t, err := net.Listen("tcp", loopback(port))
		if err != nil {
			return false
		}
		_ = t.Close()
		u, err := net.ListenPacket("udp", loopback(port))
		if err != nil {
			return false
		}
		_ = u.Close()
	}
	return true
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
