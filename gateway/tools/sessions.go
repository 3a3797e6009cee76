// Tools that make, find, end and speak to sessions.

package tools

import (
	"cmp"
	"context"
	"encoding/base64"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/session"
)

// What many tools take.

func idSchema() *Schema {
	return named("the session: its id, a unique beginning of it, or its name", session.MaxNameBytes)
}

func namespaceSchema() *Schema {
	return text("the namespace; the token's own, or default, when left out", session.MaxNameBytes)
}

func keySchema() *Schema {
	return text("makes a repeated call the same call; not needed where calls have a request_id", session.MaxKeyBytes)
}

func prioritySchema(of string) *Schema { return oneOf(of, "critical", "high", "normal", "low") }

// priority reads a priority that was checked; the first that is given counts.
func priority(names ...string) apiv1.Priority_Level {
	switch cmp.Or(names...) {
	case "critical":
		return apiv1.Priority_CRITICAL
	case "high":
		return apiv1.Priority_HIGH
	case "normal":
		return apiv1.Priority_NORMAL
	case "low":
		return apiv1.Priority_LOW
	default:
		return apiv1.Priority_PRIORITY_UNSPECIFIED
	}
}

// target is what names a session, and the call on it.
type target struct {
	ID        string `json:"id"`
	Namespace string `json:"namespace"`
	Key       string `json:"idempotency_key"`
	Wait      *bool  `json:"wait"`
}

// key is the idempotency key: the caller's own, or the call's.
func (t target) key(c *Call) string { return cmp.Or(t.Key, c.ID) }

// waits reports whether to wait, which is the default but for spawning.
func (t target) waits() bool { return t.Wait == nil || *t.Wait }

func sessionTools() []Tool {
	return []Tool{spawnTool(), getTool(), listTool(), sendTool(), terminateTool()}
}

type spawnArguments struct {
	Name            string            `json:"name"`
	Namespace       string            `json:"namespace"`
	Type            string            `json:"type"`
	Command         []string          `json:"command"`
	Env             map[string]string `json:"env"`
	Secrets         []string          `json:"secrets"`
	Require         []string          `json:"require"`
	Labels          map[string]string `json:"labels"`
	NodeSelector    map[string]string `json:"node_selector"`
	CPUMilli        int64             `json:"cpu_milli"`
	MemoryBytes     int64             `json:"memory_bytes"`
	MemoryProfile   string            `json:"memory_profile"`
	Priority        string            `json:"priority"`
	Protocol        string            `json:"protocol"`
	Restart         string            `json:"restart"`
	MaxRestarts     uint32            `json:"max_restarts"`
	TTL             string            `json:"ttl"`
	Grace           string            `json:"grace"`
	CheckpointEvery string            `json:"checkpoint_every"`
	PauseAfter      string            `json:"pause_after"`
	Strategy        string            `json:"strategy"`
	Wait            bool              `json:"wait"`
	Key             string            `json:"idempotency_key"`
}

// spec is the session that the arguments describe; what it must be like in detail, the API checks.
func (a *spawnArguments) spec() (*apiv1.SessionSpec, error) {
	s := &apiv1.SessionSpec{
		Type: a.Type, Name: a.Name, Namespace: a.Namespace, Priority: priority(a.Priority), Command: a.Command, Env: a.Env, Secrets: a.Secrets,
		Require: a.Require, Labels: a.Labels, NodeSelector: a.NodeSelector, CpuMilli: a.CPUMilli, MemoryBytes: a.MemoryBytes,
		MemoryProfile: a.MemoryProfile, Protocol: a.Protocol, Restart: a.Restart, MaxRestarts: a.MaxRestarts,
		Strategy: a.Strategy, CheckpointEvery: a.CheckpointEvery,
	}
	for _, d := range []struct {
		field, text string
		to          **durationpb.Duration
	}{{"ttl", a.TTL, &s.Ttl}, {"grace", a.Grace, &s.Grace}, {"pause_after", a.PauseAfter, &s.PauseAfter}} {
		v, err := span(d.field, d.text)
		if err != nil {
			return nil, err
		}
		if d.text != "" {
			*d.to = durationpb.New(v)
		}
	}
	return s, nil
}

