// Tokens, roles, identities and the listen policy.

package auth

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"pgregory.net/rapid"

	"github.com/neolith/orchestrator/internal/fault"
)

func TestTokenRoundTrip(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		tok := Generate()
		text := tok.Reveal()
		if seen[tok.ID] || len(text) != 68 {
			t.Fatalf("token %s of %d bytes, id seen before: %v", tok, len(text), seen[tok.ID])
		}
		seen[tok.ID] = true
		back, err := Parse(text)
		if err != nil || back != tok {
			t.Fatalf("%s was read as %s, %v", tok, back, err)
		}
		if !back.Verify(tok.Hash()) || back.Verify(Generate().Hash()) || back.Verify(nil) {
			t.Fatal("Verify is wrong")
		}
		for _, verb := range []string{"%s", "%v", "%+v", "%#v", "%q"} {
			if strings.Contains(fmt.Sprintf(verb, tok), tok.secret) {
				t.Fatalf("%s shows the secret", verb)
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := Generate().Reveal()
	for _, bad := range []string{"", "orch_", "orch__", good[1:], good + "a", good[:len(good)-1], strings.ToUpper(good), good + " ",
		"orch_abc_" + good[16:], good[:len(good)-1] + "1", strings.Replace(good, "_", "-", 1)} {
		tok, err := Parse(bad)
		if !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%q: %s, %v", bad, tok, err)
		}
		if bad != "" && err != nil && len(bad) > 20 && strings.Contains(err.Error(), bad[20:]) {
			t.Error("the refusal repeats the secret")
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.String().Draw(rt, "text")
		if tok, err := Parse(text); err == nil && tok.Reveal() != text {
			rt.Fatalf("%q read as %s", text, tok)
		}
	})
}

// Every method of our services has a row, and no row stands for a method that is not there.
func TestEveryMethodHasARow(t *testing.T) {
	known := map[string]bool{MethodLink: true}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(f.Package()), "orchestrator.") && f.Package() != grpc_health_v1.File_grpc_health_v1_health_proto.Package() {
			return true
		}
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := fmt.Sprintf("/%s/%s", s.FullName(), s.Methods().Get(j).Name())
				known[m] = true
				if rule := Methods[m]; rule.Right == 0 || rule.Scope == 0 {
					t.Errorf("%s has no row: nobody can call it", m)
				}
			}
		}
		return true
	})
	if len(known) < 30 {
		t.Fatalf("only %d methods found: the descriptors are not linked in", len(known))
	}
	for m := range Methods {
		if !known[m] && !strings.HasPrefix(m, "/grpc.reflection.") {
			t.Errorf("%s has a row and does not exist", m)
		}
	}
}

// The table by role, as its users know it. A method that is added must be thought of here, too.
func TestWhoMayWhat(t *testing.T) {
	allowed := func(r Role) []string {
		var list []string
		for m := range Methods {
			if (Identity{Name: "x", Role: r}).Authorize(m) == nil && !IsPublic(m) && !strings.Contains(m, "reflection") {
				list = append(list, shorten(m))
			}
		}
		slices.Sort(list)
		return list
	}
	viewer := []string{"EventService/ListEvents", "EventService/WatchEvents", "NodeService/GetNode", "NodeService/ListNodes", "ProviderService/ListModels", "ProviderService/ListProviders",
		"QueueService/GetDeadLetter", "QueueService/GetQueueStats", "QueueService/ListCalls", "QueueService/GetCall", "QueueService/ListDeadLetters", "QueueService/ListMessages",
		"SessionService/DiffCheckpoints", "SessionService/GetMessage", "SessionService/GetSession", "SessionService/GetSessionHistory",
		"SessionService/ListCheckpoints", "SessionService/ListFiles",
		"SessionService/ListSessions", "SessionService/ReadLogs", "SessionService/WatchSessions"}
	client := slices.Concat(viewer, []string{"SessionService/AttachSession", "SessionService/ExecSession", "SessionService/SendMessage",
		"SessionService/SendMessages", "SessionService/SpawnSession", "SessionService/TerminateSession",
		"SessionService/CheckpointSession", "SessionService/MigrateSession", "SessionService/CancelMigration", "SessionService/PauseSession",
		"SessionService/ResumeSession", "SessionService/ForkSession", "SessionService/RewindSession", "SessionService/DeleteCheckpoint",
		"SessionService/ExportSession", "SessionService/ImportSession", "SessionService/ReadFile", "ProviderService/Chat", "QueueService/CancelCall",
		"ProviderService/DeleteConversation", "ProviderService/GetConversation", "ProviderService/ListConversations"})
	operator := slices.Concat(client, []string{"ClusterService/GetStatus", "ClusterService/ListDaemons", "ClusterService/ListMembers", "ClusterService/SaveSnapshot",
		"NodeService/CordonNode", "NodeService/DrainNode", "NodeService/RemoveNode", "NodeService/UncordonNode",
		"QueueService/PurgeDeadLetters", "QueueService/RetryDeadLetters", "RecorderService/ExportInteractions", "RecorderService/ListInteractions"})
	admin := slices.Concat(operator, []string{"ClusterService/JoinMember", "ClusterService/RemoveMember", "ClusterService/RestoreSnapshot",
		"ClusterService/TransferLeadership", "TokenService/CreateToken", "TokenService/ListTokens", "TokenService/RevokeToken", MethodLink})
	for role, want := range map[Role][]string{
		Viewer: viewer, Client: client, Operator: operator, Admin: admin, Node: {MethodLink},
		Server: {"RelayService/CommitCalls", "RelayService/GetReadIndex", "RelayService/GetServerDaemons", "RelayService/GetServerInteractions", "RelayService/GetServerProviders", "RelayService/GetServerStats", "RelayService/Link"}, "": nil, "root": nil,
	} {
		slices.Sort(want)
		if got := allowed(role); !slices.Equal(got, want) {
			t.Errorf("%s may\n%q, want\n%q", role, got, want)
		}
	}
}

