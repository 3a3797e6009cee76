// Command peers measures other durable queues the way `bench queue` measures the orchestrator: so many callers, each publishing a message,
// durably, and waiting until it was delivered to a consumer and acked. It writes a summary as JSON. It is a module of its own, so that what
// it links is not of the product.
//
//	peers nats     -dir DIR -callers 256 -bytes 256 -warm 1s -length 3s
//	peers rabbitmq -dir DIR …
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/neolith/orchestrator/bench/measure"
)

// exitMissing says that the peer is not on this machine; bench/suite reads it.
const exitMissing = 3

// errMissing tells so.
var errMissing = errors.New("it is not on this machine")

// options say what to measure.
type options struct {
	dir            string
	callers, bytes int
	warm, length   time.Duration
}

// peers are what can be measured.
var peers = map[string]func(ctx context.Context, o options) (measure.Summary, error){"nats": nats, "rabbitmq": rabbitmq}

func main() {
	if len(os.Args) > 1 && os.Args[1] == natsServerRole {
		exit(natsServer(os.Args[2:]))
	}
	exit(run(os.Args[1:]))
}

func exit(err error) {
	switch {
	case errors.Is(err, errMissing):
		fmt.Fprintf(os.Stderr, "peers: %v\n", err)
		os.Exit(exitMissing)
	case err != nil:
		fmt.Fprintf(os.Stderr, "peers: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(args []string) error {
	if len(args) == 0 || peers[args[0]] == nil {
		return errors.New("say what to measure: nats or rabbitmq")
	}
	var o options
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	f.StringVar(&o.dir, "dir", "", "an empty directory on the disk to measure")
	f.IntVar(&o.callers, "callers", 256, "how many publish, each waiting for its message's ack")
	f.IntVar(&o.bytes, "bytes", 256, "of a message")
	f.DurationVar(&o.warm, "warm", time.Second, "before it counts")
	f.DurationVar(&o.length, "length", 3*time.Second, "how long it counts")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	if o.dir == "" || o.callers < 1 || o.bytes < callerBytes {
		return fmt.Errorf("-dir is missing, or there are no callers, or messages are under %d bytes", callerBytes)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := peers[args[0]](ctx, o)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

// callerBytes is how much of a message says whose it is.
const callerBytes = 4

// ackTimeout is how long a caller waits for its message's ack.
const ackTimeout = 30 * time.Second

// load has callers publish and wait; acked is told of each message that was acked.
type load struct {
	o     options
	acks  []chan struct{} // by caller
	texts [][]byte
}

func newLoad(o options) *load {
	l := &load{o: o}
	for i := range o.callers {
		text := make([]byte, o.bytes)
		binary.BigEndian.PutUint32(text, uint32(i))
		l.texts, l.acks = append(l.texts, text), append(l.acks, make(chan struct{}, 1))
	}
	return l
}

// acked is told of a message that was acked.
func (l *load) acked(message []byte) {
	if len(message) < callerBytes {
		return
	}
	if i := int(binary.BigEndian.Uint32(message)); i < len(l.acks) {
		select {
		case l.acks[i] <- struct{}{}:
		default: // it came twice
		}
	}
}

// run measures; publish returns once the message is durable.
func (l *load) run(publish func(caller int, text []byte) error) measure.Summary {
	return measure.ClosedLoop(l.o.callers, l.o.warm, l.o.length, func(caller int) error {
		if err := publish(caller, l.texts[caller]); err != nil {
			return err
		}
		select {
		case <-l.acks[caller]:
			return nil
		case <-time.After(ackTimeout):
			return errors.New("no ack came")
		}
	})
}

// freePorts finds ports on loopback that nobody listens on now.
func freePorts(n int) ([]int, error) {
	var found []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close()
		found = append(found, l.Addr().(*net.TCPAddr).Port)
	}
	return found, nil
}

// retry repeats f until it succeeds, or ctx ends.
func retry(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}
