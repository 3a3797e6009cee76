// The fallback for clients that cannot hold a WebSocket: the same messages, one request each.

package socket

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/neolith/orchestrator/auth"
	"github.com/neolith/orchestrator/queue"
)

// SessionHeader names the session that a request is about, where its body does not.
const SessionHeader = "Orchestrator-Session-Id"

const (
	defaultWait = 25 * time.Second // for a result, before the ack is answered
	maxWait     = time.Minute
)

// Handle registers the fallback.
func (h *Hub) Handle(mux *http.ServeMux) {
	for pattern, do := range map[string]func(http.ResponseWriter, *http.Request, *asked){
		"POST /v1/hello": h.postHello, "GET /v1/tools": h.getTools, "POST /v1/call_tool": h.postCall, "POST /v1/cancel": h.postCancel,
		"GET /v1/results/{request_id}": h.getResult,
	} {
		mux.HandleFunc(pattern, h.served(do))
		_, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc("OPTIONS "+path, h.preflight)
	}
}

// statuses say what codes are in HTTP.
var statuses = map[string]int{
	codeInvalidRequest: http.StatusBadRequest, codeValidation: http.StatusBadRequest, codeProtocol: http.StatusBadRequest,
	codeUnauthorized: http.StatusUnauthorized, codeNotFound: http.StatusNotFound, codeToolNotFound: http.StatusNotFound,
	codeDuplicate: http.StatusConflict, codeOverCapacity: http.StatusTooManyRequests, codeUnavailable: http.StatusServiceUnavailable,
	codeTimeout: http.StatusGatewayTimeout, codeProvider: http.StatusBadGateway, codeToolExecution: http.StatusUnprocessableEntity, codeInternal: http.StatusInternalServerError,
}

