// The node's end of the link: connecting, backing off, coming back, noticing silence.

package nodelink

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// fakeServers is what a Client dials in these tests: by default each answers a hello with an ack.
type fakeServers struct {
	mu     sync.Mutex
	dials  []string
	times  []time.Time
	refuse func(server string) error
	ack    *nodev1.HelloAck
	mute   bool // take the link and the hello, and say nothing
	conns  chan Conn
	hellos chan *nodev1.Hello
	faults Faults
	wg     sync.WaitGroup
}

func newFakeServers() *fakeServers {
	return &fakeServers{ack: ackFrame().GetHelloAck(), conns: make(chan Conn, 100), hellos: make(chan *nodev1.Hello, 100)}
}

func (s *fakeServers) dial(ctx context.Context, server string) (Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dials, s.times = append(s.dials, server), append(s.times, time.Now())
	if s.refuse != nil {
		if err := s.refuse(server); err != nil {
			return nil, err
		}
	}
	node, srv := FaultyPipe(s.faults)
	mute, ack := s.mute, s.ack
	s.wg.Go(func() {
		f, err := srv.Recv(ctx)
		if err != nil {
			return
		}
		s.hellos <- f.GetHello()
		if !mute {
			_ = srv.Send(&nodev1.Frame{Payload: &nodev1.Frame_HelloAck{HelloAck: ack}})
		}
		s.conns <- srv
	})
	return node, nil
}

// run runs a Client in a bubble for the body, then ends it.
func run(t *testing.T, s *fakeServers, change func(*ClientOptions), body func(c *Client)) {
	t.Helper()
	o := ClientOptions{
		Servers: []string{"a", "b", "c"}, Dial: s.dial, Logger: testLogger(t), Rand: func() float64 { return 0.999 },
		Hello: func() *nodev1.Hello { return &nodev1.Hello{NodeId: "n1", Incarnation: 4} },
	}
	if change != nil {
		change(&o)
	}
	c, err := NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Send(heartbeatFrame(1)); !errors.Is(err, ErrClosed) {
		t.Errorf("before the first link, Send gave %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	body(c)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	s.wg.Wait()
	if c.State() != Disconnected {
		t.Errorf("after Run the state is %s", c.State())
	}
}

func TestClientConnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeServers()
		var acked []string
		run(t, s, func(o *ClientOptions) {
			o.OnAck = func(server string, ack *nodev1.HelloAck) { acked = append(acked, server+"/"+ack.GetClusterId()) }
		}, func(c *Client) {
			synctest.Wait()
			hello := <-s.hellos
			if c.State() != Connected || c.Server() != "c" || len(acked) != 1 || acked[0] != "c/c1" {
				t.Errorf("state %s at %s, acks %v", c.State(), c.Server(), acked)
			}
			if hello.GetProtocolMin() != ProtocolMin || hello.GetProtocolMax() != ProtocolMax || hello.GetLinkNumber() != 1 || hello.GetNodeId() != "n1" {
				t.Errorf("hello was %v", hello)
			}
		})
		srv := <-s.conns
		frames, err := recvEnd(t, srv)
		if len(frames) != 1 || frames[0].GetGoodbye() == nil {
			t.Errorf("at the end the server got %v", frames)
		}
		var ce *CloseError
		if !errors.As(err, &ce) || ce.Code != CloseGoingAway || !ce.Remote {
			t.Errorf("the link ended with %v", err)
		}
	})
}

// What a node runs ends with its lease: while that lasts, no delay is longer than a quarter of it.
func TestClientHurriesWhileTheLeaseLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeServers()
		s.ack = &nodev1.HelloAck{Protocol: ProtocolMax, ClusterId: "c1", Lease: durationpb.New(12 * time.Second)}
		run(t, s, nil, func(*Client) {
			synctest.Wait()
			s.mu.Lock()
			s.refuse = func(string) error { return fault.New(fault.Unavailable, "nobody there") }
			s.mu.Unlock()
			Cut(<-s.conns)
			time.Sleep(time.Minute)
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			var delays []string
			for i := 1; i < len(s.times); i++ {
				delays = append(delays, s.times[i].Sub(s.times[i-1]).Round(100*time.Millisecond).String())
			}
			if got, want := strings.Join(delays, " "), "1s 1s 2s 3s 3s 3s 32s"; got != want {
				t.Errorf("delays %s, want %s", got, want)
			}
		})
	})
}

