// The sessions and their messages: who sends, how long nobody could, and whether everything arrived once.

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
)

const (
	sessions = 20
	// Each session is sent nine messages a second without waiting for their turns, and one after the other whose answers are
	// waited for, one a second: 200 a second together.
	writeEvery = time.Second / 9
	probeEvery = time.Second
	// callLimit is how long a call may take with all its repetitions before it counts as failed.
	callLimit = 60 * time.Second
)

// load is what goes on all the time.
type load struct {
	c   *client.Client
	ids []string

	stop    context.CancelFunc
	sending sync.WaitGroup
	sent    []sender // by session

	accepted, answered atomic.Int64
	meter              meter
}

// sender remembers what was accepted for one session.
type sender struct {
	mu      sync.Mutex
	entries map[string]int
}

func (s *sender) add(name string, amount int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[name] = amount
}

// meter measures, from mark to mark, how long there was no service.
type meter struct {
	mu       sync.Mutex
	last     time.Time // a message was accepted
	gap      time.Duration
	call     time.Duration
	answer   time.Duration
	failed   int
	failures []string
}

// measured is what a meter found in one window.
type measured struct {
	gap    time.Duration // the longest time in which no message was accepted, of all sessions
	call   time.Duration // the longest that one message took to be accepted, with its repetitions
	answer time.Duration // the longest that one message took to be answered by its session
	failed int           // calls that failed for good
}

func (m *meter) accept(took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.gap, m.call, m.last = max(m.gap, now.Sub(m.last)), max(m.call, took), now
}

func (m *meter) answered(took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answer = max(m.answer, took)
}

func (m *meter) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed++
	if len(m.failures) < 20 {
		m.failures = append(m.failures, fmt.Sprint(err))
	}
}

// mark ends a window and begins the next one.
func (m *meter) mark() measured {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	out := measured{gap: max(m.gap, now.Sub(m.last)), call: m.call, answer: m.answer, failed: m.failed}
	m.last, m.gap, m.call, m.answer, m.failed = now, 0, 0, 0, 0
	return out
}

// access is what a program needs to go to the release's client Service.
type access struct {
	ip, token string
	tls       *tls.Config
}

// access reads it off the Service, as orchctl does.
func (t *test) access(ctx context.Context) (*access, error) {
	service := full
	ip, err := t.read(ctx, "service/"+service, "{.spec.clusterIP}")
	if err != nil {
		return nil, err
	}
	secret := func(annotation string) ([]byte, error) {
		where, err := t.read(ctx, "service/"+service, "{.metadata.annotations.neolith\\.github\\.io/"+annotation+"}")
		if err != nil {
			return nil, err
		}
		name, key, ok := strings.Cut(where, "/")
		if !ok {
			return nil, fmt.Errorf("the Service does not say where its %s is, but %q", annotation, where)
		}
		text, err := t.read(ctx, "secret/"+name, "{.data."+strings.ReplaceAll(key, ".", "\\.")+"}")
		if err != nil {
			return nil, err
		}
		return base64.StdEncoding.DecodeString(text)
	}
	token, err := secret("admin-token")
	if err != nil {
		return nil, err
	}
	ca, err := secret("ca")
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("the release's authority is not a PEM certificate")
	}
	return &access{ip, strings.TrimSpace(string(token)), &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: service + "." + namespace + ".svc"}}, nil
}

// connect makes a client that goes through the release's Service from a machine of the cluster.
func (t *test) connect(ctx context.Context) (*client.Client, error) {
	a, err := t.access(ctx)
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{
		Addresses: []string{net.JoinHostPort(a.ip, "8077")}, Token: a.token, Dial: t.dial, Timeout: callLimit, RetryExhausted: true, TLS: a.tls, UserAgent: "kubernetes-test",
	})
}

// spawn starts one ledger.
func (l *load) spawn(ctx context.Context, name string) (*apiv1.Session, error) {
	r, err := l.c.Sessions.SpawnSession(ctx, &apiv1.SpawnSessionRequest{Wait: true, Spec: &apiv1.SessionSpec{
		Name: name, Command: []string{"/ledger"}, Labels: map[string]string{"app": "ledger"}, CheckpointEvery: "1s", Restart: "always", MaxRestarts: 100,
	}, IdempotencyKey: name})
	if err != nil {
		return nil, err
	}
	if s := r.GetSession(); s.GetPhase() != apiv1.Session_RUNNING {
		return nil, fmt.Errorf("session %s is %s: %s", name, s.GetPhase(), s.GetReason())
	}
	return r.GetSession(), nil
}

