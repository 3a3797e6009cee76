// Streams with credit beside control frames.

package nodelink

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

// streamPair links two Streams by a pipe: the leader's, which opens, and the node's, which serves with accept.
type streamPair struct {
	leader, node *Streams
	nodeEnd      Conn
	leaderEnd    Conn
}

func newStreamPair(t *testing.T, faults Faults, accept func(context.Context, *Stream)) *streamPair {
	n, l := FaultyPipe(faults)
	p := &streamPair{
		nodeEnd: n, leaderEnd: l,
		leader: NewStreams(StreamsOptions{Send: l.Send, FirstID: 7 << 32}),
		node:   NewStreams(StreamsOptions{Send: n.Send, Accept: accept}),
	}
	pump := func(c Conn, m *Streams) {
		for {
			f, err := c.Recv(context.Background())
			if err != nil {
				m.Close(err)
				return
			}
			if !m.Handle(f) {
				t.Errorf("%s is not about a stream", FrameType(f))
			}
		}
	}
	go pump(l, p.leader)
	go pump(n, p.node)
	return p
}

func (p *streamPair) close() {
	p.nodeEnd.Close("done")
	p.leaderEnd.Close("done")
	p.leader.Wait()
	p.node.Wait()
}

func TestStreamEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newStreamPair(t, nil, func(ctx context.Context, s *Stream) {
			if s.Request().GetSessionId() != "s1" || s.Request().GetExec().GetCommand()[0] != "cat" || s.ID() != 7<<32 {
				t.Errorf("opened with %v", s.Request())
			}
			for {
				d, err := s.Recv(ctx)
				if err != nil {
					t.Errorf("node: %v", err)
					return
				}
				if err := s.Send(ctx, &nodev1.StreamData{Stdout: d.GetStdin()}); err != nil {
					t.Errorf("node: %v", err)
				}
				if d.GetEndOfInput() {
					s.Close(nil, &apiv1.Session_Exit{Code: 3})
					return
				}
			}
		})
		defer p.close()
		s, err := p.leader.Open(&nodev1.StreamOpen{SessionId: "s1", Kind: &nodev1.StreamOpen_Exec{Exec: &nodev1.Exec{Command: []string{"cat"}}}})
		if err != nil {
			t.Fatal(err)
		}
		// Ten windows of bytes, there and back.
		in := bytes.Repeat([]byte("0123456789abcdef"), 10*InitialWindow/16)
		go func() {
			if err := s.Send(t.Context(), &nodev1.StreamData{Stdin: in, EndOfInput: true}); err != nil {
				t.Errorf("leader: %v", err)
			}
		}()
		var out []byte
		for {
			d, err := s.Recv(t.Context())
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, d.GetStdout()...)
		}
		if !bytes.Equal(in, out) || s.Exit().GetCode() != 3 {
			t.Errorf("%d bytes came back of %d; exit %v", len(out), len(in), s.Exit())
		}
		synctest.Wait()
		if p.leader.Len() != 0 || p.node.Len() != 0 {
			t.Errorf("%d and %d streams are still open", p.leader.Len(), p.node.Len())
		}
		if err := s.Send(t.Context(), &nodev1.StreamData{Stdin: []byte("more")}); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Send after the end gave %v", err)
		}
	})
}

