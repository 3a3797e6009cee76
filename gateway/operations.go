// Operations: what clients may do with sessions, whatever way they say it.

package gateway

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"log/slog"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/neolith/orchestrator/api/proto/orchestrator/cluster/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/cluster"
	"github.com/neolith/orchestrator/cluster/state"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/internal/pbconv"
	"github.com/neolith/orchestrator/leader"
	"github.com/neolith/orchestrator/provider"
	"github.com/neolith/orchestrator/router"
	"github.com/neolith/orchestrator/session"
)

// Options are what the gateway works with.
type Options struct {
	Node   *cluster.Node
	State  *state.Store
	Leader *leader.Leader
	Router *router.Router
	Auth   *auth.Authenticator
	Peers  *Peers
	// Chunks is the cluster's chunk store; nil for none, and then nothing is exported, imported or compared.
	Chunks chunks.Store
	// Daemons describes what runs in this server beside the calls; nil for nothing.
	Daemons func() []*apiv1.Daemon
	// Providers are the pools that this server asks models through; nil for none.
	Providers *provider.Pools
	// Record is what happened; nil where that is not recorded.
	Record  *Record
	Version string
	PID     int
	Now     func() time.Time
	Logger  *slog.Logger
}

// Operations do what clients ask for. They must run on the leader, but for stale reads.
type Operations struct {
	Options
	waiters  waiters
	exchange exchange
	talks    talks
}

// NewOperations makes the operations; Run must be running for those that wait.
func NewOperations(o Options) *Operations {
	return &Operations{Options: o, waiters: waiters{byID: map[string]chan struct{}{}}, exchange: newExchange(), talks: talks{under: map[state.ConversationKey]bool{}}}
}

// Run wakes waiting calls until ctx ends.
func (o *Operations) Run(ctx context.Context) { o.waiters.run(ctx, o.State) }

// fresh returns a view for a read: one that holds every change acknowledged before, unless a stale one will do.
func (o *Operations) fresh(ctx context.Context, c apiv1.Consistency_Level) (*state.View, error) {
	if c != apiv1.Consistency_STALE {
		if err := o.Node.VerifyLeader(ctx); err != nil {
			return nil, err
		}
	}
	return o.State.View(), nil
}

// one commits one command.
func (o *Operations) one(ctx context.Context, c *clusterv1.Command) (state.Result, error) {
	results, err := o.Node.Propose(ctx, c)
	if err != nil {
		return state.Result{}, err
	}
	return results[0], results[0].Err
}

// newID makes a session's id: 100 random bits in lower-case base32, so that a few characters tell two apart.
func newID() string {
	var b [13]byte
	_, _ = rand.Read(b[:]) // never fails
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))[:20]
}

// hashRequest tells whether a repeated idempotency key comes with the same request. Marshalling is deterministic within
// one release; across releases a hash may differ for a spec with fields that the other does not know, which is refused.
func hashRequest(m proto.Message) uint64 {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return 0
	}
	return xxhash.Sum64(b)
}

func namespaceOr(ns string, id auth.Identity) string {
	switch {
	case ns != "":
		return ns
	case id.Namespace != "":
		return id.Namespace
	default:
		return session.DefaultNamespace
	}
}

func checkKey(key string) error {
	if len(key) > session.MaxKeyBytes {
		return fault.New(fault.Invalid, "idempotency key: is %d bytes, more than %d", len(key), session.MaxKeyBytes).WithField("idempotency_key")
	}
	return nil
}

// caller returns who asks; the interceptors have made sure that somebody does.
func caller(ctx context.Context) auth.Identity {
	id, _ := auth.FromContext(ctx)
	return id
}

// resolve finds a session by id, name, or unique prefix of its id; an ended one too, while no other has taken its name.
func (o *Operations) resolve(ctx context.Context, v *state.View, namespace, id string) (*session.Session, error) {
	who := caller(ctx)
	if id == "" {
		return nil, fault.New(fault.Invalid, "session: give its id, a prefix of it, or its name").WithField("id")
	}
	ns := namespaceOr(namespace, who)
	if err := who.CheckNamespace(ns); err != nil {
		return nil, err
	}
	visible := func(s *session.Session) bool {
		return who.MayUse(s.Spec.Namespace) && (namespace == "" || s.Spec.Namespace == namespace)
	}
	if s := v.Session(id); s != nil && visible(s) {
		return s, nil
	}
	if s := v.SessionByName(ns, id); s != nil {
		return s, nil
	}
	var found []*session.Session
	for _, s := range v.SessionsByPrefix(id, maxPrefixMatches) {
		if visible(s) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 0:
		// Who asks by name how a session ended finds the last that had it.
		if s := v.LastSessionByName(ns, id); s != nil {
			return s, nil
		}
		return nil, fault.New(fault.NotFound, "session %q: there is none in namespace %s; see `orchctl sessions list`", clip(id), ns)
	case 1:
		return found[0], nil
	default:
		return nil, fault.New(fault.Invalid, "session %q: is the beginning of several ids, %s and %s among them; give more of it", clip(id), found[0].ID, found[1].ID).WithField("id")
	}
}