// start spawns the rest of the sessions and begins to send.
func (l *load) start(ctx context.Context) error {
	for len(l.ids) < sessions {
		s, err := l.spawn(ctx, fmt.Sprintf("ledger-%02d", len(l.ids)+1))
		if err != nil {
			return err
		}
		l.ids = append(l.ids, s.GetId())
	}
	ctx, l.stop = context.WithCancel(ctx)
	l.sent = make([]sender, sessions)
	l.meter.mark()
	for i := range l.ids {
		l.sent[i].entries = map[string]int{}
		l.sending.Go(func() { l.write(ctx, i) })
		l.sending.Go(func() { l.probe(ctx, i) })
	}
	return nil
}

// close ends the sending, and the calls that are under way.
func (l *load) close() {
	if l.stop != nil {
		l.stop()
	}
	_ = l.c.Close() // it has no error
	l.sending.Wait()
}

// write sends messages at their pace, each once it is accepted.
func (l *load) write(ctx context.Context, i int) {
	l.pace(ctx, writeEvery, func(n int) {
		l.send(ctx, i, fmt.Sprintf("w%02d-%05d", i+1, n+1), n, false)
	})
}

// probe sends messages whose answers it waits for.
func (l *load) probe(ctx context.Context, i int) {
	l.pace(ctx, probeEvery, func(n int) {
		l.send(ctx, i, fmt.Sprintf("p%02d-%05d", i+1, n+1), n, true)
	})
}

func (l *load) pace(ctx context.Context, every time.Duration, do func(n int)) {
	tick := time.NewTicker(every) // what could not be sent in time is not caught up with
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
			do(n)
		case <-ctx.Done():
			return
		}
	}
}

// send sends one message until it is accepted: a call that failed for good is counted, and made again under the same key, so that what
// was accepted is known in the end.
func (l *load) send(ctx context.Context, i int, name string, n int, wait bool) {
	amount := (i*31+n*17)%97 + 1
	for ctx.Err() == nil {
		begun := time.Now()
		// A call that is under way when the sending ends is finished.
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
		_, err := l.c.Sessions.SendMessage(call, &apiv1.SendMessageRequest{
			SessionId: l.ids[i], Text: []byte(name + " " + strconv.Itoa(amount)), IdempotencyKey: name, Wait: wait,
		})
		cancel()
		if err != nil {
			l.meter.fail(fmt.Errorf("%s: %w", name, err))
			continue
		}
		l.sent[i].add(name, amount)
		l.accepted.Add(1)
		if wait {
			l.answered.Add(1)
			l.meter.answered(time.Since(begun))
		} else {
			l.meter.accept(time.Since(begun))
		}
		return
	}
	// The sending has ended, and nobody knows whether it was accepted.
	l.sent[i].add(unknown+name, amount)
}

// audit waits until every message was answered, and compares each session's ledger with what was accepted.
func (l *load) audit(ctx context.Context) (verdict, error) {
	var v verdict
	l.stop()
	l.sending.Wait()
	err := poll(ctx, 3*time.Minute, "all messages are answered", func(ctx context.Context) (bool, error) {
		r, err := l.c.Sessions.ListSessions(ctx, &apiv1.ListSessionsRequest{PageSize: 1000})
		if err != nil {
			return false, err
		}
		waiting, here := uint64(0), 0
		v.dead = 0
		for _, s := range r.GetSessions() {
			if !slices.Contains(l.ids, s.GetId()) {
				continue
			}
			here++
			waiting += uint64(s.GetMailbox().GetQueued()) + uint64(s.GetMailbox().GetDelivered())
			v.dead += int(s.GetMailbox().GetDead())
		}
		return here == sessions && waiting == 0, nil
	})
	if err != nil {
		return v, err
	}
	for i, id := range l.ids {
		if err := l.auditSession(ctx, i, id, &v); err != nil {
			return v, fmt.Errorf("audit session %d: %w", i+1, err)
		}
	}
	return v, nil
}

func (l *load) auditSession(ctx context.Context, i int, id string, v *verdict) error {
	var ledger bytes.Buffer
	exit, err := l.c.Exec(ctx, &apiv1.ExecSessionRequest_Open{SessionId: id, Command: []string{"/ledger", "print"}}, client.Terminal{Stdout: &ledger})
	if err != nil {
		return err
	}
	if exit.GetCode() != 0 {
		return fmt.Errorf("ledger print ended with %d: %s", exit.GetCode(), &ledger)
	}
	v.compare(fmt.Sprintf("ledger-%02d", i+1), l.sent[i].entries, ledger.String())
	return nil
}
