// What dev refuses before it starts anything.

package main

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/neolith/orchestrator/internal/fault"
)

// freePorts finds a base port with room for one server.
func freePorts(t *testing.T) int {
	t.Helper()
	for base := 30_000 + os.Getpid()%2000; base < 60_000; base += portsPerServer {
		if (&dev{servers: 1, basePort: base}).portsFree() == nil {
			return base
		}
	}
	t.Fatal("there are no free ports")
	return 0
}

func TestDevRefuses(t *testing.T) {
	for says, d := range map[string]*dev{
		"--servers: 2":       {servers: 2, basePort: 9000},
		"--servers: 0":       {basePort: 9000},
		"--agents: -1":       {servers: 1, agents: -1, basePort: 9000},
		"--agents: 65":       {servers: 1, agents: 65, basePort: 9000},
		"--base-port: 0":     {servers: 1},
		"--base-port: 65520": {servers: 3, basePort: 65520},
	} {
		if err := d.check(); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), says) {
			t.Errorf("want %q: %v", says, err)
		}
	}
}

func TestDevHoldsItsData(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	one, two := &dev{data: dir}, &dev{data: dir}
	if err := one.hold(); err != nil {
		t.Fatal(err)
	}
	if err := two.hold(); !fault.Is(err, fault.FailedPrecondition) || !strings.Contains(err.Error(), "with pid "+strconv.Itoa(os.Getpid())+";") {
		t.Errorf("a second dev: %v", err)
	}
	if err := one.lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := two.hold(); err != nil {
		t.Errorf("after the first: %v", err)
	}
	_ = two.lock.Close()
	file := filepath.Join(dir, devLockFile)
	if err := (&dev{data: file}).hold(); !fault.Is(err, fault.Invalid) {
		t.Errorf("a file as --data: %v", err)
	}
}

func TestDevIsAsBefore(t *testing.T) {
	dir, base := t.TempDir(), freePorts(t)
	start := func(d dev, given ...string) (dev, error) {
		d.data = dir
		err := d.asBefore(func(flag string) bool { return strings.Contains(strings.Join(given, " "), flag) })
		return d, err
	}
	if _, err := start(dev{servers: 1, agents: 3, basePort: base}, "base-port", "agents"); err != nil {
		t.Fatal(err)
	}
	// What is not given is as it was; what is given holds, and is remembered.
	if d, err := start(dev{servers: 1, agents: 2, basePort: BasePort}); err != nil || d.agents != 3 || d.basePort != base {
		t.Errorf("again: %+v, %v", d, err)
	}
	if d, err := start(dev{servers: 1, agents: 1, basePort: BasePort}, "agents"); err != nil || d.agents != 1 {
		t.Errorf("with one agent: %+v, %v", d, err)
	}
	if d, err := start(dev{servers: 1, agents: 2, basePort: BasePort}); err != nil || d.agents != 1 {
		t.Errorf("again with one agent: %+v, %v", d, err)
	}
	if _, err := start(dev{servers: 3, agents: 1, basePort: base}, "servers"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "holds a cluster of 1 servers, not 3") {
		t.Errorf("three servers on the data of one: %v", err)
	}
	// A port in use, and a cluster that knows its ports.
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(base+2)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := start(dev{servers: 1}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "address already in use; end what uses it, or choose another --base-port") {
		t.Errorf("a port in use: %v", err)
	}
	_ = l.Close()
	u, err := net.ListenPacket("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(base)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := start(dev{servers: 1}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a udp port in use: %v", err)
	}
	_ = u.Close()
	if err := os.WriteFile(filepath.Join(dir, devShapeFile), []byte(`{"servers":3,"agents":1,"basePort":9000}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := start(dev{servers: 3, basePort: base}, "base-port"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "know each other at ports from 9000 on") {
		t.Errorf("three servers at other ports: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, devShapeFile), []byte(`{"servers":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := start(dev{servers: 3, basePort: base}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), devShapeFile+" is damaged") {
		t.Errorf("a damaged file: %v", err)
	}
}