func spawnTool() Tool {
	word := func(description string) *Schema { return text(description, session.MaxNameBytes) }
	words := func(description string) *Schema {
		return listOf(description, session.MaxListEntries, named("", session.MaxNameBytes))
	}
	return Tool{
		Name:        "session_spawn",
		Description: "Start a session: a long-lived process, mostly an AI agent, that keeps its state, takes messages, and moves between machines. Returns the session as JSON; its id is what the other tools take.",
		Schema: object(nil, map[string]*Schema{
			"name": word("a name, unique among running sessions of the namespace"), "namespace": namespaceSchema(),
			"type":    oneOf("what kind of session; process by default", "process", "claude-code", "claude-flow", "acp"),
			"command": listOf("the program and its arguments", session.MaxListEntries, text("", session.MaxSpecBytes)),
			"env":     mapOf("environment variables", text("", session.MaxSpecBytes)),
			"secrets": words("names of secrets of the node"), "require": words("capabilities that the node must have, such as gpu"),
			"labels": mapOf("labels of the session", word("")), "node_selector": mapOf("labels that the node must have", word("")),
			"cpu_milli":      whole("processor time to reserve, in thousandths of a core", 0, 1<<40),
			"memory_bytes":   whole("memory to reserve", 0, 1<<60),
			"memory_profile": word("a named amount of memory"),
			"priority":       prioritySchema("which sessions go first when room is short; normal by default"),
			"protocol":       oneOf("how the process takes messages; lines by default", "lines", "json", "raw", "none"),
			"restart":        oneOf("when it is started again; never by default", "never", "on-failure", "always"),
			"max_restarts":   whole("how often at most", 0, 1<<31),
			"ttl":            duration("how long it may live"), "grace": duration("how long it has to end after SIGTERM"),
			"checkpoint_every": text("how often its state is saved: a duration, or turn", 32),
			"pause_after":      duration("how long it may be idle before it is paused"),
			"strategy":         word("how its node is chosen"),
			"wait":             flag("wait until it runs", false), "idempotency_key": keySchema(),
		}),
		run: onOne(func(ctx context.Context, api api, c *Call, a spawnArguments) (*apiv1.SpawnSessionResponse, error) {
			spec, err := a.spec()
			if err != nil {
				return nil, err
			}
			return api.sessions.SpawnSession(ctx, &apiv1.SpawnSessionRequest{Spec: spec, IdempotencyKey: cmp.Or(a.Key, c.ID), Wait: a.Wait})
		}),
	}
}

func getTool() Tool {
	return Tool{
		Name: "session_get", ReadOnly: true,
		Description: "Look at one session: its phase, node, epoch, checkpoint, lag and mailbox, as JSON.",
		Schema:      object([]string{"id"}, map[string]*Schema{"id": idSchema(), "namespace": namespaceSchema()}),
		run: onOne(func(ctx context.Context, api api, c *Call, a target) (*apiv1.GetSessionResponse, error) {
			return api.sessions.GetSession(ctx, &apiv1.GetSessionRequest{Namespace: a.Namespace, Id: a.ID})
		}),
	}
}

// maxPage is how many sessions are listed at once.
const maxPage = 500

func listTool() Tool {
	return Tool{
		Name: "session_list", ReadOnly: true,
		Description: "List sessions, newest state, as JSON: sessions, total, and nextPageToken when there are more.",
		Schema: object(nil, map[string]*Schema{
			"namespace": namespaceSchema(), "filter": text("such as phase=RUNNING,node=node-1", 4096),
			"limit": whole("how many at most; 100 by default", 1, maxPage), "page_token": text("nextPageToken of the page before", 4096),
		}),
		run: func(ctx context.Context, api api, c *Call) ([]Output, error) {
			a, err := decode[struct {
				Namespace string `json:"namespace"`
				Filter    string `json:"filter"`
				Limit     int32  `json:"limit"`
				PageToken string `json:"page_token"`
			}](c)
			if err != nil {
				return nil, err
			}
			r, err := api.sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{
				Namespace: a.Namespace, Filter: a.Filter, PageSize: cmp.Or(a.Limit, 100), PageToken: a.PageToken,
			})
			if err != nil {
				return nil, err
			}
			return answer(r)
		},
	}
}