func TestAuthorizeRefusals(t *testing.T) {
	for _, c := range []struct {
		who    Identity
		method string
		want   string
	}{
		{Identity{Name: "ci", Role: Viewer}, "/orchestrator.v1.SessionService/SpawnSession",
			"SessionService/SpawnSession: viewer:ci may not; ask an admin for a token of role client, operator or admin (`orchctl tokens create --role`)"},
		{Identity{Name: "a", Role: Admin, Namespace: "blue"}, "/orchestrator.v1.TokenService/CreateToken",
			"TokenService/CreateToken: admin:a is bound to namespace blue, and this is about the whole cluster; use a token without a namespace"},
		{Identity{TokenID: "abc", Role: Admin}, "/orchestrator.cluster.v1.RelayService/Link",
			"/orchestrator.cluster.v1.RelayService/Link: only servers may call it, with a certificate of role server (`orchestrator ca issue --role server`); this is admin:abc"},
		{Identity{Name: "a", Role: Admin}, "/x.Y/Z", "/x.Y/Z: nobody may call it: this server does not know it"},
		{Identity{Name: "a", Role: Admin}, "", ": nobody may call it: this server does not know it"},
	} {
		err := c.who.Authorize(c.method)
		if !fault.Is(err, fault.PermissionDenied) || err.Error() != c.want {
			t.Errorf("%s %s:\ngot  %v\nwant %s", c.who, c.method, err, c.want)
		}
	}
}

func TestNamespaces(t *testing.T) {
	bound, free := Identity{Name: "x", Role: Client, Namespace: "blue"}, Identity{Name: "y", Role: Client}
	if !bound.MayUse("blue") || bound.MayUse("red") || bound.MayUse("") || !free.MayUse("red") {
		t.Error("MayUse is wrong")
	}
	if err := bound.CheckNamespace("red"); !fault.Is(err, fault.PermissionDenied) || !strings.Contains(err.Error(), "bound to namespace blue") {
		t.Errorf("got %v", err)
	}
	if err := bound.CheckNamespace("blue"); err != nil {
		t.Error(err)
	}
	// Nothing that is about the whole cluster is open to a bound token, whatever its role.
	for m, rule := range Methods {
		for _, r := range TokenRoles {
			if rule.Scope == ClusterWide && rule.Right != Public && (Identity{Role: r, Namespace: "blue"}).Authorize(m) == nil {
				t.Errorf("%s bound to a namespace may call %s", r, m)
			}
		}
	}
}

type records map[string]TokenRecord

func (r records) Token(id string) (TokenRecord, bool) { rec, ok := r[id]; return rec, ok }

func TestAuthenticate(t *testing.T) {
	now := time.Unix(1000, 0)
	good, late, other := Generate(), Generate(), Generate()
	a := NewAuthenticator(records{
		good.ID: {ID: good.ID, Name: "ci", Role: Client, Namespace: "blue", Hash: good.Hash(), ExpireTime: now.UnixNano() + 1},
		late.ID: {ID: late.ID, Name: "old", Role: Admin, Hash: late.Hash(), ExpireTime: now.UnixNano()},
	}, func() time.Time { return now })
	got, err := a.Authenticate(good.Reveal())
	if err != nil || got != (Identity{TokenID: good.ID, Name: "ci", Role: Client, Namespace: "blue"}) {
		t.Errorf("%+v, %v", got, err)
	}
	wrong := Token{ID: good.ID, secret: other.secret}
	for text, want := range map[string]string{
		"":             "no token was given",
		"hello":        "is not of the form",
		wrong.Reveal(): "is unknown here, revoked or mistyped",
		other.Reveal(): "is unknown here, revoked or mistyped",
		late.Reveal():  "(old): expired at 1970-01-01T00:16:40Z",
	} {
		got, err := a.Authenticate(text)
		if !fault.Is(err, fault.Unauthenticated) || !strings.Contains(err.Error(), want) || got != (Identity{}) {
			t.Errorf("%q: %+v, %v; want %q", text, got, err, want)
		}
	}
	// A record whose hash is missing lets nobody in.
	if _, err := NewAuthenticator(records{good.ID: {ID: good.ID, Role: Admin}}, time.Now).Authenticate(good.Reveal()); err == nil {
		t.Error("a record without a hash was accepted")
	}
}

