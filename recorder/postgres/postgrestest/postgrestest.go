// Package postgrestest starts a real PostgreSQL for tests, which can be stopped and started again under them.
//
// `make test-postgres` finds one on the machine, or unpacks Debian's packages beside the source, and names its programs' directory in
// POSTGRES_BIN. Tests are skipped without it, and say so. PostgreSQL does not run as root: where tests do, it runs as nobody.
package postgrestest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	user      = "orchestrator"
	nobody    = 65534
	startTime = 60 * time.Second
)

// Server is a PostgreSQL. It is for one goroutine.
type Server struct {
	t    testing.TB
	bin  string
	dir  string
	port int
	cmd  *exec.Cmd
	log  *os.File
}

// Start starts a server that ends with the test. Everybody may log in from this machine, without a password.
func Start(t testing.TB) *Server {
	t.Helper()
	bin := os.Getenv("POSTGRES_BIN")
	if _, err := os.Stat(filepath.Join(bin, "postgres")); bin == "" || err != nil {
		t.Skip("NOTE: SKIPPED: the recorder's Postgres is not tested, for there is none; make test-postgres gets it, and names it in POSTGRES_BIN")
	}
	dir, err := os.MkdirTemp("", "postgres") // t.TempDir's is closed to nobody
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if os.Getuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	s := &Server{t: t, bin: bin, dir: dir, port: freePort(t)}
	if s.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.log.Close() })
	// The flags trade the survival of a loss of power, which no test has, for time.
	initdb := s.command("initdb", "-D", filepath.Join(dir, "data"), "-U", user, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions")
	var out bytes.Buffer
	initdb.Stdout, initdb.Stderr = &out, &out
	if err := initdb.Run(); err != nil {
		t.Fatalf("initdb: %v: %s", err, &out)
	}
	t.Cleanup(s.Stop)
	s.Restart()
	return s
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir, cmd.Env = s.dir, []string{"PATH=" + s.bin + ":/usr/bin:/bin", "LD_LIBRARY_PATH=" + os.Getenv("POSTGRES_LIBRARIES"), "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return cmd
}

// URL is where a role logs in; the role that owns everything when it is empty.
func (s *Server) URL(role string) string {
	if role == "" {
		role = user
	}
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/postgres?sslmode=disable", role, s.port)
}

// Restart starts the server, which must be stopped, and waits until it answers.
func (s *Server) Restart() {
	s.t.Helper()
	s.cmd = s.command("postgres", "-D", filepath.Join(s.dir, "data"), "-p", strconv.Itoa(s.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
		"-c", "fsync=off", "-c", "jit=off", "-c", "shared_buffers=32MB")
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	for {
		c, err := pgx.Connect(ctx, s.URL(""))
		if err == nil {
			_ = c.Close(ctx)
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			log, _ := os.ReadFile(s.log.Name())
			s.t.Fatalf("postgres does not answer: %v: %s", err, log)
		}
	}
}

// Stop ends the server at once, as a crash would: connections break, and what is not committed is gone.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	_ = s.cmd.Wait() // it was told to crash
	s.cmd = nil
}

// Do runs a statement as a role, and fails the test when it does not succeed.
func (s *Server) Do(role, statement string) {
	s.t.Helper()
	if err := s.Try(role, statement); err != nil {
		s.t.Fatalf("%s: %v", statement, err)
	}
}

// Try runs a statement as a role.
func (s *Server) Try(role, statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	c, err := pgx.Connect(ctx, s.URL(role))
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	_, err = c.Exec(ctx, statement)
	return err
}
