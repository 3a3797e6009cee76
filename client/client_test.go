// What a client promises: effects that happen once, failover that is sticky, streams without holes, errors that say what to do.

package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"google.golang.org/protobuf/reflect/protoreflect"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/client/clienttest"
	"github.com/neolith/orchestrator/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// setup is a cluster with one node behind n servers, and a client that knows them all.
func setup(t *testing.T, n int, change func(*client.Config)) (*clienttest.Cluster, []*clienttest.Server, *client.Client) {
	t.Helper()
	c := clienttest.New()
	c.AddNode("node-1")
	cfg := client.Config{Timeout: 10 * time.Second}
	var servers []*clienttest.Server
	for range n {
		s := c.Serve(t, nil)
		servers, cfg.Addresses = append(servers, s), append(cfg.Addresses, s.Address)
	}
	if change != nil {
		change(&cfg)
	}
	cl, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cl.Close() })
	return c, servers, cl
}

func spawn(t *testing.T, cl *client.Client, name string) string {
	t.Helper()
	r, err := cl.Sessions.SpawnSession(t.Context(), &apiv1.SpawnSessionRequest{Spec: &apiv1.SessionSpec{Name: name, Command: []string{"run"}}})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetSession().GetId()
}

func TestALostAnswerTakesEffectOnce(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	// The server does it and the answer is lost, twice; then the call is overtaken.
	lost := clienttest.Fault{Err: clienttest.Lost(), After: true}
	c.Inject("SpawnSession", lost, lost, clienttest.Fault{Err: status.Error(codes.Aborted, "overtaken")})
	spawn(t, cl, "")
	if c.Sessions() != 1 || c.Calls("SpawnSession") != 4 {
		t.Fatalf("%d sessions by %d calls, want 1 by 4", c.Sessions(), c.Calls("SpawnSession"))
	}
}

func TestTwoCallsWithOneMessageAreTwoMutations(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	req := &apiv1.SpawnSessionRequest{Spec: &apiv1.SessionSpec{Command: []string{"run"}}}
	for range 2 {
		if _, err := cl.Sessions.SpawnSession(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	if c.Sessions() != 2 || req.GetIdempotencyKey() != "" {
		t.Fatalf("%d sessions, key %q: the generated key must not stay in the caller's message", c.Sessions(), req.GetIdempotencyKey())
	}
}

func TestATokenWhoseAnswerWasLostIsMadeOnce(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	c.Inject("CreateToken", clienttest.Fault{Err: clienttest.Lost(), After: true})
	made, err := cl.Tokens.CreateToken(t.Context(), &apiv1.CreateTokenRequest{Name: "a", Role: "viewer"})
	if err != nil || c.Calls("CreateToken") != 2 {
		t.Fatal(err, c.Calls("CreateToken"))
	}
	all, err := cl.Tokens.ListTokens(t.Context(), &apiv1.ListTokensRequest{})
	if err != nil || len(all.GetTokens()) != 1 || all.GetTokens()[0].GetId() != made.GetToken().GetId() {
		t.Fatal(all, err)
	}
}

// TestEveryMutationTakesAKey: what changes something can be asked for again.
func TestEveryMutationTakesAKey(t *testing.T) {
	reads := map[protoreflect.Name]bool{"SaveSnapshot": true, "AttachSession": true, "ExecSession": true, "SendMessages": true, // of which the last has one for each message
		"DiffCheckpoints": true, "ExportSession": true, "ImportSession": true} // and an import one in its last step
	for _, file := range []protoreflect.FileDescriptor{
		apiv1.File_orchestrator_v1_session_proto, apiv1.File_orchestrator_v1_node_proto, apiv1.File_orchestrator_v1_cluster_proto,
		apiv1.File_orchestrator_v1_queue_proto, apiv1.File_orchestrator_v1_token_proto, apiv1.File_orchestrator_v1_event_proto,
		apiv1.File_orchestrator_v1_provider_proto,
	} {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				m := methods.Get(j)
				name := string(m.Name())
				if reads[m.Name()] || strings.HasPrefix(name, "Get") || strings.HasPrefix(name, "List") || strings.HasPrefix(name, "Watch") || strings.HasPrefix(name, "Read") {
					continue
				}
				if m.Input().Fields().ByName("idempotency_key") == nil {
					t.Errorf("%s takes no idempotency key", m.FullName())
				}
			}
		}
	}
}