func statusOf(f *failure) int {
	if f == nil {
		return http.StatusOK
	}
	if s, ok := statuses[f.Code]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// refuse answers with an error alone.
func refuse(w http.ResponseWriter, status int, f *failure) {
	reply(w, status, &message{Op: "error", Error: f})
}

func reply(w http.ResponseWriter, status int, m *message) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	switch status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="orchestrator"`)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		seconds := int64(1)
		if m.Error != nil && m.Error.Details != nil {
			seconds = max((m.Error.Details.RetryAfterMS+999)/1000, 1)
		}
		w.Header().Set("Retry-After", strconv.FormatInt(seconds, 10))
	}
	w.WriteHeader(status)
	_, _ = w.Write(m.encode()) // the client may have gone
}

// asked is a request of the fallback whose caller is known.
type asked struct {
	*request
	who     auth.Identity
	cred    auth.Credential
	session string
	wait    time.Duration
}

// served reads a request, finds out who asks, and bounds how often.
func (h *Hub) served(do func(w http.ResponseWriter, r *http.Request, a *asked)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !h.enter() {
			refuse(w, http.StatusServiceUnavailable, failed(codeUnavailable, "server "+h.o.Server+" is stopping; ask another one"))
			return
		}
		defer h.work.Done()
		if !h.Allows(r) {
			refuse(w, http.StatusForbidden, failed(codeUnauthorized, "origin: pages of this origin may not call; add it to gateway.origins"))
			return
		}
		shareWith(w, r)
		a, f := h.ask(w, r)
		if f == nil {
			if retry, ok := h.buckets.take(h.addressOf(r), ownerOf(a.who)); !ok {
				f = tooFast(retry)
			}
		}
		if f != nil {
			h.note(f)
			refuse(w, statusOf(f), f)
			return
		}
		do(w, r, a)
	}
}

// note counts a refusal.
func (h *Hub) note(f *failure) {
	switch f.Code {
	case codeOverCapacity:
		h.count.overCapacity.Add(1)
	case codeInvalidRequest, codeProtocol, codeValidation:
		h.count.malformed.Add(1)
	}
}

// ask reads a request: its body is a message, its token stands in the Authorization header, or in a hello.
func (h *Hub) ask(w http.ResponseWriter, r *http.Request) (*asked, *failure) {
	a := &asked{request: &request{}, cred: auth.Credential{TLS: r.TLS}}
	token, err := auth.Bearer(r.Header.Get("Authorization"))
	if err != nil {
		return nil, failed(codeUnauthorized, err.Error())
	}
	// Who shows a token before the body is read is known before the body is read.
	a.cred.Token = token
	if token != "" {
		if a.who, err = h.o.Access.Identify(a.cred); err != nil {
			return nil, failed(codeUnauthorized, err.Error())
		}
	}
	if r.Method == http.MethodPost {
		if f := h.body(w, r, a); f != nil {
			return nil, f
		}
	}
	if token == "" {
		said, f := a.text("token", maxTokenBytes)
		if f != nil {
			return nil, f
		}
		a.cred.Token = said
		if a.who, err = h.o.Access.Identify(a.cred); err != nil {
			return nil, failed(codeUnauthorized, err.Error())
		}
	}
	var f *failure
	if a.session, f = a.text("session_id", maxRequestIDBytes); f != nil {
		return nil, f
	}
	if a.session == "" {
		a.session = r.Header.Get(SessionHeader)
	}
	a.wait = defaultWait
	if q := r.URL.Query().Get("wait_ms"); q != "" {
		ms, err := strconv.ParseInt(q, 10, 64)
		if err != nil || ms < 0 || ms > maxWait.Milliseconds() {
			return nil, invalid("wait_ms", "is not a whole number of 0–"+strconv.FormatInt(maxWait.Milliseconds(), 10))
		}
		a.wait = time.Duration(ms) * time.Millisecond
	}
	return a, nil
}

// body reads the message of a POST.
func (h *Hub) body(w http.ResponseWriter, r *http.Request, a *asked) *failure {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(h.o.Limits.HelloTimeout)) // a server without it has its own
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(h.o.Limits.FrameBytes)))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return failed(codeInvalidRequest, errTooLarge.Error())
	case err != nil:
		return failed(codeInvalidRequest, "the message could not be read")
	}
	a.request = &request{words: h.words}
	if err := a.parse(data); err != nil {
		return failed(codeInvalidRequest, err.Error())
	}
	return nil
}

func (h *Hub) postHello(w http.ResponseWriter, _ *http.Request, a *asked) {
	c, known, f := h.clientOf(a.who, a.cred, a.session)
	if f != nil {
		h.note(f)
		refuse(w, statusOf(f), f)
		return
	}
	if !known && h.cluster != nil {
		known = h.cluster.calls.Client(queue.ClientKey{Owner: ownerOf(a.who), Session: c.session}) != nil
	}
	reply(w, http.StatusOK, &message{Op: "hello_ack", OK: yes(), SessionID: c.session, Resumed: known, Server: h.o.Server})
}

func (h *Hub) postCall(w http.ResponseWriter, r *http.Request, a *asked) {
	refusal := func(f *failure) {
		h.note(f)
		reply(w, statusOf(f), &message{Op: "call_tool_res", RequestID: a.id, Error: f})
	}
	t, f := a.toolCall(&h.o.Limits)
	if f != nil {
		refusal(f)
		return
	}
	c, f := h.sessionOf(a)
	if f != nil {
		refusal(f)
		return
	}
	was, before := c.find(t.id)
	k, f := c.begin(nil, t)
	if f != nil {
		refusal(f)
		return
	}
	h.await(w, r, c, k, a.wait, before != nil && was == k)
}

// sessionOf finds the session that a request is about.
func (h *Hub) sessionOf(a *asked) (*client, *failure) {
	if a.session == "" {
		return nil, invalid("session_id", "is missing; POST /v1/hello gives one, and "+SessionHeader+" may carry it")
	}
	if !validSessionID(a.session) {
		return nil, invalid("session_id", "is not 3–64 characters of A–Z a–z 0–9 _ -")
	}
	c, _, f := h.clientOf(a.who, a.cred, a.session) // another server, or this one before it started anew, may have given it
	return c, f
}

func (h *Hub) getTools(w http.ResponseWriter, _ *http.Request, a *asked) {
	reply(w, http.StatusOK, &message{Op: "list_tools_res", RequestID: a.id, Tools: &h.tools})
}

// postCancel ends a call in flight, and answers once it has ended.
func (h *Hub) postCancel(w http.ResponseWriter, r *http.Request, a *asked) {
	answer := func(id string, f *failure) {
		status := http.StatusOK
		if f != nil {
			h.note(f)
			status = statusOf(f)
		}
		reply(w, status, &message{Op: "cancelled", RequestID: id, Error: f})
	}
	id, f := a.requestID()
	if f != nil {
		answer("", f)
		return
	}
	c, f := h.sessionOf(a)
	if f != nil {
		answer(id, f)
		return
	}
	k, over := c.find(id)
	if k == nil && h.cluster != nil {
		var err error
		if k, _, err = h.cluster.join(r.Context(), c, queue.Key{Owner: ownerOf(a.who), Session: a.session, RequestID: id}); err != nil {
			answer(id, failureOf(err))
			return
		}
	}
	if k == nil || over != nil {
		answer(id, notInFlight())
		return
	}
	done, refused := k.when(&k.done), make(chan *failure, 1)
	c.abandon(id, func(f *failure) { refused <- f })
	t := time.NewTimer(a.wait)
	defer t.Stop()
	select {
	case f := <-refused:
		answer(id, f)
	case <-done:
		if m := c.fetched(k); m.Op != "cancelled" { // it ended just before
			answer(id, notInFlight())
			return
		}
		answer(id, nil)
	case <-t.C:
		answer(id, failed(codeTimeout, "the call has not ended yet; it is asked to"))
	case <-r.Context().Done():
	}
}

func (h *Hub) getResult(w http.ResponseWriter, r *http.Request, a *asked) {
	a.id = r.PathValue("request_id")
	var k *call
	c := h.lookup(a.who, a.session)
	if c != nil {
		k, _ = c.find(a.id)
	}
	switch {
	case k != nil:
	case h.cluster != nil && validSessionID(a.session) && a.id != "" && len(a.id) <= maxRequestIDBytes && printable(a.id):
		h.cluster.result(w, r, a)
		return
	default:
		reply(w, http.StatusNotFound, unknownCall(a.id))
		return
	}
	h.await(w, r, c, k, a.wait, false)
}

// await answers with a call's result or, when that takes longer, with its ack.
func (h *Hub) await(w http.ResponseWriter, r *http.Request, c *client, k *call, wait time.Duration, cached bool) {
	leaving := h.life.Done() // then a call that this server keeps ends, and one that the cluster keeps goes on elsewhere
	if k.keeper == keeper(h.memory) {
		leaving = nil
	}
	away := func() {
		f := failed(codeUnavailable, "server "+h.o.Server+" is stopping; ask another one for the result, with the same session_id and request_id")
		f.Details = &details{RetryAfterMS: 1}
		reply(w, statusOf(f), &message{Op: "call_tool_res", RequestID: k.id, Error: f})
	}
	select {
	case <-k.when(&k.settled):
	case <-r.Context().Done():
		return
	case <-leaving:
		away()
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	done := k.when(&k.done)
	select {
	case <-done:
	case <-t.C:
		select {
		case <-done:
		default:
			reply(w, http.StatusAccepted, &message{Op: "call_tool_ack", RequestID: k.id, Name: k.name, Accepted: true, Timeout: max(time.Until(k.deadline), 0).Round(time.Millisecond).Seconds()})
			return
		}
	case <-r.Context().Done():
		return // the call goes on; its result is kept
	case <-leaving:
		away()
		return
	}
	m := c.fetched(k)
	m.FromCache = m.FromCache || cached
	reply(w, statusOfAnswer(&m), &m)
}

func statusOfAnswer(m *message) int {
	if m.Op == "cancelled" {
		return http.StatusConflict
	}
	return statusOf(m.Error)
}
