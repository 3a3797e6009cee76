// Stories that nobody thought of: a seed gives a story, the same one every time.

package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Generate makes a story of so many steps. It ends with everything mended, everything started, and a look at what must
// hold then.
func Generate(seed uint64, steps int) string {
	g := &generator{rand: rand.New(rand.NewPCG(seed, 1))}
	return g.story(steps)
}

// generator knows of the world what it did to it, and not what came of it.
type generator struct {
	rand     *rand.Rand
	lines    []string
	servers  int
	nodes    int
	down     []string // servers and agents that were killed
	sessions []string
	sent     map[string]int
	broken   bool // some line is cut, or something is slow or disordered
	noStore  bool
}

func (g *generator) say(format string, args ...any) {
	g.lines = append(g.lines, fmt.Sprintf(format, args...))
}

func (g *generator) pick(all []string) string { return all[g.rand.IntN(len(all))] }

func (g *generator) between(least, most time.Duration) time.Duration {
	return (least + time.Duration(g.rand.Int64N(int64(most-least)))).Round(time.Millisecond)
}

func (g *generator) server() string { return fmt.Sprintf("server-%d", 1+g.rand.IntN(g.servers)) }
func (g *generator) node() string   { return fmt.Sprintf("node-%d", 1+g.rand.IntN(g.nodes)) }

func (g *generator) anyone() string {
	switch g.rand.IntN(4) {
	case 0:
		return "leader?"
	case 1:
		return g.server()
	default:
		return g.node()
	}
}

func (g *generator) story(steps int) string {
	g.servers, g.nodes, g.sent = 3, 2+g.rand.IntN(3), map[string]int{}
	if g.rand.IntN(8) == 0 {
		g.servers = 5
	}
	turn := []string{"0s", "5ms", "100ms", "1s"}[g.rand.IntN(4)]
	g.say("cluster servers=%d nodes=%d turn=%s", g.servers, g.nodes, turn)
	g.say("wait leader")
	for range 2 + g.rand.IntN(4) {
		g.spawn()
	}
	for range steps {
		g.step()
	}
	g.say("heal")
	g.say("store up")
	for i := range g.nodes {
		g.say("slow node-%d 0s", i+1)
		g.say("reset node-%d", i+1)
	}
	for _, d := range g.down {
		g.say("start %s", d)
	}
	g.say("wait quiet 15m")
	g.say("check quiet")
	g.say("wait clean 11m")
	return strings.Join(g.lines, "\n") + "\n"
}

// step does one thing, or lets time pass.
func (g *generator) step() {
	type choice struct {
		weight int
		do     func()
	}
	choices := []choice{
		{30, func() { g.say("sleep %s", g.between(10*time.Millisecond, 3*time.Second)) }},
		{10, func() { g.say("sleep %s", g.between(3*time.Second, 25*time.Second)) }},
		{25, g.send},
		{6, g.spawn},
		{3, func() { g.say("terminate %s &", g.pick(g.sessions)) }},
		{12, g.kill},
		{12, g.start},
		{8, func() { g.say("partition %s", g.anyone()); g.broken = true }},
		{8, g.cut},
		{14, g.heal},
		{8, func() { g.say("reset %s", g.pick([]string{g.server(), g.node()})) }},
		{6, func() { g.say("stop %s %s", g.node(), g.between(time.Second, 30*time.Second)) }},
		{4, func() { g.say("delay %s %s", g.node(), g.between(50*time.Millisecond, 4*time.Second)); g.broken = true }},
		{3, func() { g.say("slow %s %s", g.node(), g.between(time.Second, 7*time.Second)) }},
		{2, func() { g.say("disorder %.2f", 0.3*g.rand.Float64()); g.broken = true }},
		{3, func() { g.say("lose-answers %.2f", 0.5*g.rand.Float64()); g.broken = true }},
		{3, func() { g.say("transfer") }},
		{2, g.crash},
		{16, g.move},
		{3, func() { g.say("die %s", g.pick(g.sessions)) }},
		{3, g.store},
	}
	total := 0
	for _, c := range choices {
		total += c.weight
	}
	at := g.rand.IntN(total)
	for _, c := range choices {
		if at -= c.weight; at < 0 {
			c.do()
			return
		}
	}
}

func (g *generator) spawn() {
	name := fmt.Sprintf("s%d", len(g.sessions)+1)
	policy := g.pick([]string{"never", "always", "always", "on-failure"})
	g.sessions = append(g.sessions, name)
	g.say("spawn %s restart=%s%s%s", name, policy, g.pick([]string{"", "", " every=turn", " every=2s", " every=15s"}), g.pick([]string{"", " &"}))
}

// move moves a session, or does what has it go on elsewhere or from an earlier moment.
func (g *generator) move() {
	name := g.pick(g.sessions)
	switch g.rand.IntN(11) {
	case 0, 1:
		g.say("migrate %s &", name)
	case 2:
		g.say("migrate %s to %s &", name, g.node())
	case 3:
		g.say("migrate %s cold &", name)
	case 4:
		g.say("cancel %s &", name)
	case 5:
		g.say("pause %s &", name)
	case 6:
		g.say("resume %s &", name)
	case 7, 8:
		g.say("checkpoint %s &", name)
	case 9:
		g.say("rewind %s %d &", name, g.rand.IntN(3))
	default:
		fork := fmt.Sprintf("s%d", len(g.sessions)+1)
		g.sessions = append(g.sessions, fork)
		g.say("fork %s %s%s", name, fork, g.pick([]string{"", " &"}))
	}
}

// store has the chunk store go away, or come back.
func (g *generator) store() {
	g.noStore = !g.noStore
	g.say("store %s", map[bool]string{true: "down", false: "up"}[g.noStore])
}

func (g *generator) send() {
	name := g.pick(g.sessions)
	if g.rand.IntN(8) == 0 {
		g.say("say %s %s &", name, g.pick([]string{"exit 0", "exit 1", "die", "hang", "ignore-term", "say 3 hello"}))
		return
	}
	count := 1 + g.rand.IntN(12)
	if g.sent[name] += count; g.sent[name] > maxPerSlot {
		return
	}
	g.say("send %s %d %s &", name, count, g.pick([]string{"critical", "high", "normal", "normal", "low"}))
}

// kill kills a process: mostly so that a majority of the servers is left.
func (g *generator) kill() {
	who := g.anyone()
	if who == "leader?" {
		who = g.server() // it must be known who is down
	}
	serversDown := 0
	for _, d := range g.down {
		if strings.HasPrefix(d, "server") {
			serversDown++
		}
	}
	if slices.Contains(g.down, who) || strings.HasPrefix(who, "server") && serversDown >= (g.servers-1)/2 && g.rand.IntN(6) > 0 {
		return
	}
	g.down = append(g.down, who)
	g.say("kill %s", who)
}

func (g *generator) crash() {
	who := g.node()
	g.say("crash %s", who)
	if !slices.Contains(g.down, who) {
		g.down = append(g.down, who)
	}
}

func (g *generator) start() {
	if len(g.down) == 0 {
		return
	}
	i := g.rand.IntN(len(g.down))
	g.say("start %s", g.down[i])
	g.down = slices.Delete(g.down, i, i+1)
}

func (g *generator) cut() {
	a, b := g.pick([]string{g.server(), g.node()}), g.server()
	if a == b {
		return
	}
	g.broken = true
	g.say("cut %s %s%s", a, g.pick([]string{"", "> "}), b)
}

func (g *generator) heal() {
	if g.broken {
		g.say("heal")
		g.broken = false
	}
}