func TestFailoverIsSticky(t *testing.T) {
	c, servers, cl := setup(t, 2, nil)
	id := spawn(t, cl, "a")
	get := func() {
		t.Helper()
		if _, err := cl.Sessions.GetSession(t.Context(), &apiv1.GetSessionRequest{Id: id}); err != nil {
			t.Fatal(err)
		}
	}
	get()
	if cl.Address() != servers[0].Address {
		t.Fatal("began elsewhere than at the first address")
	}
	servers[0].Stop()
	get()
	if cl.Address() != servers[1].Address {
		t.Fatal("did not move to the second address")
	}
	c.ServeOn(t, servers[0].Address, nil)
	get()
	if cl.Address() != servers[1].Address {
		t.Fatal("left a good server when the first came back")
	}
	servers[1].Stop()
	get()
	if cl.Address() != servers[0].Address {
		t.Fatal("did not come round to the first address")
	}
}

func TestAServerWithoutALeaderIsLeft(t *testing.T) {
	c, servers, cl := setup(t, 2, nil)
	c.Inject("ListSessions", clienttest.Fault{Err: clienttest.Lost()})
	if _, err := cl.Sessions.ListSessions(t.Context(), &apiv1.ListSessionsRequest{}); err != nil {
		t.Fatal(err)
	}
	if cl.Address() != servers[1].Address {
		t.Fatal("stayed at a server that said UNAVAILABLE")
	}
}

