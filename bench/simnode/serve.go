// The helper's answers: start, counts.

package simnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"runtime/pprof"
	"sync"
	"time"

	"github.com/neolith/orchestrator/bench/testbed"
	"github.com/neolith/orchestrator/nodelink"
)

// Role is the name of the helper.
const Role = "nodes"

// StartArgs say how many nodes to simulate, and where they link.
type StartArgs struct {
	Access testbed.Access
	Count  int
	Prefix string
	// Within is the time over which the nodes are started, and Timeout how long it may take until all are linked.
	Within, Timeout time.Duration
	// Spread is the time over which heartbeats are spread.
	Spread time.Duration
}

// sourceAddresses is how many addresses the nodes dial from.
const sourceAddresses = 64

type fleet struct {
	counts counters
	cancel context.CancelFunc
	wait   sync.WaitGroup
}

// Serve returns what the helper answers.
func Serve() testbed.Handlers {
	f := &fleet{}
	return testbed.Handlers{
		"start":  testbed.Handle(f.start),
		"counts": testbed.Handle(func(context.Context, struct{}) (Counts, error) { return f.counts.get(), nil }),
		"stop":   testbed.Handle(f.stop),

		"profile": testbed.Handle(profile),
	}
}

// ProfileArgs say how long the nodes' own processor time is profiled, and into which file.
type ProfileArgs struct {
	File   string
	Length time.Duration
}

func profile(ctx context.Context, a ProfileArgs) (struct{}, error) {
	f, err := os.Create(a.File)
	if err != nil {
		return struct{}{}, err
	}
	defer f.Close()
	if err := pprof.StartCPUProfile(f); err != nil {
		return struct{}{}, err
	}
	defer pprof.StopCPUProfile()
	select {
	case <-time.After(a.Length):
	case <-ctx.Done():
	}
	return struct{}{}, nil
}

// start starts the nodes and waits until all are linked.
func (f *fleet) start(ctx context.Context, a StartArgs) (Counts, error) {
	if f.cancel != nil {
		return Counts{}, errors.New("the nodes were started already")
	}
	// What goes wrong with a link is seen in the counts; ten thousand nodes' lines would be seen by nobody.
	slog.SetDefault(slog.New(slog.DiscardHandler))
	ctx, f.cancel = context.WithCancel(ctx)
	options, err := a.Access.DialOptions()
	if err != nil {
		return Counts{}, err
	}
	var dials []func(context.Context, string) (nodelink.Conn, error)
	for i := range sourceAddresses {
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i+1))}}
		o := options
		o.NetDial, o.ConnectTimeout = d.DialContext, time.Minute
		dials = append(dials, nodelink.DialWebSocket(o))
	}
	pause := a.Within / time.Duration(max(a.Count, 1))
	for i := range a.Count {
		n, err := newNode(nodeName(a.Prefix, i), a.Access.Links, dials[i%len(dials)], &f.counts)
		if err != nil {
			return Counts{}, err
		}
		jitter := rand.N(max(a.Spread, 1))
		f.wait.Go(func() { n.run(ctx, jitter) })
		time.Sleep(pause)
	}
	return f.waitLinked(ctx, int64(a.Count), a.Timeout)
}

func (f *fleet) waitLinked(ctx context.Context, want int64, timeout time.Duration) (Counts, error) {
	deadline := time.After(timeout)
	for {
		c := f.counts.get()
		if c.Linked >= want {
			return c, nil
		}
		select {
		case <-deadline:
			return c, fmt.Errorf("%d of %d nodes are linked after %s (%d links were lost)", c.Linked, want, timeout, c.LinksLost)
		case <-ctx.Done():
			return c, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// stop ends the nodes.
func (f *fleet) stop(context.Context, struct{}) (Counts, error) {
	if f.cancel != nil {
		f.cancel()
		f.wait.Wait()
	}
	return f.counts.get(), nil
}
