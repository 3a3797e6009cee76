// The hub: leading, following, changing between them, and links that come twice.

package nodelink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// relayServer serves a hub's relay over gRPC.
type relayServer struct {
	clusterv1.UnimplementedRelayServiceServer
	hub *Hub
}

func (r relayServer) Link(s grpc.BidiStreamingServer[clusterv1.LinkRequest, clusterv1.LinkResponse]) error {
	return r.hub.ServeRelay(s)
}

// serveRelay returns how a follower opens a relay to the hub, over real gRPC.
func serveRelay(t *testing.T, h *Hub) func(ctx context.Context) (RelayStream, error) {
	t.Helper()
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(RelayMessageMaxBytes))
	clusterv1.RegisterRelayServiceServer(srv, relayServer{hub: h})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(RelayMessageMaxBytes)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cc.Close()
		srv.Stop()
		if err := <-served; err != nil {
			t.Errorf("gRPC server: %v", err)
		}
	})
	return func(ctx context.Context) (RelayStream, error) {
		return clusterv1.NewRelayServiceClient(cc).Link(ctx)
	}
}

// Three servers over real sockets and real gRPC: nodes at all of them, one leader; then another.
func TestRelayOverGRPC(t *testing.T) {
	var hubs []*Hub
	var addrs []string
	var opens []func(context.Context) (RelayStream, error)
	for i := range 3 {
		h, addr := startHub(t, HubOptions{ServerID: fmt.Sprintf("s%d", i), Logger: testLogger(t)})
		hubs, addrs = append(hubs, h), append(addrs, addr)
	}
	for _, h := range hubs {
		opens = append(opens, serveRelay(t, h))
	}
	first := newEchoHandler()
	hubs[0].Lead(first)
	hubs[1].Follow(opens[0])
	hubs[2].Follow(opens[0])
	var nodes []Conn
	for i := range 6 {
		c := dialTest(t, addrs[i%3], DialOptions{JSON: i%2 == 1})
		mustSend(t, c, helloFrame(fmt.Sprintf("n%d", i), 1, 1))
		nodes = append(nodes, c)
	}
	exchange := func(round int64) {
		t.Helper()
		for _, c := range nodes {
			for i := range int64(100) {
				mustSend(t, c, heartbeatFrame(round+i))
			}
		}
		for n, c := range nodes {
			for i := range int64(100) {
				f := recv(t, c)
				if f.GetHeartbeatAck().GetSentAt() != round+i {
					t.Fatalf("node %d: got %v, want the ack of %d", n, f, round+i)
				}
			}
		}
	}
	for _, c := range nodes {
		sameFrame(t, recv(t, c), ackFrame())
	}
	exchange(1000)
	if l := first.link("n1"); l.Server() != "s1" || l.Hello().GetNodeId() != "n1" {
		t.Errorf("n1 is at %s", l.Server())
	}
	if st := hubs[0].Stats(); st.Links != 2 || st.RelayedLinks != 4 {
		t.Errorf("the leader has %d links and %d relayed ones", st.Links, st.RelayedLinks)
	}

	// A frame as large as frames get, through the relay, both ways.
	big := &nodev1.Frame{Payload: &nodev1.Frame_StreamData{StreamData: &nodev1.StreamData{StreamId: 1, Stdout: make([]byte, MaxFrameBytes-100)}}}
	mustSend(t, first.link("n4"), big)
	sameFrame(t, recv(t, nodes[4]), big)
	mustSend(t, nodes[4], big)
	first.await(t, "the large frame at the leader", func() bool { return slices.Contains(first.calls, "stream_data n4") })

	// Another leader: every node keeps its socket, and is greeted by the new one.
	old := first.link("n1")
	second := newEchoHandler()
	hubs[0].Pause()
	hubs[1].Lead(second)
	hubs[0].Follow(opens[1])
	hubs[2].Follow(opens[1])
	for _, c := range nodes {
		sameFrame(t, recv(t, c), ackFrame())
	}
	exchange(2000)
	if err := old.Send(heartbeatAckFrame(1)); !errors.Is(err, ErrClosed) {
		t.Errorf("the earlier leader could still send: %v", err)
	}
	first.mu.Lock()
	for _, call := range first.calls {
		if strings.HasPrefix(call, "down") {
			t.Errorf("the earlier leader was told: %s", call)
		}
	}
	first.mu.Unlock()

	// The leader closes a relayed link; a node closes one; a server goes.
	second.link("n0").Close(CloseNormal, "enough")
	_, err := recvEnd(t, nodes[0])
	var ce *CloseError
	if !errors.As(err, &ce) || ce.Reason != "enough" || !ce.Remote {
		t.Errorf("n0 ended with %v", err)
	}
	nodes[3].Close("bye")
	go func() { _, _ = recvEndQuiet(nodes[3]) }()
	second.await(t, "n0 and n3 down", func() bool {
		return slices.Contains(second.calls, "down n0: enough") && slices.Contains(second.calls, "down n3: bye")
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := hubs[2].Close(ctx); err != nil {
		t.Fatal(err)
	}
	frames, err := recvEnd(t, nodes[2])
	if len(frames) != 1 || frames[0].GetGoodbye() == nil || !errors.As(err, &ce) || ce.Code != CloseGoingAway {
		t.Errorf("n2 got %v and ended with %v", frames, err)
	}
	second.await(t, "the links of s2 down", func() bool { return second.links["n2"] == nil && second.links["n5"] == nil })
}

// Without leadership a relay is refused, and says so.
func TestServeRelayRefuses(t *testing.T) {
	h := NewHub(HubOptions{ServerID: "s1"})
	for _, tc := range []struct {
		name string
		set  func()
		send *clusterv1.LinkRequest
		want codes.Code
	}{
		{"paused", h.Pause, &clusterv1.LinkRequest{ServerId: "s2"}, codes.FailedPrecondition},
		{"nameless", func() { h.Lead(newEchoHandler()) }, &clusterv1.LinkRequest{}, codes.InvalidArgument},
		{"closed", func() { _ = h.Close(t.Context()) }, &clusterv1.LinkRequest{ServerId: "s2"}, codes.FailedPrecondition},
	} {
		tc.set()
		s := RelayPipe(t.Context(), h.ServeRelay)
		_ = s.Send(tc.send)
		if _, err := s.Recv(); status.Code(err) != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
	if err := h.AttachConn(func() Conn { _, s := Pipe(); return s }()); err == nil {
		t.Error("a closed hub took a link")
	}
}

// memCluster is servers in memory, for a bubble.
type memCluster struct {
	t    *testing.T
	hubs []*Hub
}

func newMemCluster(t *testing.T, n int) *memCluster {
	c := &memCluster{t: t}
	for i := range n {
		c.hubs = append(c.hubs, NewHub(HubOptions{ServerID: fmt.Sprintf("s%d", i), Logger: testLogger(t), Rand: func() float64 { return 0.5 }}))
	}
	return c
}

func (c *memCluster) follow(i, leader int) {
	c.hubs[i].Follow(func(ctx context.Context) (RelayStream, error) { return RelayPipe(ctx, c.hubs[leader].ServeRelay), nil })
}

func (c *memCluster) dial(server int, hello *nodev1.Frame) Conn {
	node, srv := Pipe()
	if err := c.hubs[server].AttachConn(srv); err != nil {
		c.t.Fatal(err)
	}
	if hello != nil {
		mustSend(c.t, node, hello)
	}
	return node
}

func (c *memCluster) close() {
	for _, h := range c.hubs {
		if err := h.Close(context.Background()); err != nil {
			c.t.Errorf("close: %v", err)
		}
	}
}

func callsOf(h *echoHandler) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.calls, "; ")
}

// refuser is a leader that takes nobody.
type refuser struct{ why error }

func (h refuser) LinkUp(l Link) {
	_ = l.Send(&nodev1.Frame{Payload: &nodev1.Frame_Error{Error: ToError("hello", h.why)}})
	l.Close(RefusalCode(h.why), h.why.Error())
}
func (refuser) LinkFrame(Link, *nodev1.Frame) {}
func (refuser) LinkDown(Link, string)         {}

// What a leader refuses a node for, and with which code, reaches the node over whichever server it has dialled: over real
// sockets and real gRPC.
func TestARefusalReachesTheNode(t *testing.T) {
	leader, atLeader := startHub(t, HubOptions{ServerID: "s0"})
	follower, atFollower := startHub(t, HubOptions{ServerID: "s1"})
	follower.Follow(serveRelay(t, leader))
	for _, tc := range []struct {
		kind fault.Kind
		code int
	}{
		{fault.AlreadyExists, CloseProtocol}, {fault.FailedPrecondition, CloseProtocol}, {fault.Invalid, CloseProtocol},
		{fault.PermissionDenied, CloseAuth}, {fault.Exhausted, CloseLimit}, {fault.Unavailable, CloseNormal}, {fault.Internal, CloseInternal},
	} {
		leader.Lead(refuser{fault.New(tc.kind, "not this one")})
		for server, addr := range map[string]string{"the leader": atLeader, "a follower": atFollower} {
			node := dialTest(t, addr, DialOptions{})
			mustSend(t, node, helloFrame("n1", 1, 1))
			frames, err := recvEnd(t, node)
			var end *CloseError
			if !errors.As(err, &end) || end.Code != tc.code || end.Reason != "not this one" || !end.Remote {
				t.Errorf("%s over %s: the link ended with %v, want %d", CodeOf(tc.kind), server, err, tc.code)
			}
			if len(frames) != 1 || frames[0].GetError().GetCode() != CodeOf(tc.kind) {
				t.Errorf("%s over %s: told %v", CodeOf(tc.kind), server, frames)
			}
		}
	}
}

// A node dials a second time: the newer link stays, whoever holds either, and the older one hears why.
func TestNewerLinkWins(t *testing.T) {
	for _, tc := range []struct{ first, second int }{{0, 0}, {0, 1}, {1, 0}, {1, 1}, {1, 2}} {
		t.Run(fmt.Sprintf("s%d then s%d", tc.first, tc.second), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newMemCluster(t, 3)
				handler := newEchoHandler()
				c.hubs[0].Lead(handler)
				c.follow(1, 0)
				c.follow(2, 0)
				older := c.dial(tc.first, helloFrame("n1", 1, 1))
				synctest.Wait()
				newer := c.dial(tc.second, helloFrame("n1", 1, 2))
				synctest.Wait()
				if got, want := callsOf(handler), "up n1; down n1: the node has a newer link; up n1"; got != want {
					t.Errorf("calls: %s, want %s", got, want)
				}
				_, err := recvEnd(t, older)
				var ce *CloseError
				if !errors.As(err, &ce) || ce.Code != CloseSuperseded {
					t.Errorf("the older link ended with %v", err)
				}
				sameFrame(t, recv(t, newer), ackFrame())
				mustSend(t, newer, heartbeatFrame(1))
				sameFrame(t, recv(t, newer), heartbeatAckFrame(1))
				if n := c.hubs[0].Stats().Superseded; n != 1 {
					t.Errorf("%d superseded", n)
				}
				newer.Close("")
				c.close()
			})
		})
	}
}

