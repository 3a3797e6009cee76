// NATS JetStream: three servers, processes of their own, a stream of three replicas that is synced at every write.

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/neolith/orchestrator/bench/measure"
)

// natsServerRole runs this program as a server.
const natsServerRole = "nats-server"

const (
	natsServers = 3
	natsReady   = time.Minute
	natsTry     = 3 * time.Second
)

// natsServer is one server, until it is told to end.
func natsServer(args []string) error {
	f := flag.NewFlagSet(natsServerRole, flag.ContinueOnError)
	name, dir := f.String("name", "", ""), f.String("dir", "", "")
	port, cluster, routes := f.Int("port", 0, ""), f.Int("cluster", 0, ""), f.String("routes", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	if err := os.MkdirAll(*dir, 0o700); err != nil {
		return err
	}
	o := &server.Options{
		ServerName: *name, Host: "127.0.0.1", Port: *port, JetStream: true, StoreDir: *dir, SyncAlways: true, LogFile: filepath.Join(*dir, "server.log"), NoSigs: true,
		Cluster: server.ClusterOpts{Name: "peers", Host: "127.0.0.1", Port: *cluster},
	}
	for _, r := range strings.Split(*routes, ",") {
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: "127.0.0.1:" + r})
	}
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	s.Start()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, os.Interrupt)
	<-ended
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}

// startNATS starts the servers and returns their addresses, and what ends them.
func startNATS(o options) (urls []string, stop func(), err error) {
	var running []*exec.Cmd
	stop = func() {
		for _, c := range running {
			_ = c.Process.Kill()
			_ = c.Wait() // killed, as was wanted
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, stop, err
	}
	ports, err := freePorts(2 * natsServers)
	if err != nil {
		return nil, stop, err
	}
	var routes []string
	for _, p := range ports[natsServers:] {
		routes = append(routes, strconv.Itoa(p))
	}
	for i := range natsServers {
		name := "nats-" + strconv.Itoa(i+1)
		c := exec.Command(self, natsServerRole, "-name", name, "-dir", filepath.Join(o.dir, name), "-port", strconv.Itoa(ports[i]),
			"-cluster", strconv.Itoa(ports[natsServers+i]), "-routes", strings.Join(routes, ","))
		c.Stderr = os.Stderr
		if err := c.Start(); err != nil {
			return nil, stop, fmt.Errorf("start %s: %w", name, err)
		}
		running, urls = append(running, c), append(urls, "nats://127.0.0.1:"+strconv.Itoa(ports[i]))
	}
	return urls, stop, nil
}

// nats measures JetStream.
func nats(ctx context.Context, o options) (s measure.Summary, err error) {
	urls, stop, err := startNATS(o)
	defer stop()
	if err != nil {
		return s, err
	}
	ready, cancel := context.WithTimeout(ctx, natsReady)
	defer cancel()
	var publisher, taker *natsgo.Conn
	for _, c := range []**natsgo.Conn{&publisher, &taker} {
		err := retry(ready, func() (err error) {
			*c, err = natsgo.Connect(strings.Join(urls, ","))
			return err
		})
		if err != nil {
			return s, fmt.Errorf("connect: %w", err)
		}
		defer (*c).Close()
	}
	js, err := jetstream.New(publisher)
	if err != nil {
		return s, err
	}
	var stream jetstream.Stream
	err = retry(ready, func() (err error) {
		ctx, cancel := context.WithTimeout(ready, natsTry) // asked too early, there is no answer
		defer cancel()
		stream, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: "queue", Subjects: []string{"queue"}, Storage: jetstream.FileStorage, Replicas: natsServers, Retention: jetstream.WorkQueuePolicy,
		})
		return err
	})
	if err != nil {
		return s, fmt.Errorf("make the stream: %w", err)
	}
	l := newLoad(o)
	done, err := consumeNATS(ready, taker, stream, l)
	if err != nil {
		return s, fmt.Errorf("make the consumer: %w", err)
	}
	defer done()
	return l.run(func(_ int, text []byte) error {
		_, err := js.Publish(ctx, "queue", text)
		return err
	}), nil
}

// consumeNATS takes messages and acks them; an ack counts when the servers have acked it.
func consumeNATS(ctx context.Context, taker *natsgo.Conn, stream jetstream.Stream, l *load) (stop func(), err error) {
	js, err := jetstream.New(taker)
	if err != nil {
		return nil, err
	}
	var consumer jetstream.Consumer
	err = retry(ctx, func() (err error) {
		ctx, cancel := context.WithTimeout(ctx, natsTry)
		defer cancel()
		consumer, err = js.CreateOrUpdateConsumer(ctx, stream.CachedInfo().Config.Name, jetstream.ConsumerConfig{
			Durable: "taker", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 4096, Replicas: natsServers,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	c, err := consumer.Consume(func(m jetstream.Msg) {
		go func() { // so many as there are callers: each waits for its message
			ctx, cancel := context.WithTimeout(context.Background(), ackTimeout)
			defer cancel()
			if err := m.DoubleAck(ctx); err != nil && !errors.Is(err, natsgo.ErrConnectionClosed) {
				fmt.Fprintf(os.Stderr, "peers: nats: ack: %v\n", err)
				return
			}
			l.acked(m.Data())
		}()
	}, jetstream.PullMaxMessages(1024))
	if err != nil {
		return nil, err
	}
	return c.Stop, nil
}
