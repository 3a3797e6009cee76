// Why not the others: obstacles, counted, with an example each.

package router

import (
	"fmt"
	"strings"
	"time"
)

// retryPlace is when a client may ask again for a place that is not there now.
const retryPlace = 2 * time.Second

type obstacle uint8

const (
	fits obstacle = iota
	away
	unlinked
	cordoned
	unhealthy
	noSpawn
	wrongType
	lacks
	wrongLabel
	full
	noCPU
	noMemory
	avoided
	source
	busy
	obstacles
)

var obstacleText = [obstacles]string{
	away: "lost or offline", unlinked: "not linked", cordoned: "cordoned", unhealthy: "unhealthy", noSpawn: "takes no sessions",
	wrongType: "does not run type", lacks: "lacks capability", wrongLabel: "lacks label", full: "full",
	noCPU: "too little CPU free", noMemory: "too little memory free", avoided: "avoided", source: "is its source", busy: "restores as many as it may at once",
}

// passing reports whether an obstacle may go away without anybody's doing: a move may be asked for again.
func (o obstacle) passing() bool {
	switch o {
	case away, unlinked, unhealthy, full, noCPU, noMemory, busy:
		return true
	default:
		return false
	}
}

// remedyText says what to do about an obstacle that stands between a session and the node that was named for it.
var remedyText = [obstacles]string{
	away: "start its agent, or name another node", unlinked: "see `orchctl nodes get`, or name another node",
	cordoned: "uncordon it with `orchctl nodes uncordon`, or name another node", unhealthy: "see `orchctl nodes get`, or name another node",
	noSpawn: "name another node", wrongType: "name another node", lacks: "name a node that has it", wrongLabel: "name a node that has it",
	full: "name another node, or try again", noCPU: "name another node, or try again", noMemory: "name another node, or try again", busy: "try again",
}

// rejections counts obstacles.
type rejections struct {
	count   [obstacles]int
	example [obstacles]string
	detail  [obstacles]string
}

func (r *rejections) add(o obstacle, node, detail string) {
	if r.count[o] == 0 {
		r.example[o], r.detail[o] = node, detail
	}
	r.count[o]++
}

// list names each obstacle with its count, or with the node where it is one.
func (r *rejections) list() string {
	var parts []string
	for o := range obstacles {
		if r.count[o] == 0 {
			continue
		}
		text := obstacleText[o]
		if r.detail[o] != "" {
			text += " " + r.detail[o]
		}
		if r.count[o] == 1 {
			parts = append(parts, r.example[o]+" "+text)
		} else {
			parts = append(parts, fmt.Sprintf("%d %s", r.count[o], text))
		}
	}
	return strings.Join(parts, ", ")
}

func (r *rejections) explain(nodes int) string {
	if nodes == 0 {
		return "there are no nodes; start a node-agent and point it at this cluster"
	}
	return clip(r.list())
}

func (r *rejections) suffix() string {
	if l := r.list(); l != "" {
		return "; not: " + l
	}
	return ""
}
