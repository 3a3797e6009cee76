// The document is held to the schema: every frame and field, and the example exchange.

package nodelink

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
)

const specification = "../docs/protocol/node-link.md"

func readSpecification(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(specification)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Every frame has its section, and every field of everything that can be in a frame stands in the section of its message.
func TestSpecificationIsWhole(t *testing.T) {
	sections := map[string]string{}
	for _, part := range strings.Split(readSpecification(t), "\n### ")[1:] {
		title, text, _ := strings.Cut(part, "\n")
		text, _, _ = strings.Cut(text, "\n## ")
		for _, name := range regexp.MustCompile("[A-Za-z_]+").FindAllString(title, -1) {
			sections[name] = text
		}
	}
	// Messages that are described where they are used.
	inline := map[protoreflect.Name]string{
		"ReadLogs": "stream_open", "Attach": "stream_open", "Exec": "stream_open", "Started": "Fact", "Exited": "Fact",
		"MessageDelivered": "Fact", "TurnEnded": "Fact", "MessageRefused": "Fact", "SessionState": "session_state", "Error": "error",
	}
	seen := map[protoreflect.FullName]bool{}
	var check func(section string, md protoreflect.MessageDescriptor)
	check = func(section string, md protoreflect.MessageDescriptor) {
		text, ok := sections[section]
		if !ok {
			t.Errorf("there is no section for %s (%s)", section, md.FullName())
			return
		}
		if seen[md.FullName()] {
			return
		}
		seen[md.FullName()] = true
		for i := range md.Fields().Len() {
			fd := md.Fields().Get(i)
			if !strings.Contains(text, "`"+fd.JSONName()+"`") {
				t.Errorf("section %s does not say what %s is", section, fd.FullName())
			}
			if fd.IsMap() || fd.Message() == nil || strings.HasPrefix(string(fd.Message().FullName()), "google.") {
				continue
			}
			sub := string(fd.Message().Name())
			if in, ok := inline[fd.Message().Name()]; ok {
				sub = in
			}
			check(sub, fd.Message())
		}
	}
	for i := range payloadOneof().Fields().Len() {
		fd := payloadOneof().Fields().Get(i)
		check(string(fd.Name()), fd.Message())
	}
}

// The numbers of the specification are those of the code.
func TestSpecificationNumbers(t *testing.T) {
	text := readSpecification(t)
	for _, want := range []string{
		fmt.Sprintf("Protocol version **%d**", ProtocolMax), "`" + SubprotocolBinary + "`", "`" + SubprotocolJSON + "`", "`GET " + Path + "`",
		fmt.Sprintf("at most **%d MiB**", MaxFrameBytes>>20), "at most 1,000 frames or 16 MiB", fmt.Sprintf("at most %d streams", MaxStreams),
		fmt.Sprintf("the leader with %d KiB", InitialWindow>>10), fmt.Sprintf("    %d + bytes of stdin", streamFrameCost), fmt.Sprintf("(%d + bytes of text)", streamLineCost),
		fmt.Sprintf("at most %d KiB in one frame", maxStreamChunk>>10), fmt.Sprintf("those from %d KiB", compressMinBytes>>10),
		"After 10 failures in a row", "within 15 s", "bounded by 10 s", "Without an answer in 30 s",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the specification does not say %q", want)
		}
	}
	if SendQueueMax != 1000 || SendQueueMaxBytes != 16<<20 || DefaultAttempts != 10 || DefaultHelloTimeout != 15*time.Second || DefaultRequestTimeout != 30*time.Second || DefaultConnectTimeout != 10*time.Second || stableAfter != 10*time.Second {
		t.Error("a number was changed here and not in the specification")
	}
	for _, code := range []int{CloseNormal, CloseGoingAway, CloseLimit, CloseTooLarge, CloseInternal, CloseBadFrame, CloseProtocol, CloseHelloTimeout, CloseAuth, CloseSuperseded} {
		if !strings.Contains(text, fmt.Sprintf("\n| %d |", code)) {
			t.Errorf("the specification does not name close code %d", code)
		}
	}
	for _, code := range codeNames {
		if !strings.Contains(text, "`"+code+"`") {
			t.Errorf("the specification does not name code %s", code)
		}
	}
	for request, answer := range answers {
		if !regexp.MustCompile("\n\\| `" + request + "` \\| `" + answer + "`").MatchString(text) {
			t.Errorf("the specification does not pair %s with %s", request, answer)
		}
	}
}

// scriptHandler hands a link and its frames to the test.
type scriptHandler struct {
	up     chan Link
	frames chan *nodev1.Frame
}

