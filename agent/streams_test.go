// Logs, terminals and commands over the link.

package agent

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
)

func (n *node) open(req *nodev1.StreamOpen) *nodelink.Stream {
	n.t.Helper()
	n.lead.mu.Lock()
	streams := n.lead.streams
	n.lead.mu.Unlock()
	s, err := streams.Open(req)
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// drain reads a stream to its end.
func drain(s *nodelink.Stream) (lines []*apiv1.LogLine, out, errs string, err error) {
	for {
		d, err := s.Recv(context.Background())
		if errors.Is(err, io.EOF) {
			return lines, out, errs, nil
		}
		if err != nil {
			return lines, out, errs, err
		}
		lines = append(lines, d.GetLines()...)
		out += string(d.GetStdout())
		errs += string(d.GetStderr())
	}
}

func TestStreams(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		n.lead.deliver("s", 1, msg(1, normal), msg(2, normal), msg(3, normal))
		wait(time.Second)

		lines, _, _, err := drain(n.open(&nodev1.StreamOpen{SessionId: "s", Kind: &nodev1.StreamOpen_ReadLogs{ReadLogs: &nodev1.ReadLogs{FromLine: 2}}}))
		if err != nil || len(lines) != 2 || lines[0].GetNumber() != 2 {
			t.Errorf("logs: %v, %v", lines, err)
		}

		x := n.open(&nodev1.StreamOpen{SessionId: "s", Kind: &nodev1.StreamOpen_Exec{Exec: &nodev1.Exec{Command: []string{"wc"}}}})
		if err := x.Send(context.Background(), &nodev1.StreamData{Stdin: []byte("some "), Columns: 80, Rows: 25}); err != nil {
			t.Fatal(err)
		}
		if err := x.Send(context.Background(), &nodev1.StreamData{Stdin: []byte("input"), EndOfInput: true}); err != nil {
			t.Fatal(err)
		}
		_, out, errs, err := drain(x)
		if err != nil || out != "wc: some input" || errs != "warning" || x.Exit().GetCode() != 3 {
			t.Errorf("exec: %q, %q, %v, %v", out, errs, x.Exit(), err)
		}

		at := n.open(&nodev1.StreamOpen{SessionId: "s", Kind: &nodev1.StreamOpen_Attach{Attach: &nodev1.Attach{Columns: 80, Rows: 25}}})
		if err := at.Send(context.Background(), &nodev1.StreamData{Stdin: []byte("typed")}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		n.world.tree("s").die(session.Exit{Cause: session.CauseFailed, Code: 2})
		_, out, _, err = drain(at)
		if err != nil || out != "typed" || at.Exit().GetCode() != 2 {
			t.Errorf("attach: %q, %v, %v", out, at.Exit(), err)
		}

		synctest.Wait()
		for what, req := range map[string]*nodev1.StreamOpen{
			"no such session":    {SessionId: "nobody", Kind: &nodev1.StreamOpen_ReadLogs{ReadLogs: &nodev1.ReadLogs{}}},
			"session has ended":  {SessionId: "s", Kind: &nodev1.StreamOpen_Attach{Attach: &nodev1.Attach{}}},
			"no kind of stream":  {SessionId: "s"},
			"exec in what ended": {SessionId: "s", Kind: &nodev1.StreamOpen_Exec{Exec: &nodev1.Exec{Command: []string{"x"}}}},
		} {
			if _, _, _, err := drain(n.open(req)); fault.KindOf(err) == fault.Internal {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

// The terminal of a process that ends hangs up before its tree is gone: who is attached is told how it ended all the same.
func TestAttachedUntilTheEnd(t *testing.T) {
	for name, c := range map[string]struct {
		takes time.Duration // from the hanging up to the end; negative for ever
		says  bool          // the other side has no more input
		code  int32
		kind  fault.Kind
	}{
		"at once":                  {0, false, 2, 0},
		"soon":                     {endPatience - time.Second, false, 2, 0},
		"not in time":              {endPatience + time.Second, false, 0, fault.Unavailable},
		"it goes on":               {-1, false, 0, fault.Unavailable},
		"it goes on, input ended":  {-1, true, 0, 0},
		"ends soon, input ended":   {time.Second, true, 0, 0},
		"ended already, and input": {0, true, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(n *node) {
				n.start()
				n.lead.desired(1, true, toRun("s", 1))
				at := n.open(&nodev1.StreamOpen{SessionId: "s", Kind: &nodev1.StreamOpen_Attach{Attach: &nodev1.Attach{}}})
				synctest.Wait()
				n.world.locked(func() { n.world.stubborn = c.takes })
				if c.takes < 0 {
					n.world.locked(n.world.trees["s"].hangUp)
				} else {
					n.world.tree("s").die(session.Exit{Cause: session.CauseFailed, Code: 2})
				}
				if c.says {
					if err := at.Send(context.Background(), &nodev1.StreamData{EndOfInput: true}); err != nil && c.takes != 0 {
						t.Fatal(err)
					}
				}
				_, _, _, err := drain(at)
				if at.Exit().GetCode() != c.code || (err == nil) != (c.kind == 0) || err != nil && fault.KindOf(err) != c.kind {
					t.Errorf("the attachment ended with %v, %v", at.Exit(), err)
				}
			})
		})
	}
}

func TestReaderThatLeavesEndsItsStream(t *testing.T) {
	inBubble(t, func(n *node) {
		n.start()
		n.lead.desired(1, true, toRun("s", 1))
		follow := n.open(&nodev1.StreamOpen{SessionId: "s", Kind: &nodev1.StreamOpen_ReadLogs{ReadLogs: &nodev1.ReadLogs{Follow: true}}})
		attach := n.open(&nodev1.StreamOpen{SessionId: "s", Kind: &nodev1.StreamOpen_Attach{Attach: &nodev1.Attach{}}})
		synctest.Wait()
		follow.Close(nil, nil)
		attach.Close(nil, nil)
		synctest.Wait()
		n.open(&nodev1.StreamOpen{SessionId: "s", Kind: &nodev1.StreamOpen_ReadLogs{ReadLogs: &nodev1.ReadLogs{Follow: true}}})
		n.cut() // ends the third; the bubble waits for its goroutines
		if !n.world.alive("s") {
			t.Error("a reader that left took the session with it")
		}
	})
}
