// The verbs of stories that do harm.

package sim

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// faultVerb returns what does a fault; nil when the verb is none.
func (t *teller) faultVerb(verb string) func(args []string) error {
	w := t.w
	one := func(f func(id string) error) func([]string) error {
		return func(args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("%s: whom?", verb)
			}
			name, optional := strings.CutSuffix(args[0], "?")
			id, err := t.who(name)
			if err != nil && optional {
				return nil
			}
			if err != nil {
				return fmt.Errorf("%s: %w", verb, err)
			}
			return f(id)
		}
	}
	onNode := func(f func(n *node, args []string) error) func([]string) error {
		return func(args []string) error {
			return one(func(id string) error {
				n := w.node(id)
				if n == nil {
					return fmt.Errorf("%s: %s is no node", verb, id)
				}
				return f(n, args)
			})(args)
		}
	}
	switch verb {
	case "kill":
		return one(w.kill)
	case "start":
		return func(args []string) error {
			if len(args) == 1 && args[0] == "all" {
				return w.startAll()
			}
			return one(w.start)(args)
		}
	case "die":
		return func(args []string) error {
			for _, name := range args {
				for _, n := range w.nodes {
					n.machine.Kill(w.client.id(name))
				}
			}
			return nil
		}
	case "store":
		return func(args []string) error {
			w.setStoreDown(len(args) > 0 && args[0] == "down")
			return nil
		}
	case "destroy":
		return onNode(func(n *node, _ []string) error { n.destroy(); return nil })
	case "crash":
		return onNode(func(n *node, _ []string) error { n.crash(); return nil })
	case "stop":
		return onNode(func(n *node, args []string) error {
			d, err := duration(args, 1, 0)
			n.freeze(d)
			return err
		})
	case "slow":
		return onNode(func(n *node, args []string) error {
			d, err := duration(args, 1, 0)
			n.setSlow(d)
			return err
		})
	case "delay":
		return onNode(func(n *node, args []string) error {
			d, err := duration(args, 1, 0)
			w.net.change(func() { w.net.delay[n.id] = d })
			return err
		})
	case "lose":
		return onNode(func(n *node, args []string) error {
			if len(args) != 3 {
				return fmt.Errorf("lose: whose, how many, and which frames?")
			}
			count, err := strconv.Atoi(args[1])
			w.net.change(func() { w.net.lose[n.id] = &loss{frame: args[2], count: count} })
			return err
		})
	case "partition":
		return one(func(id string) error { w.net.partition(id, w.machines()); return nil })
	case "reset":
		return one(w.reset)
	case "cut":
		return t.cut
	case "heal":
		return func([]string) error { w.net.heal(); return nil }
	case "disorder":
		return probability(func(p float64) { w.watch.disordered(); w.net.duplicate, w.net.reorder = p, p }, w.net)
	case "lose-answers":
		return probability(func(p float64) { w.net.lost = p }, w.net)
	case "transfer":
		return func([]string) error { return t.transfer(context.Background()) }
	}
	return nil
}

func probability(set func(p float64), n *network) func([]string) error {
	return func(args []string) error {
		if len(args) == 0 {
			return fmt.Errorf("with which probability?")
		}
		p, err := strconv.ParseFloat(args[0], 64)
		n.change(func() { set(p) })
		return err
	}
}

func (w *World) kill(id string) error {
	if n := w.node(id); n != nil {
		n.kill()
		return nil
	}
	w.servers[w.index(id)].kill()
	return nil
}

// startAll starts everything that does not run.
func (w *World) startAll() error {
	for _, id := range w.machines() {
		if err := w.start(id); err != nil {
			return err
		}
	}
	return nil
}

// start starts what does not run.
func (w *World) start(id string) error {
	if n := w.node(id); n != nil {
		if n.alive() || n.isGone() {
			return nil
		}
		return n.start()
	}
	s := w.servers[w.index(id)]
	if s.running() != nil {
		return nil
	}
	return s.start()
}

func (w *World) reset(id string) error {
	if n := w.node(id); n != nil {
		n.reset()
		return nil
	}
	if i := w.servers[w.index(id)].running(); i != nil {
		i.reset()
	}
	return nil
}

// cut cuts the line between two: "cut A B", or only what goes one way: "cut A > B".
func (t *teller) cut(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("cut: between whom?")
	}
	a, err := t.who(args[0])
	if err != nil {
		return err
	}
	b, err := t.who(args[len(args)-1])
	if err != nil {
		return err
	}
	t.w.net.change(func() {
		t.w.net.cut[line{a, b}] = true
		if len(args) == 2 {
			t.w.net.cut[line{b, a}] = true
		}
	})
	return nil
}