// A new leader hears of a node's live link first and of its half-open older one later: the live one stays.
func TestOlderLinkArrivesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newMemCluster(t, 3)
		older := c.dial(1, helloFrame("n1", 3, 7))
		live := c.dial(2, helloFrame("n1", 3, 8))
		handler := newEchoHandler()
		c.hubs[0].Lead(handler)
		c.follow(2, 0)
		synctest.Wait()
		c.follow(1, 0)
		synctest.Wait()
		if got := callsOf(handler); got != "up n1" {
			t.Errorf("calls: %s", got)
		}
		if _, err := recvEnd(t, older); !superseded(err) {
			t.Errorf("the older link ended with %v", err)
		}
		sameFrame(t, recv(t, live), ackFrame())
		mustSend(t, live, heartbeatFrame(1))
		sameFrame(t, recv(t, live), heartbeatAckFrame(1))
		live.Close("")
		c.close()
	})
}

// While nobody leads, links stay, frames are dropped and counted, and nothing is answered; a leader greets them all.
func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newMemCluster(t, 2)
		var nodes []Conn
		for i := range 10 {
			n := c.dial(i%2, helloFrame(fmt.Sprintf("n%d", i), 1, 1))
			mustSend(t, n, heartbeatFrame(1))
			nodes = append(nodes, n)
		}
		synctest.Wait()
		if d := c.hubs[0].Stats().Dropped + c.hubs[1].Stats().Dropped; d != 10 {
			t.Errorf("%d frames were dropped, want 10", d)
		}
		handler := newEchoHandler()
		c.hubs[0].Lead(handler)
		c.follow(1, 0)
		for _, n := range nodes {
			sameFrame(t, recv(t, n), ackFrame())
			mustSend(t, n, heartbeatFrame(2))
			sameFrame(t, recv(t, n), heartbeatAckFrame(2))
			n.Close("")
		}
		c.close()
	})
}