func (h scriptHandler) LinkUp(l Link)                     { h.up <- l }
func (h scriptHandler) LinkFrame(_ Link, f *nodev1.Frame) { h.frames <- f }
func (h scriptHandler) LinkDown(Link, string)             {}

// example is one link, played over a real WebSocket, and what went over it as text.
type example struct {
	t      *testing.T
	ws     *websocket.Conn
	link   Link
	frames chan *nodev1.Frame
	said   strings.Builder
}

func (e *example) note(arrow string, b []byte) {
	if !json.Valid(b) {
		e.t.Fatalf("%s is no JSON", b)
	}
	fmt.Fprintf(&e.said, "%s %s\n", arrow, b)
}

// node sends a frame as the node, and waits until the leader has it.
func (e *example) node(f *nodev1.Frame) {
	e.t.Helper()
	b, err := JSON{}.Encode(f)
	if err != nil {
		e.t.Fatal(err)
	}
	e.note("→", b)
	if err := e.ws.WriteMessage(websocket.TextMessage, b); err != nil {
		e.t.Fatal(err)
	}
	if f.GetHello() == nil {
		sameFrame(e.t, <-e.frames, f)
	}
}

// server sends a frame as the leader, and waits until the node has it.
func (e *example) server(f *nodev1.Frame) {
	e.t.Helper()
	mustSend(e.t, e.link, f)
	e.read()
}

func (e *example) read() {
	e.t.Helper()
	_, b, err := e.ws.ReadMessage()
	if err != nil {
		e.t.Fatal(err)
	}
	e.note("←", b)
}