func TestRecheck(t *testing.T) {
	now := time.Unix(1000, 0)
	kept := records{"a": {ID: "a", Name: "ci", Role: Viewer, Namespace: "blue"}, "old": {ID: "old", Name: "old", Role: Admin, ExpireTime: now.UnixNano()}}
	a := NewAuthenticator(kept, func() time.Time { return now })
	// Who holds a token may do what the token may now, whatever it could before.
	if got, err := a.Recheck(Identity{TokenID: "a", Name: "ci", Role: Admin}); err != nil || got != (Identity{TokenID: "a", Name: "ci", Role: Viewer, Namespace: "blue"}) {
		t.Errorf("%+v, %v", got, err)
	}
	certificate := Identity{Name: "robot", Role: Client}
	if got, err := a.Recheck(certificate); err != nil || got != certificate {
		t.Errorf("%+v, %v", got, err)
	}
	for id, want := range map[string]string{"gone": "was revoked", "old": "has expired"} {
		if _, err := a.Recheck(Identity{TokenID: id, Name: "x", Role: Admin}); !fault.Is(err, fault.Unauthenticated) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestBearer(t *testing.T) {
	for header, want := range map[string]string{"": "", "Bearer x": "x", "bearer  x": "x"} {
		if got, err := Bearer(header); err != nil || got != want {
			t.Errorf("%q: %q, %v", header, got, err)
		}
	}
	for _, header := range []string{"x", "Basic x", "Bearer"} {
		if _, err := Bearer(header); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%q: %v", header, err)
		}
	}
}

func TestContext(t *testing.T) {
	if _, ok := FromContext(context.Background()); ok {
		t.Error("somebody is there")
	}
	want := Identity{Name: "x", Role: Admin}
	if got, ok := FromContext(NewContext(context.Background(), want)); !ok || got != want {
		t.Errorf("%+v, %v", got, ok)
	}
}

func TestParseRole(t *testing.T) {
	for _, r := range TokenRoles {
		if got, err := ParseRole(string(r)); err != nil || got != r {
			t.Errorf("%s: %s, %v", r, got, err)
		}
	}
	for _, s := range []string{"", "server", "Admin", "root"} {
		if _, err := ParseRole(s); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "use admin, operator, client, viewer or node") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestListenPolicy(t *testing.T) {
	for _, c := range []struct {
		address string
		policy  ListenPolicy
		refused string // part of the refusal
		warned  bool
	}{
		{"127.0.0.1:8077", ListenPolicy{}, "", false},
		{"127.8.9.1:8077", ListenPolicy{}, "", false},
		{"[::1]:8077", ListenPolicy{}, "", false},
		{"[::ffff:127.0.0.1]:8077", ListenPolicy{}, "", false},
		{"localhost:8077", ListenPolicy{}, "", false},
		{"0.0.0.0:8077", ListenPolicy{}, "neither TLS nor tokens", false},
		{":8077", ListenPolicy{}, "neither TLS nor tokens", false},
		{"[::]:8077", ListenPolicy{TLS: true}, "no tokens", false},
		{"10.1.2.3:8077", ListenPolicy{Tokens: true}, "no TLS", false},
		{"[fe80::1%eth0]:8077", ListenPolicy{Tokens: true}, "no TLS", false},
		{"server-1.internal:8077", ListenPolicy{Tokens: true}, "no TLS", false},
		{"localhost.example.com:8077", ListenPolicy{}, "neither", false},
		{"0.0.0.0:8077", ListenPolicy{TLS: true, Tokens: true}, "", false},
		{"0.0.0.0:8077", ListenPolicy{Insecure: true}, "", true},
		{"0.0.0.0:8077", ListenPolicy{TLS: true, Insecure: true}, "", true},
		{"127.0.0.1:8077", ListenPolicy{Insecure: true}, "", false},
		{"8077", ListenPolicy{TLS: true, Tokens: true}, "is not host:port", false},
	} {
		warning, err := c.policy.Check("listen.grpc", c.address)
		if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s %+v: %v, want %q", c.address, c.policy, err, c.refused)
		}
		if err != nil && (!fault.Is(err, fault.Invalid) || fault.As(err).Field != "listen.grpc") {
			t.Errorf("%s: kind %s, field %s", c.address, fault.KindOf(err), fault.As(err).Field)
		}
		if (warning != "") != c.warned {
			t.Errorf("%s %+v: warning %q", c.address, c.policy, warning)
		}
	}
}