func TestNobodyThereNamesEachAddressAndWhy(t *testing.T) {
	_, servers, cl := setup(t, 2, nil)
	for _, s := range servers {
		s.Stop()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := cl.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{})
	if !fault.Is(err, fault.Unavailable) {
		t.Fatal(err)
	}
	for _, want := range []string{servers[0].Address, servers[1].Address, "connection refused", "attempts"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
}

func TestExhaustedWaitsOnlyWhenAsked(t *testing.T) {
	for _, wait := range []bool{false, true} {
		var pauses []time.Duration
		c, _, cl := setup(t, 1, func(cfg *client.Config) {
			cfg.RetryExhausted = wait
			cfg.OnRetry = func(r client.Retry) { pauses = append(pauses, r.Wait) }
		})
		id := spawn(t, cl, "a")
		c.Inject("SendMessage", clienttest.Fault{Err: clienttest.Full(70 * time.Millisecond)})
		_, err := cl.Sessions.SendMessage(t.Context(), &apiv1.SendMessageRequest{SessionId: id, Text: []byte("x")})
		if !wait {
			if f := fault.As(err); f == nil || f.Kind != fault.Exhausted || f.RetryAfter != 70*time.Millisecond {
				t.Fatal(err)
			}
			continue
		}
		if err != nil || len(pauses) != 1 || pauses[0] < 70*time.Millisecond || pauses[0] > 90*time.Millisecond {
			t.Fatal(err, pauses)
		}
	}
}

func TestErrorsCarryKindFieldReasonAndStatus(t *testing.T) {
	_, _, cl := setup(t, 1, nil)
	_, err := cl.Sessions.SpawnSession(t.Context(), &apiv1.SpawnSessionRequest{Spec: &apiv1.SessionSpec{}})
	f := fault.As(err)
	if f == nil || f.Kind != fault.Invalid || f.Field != "spec.command" || !strings.HasPrefix(f.Message, "spec.command: is empty") {
		t.Fatalf("%+v", f)
	}
	if reason, _ := client.ErrorInfo(err); reason != "INVALID" {
		t.Fatal("reason", reason)
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Fatal("the status is lost")
	}
}

func TestFaultTable(t *testing.T) {
	for code, want := range map[codes.Code]fault.Kind{
		codes.InvalidArgument: fault.Invalid, codes.OutOfRange: fault.Invalid, codes.NotFound: fault.NotFound, codes.AlreadyExists: fault.AlreadyExists,
		codes.FailedPrecondition: fault.FailedPrecondition, codes.ResourceExhausted: fault.Exhausted, codes.Unavailable: fault.Unavailable,
		codes.Unauthenticated: fault.Unauthenticated, codes.PermissionDenied: fault.PermissionDenied, codes.DeadlineExceeded: fault.Timeout,
		codes.Canceled: fault.Aborted, codes.Aborted: fault.Aborted, codes.Unimplemented: fault.Unimplemented, codes.DataLoss: fault.Internal, codes.Unknown: fault.Internal,
	} {
		if got := fault.KindOf(client.Fault(status.Error(code, "x"))); got != want {
			t.Errorf("%s: %s, want %s", code, got, want)
		}
	}
	st, err := status.New(codes.InvalidArgument, "bad request").WithDetails(&errdetails.BadRequest{
		FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "spec.ttl", Description: "is negative"}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := client.Fault(st.Err()).Error(); got != "bad request: spec.ttl: is negative" {
		t.Error(got)
	}
	if !errors.Is(client.Fault(status.Error(codes.Canceled, "x")), context.Canceled) {
		t.Error("a cancelled call is not context.Canceled")
	}
	if client.Fault(nil) != nil {
		t.Error("nil became an error")
	}
}

func TestCancelEndsACallAtOnce(t *testing.T) {
	_, servers, cl := setup(t, 1, nil)
	servers[0].Stop()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := cl.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestConfigRefusesWhatIsNotSafe(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  client.Config
		want string // empty: allowed
	}{
		"nothing":               {client.Config{}, "no server address"},
		"no port":               {client.Config{Addresses: []string{"localhost"}}, "host:port"},
		"loopback":              {client.Config{Addresses: []string{"127.0.0.1:1", "localhost:1", "[::1]:1"}, Token: "t"}, ""},
		"plain text":            {client.Config{Addresses: []string{"10.0.0.1:1"}}, "no TLS is configured"},
		"one of them":           {client.Config{Addresses: []string{"127.0.0.1:1", "h:1"}}, "no TLS is configured"},
		"insecure":              {client.Config{Addresses: []string{"10.0.0.1:1"}, Insecure: true}, ""},
		"insecure with token":   {client.Config{Addresses: []string{"10.0.0.1:1"}, Insecure: true, Token: "t"}, "plain text"},
		"TLS":                   {client.Config{Addresses: []string{"10.0.0.1:1"}, TLS: &tls.Config{MinVersion: tls.VersionTLS13}, Token: "t"}, ""},
		"looks like a loopback": {client.Config{Addresses: []string{"127.0.0.1.example.com:1"}}, "no TLS is configured"},
	} {
		cl, err := client.New(c.cfg)
		if cl != nil {
			_ = cl.Close()
		}
		switch {
		case c.want == "" && err != nil, c.want != "" && !fault.Is(err, fault.Invalid):
			t.Errorf("%s: %v", name, err)
		case c.want != "" && !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: %q lacks %q", name, err, c.want)
		}
	}
}

// authority makes a self-signed server certificate, and its CA file.
func authority(t *testing.T) (*tls.Config, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, path
}

func TestTLSAndToken(t *testing.T) {
	server, ca := authority(t)
	c := clienttest.New()
	c.Tokens = map[string]string{"good": "admin"}
	s := c.Serve(t, server)
	call := func(files client.TLSFiles, token string) error {
		cfg, err := files.Load()
		if err != nil {
			t.Fatal(err)
		}
		cl, err := client.New(client.Config{Addresses: []string{s.Address}, TLS: cfg, Token: token, Timeout: 300 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		_, err = cl.Cluster.GetStatus(t.Context(), &apiv1.GetStatusRequest{})
		return err
	}
	if err := call(client.TLSFiles{CA: ca}, "good"); err != nil {
		t.Fatal(err)
	}
	if err := call(client.TLSFiles{CA: ca}, "bad"); !fault.Is(err, fault.Unauthenticated) {
		t.Fatal(err)
	}
	if err := call(client.TLSFiles{CA: ca, ServerName: "elsewhere"}, "good"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "TLS handshake") {
		t.Fatal(err)
	}
	if err := call(client.TLSFiles{}, "good"); !fault.Is(err, fault.Unavailable) {
		t.Fatal("plain text to a TLS server", err)
	}
	if _, err := (client.TLSFiles{CA: ca, Cert: ca}).Load(); !fault.Is(err, fault.Invalid) {
		t.Fatal("a certificate without a key", err)
	}
	if _, err := (client.TLSFiles{CA: filepath.Join(t.TempDir(), "none")}).Load(); !fault.Is(err, fault.Invalid) {
		t.Fatal("a CA that is not there", err)
	}
}

func TestAWaitingCallOutlivesTheTimeout(t *testing.T) {
	c, _, cl := setup(t, 1, func(cfg *client.Config) { cfg.Timeout = 300 * time.Millisecond })
	id := spawn(t, cl, "a")
	c.SetNodeStatus("node-1", apiv1.Node_OFFLINE, "gone")
	r, err := cl.Sessions.SpawnSession(t.Context(), &apiv1.SpawnSessionRequest{Spec: &apiv1.SessionSpec{Command: []string{"run"}}})
	if err != nil {
		t.Fatal(err)
	}
	// A pending session does not answer; the waiting ends with the caller's deadline, not with the client's timeout.
	ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
	defer cancel()
	begun := time.Now()
	_, err = cl.Sessions.SendMessage(ctx, &apiv1.SendMessageRequest{SessionId: r.GetSession().GetId(), Text: []byte("x"), Wait: true})
	if !fault.Is(err, fault.Timeout) || time.Since(begun) < 700*time.Millisecond {
		t.Fatal(err, time.Since(begun))
	}
	_, err = cl.Sessions.SendMessage(t.Context(), &apiv1.SendMessageRequest{SessionId: id, Text: []byte("x"), Wait: true})
	if err != nil {
		t.Fatal(err)
	}
}

func TestLogsResumeWithoutHoleOrDouble(t *testing.T) {
	c, servers, cl := setup(t, 2, nil)
	id := spawn(t, cl, "a")
	c.Log(id, apiv1.LogLine_STDOUT, "1", "2", "3", "4", "5", "6", "7")
	// Three lines a batch: the stream breaks after 3 lines, at once, and after 6 lines.
	c.Inject("ReadLogs", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1}, clienttest.Fault{Err: clienttest.Lost()},
		clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1})
	var got []string
	err := cl.Logs(t.Context(), &apiv1.ReadLogsRequest{SessionId: id, Follow: true}, func(l *apiv1.LogLine) error {
		got = append(got, string(l.GetText()))
		switch len(got) {
		case 7: // then a server dies under the follower
			for _, s := range servers {
				if s.Address == cl.Address() {
					s.Stop()
				}
			}
			c.Log(id, apiv1.LogLine_STDOUT, "8", "9")
		case 9:
			c.End(id)
		}
		return nil
	})
	if err != nil || strings.Join(got, "") != "123456789" {
		t.Fatal(err, got)
	}
}

func TestLogsSinceIsMeantFromTheFirstOpening(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	id := spawn(t, cl, "a")
	c.Log(id, apiv1.LogLine_STDOUT, "1")
	c.Inject("ReadLogs", clienttest.Fault{Err: clienttest.Lost()}, clienttest.Fault{Err: clienttest.Lost()}, clienttest.Fault{Err: clienttest.Lost()})
	n := 0
	// Three pauses take more than 87 ms; without the correction the line would have become too old.
	err := cl.Logs(t.Context(), &apiv1.ReadLogsRequest{SessionId: id, Since: durationpb.New(80 * time.Millisecond)}, func(*apiv1.LogLine) error { n++; return nil })
	if err != nil || n != 1 {
		t.Fatal(err, n)
	}
}

func TestLogsOfNobodyAndAnErrorOfTheReader(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	if err := cl.Logs(t.Context(), &apiv1.ReadLogsRequest{SessionId: "x"}, nil); !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
	id := spawn(t, cl, "a")
	c.Log(id, apiv1.LogLine_STDOUT, "1")
	boom := errors.New("boom")
	if err := cl.Logs(t.Context(), &apiv1.ReadLogsRequest{SessionId: id}, func(*apiv1.LogLine) error { return boom }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
}

func TestWatchSessionsResumesWithWhatChanged(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	a := spawn(t, cl, "a")
	spawn(t, cl, "b")
	// The first opening breaks before it is synced, the second right after.
	c.Inject("WatchSessions", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1}, clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 3})
	var got []string
	done := errors.New("done")
	err := cl.WatchSessions(t.Context(), &apiv1.WatchSessionsRequest{Filter: "phase=RUNNING"}, func(m *apiv1.WatchSessionsResponse) error {
		switch {
		case m.GetSynced():
			got = append(got, "synced")
			c.End(a) // it matches no more
			spawn(t, cl, "c")
		case m.GetRemoved():
			got = append(got, "removed")
			if m.GetSession().GetId() != a {
				t.Error("the wrong session went")
			}
		default:
			got = append(got, m.GetSession().GetName())
		}
		if len(got) == 5 {
			return done
		}
		return nil
	})
	first, last := strings.Join(got[:3], " "), strings.Join(got[3:], " ")
	if !errors.Is(err, done) || (first != "a b synced" && first != "b a synced") || (last != "c removed" && last != "removed c") {
		t.Fatal(err, got)
	}
}

func TestWatchEventsResumesInTheMiddleOfAnIndex(t *testing.T) {
	var c *clienttest.Cluster
	var once sync.Once
	c, _, cl := setup(t, 1, func(cfg *client.Config) {
		// They happen while the watch is interrupted before it brought anything: "from now on" was before them.
		cfg.OnRetry = func(client.Retry) { once.Do(func() { c.Event("a", "b", "c"); c.Event("d", "e"); c.Event("f") }) }
	})
	c.Event("old")
	c.Inject("WatchEvents", clienttest.Fault{Err: clienttest.Lost()}, clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 2},
		clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 3})
	var got []string
	done := errors.New("done")
	err := cl.WatchEvents(t.Context(), &apiv1.WatchEventsRequest{AfterIndex: 0}, func(e *apiv1.Event) error {
		if got = append(got, e.GetType()); len(got) == 6 {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) || strings.Join(got, "") != "abcdef" {
		t.Fatal(err, got)
	}
}

func TestAttachGoesOnAfterAnInterruption(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	id := spawn(t, cl, "a")
	c.Inject("AttachSession", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 2})
	in, resize, out := make(chan []byte), make(chan client.Size), &buffer{grew: make(chan struct{}, 100)}
	again := make(chan struct{})
	go func() {
		in <- []byte("one\r")
		out.until("one")
		in <- []byte("lost\r") // its answer breaks the stream
		<-again
		out.until("size 80x24\r\none\rsize 80x24")
		resize <- client.Size{Columns: 100, Rows: 30}
		out.until("size 100x30")
		in <- []byte("exit\r")
	}()
	exit, err := cl.Attach(t.Context(), &apiv1.AttachSessionRequest_Open{SessionId: id}, client.Terminal{
		Input: in, Resize: resize, Size: client.Size{Columns: 80, Rows: 24}, Stdout: out, Reconnected: func() { close(again) }})
	if err != nil || exit.GetCause() != "completed" {
		t.Fatal(exit, err)
	}
}