// maxPrefixMatches is how many ids with a prefix are looked at.
const maxPrefixMatches = 16

// Spawn creates a session, placed at once where a node fits.
func (o *Operations) Spawn(ctx context.Context, req *apiv1.SpawnSessionRequest) (*session.Session, error) {
	if req.GetSpec() == nil {
		return nil, fault.New(fault.Invalid, "spec: is missing").WithField("spec")
	}
	return o.spawn(ctx, start{
		spec: pbconv.SpecFromProto(req.GetSpec()), key: req.GetIdempotencyKey(), hash: hashRequest(req.GetSpec()), wait: req.GetWait(),
	})
}

// start is a session to be made.
type start struct {
	spec       *session.Spec
	checkpoint *apiv1.Session_Checkpoint // what it begins with; nil for nothing
	key        string
	hash       uint64 // of the request
	wait       bool
}

// checkSpec completes a spec for whoever asks, and says why it cannot be run.
func (o *Operations) checkSpec(who auth.Identity, spec *session.Spec) error {
	spec.Namespace = namespaceOr(spec.Namespace, who)
	spec.Normalize()
	if err := who.CheckNamespace(spec.Namespace); err != nil {
		return err
	}
	if err := spec.Validate(); err != nil {
		return err
	}
	if spec.State == session.StateMemory {
		return fault.New(fault.FailedPrecondition, "spec.state: %s", state.NoMemory(o.State.View().Nodes())).WithField("spec.state")
	}
	return knownCapabilities(o.State.View(), spec.Require)
}

// spawn commits a new session.
func (o *Operations) spawn(ctx context.Context, n start) (*session.Session, error) {
	who, spec := caller(ctx), n.spec
	if err := o.checkSpec(who, spec); err != nil {
		return nil, err
	}
	if err := checkKey(n.key); err != nil {
		return nil, err
	}
	cmd := &clusterv1.SpawnSession{
		SessionId: newID(), Spec: pbconv.SpecToProto(spec), IdempotencyKey: n.key, RequestHash: n.hash, Actor: who.String(), Checkpoint: n.checkpoint,
	}
	placement, err := o.Router.Place(spec, "")
	switch {
	case err == nil:
		cmd.NodeId, cmd.Placement = placement.NodeID, placement.Why
	case fault.Is(err, fault.Exhausted):
		cmd.Placement = err.Error() // it waits, and says why
	default:
		return nil, err
	}
	res, err := o.one(ctx, &clusterv1.Command{Kind: &clusterv1.Command_SpawnSession{SpawnSession: cmd}})
	if placement != nil {
		if err != nil || res.Duplicate || res.Session.NodeID != placement.NodeID {
			o.Router.Release(placement)
		} else {
			o.Router.Settle(placement, res.Session.ModifyIndex)
		}
	}
	if err != nil {
		return nil, err
	}
	if n.wait {
		return o.waitStarted(ctx, res.Session.ID)
	}
	return res.Session, nil
}

// waitStarted waits until the session runs or has ended, or somebody wants something else of it.
func (o *Operations) waitStarted(ctx context.Context, id string) (*session.Session, error) {
	return o.waitSession(ctx, id, func(s *session.Session) (bool, error) {
		return s.Phase != session.Pending && s.Phase != session.Starting && s.Phase != session.Restoring, nil
	})
}

// await waits for a change; when this server stops leading, waiting goes on at the next leader.
func (o *Operations) await(ctx context.Context, changed <-chan struct{}) error {
	for {
		l, leaderChanged := o.Node.Leader()
		if !l.Self {
			return fault.New(fault.Unavailable, "this server does not lead any more; ask again").WithRetry(200 * time.Millisecond)
		}
		select {
		case <-changed:
			return nil
		case <-leaderChanged:
		case <-ctx.Done():
			return fault.New(fault.Timeout, "%w", ctx.Err())
		}
	}
}