// sent is the answer of session_send.
type sent struct {
	Sequence  uint64 `json:"sequence"`
	SessionID string `json:"sessionId"`
	Status    string `json:"status"`
	// Result is what the turn answered; in ResultBase64 when it is not text.
	Result       *string `json:"result,omitempty"`
	ResultBase64 string  `json:"resultBase64,omitempty"`
}

func sendTool() Tool {
	return Tool{
		Name:        "session_send",
		Description: "Send a message to a session and, unless wait is false, wait for its turn's result. The message is durable: it survives moves and failures of machines, and is answered once. Returns JSON with sequence, status and result.",
		Schema: object([]string{"id", "message"}, map[string]*Schema{
			"id": idSchema(), "namespace": namespaceSchema(), "message": text("the message", session.MaxMessageBytes),
			"priority": prioritySchema("which messages go first; the call's, else normal"),
			"wait":     flag("wait for the result", true), "idempotency_key": keySchema(),
			"stream": flag("while waiting, stream what the session writes", false),
		}),
		run: func(ctx context.Context, api api, c *Call) ([]Output, error) {
			a, err := decode[struct {
				target
				Message  string `json:"message"`
				Priority string `json:"priority"`
				Stream   bool   `json:"stream"`
			}](c)
			if err != nil {
				return nil, err
			}
			if a.Stream && a.waits() && c.Chunk != nil {
				lines, err := follow(ctx, api, a.target, c.Chunk)
				if err != nil {
					return nil, err
				}
				defer lines.end(ctx)
			}
			r, err := api.sessions.SendMessage(ctx, &apiv1.SendMessageRequest{
				Namespace: a.Namespace, SessionId: a.ID, Text: []byte(a.Message), Priority: priority(a.Priority, c.Priority),
				IdempotencyKey: a.key(c), Wait: a.waits(),
			})
			if err != nil {
				return nil, err
			}
			out := sent{Sequence: r.GetSequence(), SessionID: r.GetSessionId(), Status: apiv1.Message_QUEUED.String()}
			if m := r.GetMessage(); m != nil {
				out.Status = m.GetStatus().String()
				if m.GetStatus() == apiv1.Message_DEAD {
					return nil, fault.New(fault.Aborted, "message %d of session %s: is a dead letter: %s; see `orchctl dlq get`", m.GetSequence(), m.GetSessionId(), m.GetCause())
				}
				if result := string(m.GetResult()); utf8.ValidString(result) {
					out.Result = &result
				} else {
					out.ResultBase64 = base64.StdEncoding.EncodeToString(m.GetResult())
				}
			}
			return answerJSON(out)
		},
	}
}

func terminateTool() Tool {
	type arguments struct {
		target
		Reason string `json:"reason"`
		Grace  string `json:"grace"`
	}
	return Tool{
		Name: "session_terminate", Destructive: true,
		Description: "End a session: SIGTERM, and after its grace its whole process tree is killed. Returns the session as JSON.",
		Schema: object([]string{"id"}, map[string]*Schema{
			"id": idSchema(), "namespace": namespaceSchema(), "reason": text("why, for the history", 1024),
			"grace": duration("how long it has; its own grace when left out"), "idempotency_key": keySchema(),
		}),
		run: onOne(func(ctx context.Context, api api, c *Call, a arguments) (*apiv1.TerminateSessionResponse, error) {
			req := &apiv1.TerminateSessionRequest{Namespace: a.Namespace, Id: a.ID, Reason: a.Reason, IdempotencyKey: a.key(c)}
			grace, err := span("grace", a.Grace)
			if err != nil {
				return nil, err
			}
			if a.Grace != "" {
				req.Grace = durationpb.New(grace)
			}
			return api.sessions.TerminateSession(ctx, req)
		}),
	}
}
