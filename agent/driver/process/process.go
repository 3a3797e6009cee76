// Package process runs any command as a session: type "process".
//
// The command runs beside a shim (package shim) in the session's workspace. The driver holds no truth of its own: what
// the process was given and what it said stands in the output log, how it ended in the exit record. So a driver that
// adopts a session reads the log from the epoch's beginning and arrives where the one before it was.
//
// A session's directory, made by the agent:
//
//	workspace/  the process's working directory
//	log/        the output log (package outputlog), across epochs
//	shim.*      what the shim of the present epoch keeps (package shim)
//
// # Turns, by protocol
//
//	lines  a message is one line on stdin; the next whole line on stdout ends the turn and is its result
//	json   {"id":"m-12","sequence":12,"priority":"normal","text":"…"} a line in; a line
//	       {"type":"result","id":"m-12","text":"…"} on stdout ends the turn; a text that is not a string is the result as JSON
//	raw    the message's bytes go to a terminal as they are; the turn ends when nothing was written for TurnIdle, and
//	       all that was written since the message is its result
//	none   takes no messages: each is refused
//
// # Ends
//
// A session's end is the shim's to tell. When the shim itself was killed, its main process died with it, and the driver
// kills what is left of the tree before it reports the end. A shim that does not act on a kill within KillPatience, as
// one that was stopped, is killed for the same effect.
//
// # Cgroups
//
// Where the kernel lets it, each session has a cgroup of its own: in the version 2 hierarchy to be killed by, and in the
// one that has the memory controller when its spec reserves memory, which then is also its limit. Elsewhere the shim
// walks its descendants, and memory has no limit; Probe tells which it is.
package process

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/shim"
	"github.com/neolith/orchestrator/session"
)

// The capabilities that Probe tells of.
const (
	CapabilityTerminal     = "process.terminal"
	CapabilityCgroupKill   = "process.cgroup-kill"
	CapabilityCgroupMemory = "process.cgroup-memory"
)

// Options of a Driver.
type Options struct {
	// Shim is the program to start as shims; see embed.Extract and shim.Self.
	Shim shim.Program
	// Logger may be nil.
	Logger *slog.Logger
	// NoCgroups leaves cgroups alone also where they would work.
	NoCgroups bool
	// KillPatience is how long a shim may take to act on a kill before it is killed itself; 2 s when 0.
	KillPatience time.Duration
	// LogSegmentBytes and LogTotalBytes bound a session's output log; package outputlog has the defaults.
	LogSegmentBytes, LogTotalBytes int64
}

// Driver makes sessions of type process.
type Driver struct {
	opt     Options
	log     *slog.Logger
	cgroups cgroups
}

var (
	_ driver.Driver = (*Driver)(nil)
	_ driver.Execer = (*proc)(nil)
)

// New makes a driver and finds out what the machine allows.
func New(opt Options) *Driver {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	if opt.KillPatience <= 0 {
		opt.KillPatience = 2 * time.Second
	}
	d := &Driver{opt: opt, log: opt.Logger}
	if !opt.NoCgroups {
		d.cgroups = detectCgroups()
	}
	return d
}

// Type is "process".
func (d *Driver) Type() string { return session.TypeProcess }

// Probe tells of terminals and cgroups.
func (d *Driver) Probe(context.Context) (map[string]bool, error) {
	return map[string]bool{
		CapabilityTerminal:     unix.Access("/dev/ptmx", unix.R_OK|unix.W_OK) == nil,
		CapabilityCgroupKill:   d.cgroups.unified != "",
		CapabilityCgroupMemory: d.cgroups.memory2 || d.cgroups.memory1 != "",
	}, nil
}

func workspace(s *driver.Start) string { return filepath.Join(s.Dir, "workspace") }

// LogDir is where the output log of the session with this directory lies; package outputlog reads it.
func LogDir(sessionDir string) string { return filepath.Join(sessionDir, "log") }