// Terminate ends a session.
func (o *Operations) Terminate(ctx context.Context, req *apiv1.TerminateSessionRequest) (*session.Session, error) {
	s, err := o.resolve(ctx, o.State.View(), req.GetNamespace(), req.GetId())
	if err != nil {
		return nil, err
	}
	grace := int64(-1)
	if req.GetGrace() != nil {
		d := req.GetGrace().AsDuration()
		if d < 0 || d > session.MaxGrace {
			return nil, fault.New(fault.Invalid, "grace: %s is outside 0s–%s", d, session.MaxGrace).WithField("grace")
		}
		grace = int64(d)
	}
	res, err := o.oneOnce(ctx, apiv1.SessionService_TerminateSession_FullMethodName, req, &clusterv1.Command{Kind: &clusterv1.Command_TerminateSession{TerminateSession: &clusterv1.TerminateSession{
		SessionId: s.ID, Cause: session.CauseTerminated, Reason: clip(req.GetReason()), Grace: grace, Actor: caller(ctx).String(),
	}}})
	return res.Session, err
}

// sendCommand checks a message and makes its command.
func (o *Operations) sendCommand(ctx context.Context, v *state.View, req *apiv1.SendMessageRequest) (*clusterv1.Command, *session.Session, error) {
	s, err := o.resolve(ctx, v, req.GetNamespace(), req.GetSessionId())
	if err != nil {
		return nil, nil, err
	}
	if err := s.Spec.ValidateMessage(req.GetText()); err != nil {
		return nil, nil, err
	}
	if err := checkKey(req.GetIdempotencyKey()); err != nil {
		return nil, nil, err
	}
	cmd := &clusterv1.SendMessage{
		SessionId: s.ID, Priority: req.GetPriority(), Text: req.GetText(), IdempotencyKey: req.GetIdempotencyKey(),
		Deadline: pbconv.Nanos(req.GetDeadline()),
	}
	if cmd.Priority == apiv1.Priority_PRIORITY_UNSPECIFIED {
		cmd.Priority = apiv1.Priority_NORMAL
	}
	if cmd.IdempotencyKey != "" {
		cmd.RequestHash = xxhash.Sum64(req.GetText()) ^ uint64(cmd.GetPriority())
	}
	return &clusterv1.Command{Kind: &clusterv1.Command_SendMessage{SendMessage: cmd}}, s, nil
}

// Send puts a message into a mailbox, and waits for its turn to end when asked to.
func (o *Operations) Send(ctx context.Context, req *apiv1.SendMessageRequest) (*apiv1.SendMessageResponse, error) {
	if err := o.room(ctx); err != nil {
		return nil, err
	}
	cmd, s, err := o.sendCommand(ctx, o.State.View(), req)
	if err != nil {
		return nil, err
	}
	res, err := o.one(ctx, cmd)
	if err != nil {
		return nil, err
	}
	o.sent(ctx, s.ID, &res)
	out := &apiv1.SendMessageResponse{Sequence: res.Sequence, SessionId: s.ID}
	if req.GetWait() {
		if out.Message, err = o.waitMessage(ctx, s.ID, res.Sequence); err != nil {
			return nil, fault.New(fault.KindOf(err), "message %d was accepted; %w", res.Sequence, err)
		}
	}
	return out, nil
}

// message describes a message whatever has become of it.
func (o *Operations) message(v *state.View, id string, sequence uint64) (*apiv1.Message, bool) {
	if m := v.Message(id, sequence); m != nil {
		return pbconv.MessageToProto(m), true
	}
	if r := v.Result(id, sequence); r != nil {
		return resultProto(r), true
	}
	if d := v.DeadLetter(state.LetterKey{SessionID: id, Sequence: sequence}); d != nil {
		return deadProto(d), true
	}
	return nil, false
}

// ended says whether a message is acked or dead, or is not there any more; of one that is not acked the error says why.
func (o *Operations) ended(v *state.View, id string, sequence uint64) (m *apiv1.Message, over bool, err error) {
	m, ok := o.message(v, id, sequence)
	switch {
	case !ok:
		return nil, true, fault.New(fault.NotFound, "message %d of session %s: is not there, or its result is no longer kept; see `orchctl sessions logs`", sequence, id)
	case m.GetStatus() == apiv1.Message_ACKED:
		return m, true, nil
	case m.GetStatus() == apiv1.Message_DEAD:
		return m, true, deadError(m)
	}
	return nil, false, nil
}

func deadError(m *apiv1.Message) error {
	return fault.New(fault.FailedPrecondition, "message %d became a dead letter: %s; see `orchctl dlq get`", m.GetSequence(), m.GetCause())
}

// waitMessage waits until a message is acked or dead.
func (o *Operations) waitMessage(ctx context.Context, id string, sequence uint64) (*apiv1.Message, error) {
	for {
		changed := o.waiters.changed(id)
		if m, over, err := o.ended(o.State.View(), id, sequence); over {
			return m, err
		}
		if err := o.await(ctx, changed); err != nil {
			return nil, fault.New(fault.KindOf(err), "its turn has not ended: %w", err)
		}
	}
}

func clip(s string) string {
	if len(s) > 256 {
		return strings.ToValidUTF8(s[:256], "") + "…"
	}
	return s
}
