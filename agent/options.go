// What an agent is made of.

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/neolith/orchestrator/agent/checkpoint"
	"github.com/neolith/orchestrator/agent/driver"
	"github.com/neolith/orchestrator/agent/health"
	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/nodelink"
	"github.com/neolith/orchestrator/session"
)

// The defaults of Options.
const (
	DefaultMaxFactsUnacked = 10_000
	DefaultMaxStarts       = 8
	DefaultMaxRestores     = 4
	DefaultMaxEndedKept    = 1000
	DefaultStartTimeout    = 8 * time.Second // within the time an agent has to end in good order
)

// Options say what node an agent is and what it works with. Zero values of optional fields mean their defaults.
type Options struct {
	// DataDir is the node's own directory; it is made when missing, and used by one agent at a time.
	DataDir string
	// Name is the node's name, unique in its cluster.
	Name    string
	Labels  map[string]string
	Version string
	// Address is where the node's machine is reached, for people; optional.
	Address string
	// ChunkAddress is where other nodes fetch chunks from this one, as host:port; empty when it serves none.
	ChunkAddress string
	// Capabilities is what the node can run; package capability finds it out. What drivers probe is added to it. Its
	// max_concurrent_sessions, when not 0, is also the agent's own limit.
	Capabilities *apiv1.Capabilities
	// Drivers by session type.
	Drivers map[string]driver.Driver
	// Servers are the link addresses to begin with, as host:port.
	Servers []string
	// Dial opens a link to a server; nodelink.DialWebSocket makes one.
	Dial func(ctx context.Context, server string) (nodelink.Conn, error)
	// Lease is where the lease is written, and LeasePath where shims read it.
	Lease     LeaseWriter
	LeasePath string
	// Boottime reads CLOCK_BOOTTIME in nanoseconds; Boottime when nil.
	Boottime func() int64
	// Sampler measures the machine; nil for no measurements, and a node that is always healthy.
	Sampler health.Sampler
	// SecretsDir holds one file for each secret; empty for a node without secrets.
	SecretsDir string

	// PastLogs reads the log below a session's directory when no process of it lives; nil when logs go with processes.
	PastLogs func(ctx context.Context, sessionDir string, from uint64, emit func([]*apiv1.LogLine) error) error
	// Sweep kills what lives of a session whose record is damaged, by its directory; nil when nothing outlives an agent.
	Sweep func(ctx context.Context, sessionDir string) error

	// OnServers is told, at each link, which server holds it and where all of them are, as host:port; it must not block. nil
	// for nobody.
	OnServers func(holds string, all []string)
	// Checkpoints opens what captures sessions and restores them, once the data directory is this agent's; nil for a node that
	// keeps no checkpoints.
	Checkpoints func() (checkpoint.Keeper, error)

	MaxFactsUnacked int
	MaxStarts       int           // processes being started at one time
	MaxRestores     int           // sessions being restored at one time
	MaxEndedKept    int           // ended sessions whose directory is kept until the cluster forgets them; beyond it the oldest go
	StartTimeout    time.Duration // of one start or adoption

	// DrainOnStop is for how long an agent that was told to stop stays to have its sessions moved elsewhere; 0 not at all.
	DrainOnStop time.Duration
	// EndOnStop ends the sessions when the agent is told to stop, instead of leaving them to the next one; behind DrainOnStop, those
	// that are left.
	EndOnStop bool

	// Metrics is where the agent's metrics are registered; nil for nowhere.
	Metrics prometheus.Registerer
	Logger  *slog.Logger
}

// withDefaults checks the options and fills them in.
func (o Options) withDefaults() (Options, error) {
	bad := func(format string, args ...any) (Options, error) {
		return o, fault.New(fault.Invalid, "agent: "+format, args...)
	}
	if o.DataDir == "" {
		return bad("the data directory is not set; set data_dir")
	}
	if problem := session.CheckName(o.Name); problem != "" {
		return bad("the node's name %s", problem)
	}
	if len(o.Servers) == 0 {
		return bad("no server is given; set servers to the link addresses of the cluster, such as 10.0.0.1:8078")
	}
	if o.Dial == nil || o.Lease == nil {
		return o, fmt.Errorf("agent: Options need Dial and Lease")
	}
	for typ, d := range o.Drivers {
		if d.Type() != typ {
			return o, fmt.Errorf("agent: the driver of type %s is registered as %s", d.Type(), typ)
		}
	}
	if o.Capabilities == nil {
		o.Capabilities = &apiv1.Capabilities{CanSpawnSessions: true}
	}
	if o.Boottime == nil {
		o.Boottime = Boottime
	}
	if o.Checkpoints == nil {
		o.Checkpoints = func() (checkpoint.Keeper, error) { return checkpoint.None{}, nil }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	setDefault(&o.MaxFactsUnacked, DefaultMaxFactsUnacked)
	setDefault(&o.MaxStarts, DefaultMaxStarts)
	setDefault(&o.MaxRestores, DefaultMaxRestores)
	setDefault(&o.MaxEndedKept, DefaultMaxEndedKept)
	setDefault(&o.StartTimeout, DefaultStartTimeout)
	return o, nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}