func TestExec(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	id := spawn(t, cl, "a")
	run := func(in chan []byte, command ...string) (string, string, *apiv1.Session_Exit, error) {
		var out, errs strings.Builder
		exit, err := cl.Exec(t.Context(), &apiv1.ExecSessionRequest_Open{SessionId: id, Command: command}, client.Terminal{Input: in, Stdout: &out, Stderr: &errs})
		return out.String(), errs.String(), exit, err
	}
	in := make(chan []byte, 2)
	in <- []byte(strings.Repeat("x", 3*client.MaxInputBytes/2))
	close(in)
	if out, _, exit, err := run(in, "cat"); err != nil || len(out) != 3*client.MaxInputBytes/2 || exit.GetCode() != 0 {
		t.Fatal(len(out), exit, err)
	}
	if _, errs, exit, err := run(nil, "err", "a b"); err != nil || errs != "a b\n" || exit.GetCode() != 0 {
		t.Fatal(errs, exit, err)
	}
	if _, _, exit, err := run(nil, "exit", "7"); err != nil || exit.GetCode() != 7 {
		t.Fatal(exit, err)
	}
	c.Inject("ExecSession", clienttest.Fault{Err: clienttest.Lost()})
	if _, _, _, err := run(nil, "exit", "7"); !fault.Is(err, fault.Unavailable) || c.Calls("ExecSession") != 4 {
		t.Fatal("a command must not run twice", err, c.Calls("ExecSession"))
	}
}

