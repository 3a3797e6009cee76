// RabbitMQ: three nodes of Debian's package, and a quorum queue of three members.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/neolith/orchestrator/bench/measure"
)

const (
	rabbitNodes = 3
	rabbitReady = 3 * time.Minute
	// rabbitHome is where Debian's package has its scripts; those on the PATH insist on their own user.
	rabbitHome        = "/usr/lib/rabbitmq/bin"
	rabbitConnections = 4
)

// rabbit is a cluster of nodes.
type rabbit struct {
	dir   string
	env   []string
	ports []int
	nodes []*exec.Cmd
	epmd  *exec.Cmd
}

// rabbitmq measures RabbitMQ.
func rabbitmq(ctx context.Context, o options) (s measure.Summary, err error) {
	if _, err := os.Stat(filepath.Join(rabbitHome, "rabbitmq-server")); err != nil {
		return s, fmt.Errorf("rabbitmq-server: %w; install Debian's package rabbitmq-server", errMissing)
	}
	r := &rabbit{dir: o.dir}
	defer r.stop()
	ready, cancel := context.WithTimeout(ctx, rabbitReady)
	defer cancel()
	if err := r.start(ready); err != nil {
		return s, err
	}
	return r.measure(ready, o)
}

// nodeName is the name of a node.
func nodeName(i int) string { return "bench" + strconv.Itoa(i+1) + "@localhost" }

// start starts the nodes and makes them one cluster.
func (r *rabbit) start(ctx context.Context) error {
	ports, err := freePorts(2*rabbitNodes + 1)
	if err != nil {
		return err
	}
	r.ports = ports[:rabbitNodes]
	// A home of its own holds the cookie by which nodes know each other; the port mapper is one of its own, too.
	r.env = append(os.Environ(), "HOME="+r.dir, "ERL_EPMD_PORT="+strconv.Itoa(ports[2*rabbitNodes]), "ERL_EPMD_ADDRESS=127.0.0.1")
	if err := os.WriteFile(filepath.Join(r.dir, ".erlang.cookie"), []byte("BENCHONLYNOSECRET"), 0o400); err != nil {
		return err
	}
	r.epmd = exec.Command("epmd")
	r.epmd.Env = r.env
	if err := r.epmd.Start(); err != nil {
		return fmt.Errorf("start epmd: %w", err)
	}
	for i := range rabbitNodes {
		if err := r.startNode(i, ports[rabbitNodes+i]); err != nil {
			return err
		}
	}
	for i := range rabbitNodes {
		if err := retry(ctx, func() error { return r.control(ctx, i, "await_startup") }); err != nil {
			return fmt.Errorf("wait for %s: %w", nodeName(i), err)
		}
		if i == 0 {
			continue
		}
		for _, args := range [][]string{{"stop_app"}, {"join_cluster", nodeName(0)}, {"start_app"}} {
			if err := r.control(ctx, i, args...); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *rabbit) startNode(i, dist int) error {
	dir := filepath.Join(r.dir, "node-"+strconv.Itoa(i+1))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	plugins, config := filepath.Join(dir, "plugins"), filepath.Join(dir, "rabbitmq.conf")
	if err := errors.Join(os.WriteFile(plugins, []byte("[].\n"), 0o600), os.WriteFile(config, []byte("listeners.tcp.1 = 127.0.0.1:"+strconv.Itoa(r.ports[i])+"\n"), 0o600)); err != nil {
		return err
	}
	c := exec.Command(filepath.Join(rabbitHome, "rabbitmq-server"))
	c.Env = append(r.env[:len(r.env):len(r.env)], "RABBITMQ_NODENAME="+nodeName(i), "RABBITMQ_DIST_PORT="+strconv.Itoa(dist), "RABBITMQ_MNESIA_BASE="+dir,
		"RABBITMQ_LOG_BASE="+dir, "RABBITMQ_ENABLED_PLUGINS_FILE="+plugins, "RABBITMQ_CONFIG_FILE="+config, "RABBITMQ_PID_FILE="+filepath.Join(dir, "pid"),
		"RABBITMQ_SERVER_START_ARGS=-kernel inet_dist_use_interface {127,0,0,1}")
	log, err := os.Create(filepath.Join(dir, "output.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		return fmt.Errorf("start %s: %w", nodeName(i), err)
	}
	r.nodes = append(r.nodes, c)
	return nil
}

// control runs rabbitmqctl.
func (r *rabbit) control(ctx context.Context, i int, args ...string) error {
	c := exec.CommandContext(ctx, filepath.Join(rabbitHome, "rabbitmqctl"), append([]string{"-n", nodeName(i)}, args...)...)
	c.Env = r.env
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("rabbitmqctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// stop ends what was started.
func (r *rabbit) stop() {
	for i := range r.nodes {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if err := r.control(ctx, i, "eval", "erlang:halt(0, [{flush, false}])."); err != nil {
			_ = r.nodes[i].Process.Kill() // the script, at least
		}
		cancel()
		_ = r.nodes[i].Wait() // halted, as was wanted
	}
	if r.epmd != nil {
		_ = r.epmd.Process.Kill()
		_ = r.epmd.Wait() // killed, as was wanted
	}
}

// measure publishes and consumes.
func (r *rabbit) measure(ctx context.Context, o options) (s measure.Summary, err error) {
	var conns []*amqp.Connection
	for i := range rabbitConnections + 1 {
		var c *amqp.Connection
		err := retry(ctx, func() (err error) {
			c, err = amqp.Dial("amqp://guest:guest@127.0.0.1:" + strconv.Itoa(r.ports[i%rabbitNodes]) + "/")
			return err
		})
		if err != nil {
			return s, fmt.Errorf("connect: %w", err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	l := newLoad(o)
	if err := consumeRabbit(conns[rabbitConnections], l); err != nil {
		return s, err
	}
	channels := make([]*amqp.Channel, o.callers)
	for i := range channels {
		if channels[i], err = conns[i%rabbitConnections].Channel(); err != nil {
			return s, err
		}
		if err := channels[i].Confirm(false); err != nil {
			return s, err
		}
	}
	return l.run(func(caller int, text []byte) error {
		confirm, err := channels[caller].PublishWithDeferredConfirm("", "queue", true, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: text})
		if err != nil {
			return err
		}
		if !confirm.Wait() {
			return errors.New("the message was refused")
		}
		return nil
	}), nil
}

// consumeRabbit takes messages and acks them, one by one.
func consumeRabbit(c *amqp.Connection, l *load) error {
	ch, err := c.Channel()
	if err != nil {
		return err
	}
	args := amqp.Table{"x-queue-type": "quorum", "x-quorum-initial-group-size": rabbitNodes}
	if _, err := ch.QueueDeclare("queue", true, false, false, false, args); err != nil {
		return fmt.Errorf("make the queue: %w", err)
	}
	if err := ch.Qos(1024, 0, false); err != nil {
		return err
	}
	deliveries, err := ch.Consume("queue", "", false, false, false, false, nil)
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	go func() { // it ends with the connection
		for d := range deliveries {
			if err := d.Ack(false); err != nil {
				fmt.Fprintf(os.Stderr, "peers: rabbitmq: ack: %v\n", err)
				return
			}
			l.acked(d.Body)
		}
	}()
	return nil
}