// The relay breaks and comes back: the leader loses the follower's links and gets them again; the nodes notice nothing
// but a second greeting.
func TestRelayReopens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newMemCluster(t, 2)
		handler := newEchoHandler()
		c.hubs[0].Lead(handler)
		var mu sync.Mutex
		var cut context.CancelFunc
		refuse := false
		c.hubs[1].Follow(func(ctx context.Context) (RelayStream, error) {
			mu.Lock()
			defer mu.Unlock()
			if refuse {
				return nil, errors.New("the network is down")
			}
			ctx, cut = context.WithCancel(ctx)
			return RelayPipe(ctx, c.hubs[0].ServeRelay), nil
		})
		n := c.dial(1, helloFrame("n1", 1, 1))
		sameFrame(t, recv(t, n), ackFrame())
		mu.Lock()
		refuse = true
		cut()
		mu.Unlock()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if got := callsOf(handler); !strings.HasPrefix(got, "up n1; down n1: the relay broke") {
			t.Errorf("calls: %s", got)
		}
		mustSend(t, n, heartbeatFrame(1))
		synctest.Wait()
		if c.hubs[1].Stats().Dropped != 1 {
			t.Errorf("%d frames were dropped", c.hubs[1].Stats().Dropped)
		}
		mu.Lock()
		refuse = false
		mu.Unlock()
		sameFrame(t, recv(t, n), ackFrame())
		mustSend(t, n, heartbeatFrame(2))
		sameFrame(t, recv(t, n), heartbeatAckFrame(2))
		n.Close("")
		c.close()
	})
}