// Ten failures: the delays double with their jitter, servers rotate, the state becomes failed and an event says so; it
// goes on slowly, and recovers by itself.
func TestClientBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeServers()
		down := true
		s.refuse = func(string) error {
			if down {
				return fault.New(fault.Unavailable, "nobody there")
			}
			return nil
		}
		run(t, s, func(o *ClientOptions) { o.Rand = func() float64 { return 0.5 } }, func(c *Client) {
			events, stop := c.Subscribe(1000)
			defer stop()
			time.Sleep(20 * time.Minute)
			synctest.Wait()
			if c.State() != Failed {
				t.Errorf("the state is %s", c.State())
			}
			s.mu.Lock()
			var delays []time.Duration
			for i := 1; i < len(s.times) && i < 13; i++ {
				delays = append(delays, s.times[i].Sub(s.times[i-1]))
			}
			// Half of 1, 2, 4 … 60 s for nine failures, then a minute each.
			want := "[500ms 1s 2s 4s 8s 16s 30s 30s 30s 1m0s 1m0s 1m0s]"
			if got := fmt.Sprint(delays); got != want {
				t.Errorf("delays %s, want %s", got, want)
			}
			if got := strings.Join(s.dials[:6], ""); got != "bcabca" {
				t.Errorf("dialled %s", got)
			}
			down = false
			s.mu.Unlock()
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			if c.State() != Connected {
				t.Errorf("after recovery the state is %s", c.State())
			}
			count := map[EventType]int{}
			var last Event
			for len(events) > 0 {
				last = <-events
				count[last.Type]++
				if last.Type == EventReconnectFailed && last.Attempt != 10 {
					t.Errorf("reconnect-failed after %d attempts", last.Attempt)
				}
			}
			if count[EventReconnectFailed] != 1 || count[EventConnected] != 1 || last.Type != EventConnected || count[EventReconnecting] != count[EventError] {
				t.Errorf("events %v", count)
			}
		})
	})
}

// A lost link is dialled again at the next server, with the jitter of a first failure; sends fail meanwhile, except what
// may be late.
func TestClientReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeServers()
		var downs []error
		run(t, s, func(o *ClientOptions) {
			o.OnDown = func(err error) { downs = append(downs, err) }
		}, func(c *Client) {
			events, stop := c.Subscribe(100)
			defer stop()
			time.Sleep(time.Minute)
			first := <-s.conns
			Cut(first)
			synctest.Wait()
			if c.State() != Reconnecting || len(downs) != 1 || !errors.Is(downs[0], ErrClosed) {
				t.Fatalf("state %s, downs %v", c.State(), downs)
			}
			// While it is down: facts wait, at most SendQueueMax; nothing else does.
			for i := range uint64(SendQueueMax) {
				mustSend(t, c, factsFrame(4, i+1))
			}
			if err := c.Send(factsFrame(4, 5000)); !errors.Is(err, ErrQueueFull) {
				t.Errorf("with a full queue, Send gave %v", err)
			}
			if err := c.Send(heartbeatFrame(1)); !errors.Is(err, ErrClosed) {
				t.Errorf("a heartbeat without a link gave %v", err)
			}
			if _, err := c.Request(t.Context(), heartbeatFrame(1)); !fault.Is(err, fault.Unavailable) {
				t.Errorf("a request without a link gave %v", err)
			}
			s.mu.Lock()
			s.ack = &nodev1.HelloAck{Protocol: 1, FactIndex: 10} // the leader has the first ten already
			s.mu.Unlock()
			time.Sleep(time.Second)
			synctest.Wait()
			if c.State() != Connected || c.Server() != "a" {
				t.Errorf("state %s at %s", c.State(), c.Server())
			}
			mustSend(t, c, heartbeatFrame(2)) // behind the facts, and there is room for it
			second := <-s.conns
			for i := uint64(11); i <= SendQueueMax; i++ {
				if f := recv(t, second); f.GetFacts().GetFacts()[0].GetIndex() != i {
					t.Fatalf("got %v, want fact %d", f, i)
				}
			}
			sameFrame(t, recv(t, second), heartbeatFrame(2))
			var seen []string
			spawned := 0
			for len(events) > 0 {
				e := <-events
				if e.Type == EventSessionSpawned {
					spawned++
					continue
				}
				seen = append(seen, string(e.Type))
			}
			// The flood of spawned sessions may push the oldest events out of the subscriber's buffer.
			const want, last = "connecting connected disconnected reconnecting connecting connected", "disconnected reconnecting connecting connected"
			if got := strings.Join(seen, " "); !strings.HasSuffix(want, got) || !strings.HasSuffix(got, last) {
				t.Errorf("events: %s", got)
			}
			if spawned < 90 { // as many as the subscriber's buffer took
				t.Errorf("%d session-spawned events", spawned)
			}
			<-s.hellos
			if h := <-s.hellos; h.GetLinkNumber() != 2 {
				t.Errorf("the second link has number %d", h.GetLinkNumber())
			}
		})
	})
}

