// Heartbeats: asking for the lease, saying how the machine is, and what happens when the lease lapses.

package agent

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/neolith/orchestrator/agent/health"
	nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/session"
)

// sampleInterval is how often the machine is measured: CPU use is that of the interval before.
const sampleInterval = 5 * time.Second

// sendHeartbeat asks for the lease to be renewed. When the link has no room it is not sent again: the next one is soon.
func (s *supervisor) sendHeartbeat() {
	if !s.linked.Load() {
		return
	}
	s.renewTimer.Reset(s.renew)
	hb := &nodev1.Heartbeat{SentAt: int64(s.host.lease.heartbeat())}
	withHealth := time.Duration(hb.SentAt)-s.lastHealth >= s.heartbeat
	if withHealth {
		s.judge()
		hb.Health, hb.Status, hb.StatusReason = s.health(), s.verdict.Status, s.verdict.Reason
	}
	if s.send(&nodev1.Frame{Payload: &nodev1.Frame_Heartbeat{Heartbeat: hb}}) && withHealth {
		s.lastHealth = time.Duration(hb.SentAt)
	}
}

// heartbeatAck moves the lease's deadline.
func (s *supervisor) heartbeatAck(ack *nodev1.HeartbeatAck) {
	sentAt := time.Duration(ack.GetSentAt())
	deadline, ok := s.host.lease.answered(sentAt, ack.GetLease().AsDuration())
	if !ok {
		s.log.Debug("a heartbeat's answer that renews nothing", "sent_at", sentAt, "lease", ack.GetLease().AsDuration())
		return
	}
	s.lastAnswered, s.lastAnswer = sentAt, time.Now()
	s.roundTrip = s.host.lease.now() - sentAt
	s.metrics.roundTrip.Observe(s.roundTrip.Seconds())
	s.keeper.write(deadline)
}

// leaseWritten begins to count on a deadline, now that shims can read it.
func (s *supervisor) leaseWritten(w leaseWritten) {
	if w.err != nil {
		s.log.Error("the lease could not be written down; it is not renewed", "error", w.err, "lease_left", s.leaseLeft())
		s.host.lease.wanted = time.Duration(s.host.lease.deadline.Load()) // the next answer tries again
		return
	}
	l := s.host.lease
	held := l.held()
	if int64(w.deadline) > l.deadline.Load() {
		l.deadline.Store(int64(w.deadline))
	}
	if held || !l.held() {
		return
	}
	l.lapsed = false
	s.log.Info("the node has a lease", "lease_left", s.leaseLeft())
	for _, e := range s.entries {
		s.advance(e)
	}
	s.wakeAll()
}

// checkLease kills everything once the lease has lapsed, and sees to it that the next look comes in time.
func (s *supervisor) checkLease() {
	l := s.host.lease
	now := l.now()
	left := time.Duration(l.deadline.Load()) - now
	if left > 0 {
		s.leaseTimer.Reset(min(left, leaseCheckMax))
		return
	}
	if !l.lapsed {
		l.lapsed = true
		s.lapse()
	}
	for _, e := range s.entries {
		if e.next == nil {
			continue
		}
		// The leader may have given the node up meanwhile, and the session to another; it must say again what it wants.
		if s.leaseLength > 0 && now-e.next.since > s.leaseLength {
			s.dropNext("no lease was granted in time")
			s.bounce("no lease was granted in time; asking for the whole desired state")
			break
		}
		s.leaseTimer.Reset(leaseCheckMax)
	}
}

// lapse kills every session. Their shims do the same without being told; whichever comes first.
func (s *supervisor) lapse() {
	n := 0
	for _, e := range s.entries {
		if e.live() {
			n++
			e.run.order(order{strength: orderKill, exit: session.Exit{Cause: session.CauseLost, Message: "lease lapsed"}})
		}
	}
	if s.host.lease.ever() {
		s.metrics.lapses.Inc()
		s.log.Error("the node's lease has lapsed; its sessions are killed", "sessions", n)
	}
	s.dropNext("the lease lapsed")
}

// judge says how the node is, from what was last measured.
func (s *supervisor) judge() {
	before := s.verdict.Status
	s.verdict = health.Judge(s.verdict, health.Input{Sample: s.sample, ResponseTime: s.responseTime()})
	if s.verdict.Status != before && before != apiv1.Node_STATUS_UNSPECIFIED {
		s.log.Warn("the node's status changed", "from", before.String(), "to", s.verdict.Status.String(), "reason", s.verdict.Reason)
	}
}

// responseTime is the last round trip, or how long an answer has been missing when that is longer.
func (s *supervisor) responseTime() time.Duration {
	if !s.linked.Load() {
		return s.roundTrip
	}
	return max(s.roundTrip, s.host.lease.waiting(s.lastAnswered))
}

func (s *supervisor) health() *apiv1.NodeHealth {
	h := &apiv1.NodeHealth{
		CpuUsage: s.sample.CPUPercent, MemoryUsage: s.sample.MemoryPercent, ActiveSessions: uint32(s.activeSessions()),
		ResponseTimeMs: float64(s.responseTime()) / float64(time.Millisecond), UptimeSeconds: time.Since(s.began).Seconds(),
	}
	if !s.lastAnswer.IsZero() {
		h.LastHeartbeat = timestamppb.New(s.lastAnswer)
	}
	return h
}

func (s *supervisor) activeSessions() int {
	n := 0
	for _, e := range s.entries {
		if e.live() {
			n++
		}
	}
	return n
}

// sample measures the machine now and then, beside the supervisor.
func (a *Agent) sample(ctx context.Context, note func(any)) {
	if a.opts.Sampler == nil {
		return
	}
	t := time.NewTicker(sampleInterval)
	defer t.Stop()
	for {
		note(sampled(a.opts.Sampler.Sample(ctx)))
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// healthResponse answers get_health.
func (s *supervisor) healthResponse() *nodev1.HealthResponse {
	s.judge()
	return &nodev1.HealthResponse{Health: s.health(), Status: s.verdict.Status, StatusReason: s.verdict.Reason}
}