func TestSnapshotSaveIsRepeatedOnlyBeforeTheFirstByte(t *testing.T) {
	c, _, cl := setup(t, 1, nil)
	c.SetSnapshot([]byte(strings.Repeat("s", 10_000)))
	var b strings.Builder
	c.Inject("SaveSnapshot", clienttest.Fault{Err: clienttest.Lost()})
	if n, err := cl.SaveSnapshot(t.Context(), &b); err != nil || n != 10_000 || b.Len() != 10_000 {
		t.Fatal(n, err)
	}
	c.Inject("SaveSnapshot", clienttest.Fault{Err: clienttest.Lost(), AfterMessages: 1})
	if _, err := cl.SaveSnapshot(t.Context(), &b); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "interrupted after 4096 bytes") {
		t.Fatal(err)
	}
	r, err := cl.RestoreSnapshot(t.Context(), strings.NewReader(strings.Repeat("r", 600_000)))
	if err != nil || r.GetIndex() != 42 || len(c.Restored()) != 600_000 {
		t.Fatal(r, err)
	}
}

// buffer is what a terminal shows; until waits for a text in it.
type buffer struct {
	mu   sync.Mutex
	text string
	grew chan struct{}
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	b.text += string(p)
	b.mu.Unlock()
	b.grew <- struct{}{}
	return len(p), nil
}

func (b *buffer) until(text string) {
	for {
		b.mu.Lock()
		ok := strings.Contains(b.text, text)
		b.mu.Unlock()
		if ok {
			return
		}
		<-b.grew
	}
}