// A server that has gone silent is left after half the lease.
func TestClientLeavesSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeServers()
		s.ack = &nodev1.HelloAck{Protocol: 1, Lease: durationpb.New(12 * time.Second)}
		var black atomic.Bool
		s.faults = func(Direction, *nodev1.Frame) Verdict { return Verdict{Drop: black.Load()} }
		run(t, s, nil, func(c *Client) {
			time.Sleep(10 * time.Minute) // idle, but pinged: it stays
			synctest.Wait()
			if c.State() != Connected || len(s.times) != 1 {
				t.Fatalf("state %s after %d dials", c.State(), len(s.times))
			}
			black.Store(true)
			time.Sleep(6*time.Second + time.Millisecond)
			synctest.Wait()
			if c.State() != Reconnecting {
				t.Errorf("after half a lease of silence the state is %s", c.State())
			}
			black.Store(false)
			time.Sleep(time.Second)
			synctest.Wait()
			if c.State() != Connected {
				t.Errorf("the state is %s", c.State())
			}
		})
	})
}

// No leader answers the hello: the attempt fails, and the next server is tried.
func TestClientHelloTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeServers()
		s.mute = true
		run(t, s, nil, func(c *Client) {
			time.Sleep(DefaultHelloTimeout - time.Second)
			synctest.Wait()
			if len(s.dials) != 1 {
				t.Errorf("dialled %v", s.dials)
			}
			s.mu.Lock()
			s.mute = false
			s.mu.Unlock()
			time.Sleep(3 * time.Second)
			synctest.Wait()
			if c.State() != Connected || len(s.dials) != 2 {
				t.Errorf("state %s, dialled %v", c.State(), s.dials)
			}
		})
	})
}

// Another leader's hello_ack on the same link: OnAck comes again, requests and streams of the earlier one end.
func TestClientNewLeaderOnSameLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeServers()
		acks := 0
		streamEnd := make(chan error, 1)
		run(t, s, func(o *ClientOptions) {
			o.OnAck = func(string, *nodev1.HelloAck) { acks++ }
			o.OnStream = func(ctx context.Context, st *Stream) {
				_, err := st.Recv(ctx)
				streamEnd <- err
			}
		}, func(c *Client) {
			synctest.Wait()
			srv := <-s.conns
			mustSend(t, srv, &nodev1.Frame{Payload: &nodev1.Frame_StreamOpen{StreamOpen: &nodev1.StreamOpen{StreamId: 1, Window: 100}}})
			answer := make(chan error, 1)
			go func() {
				_, err := c.Request(t.Context(), &nodev1.Frame{Payload: &nodev1.Frame_GetHealth{GetHealth: &nodev1.GetHealth{}}})
				answer <- err
			}()
			synctest.Wait()
			request := recv(t, srv)
			mustSend(t, srv, ackFrame())
			synctest.Wait()
			if acks != 2 || c.State() != Connected || len(s.dials) != 1 {
				t.Errorf("%d acks, state %s, dials %v", acks, c.State(), s.dials)
			}
			if err := <-answer; !fault.Is(err, fault.Unavailable) {
				t.Errorf("the request under the earlier leader gave %v", err)
			}
			if err := <-streamEnd; !errors.Is(err, ErrClosed) {
				t.Errorf("the stream under the earlier leader ended with %v", err)
			}
			// The earlier request's answer comes late: counted, and given to nobody.
			mustSend(t, srv, &nodev1.Frame{RequestId: request.GetRequestId(), Payload: &nodev1.Frame_HealthResponse{HealthResponse: &nodev1.HealthResponse{}}})
			synctest.Wait()
			if c.LateAnswers() != 1 {
				t.Errorf("%d late answers", c.LateAnswers())
			}
		})
	})
}