// A follower that opens its relay again, while the leader still has the earlier stream.
func TestRelayOpenedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newMemCluster(t, 1)
		handler := newEchoHandler()
		c.hubs[0].Lead(handler)
		hello, _ := Binary{}.Encode(helloFrame("n1", 1, 1))
		attach := &clusterv1.LinkRequest{ServerId: "s9", Items: []*clusterv1.LinkUp{{LinkId: 5, Kind: &clusterv1.LinkUp_Attached{Attached: hello}}}}
		ctx, cancel := context.WithCancel(t.Context())
		first := RelayPipe(ctx, c.hubs[0].ServeRelay)
		_ = first.Send(attach)
		synctest.Wait()
		second := RelayPipe(ctx, c.hubs[0].ServeRelay)
		_ = second.Send(attach)
		synctest.Wait()
		if got, want := callsOf(handler), "up n1; down n1: its server opened the relay again; up n1"; got != want {
			t.Errorf("calls: %s, want %s", got, want)
		}
		for range 2 { // the ack may have been sent before the end
			if _, err := first.Recv(); err != nil {
				if status.Code(err) != codes.Aborted {
					t.Errorf("the first stream ended with %v", err)
				}
				break
			}
		}
		if b, err := second.Recv(); err != nil || len(b.GetItems()) != 1 {
			t.Errorf("the second stream gave %v, %v", b, err)
		}
		cancel()
		synctest.Wait()
		if c.hubs[0].Stats().RelayedLinks != 0 {
			t.Errorf("%d relayed links are left", c.hubs[0].Stats().RelayedLinks)
		}
		c.close()
	})
}

// The queue of a relay bounds each link's frames, and all of them together; the ends of links always find room.
func TestRelayQueueBounds(t *testing.T) {
	q := newRelayQueue[*clusterv1.LinkDown]()
	var one, another atomic.Int32
	for i := range SendQueueMax {
		if !q.push(&clusterv1.LinkDown{LinkId: uint64(i)}, 10, &one, false) {
			t.Fatalf("item %d found no room", i)
		}
	}
	if q.push(&clusterv1.LinkDown{}, 10, &one, false) {
		t.Error("one link took more than its share")
	}
	if !q.push(&clusterv1.LinkDown{LinkId: SendQueueMax}, 10, &another, false) || !q.push(&clusterv1.LinkDown{LinkId: SendQueueMax + 1}, 10, nil, true) {
		t.Error("others found no room")
	}
	next := uint64(0)
	for batch := q.take(); batch != nil; batch = q.take() {
		if len(batch) > relayBatchItems {
			t.Errorf("a batch has %d items", len(batch))
		}
		for _, item := range batch {
			if item.GetLinkId() != next {
				t.Fatalf("item %d came, want %d", item.GetLinkId(), next)
			}
			next++
		}
	}
	if next != SendQueueMax+2 || one.Load() != 0 || another.Load() != 0 || q.bytes != 0 {
		t.Errorf("%d items came; %d, %d frames and %d bytes are left", next, one.Load(), another.Load(), q.bytes)
	}
	if !q.push(&clusterv1.LinkDown{}, relayQueueMaxBytes-5, nil, false) || q.push(&clusterv1.LinkDown{}, 10, nil, false) {
		t.Error("the bound in bytes does not hold")
	}
	if !q.push(&clusterv1.LinkDown{}, 10, nil, true) || q.clear() != 2 {
		t.Error("what is forced found no room")
	}
}

