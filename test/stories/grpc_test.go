// Any call of the gRPC API, as a program in another language makes it, and what the answer carries besides its sentence.
package stories

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	_ "github.com/neolith/orchestrator/api/proto/orchestrator/v1" // the messages
)

// call makes a call with a request in JSON, or in a file of that name, and prints the answer in JSON, or the error with its
// details, one a line. What the environment names as ORCHCTL_TOKEN_FILE is the caller.
func call(ts *testscript.TestScript, neg bool, args []string) {
	refuseNot(ts, neg)
	needArgs(ts, "call", args, 2)
	body := []byte(args[1])
	if b, err := os.ReadFile(ts.MkAbs(args[1])); err == nil {
		body = b
	}
	service, method, _ := strings.Cut(args[0], "/")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("orchestrator.v1." + service))
	ts.Check(err)
	m := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
	if m == nil {
		ts.Fatalf("%s has no method %s", service, method)
	}
	in, out := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	ts.Check(protojson.Unmarshal(body, in))
	conn, err := grpc.NewClient(ts.Getenv("GRPC"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	ts.Check(err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if file := ts.Getenv("ORCHCTL_TOKEN_FILE"); file != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(ts.ReadFile(file)))
	}
	if err := conn.Invoke(ctx, "/orchestrator.v1."+service+"/"+method, in, out); err != nil {
		describe(ts, status.Convert(err))
		return
	}
	b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(out)
	ts.Check(err)
	_, err = ts.Stdout().Write(append(b, '\n'))
	ts.Check(err)
}

// describe prints a status: its code and sentence, then each of its details.
func describe(ts *testscript.TestScript, s *status.Status) {
	lines := []string{fmt.Sprintf("%s: %s", s.Code(), s.Message())}
	for _, d := range s.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			lines = append(lines, fmt.Sprintf("ErrorInfo %s %s", d.GetReason(), d.GetDomain()))
		case *errdetails.RetryInfo:
			lines = append(lines, fmt.Sprintf("RetryInfo %s", d.GetRetryDelay().AsDuration()))
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				lines = append(lines, fmt.Sprintf("BadRequest %s: %s", v.GetField(), v.GetDescription()))
			}
		default:
			lines = append(lines, fmt.Sprintf("%T", d))
		}
	}
	_, err := fmt.Fprintln(ts.Stdout(), strings.Join(lines, "\n"))
	ts.Check(err)
}