// What a server says before it closes is the reason that the node knows.
func TestClientHearsReasons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeServers()
		var downs []error
		run(t, s, func(o *ClientOptions) { o.OnDown = func(err error) { downs = append(downs, err) } }, func(c *Client) {
			synctest.Wait()
			srv := (<-s.conns).(carrier)
			refuse(srv, violates(CloseProtocol, fault.Invalid, "that was wrong"))
			synctest.Wait()
			if len(downs) != 1 || !fault.Is(downs[0], fault.Invalid) || !strings.Contains(downs[0].Error(), "that was wrong") {
				t.Errorf("downs: %v", downs)
			}
			time.Sleep(20 * time.Second)
			srv = (<-s.conns).(carrier)
			_ = srv.Send(&nodev1.Frame{Payload: &nodev1.Frame_Goodbye{Goodbye: &nodev1.Goodbye{Reason: "upgrade"}}})
			srv.closeWith(CloseGoingAway, "upgrade")
			synctest.Wait()
			if len(downs) != 2 || !fault.Is(downs[1], fault.Unavailable) || !strings.Contains(downs[1].Error(), "said goodbye: upgrade") {
				t.Errorf("downs: %v", downs)
			}
			time.Sleep(2 * time.Second)
			srv = (<-s.conns).(carrier)
			dials := len(s.dials)
			srv.closeWith(CloseSuperseded, reasonSuperseded)
			time.Sleep(DefaultSlowInterval - time.Second)
			synctest.Wait()
			if len(s.dials) != dials {
				t.Error("a superseded client came back at once; two agents would fight for ever")
			}
		})
	})
}

// Facts whose predecessors went down with an earlier link do not go to a leader that lacks those: it would take the later
// ones for all there is.
func TestClientLeavesNoGapInFacts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeServers()
		run(t, s, nil, func(c *Client) {
			synctest.Wait()
			first := <-s.conns
			mustSend(t, c, factsFrame(4, 1, 2)) // taken, and lost with its link
			if err := c.Send(factsFrame(4, 4)); !errors.Is(err, ErrClosed) {
				t.Errorf("a gap on one link gave %v", err)
			}
			Cut(first)
			synctest.Wait()
			mustSend(t, c, factsFrame(4, 3)) // waits for a link
			time.Sleep(time.Second)
			synctest.Wait()
			second := <-s.conns
			if err := c.Send(factsFrame(4, 4)); !errors.Is(err, ErrClosed) {
				t.Errorf("facts with a gap before them gave %v", err)
			}
			mustSend(t, c, factsFrame(4, 1, 2, 3)) // their sender has heard of the link
			mustSend(t, c, factsFrame(4, 4))
			mustSend(t, c, factsFrame(4, 2)) // again is no gap
			for _, want := range []uint64{1, 4, 2} {
				if f := recv(t, second); f.GetFacts().GetFacts()[0].GetIndex() != want {
					t.Errorf("got %v, want facts from %d", f, want)
				}
			}
			mustSend(t, second, &nodev1.Frame{Payload: &nodev1.Frame_HelloAck{HelloAck: &nodev1.HelloAck{Protocol: 1, FactIndex: 2}}})
			synctest.Wait()
			if err := c.Send(factsFrame(4, 5)); !errors.Is(err, ErrClosed) {
				t.Errorf("facts with a gap under a new leader gave %v", err)
			}
			mustSend(t, c, factsFrame(4, 3, 4, 5))
		})
	})
}

func TestClientFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeServers()
		var got []string
		run(t, s, func(o *ClientOptions) {
			o.OnAck = func(string, *nodev1.HelloAck) { got = append(got, "ack") }
			o.OnFrame = func(f *nodev1.Frame) { got = append(got, fmt.Sprint(f.GetHeartbeatAck().GetSentAt())) }
		}, func(c *Client) {
			synctest.Wait()
			srv := <-s.conns
			for i := range int64(5) {
				mustSend(t, srv, heartbeatAckFrame(i))
			}
			mustSend(t, srv, &nodev1.Frame{RequestId: "not-mine", Payload: &nodev1.Frame_HealthResponse{}})
			synctest.Wait()
			if g := strings.Join(got, " "); g != "ack 0 1 2 3 4" {
				t.Errorf("got %s", g)
			}
		})
	})
}

func TestEventsOnceAndMissed(t *testing.T) {
	var b broadcaster
	ch, stop := b.Subscribe(2)
	b.sent("a", factsFrame(1, 1, 2))
	b.sent("a", factsFrame(1, 1, 2, 3)) // sent again: only 3 is new, and finds no room
	b.emit(Event{Type: EventMessage})
	<-ch
	<-ch
	b.emit(Event{Type: EventConnected})
	if e := <-ch; e.Type != EventConnected || e.Missed != 2 {
		t.Errorf("got %v after %d missed", e.Type, e.Missed)
	}
	b.sent("a", factsFrame(2, 1)) // a new incarnation numbers anew
	if e := <-ch; e.Type != EventSessionSpawned || e.SessionID != "s" {
		t.Errorf("got %v", e)
	}
	stop()
}

func TestNewClientChecks(t *testing.T) {
	if _, err := NewClient(ClientOptions{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no servers gave %v", err)
	}
	if _, err := NewClient(ClientOptions{Servers: []string{"a"}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no dialler gave %v", err)
	}
}
