// What the cluster wants of a run that goes on: checkpoints, and to leave.

package agent

import nodev1 "github.com/neolith/orchestrator/api/proto/orchestrator/node/v1"

// plan is guarded by its run's mutex.
type plan struct {
	sequence uint64   // of the last committed checkpoint
	request  uint64   // the newest checkpoint that was asked for in the desired state
	asked    uint64   // the newest that was asked for over the link, by this node's count
	move     uint64   // the order to leave; 0 to stay
	cold     bool     // with move: without copying first
	holdOff  bool     // with move: the target can make copies ready
	ready    [32]byte // with holdOff: the copy that it has ready
	left     bool     // the order was carried out; there is no way back
}

// follow takes in what a desired frame says beside the action itself.
func (p *plan) follow(d *nodev1.DesiredSession) {
	p.sequence = max(p.sequence, d.GetCheckpointSequence())
	p.request = max(p.request, d.GetCheckpointRequest())
	p.move, p.cold, p.holdOff, p.ready = 0, false, false, [32]byte{}
	if d.GetAction() == nodev1.DesiredSession_LEAVE {
		p.move, p.cold, p.holdOff = d.GetMove(), d.GetCold(), d.GetHoldOff()
		copy(p.ready[:], d.GetReadyManifest())
	}
}

// steer changes the plan and has the run look at it.
func (r *run) steer(change func(*plan)) {
	r.mu.Lock()
	change(&r.plan)
	r.mu.Unlock()
	signal(r.wake)
}

func (r *run) planned() plan {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.plan
}

// leave carries out the order to leave, unless it was taken back or replaced: then it returns false.
func (r *run) leave(move uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.plan.move != move {
		return false
	}
	r.plan.left = true
	return true
}
