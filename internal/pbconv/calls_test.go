// Calls survive the way to messages and back with every field.

package pbconv

import (
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	"github.com/neolith/orchestrator/queue"
	"github.com/neolith/orchestrator/session"
)

// filled has something in every field.
func filled() *queue.Call {
	return &queue.Call{
		Key: queue.Key{Owner: "token 1", Session: "ann", RequestID: "r"}, Caller: queue.Caller{TokenID: "1", Name: "ann", Role: "client", Namespace: "default"},
		Tool: "chat", Arguments: queue.Blob{Chunks: [][32]byte{{1}, {2}}, Size: 99}, Priority: session.High, RequestHash: 7, Deadline: 8, Server: "s1",
		OrderKey: "k", Repeatable: true, Status: queue.Dead, Attempt: 3, NotBefore: 4, Cancelling: true, CreateTime: 5, BeginTime: 6, EndTime: 7,
		Outcome: &queue.Outcome{
			Outputs: queue.Blob{Inline: []byte("x"), Size: 1}, Cancelled: true, Code: "C", Message: "m", RetryAfter: 2 * time.Second, Field: "f", Passing: true,
		},
		Order: 9, LastError: "e", Number: 10, ModifyIndex: 11,
	}
}

func TestACallComesBack(t *testing.T) {
	c := filled()
	for v, i := reflect.ValueOf(*c), 0; i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Fatalf("the test fills no %s", v.Type().Field(i).Name)
		}
	}
	b, err := proto.Marshal(CallToRow(c))
	if err != nil {
		t.Fatal(err)
	}
	var row clusterv1.CallRow
	if err := proto.Unmarshal(b, &row); err != nil {
		t.Fatal(err)
	}
	if got, err := CallFromRow(&row); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("%v\n%+v\n%+v", err, got, c)
	}
	// What a command says of it is what it is before its first attempt.
	got, err := CallFromSubmit(SubmitOf(c, true))
	want := &queue.Call{
		Key: c.Key, Caller: c.Caller, Tool: c.Tool, Arguments: c.Arguments, Priority: c.Priority, RequestHash: c.RequestHash, Deadline: c.Deadline,
		Server: c.Server, OrderKey: c.OrderKey, Repeatable: true, Status: queue.Queued,
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n%+v\n%+v", err, got, want)
	}
	empty := &queue.Call{Status: queue.Queued, Priority: session.Low}
	if got, err := CallFromRow(CallToRow(empty)); err != nil || !reflect.DeepEqual(got, empty) {
		t.Errorf("%v, %+v", err, got)
	}
	client := &queue.Client{ClientKey: c.Client(), Server: "s1", Order: 1, Delivered: 2, Time: 3}
	if got := ClientFromRow(ClientToRow(client)); *got != *client {
		t.Errorf("%+v", got)
	}
}

func TestRowsThatAreNoCalls(t *testing.T) {
	for name, change := range map[string]func(*clusterv1.CallRow){
		"status 0":                 func(r *clusterv1.CallRow) { r.Status = 0 },
		"status 5":                 func(r *clusterv1.CallRow) { r.Status = 5 },
		"status 257":               func(r *clusterv1.CallRow) { r.Status = 257 },
		"over without an outcome":  func(r *clusterv1.CallRow) { r.Outcome = nil },
		"an outcome while it runs": func(r *clusterv1.CallRow) { r.Status = 2 },
		"priority 9":               func(r *clusterv1.CallRow) { r.Priority = 9 },
		"a short hash":             func(r *clusterv1.CallRow) { r.Arguments.Chunks[1] = []byte{1} },
		"a long hash of outputs":   func(r *clusterv1.CallRow) { r.Outcome.Outputs = &clusterv1.Blob{Chunks: [][]byte{make([]byte, 33)}} },
	} {
		t.Run(name, func(t *testing.T) {
			r := CallToRow(filled())
			change(r)
			if c, err := CallFromRow(r); err == nil {
				t.Errorf("was read as %+v", c)
			}
		})
	}
	if c, err := CallFromRow(nil); c != nil || err != nil {
		t.Errorf("%v, %v", c, err)
	}
}