// A node behind a relay does not take its frames: the follower closes its link, and others go on.
func TestRelayQueueFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newMemCluster(t, 2)
		handler := newEchoHandler()
		c.hubs[0].Lead(handler)
		c.follow(1, 0)
		stuck := c.dial(1, helloFrame("stuck", 1, 1))
		other := c.dial(1, helloFrame("other", 1, 1))
		synctest.Wait()
		l := handler.link("stuck")
		for i := range int64(2 * SendQueueMax) {
			_ = l.Send(heartbeatAckFrame(i))
			synctest.Wait()
		}
		if c.hubs[1].Stats().Overflowed == 0 {
			t.Error("the stuck link was not closed")
		}
		if got := callsOf(handler); !strings.Contains(got, "down stuck: the node does not take its frames") {
			t.Errorf("calls: %s", got)
		}
		sameFrame(t, recv(t, other), ackFrame())
		mustSend(t, other, heartbeatFrame(1))
		sameFrame(t, recv(t, other), heartbeatAckFrame(1))
		stuck.Close("")
		other.Close("")
		c.close()
	})
}

// strictHandler fails the test when a call comes after its term, or two for one link at once, or out of order.
type strictHandler struct {
	t     *testing.T
	over  atomic.Bool
	mu    sync.Mutex
	state map[string]*strictLink
}

type strictLink struct {
	busy atomic.Bool
	up   bool
	last int64
}

func (h *strictHandler) enter(l Link, what string) *strictLink {
	if h.over.Load() {
		h.t.Errorf("%s after the term was over", what)
	}
	h.mu.Lock()
	s := h.state[l.ID()]
	if s == nil {
		s = new(strictLink)
		h.state[l.ID()] = s
	}
	h.mu.Unlock()
	if !s.busy.CompareAndSwap(false, true) {
		h.t.Errorf("%s while another call for the link is under way", what)
	}
	return s
}

func (h *strictHandler) LinkUp(l Link) {
	s := h.enter(l, "LinkUp")
	defer s.busy.Store(false)
	if s.up || s.last != 0 {
		h.t.Error("LinkUp twice")
	}
	s.up = true
	_ = l.Send(ackFrame())
}

func (h *strictHandler) LinkFrame(l Link, f *nodev1.Frame) {
	s := h.enter(l, "LinkFrame")
	defer s.busy.Store(false)
	if f.GetGoodbye() != nil {
		return
	}
	n := f.GetHeartbeat().GetSentAt()
	if !s.up || n <= s.last {
		h.t.Errorf("frame %d after %d, up %t", n, s.last, s.up)
	}
	s.last = n
}

func (h *strictHandler) LinkDown(l Link, _ string) {
	s := h.enter(l, "LinkDown")
	defer s.busy.Store(false)
	if !s.up {
		h.t.Error("LinkDown without LinkUp")
	}
	s.up = false
}

// Leadership wanders over three servers while nodes talk, come and go: no call comes late, twice, at once or out of order.
func TestLeadershipWanders(t *testing.T) {
	c := newMemCluster(t, 3)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 12 {
		client, err := NewClient(ClientOptions{
			Servers: []string{"0", "1", "2"}, Logger: testLogger(t), BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond,
			Hello: func() *nodev1.Hello { return &nodev1.Hello{NodeId: fmt.Sprintf("n%d", i), Incarnation: 1} },
			Dial: func(_ context.Context, server string) (Conn, error) {
				node, srv := Pipe()
				return node, c.hubs[server[0]-'0'].AttachConn(srv)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { _ = client.Run(ctx) })
		wg.Go(func() {
			for n := int64(1); ctx.Err() == nil; n++ {
				err := client.Send(heartbeatFrame(n))
				if err != nil || n%64 == 0 {
					time.Sleep(time.Millisecond)
				}
				if n%512 == 0 {
					client.mu.Lock()
					up := client.up
					client.mu.Unlock()
					if up != nil {
						Cut(up.conn)
					}
				}
			}
		})
	}
	var before *strictHandler
	leader := 0
	for round := range 60 {
		next := (leader + 1 + round%2) % 3
		h := &strictHandler{t: t, state: make(map[string]*strictLink)}
		if round%3 == 0 {
			c.hubs[leader].Pause()
		} else {
			c.follow(leader, next)
		}
		if before != nil {
			before.over.Store(true)
		}
		c.hubs[next].Lead(h)
		for i := range 3 {
			if i != next {
				c.follow(i, next)
			}
		}
		deadline := time.Now().Add(10 * time.Second)
		for {
			h.mu.Lock()
			heard := 0
			for _, s := range h.state {
				if !s.busy.Load() {
					heard++
				}
			}
			h.mu.Unlock()
			if heard >= 12 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("round %d: the leader heard of %d nodes", round, heard)
			}
			time.Sleep(time.Millisecond)
		}
		before, leader = h, next
	}
	cancel()
	wg.Wait()
	c.close()
}