// The example in the specification is what really goes over the wire.
func TestDocumentedExample(t *testing.T) {
	hub, addr := startHub(t, HubOptions{ServerID: "server-1", Authorize: func(r *http.Request) (string, error) {
		if r.Header.Get("Authorization") != "Bearer orch_node_…" {
			return "", fault.New(fault.Unauthenticated, "no valid token")
		}
		return "", nil
	}})
	h := scriptHandler{up: make(chan Link, 1), frames: make(chan *nodev1.Frame, 1)}
	hub.Lead(h)
	d := websocket.Dialer{Subprotocols: []string{SubprotocolJSON}}
	ws, _, err := d.Dial("ws://"+addr+Path, http.Header{"Authorization": {"Bearer orch_node_…"}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	_ = ws.SetReadDeadline(time.Now().Add(20 * time.Second))
	e := &example{t: t, ws: ws, frames: h.frames}
	playExample(e, h.up)
	hub.mu.Lock()
	for _, s := range hub.sockets {
		_ = s.conn.Send(&nodev1.Frame{Payload: &nodev1.Frame_Goodbye{Goodbye: &nodev1.Goodbye{Reason: "server server-1 is shutting down"}}})
		s.conn.closeWith(CloseGoingAway, "server server-1 is shutting down")
	}
	hub.mu.Unlock()
	e.read()
	_, _, err = ws.ReadMessage()
	fmt.Fprintf(&e.said, "← %s\n", strings.TrimPrefix(err.Error(), "websocket: "))

	const begin, end = "<!-- example:begin -->\n", "<!-- example:end -->"
	text := readSpecification(t)
	before, rest, ok := strings.Cut(text, begin)
	old, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("the specification has no place for the example")
	}
	block := "```\n" + e.said.String() + "```\n"
	if *update {
		if err := os.WriteFile(specification, []byte(before+begin+block+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if old != block {
		t.Errorf("the example is not what goes over the wire; run go test ./nodelink -update\n%s", block)
	}
}

// playExample is the story: a node comes, starts a session, hands it a message, answers questions, and is let go.
func playExample(e *example, up chan Link) {
	at := timestamppb.New(time.Date(2026, 11, 23, 9, 30, 0, 0, time.UTC))
	const id = "s-7f3a"
	e.node(&nodev1.Frame{Payload: &nodev1.Frame_Hello{Hello: &nodev1.Hello{
		ProtocolMin: 1, ProtocolMax: 1, NodeId: "4f1c9a02", Name: "node-1", Incarnation: 3, LinkNumber: 1, Version: "0.1.0", Pid: 4711,
		Capabilities: &apiv1.Capabilities{CanSpawnSessions: true, MaxConcurrentSessions: 100, SupportedSessionTypes: []string{"process"}, CpuMilli: 2000, MemoryBytes: 8 << 30},
	}}})
	e.link = <-up
	e.server(&nodev1.Frame{Payload: &nodev1.Frame_HelloAck{HelloAck: &nodev1.HelloAck{
		Protocol: 1, ClusterId: "c-20b7", Lease: durationpb.New(12 * time.Second), RenewInterval: durationpb.New(3 * time.Second),
		HeartbeatInterval: durationpb.New(10 * time.Second), Servers: []string{"10.0.0.1:8078", "10.0.0.2:8078", "10.0.0.3:8078"}, Server: "server-1",
	}}})
	e.node(&nodev1.Frame{Payload: &nodev1.Frame_Heartbeat{Heartbeat: &nodev1.Heartbeat{SentAt: 5_000_000_000, Status: apiv1.Node_HEALTHY,
		Health: &apiv1.NodeHealth{CpuUsage: 12.5, MemoryUsage: 40, UptimeSeconds: 1.5}}}})
	e.server(&nodev1.Frame{Payload: &nodev1.Frame_HeartbeatAck{HeartbeatAck: &nodev1.HeartbeatAck{SentAt: 5_000_000_000, Lease: durationpb.New(12 * time.Second), Term: 2}}})
	e.server(&nodev1.Frame{Payload: &nodev1.Frame_GetSessions{GetSessions: &nodev1.GetSessions{}}})
	e.node(&nodev1.Frame{Payload: &nodev1.Frame_SessionsResponse{SessionsResponse: &nodev1.SessionsResponse{Incarnation: 3}}})
	e.server(&nodev1.Frame{Index: 1042, Payload: &nodev1.Frame_Desired{Desired: &nodev1.Desired{Sessions: []*nodev1.DesiredSession{{
		SessionId: id, Epoch: 1, Action: nodev1.DesiredSession_RUN,
		Spec: &apiv1.SessionSpec{Type: "process", Name: "ledger", Namespace: "default", Command: []string{"ledger"}, Protocol: "lines", Grace: durationpb.New(10 * time.Second)},
	}}}}})
	fact := func(index uint64, f *nodev1.Fact) *nodev1.Frame {
		f.Index, f.SessionId, f.Epoch, f.Time = index, id, 1, at
		return &nodev1.Frame{Index: index, Payload: &nodev1.Frame_Facts{Facts: &nodev1.Facts{Incarnation: 3, Facts: []*nodev1.Fact{f}}}}
	}
	ack := func(index uint64) *nodev1.Frame {
		return &nodev1.Frame{Payload: &nodev1.Frame_FactsAck{FactsAck: &nodev1.FactsAck{Incarnation: 3, Index: index}}}
	}
	e.node(fact(1, &nodev1.Fact{Kind: &nodev1.Fact_Started{Started: &nodev1.Started{Pid: 4720}}}))
	e.server(ack(1))
	e.server(&nodev1.Frame{Index: 1044, Payload: &nodev1.Frame_Deliver{Deliver: &nodev1.Deliver{Sessions: []*nodev1.SessionMessages{{
		SessionId: id, Epoch: 1, Messages: []*apiv1.Message{{SessionId: id, Sequence: 1, Priority: apiv1.Priority_NORMAL, Text: []byte("42"), CreateTime: at}},
	}}}}})
	e.node(&nodev1.Frame{Payload: &nodev1.Frame_Delivered{Delivered: &nodev1.Delivered{Sessions: []*nodev1.SessionSequences{{SessionId: id, Epoch: 1, Sequences: []uint64{1}}}}}})
	e.node(fact(2, &nodev1.Fact{Kind: &nodev1.Fact_TurnEnded{TurnEnded: &nodev1.TurnEnded{Sequence: 1, Result: []byte("sum 42"), OutputLine: 1}}}))
	e.server(ack(2))
	e.server(&nodev1.Frame{Payload: &nodev1.Frame_StreamOpen{StreamOpen: &nodev1.StreamOpen{
		StreamId: 2 << 32, SessionId: id, Window: InitialWindow, Kind: &nodev1.StreamOpen_ReadLogs{ReadLogs: &nodev1.ReadLogs{FromLine: 1}},
	}}})
	e.node(&nodev1.Frame{Payload: &nodev1.Frame_StreamData{StreamData: &nodev1.StreamData{StreamId: 2 << 32, Lines: []*apiv1.LogLine{
		{Number: 1, Stream: apiv1.LogLine_STDOUT, Time: at, Epoch: 1, Text: []byte("sum 42")},
	}}}})
	e.node(&nodev1.Frame{Payload: &nodev1.Frame_StreamClose{StreamClose: &nodev1.StreamClose{StreamId: 2 << 32}}})
	e.server(&nodev1.Frame{RequestId: "q-1", Payload: &nodev1.Frame_GetSession{GetSession: &nodev1.GetSession{SessionId: "s-none"}}})
	e.node(ErrorFrame(&nodev1.Frame{RequestId: "q-1", Payload: &nodev1.Frame_GetSession{}}, fault.New(fault.NotFound, "session s-none is not on this node")))
}
