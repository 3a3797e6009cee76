// What the types of frames are called, which of them are requests, and how each is treated on the way.

package nodelink

import (
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
)

// payloadOneof describes the union of all types of frames.
var payloadOneof = sync.OnceValue(func() protoreflect.OneofDescriptor {
	return (*nodev1.Frame)(nil).ProtoReflect().Descriptor().Oneofs().ByName("payload")
})

// FrameType is the name of a frame's type, such as "hello_ack"; empty for a frame without a payload.
func FrameType(f *nodev1.Frame) string {
	if f == nil {
		return ""
	}
	fd := f.ProtoReflect().WhichOneof(payloadOneof())
	if fd == nil {
		return ""
	}
	return string(fd.Name())
}

// answers maps each type of request to the type that answers it; an error frame answers any of them.
var answers = map[string]string{
	"heartbeat":          "heartbeat_ack",
	"get_sessions":       "sessions_response",
	"spawn_session":      "session_spawned",
	"get_session":        "session_state",
	"terminate_session":  "session_terminated",
	"restore_session":    "session_restored",
	"get_health":         "health_response",
	"checkpoint_session": "session_checkpointed",
}

// isAnswer reports whether the frame answers a request: it carries a request's id and is of an answering type.
func isAnswer(f *nodev1.Frame) bool {
	if f.GetRequestId() == "" {
		return false
	}
	switch f.GetPayload().(type) {
	case *nodev1.Frame_HeartbeatAck, *nodev1.Frame_SessionsResponse, *nodev1.Frame_SessionSpawned,
		*nodev1.Frame_SessionState, *nodev1.Frame_SessionTerminated, *nodev1.Frame_SessionRestored,
		*nodev1.Frame_HealthResponse, *nodev1.Frame_SessionCheckpointed, *nodev1.Frame_Error:
		return true
	}
	return false
}

// isBulk reports whether the frame waits behind control frames: what a stream carries, and its end, which must not
// overtake it.
func isBulk(f *nodev1.Frame) bool {
	switch f.GetPayload().(type) {
	case *nodev1.Frame_StreamData, *nodev1.Frame_StreamClose:
		return true
	}
	return false
}

// isSpare reports whether the frame is dropped rather than queued behind others: another one like it comes soon.
func isSpare(f *nodev1.Frame) bool { return f.GetMoveProgress() != nil }

// The numbers of the bulk types in Frame; a test holds them to the .proto.
const (
	fieldStreamData  protowire.Number = 33
	fieldStreamClose protowire.Number = 35
)

// isBulkBinary is isBulk for a frame in its binary form. It looks at the outermost fields only.
func isBulkBinary(b []byte) bool {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		if num == fieldStreamData || num == fieldStreamClose {
			return true
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return false
		}
		b = b[n:]
	}
	return false
}

// outlivesLink reports whether a frame that could not be sent may be sent on a later link: it names its incarnation or
// epoch and its numbers, so that it has effect once, however late it comes. Everything else belongs to one link.
func outlivesLink(f *nodev1.Frame) bool {
	switch f.GetPayload().(type) {
	case *nodev1.Frame_Facts, *nodev1.Frame_Delivered:
		return true
	}
	return false
}