// A reader that does not read holds up its own stream only, after a bounded amount.
func TestStreamFlowControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sent := map[string]int{}
		p := newStreamPair(t, nil, func(ctx context.Context, s *Stream) {
			for {
				if err := s.Send(ctx, &nodev1.StreamData{Lines: []*apiv1.LogLine{{Text: make([]byte, 968)}}}); err != nil { // 1,032 bytes of credit
					return
				}
				sent[s.Request().GetSessionId()]++
			}
		})
		defer p.close()
		slow, err := p.leader.Open(&nodev1.StreamOpen{SessionId: "slow"})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if want := InitialWindow/1032 + 1; sent["slow"] != want {
			t.Errorf("%d frames were sent without a reader, want %d", sent["slow"], want)
		}
		fast, err := p.leader.Open(&nodev1.StreamOpen{SessionId: "fast"})
		if err != nil {
			t.Fatal(err)
		}
		for range 5000 {
			if _, err := fast.Recv(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if sent["fast"] < 5000 {
			t.Errorf("fast: %d", sent["fast"])
		}
		before := sent["slow"]
		for range before { // what waited, then more comes
			if _, err := slow.Recv(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if sent["slow"] <= before {
			t.Error("the slow stream got no credit again")
		}
		slow.Close(fault.New(fault.Aborted, "the client left"), nil)
		fast.Close(nil, nil)
		synctest.Wait()
		if p.node.Len() != 0 {
			t.Errorf("%d streams are still served", p.node.Len())
		}
		if p.leader.Stray() == 0 {
			t.Log("no frame crossed the close") // allowed
		}
	})
}

func TestStreamBoundsAndErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newStreamPair(t, nil, func(ctx context.Context, s *Stream) {
			if s.Request().GetSessionId() == "missing" {
				s.Close(fault.New(fault.NotFound, "no session missing"), nil)
				return
			}
			<-ctx.Done()
		})
		defer p.close()
		s, err := p.leader.Open(&nodev1.StreamOpen{SessionId: "missing"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(t.Context()); !fault.Is(err, fault.NotFound) {
			t.Errorf("got %v", err)
		}
		var last *Stream
		for range MaxStreams {
			if last, err = p.leader.Open(&nodev1.StreamOpen{SessionId: "x"}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := p.leader.Open(&nodev1.StreamOpen{}); !fault.Is(err, fault.Exhausted) {
			t.Errorf("one stream too many gave %v", err)
		}
		// The node has a bound of its own, and refuses a number that is in use.
		mustSend(t, p.leaderEnd, &nodev1.Frame{Payload: &nodev1.Frame_StreamOpen{StreamOpen: &nodev1.StreamOpen{StreamId: 9}}})
		synctest.Wait()
		if p.node.Len() != MaxStreams {
			t.Errorf("%d streams at the node", p.node.Len())
		}
		// A receiver's context.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := last.Recv(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Recv gave %v", err)
		}
		// More than was granted: the stream ends, the link does not.
		for range InitialWindow/(1<<20) + 2 {
			mustSend(t, p.leaderEnd, &nodev1.Frame{Payload: &nodev1.Frame_StreamData{StreamData: &nodev1.StreamData{StreamId: last.ID(), Stdin: make([]byte, 1<<20)}}})
		}
		if _, err := last.Recv(t.Context()); !fault.Is(err, fault.Exhausted) {
			t.Errorf("a flood ended with %v", err)
		}
		// The link ends: so do all streams.
		other, err := p.leader.Open(&nodev1.StreamOpen{SessionId: "x"})
		if err != nil {
			t.Fatal(err)
		}
		Cut(p.leaderEnd)
		if _, err := other.Recv(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("a cut link ended the stream with %v", err)
		}
		synctest.Wait()
		if p.node.Len() != 0 || p.leader.Len() != 0 {
			t.Errorf("%d and %d streams are open without a link", p.leader.Len(), p.node.Len())
		}
		if _, err := p.leader.Open(&nodev1.StreamOpen{}); !fault.Is(err, fault.Unavailable) {
			t.Errorf("opening on a cut link gave %v", err)
		}
	})
}

// A full queue delays stream frames; control frames still find room.
func TestStreamYieldsToControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node, leader := Pipe()
		defer node.Close("")
		defer leader.Close("")
		m := NewStreams(StreamsOptions{Send: leader.Send})
		for range 40 {
			s, err := m.Open(&nodev1.StreamOpen{})
			if err != nil {
				t.Fatal(err)
			}
			go func() { _ = s.Send(t.Context(), &nodev1.StreamData{Stdin: make([]byte, InitialWindow-32)}) }()
		}
		time.Sleep(time.Second)
		mustSend(t, leader, heartbeatAckFrame(1))
		for range 40 {
			if recv(t, node).GetStreamOpen() == nil {
				t.Fatal("want stream_open")
			}
		}
		sameFrame(t, recv(t, node), heartbeatAckFrame(1)) // before megabytes that were queued earlier
		total := 0
		for total < 40*(InitialWindow-32) { // what found no room was tried again
			total += len(recv(t, node).GetStreamData().GetStdin())
		}
		m.Close(ErrClosed)
	})
}

func TestSplitKeepsContent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := &nodev1.StreamData{
			Stdin:      make([]byte, rapid.IntRange(0, 3*maxStreamChunk).Draw(t, "stdin")),
			Stdout:     make([]byte, rapid.IntRange(0, 3*maxStreamChunk).Draw(t, "stdout")),
			Stderr:     make([]byte, rapid.IntRange(0, 10).Draw(t, "stderr")),
			EndOfInput: rapid.Bool().Draw(t, "end"),
		}
		for range rapid.IntRange(0, 200).Draw(t, "lines") {
			d.Lines = append(d.Lines, &apiv1.LogLine{Number: uint64(len(d.Lines)), Text: make([]byte, rapid.SampledFrom([]int{0, 10, 1000, 2 * maxStreamChunk}).Draw(t, "line"))})
		}
		var got nodev1.StreamData
		ended := false
		for _, part := range split(d) {
			if c := cost(part); c > maxStreamChunk+streamFrameCost && len(part.GetLines()) != 1 {
				t.Fatalf("a part costs %d", c)
			}
			if ended {
				t.Fatal("the end of input is not last")
			}
			got.Lines = append(got.Lines, part.GetLines()...)
			got.Stdin = append(got.Stdin, part.GetStdin()...)
			got.Stdout = append(got.Stdout, part.GetStdout()...)
			got.Stderr = append(got.Stderr, part.GetStderr()...)
			ended = part.GetEndOfInput()
		}
		if len(got.GetStdin()) != len(d.GetStdin()) || len(got.GetStdout()) != len(d.GetStdout()) || len(got.GetStderr()) != len(d.GetStderr()) || len(got.GetLines()) != len(d.GetLines()) || ended != d.GetEndOfInput() {
			t.Fatal("content was lost")
		}
	})
}
