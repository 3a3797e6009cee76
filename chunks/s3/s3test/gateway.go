// Package s3test starts versitygw, a gateway that makes buckets of directories, for tests of whatever uses buckets.
//
// `make test-s3` builds it, which takes minutes where nothing is cached, and names it in VERSITYGW. Tests are skipped without it, and say
// so.
package s3test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// The account of every gateway.
const (
	AccessKey = "test-access"
	SecretKey = "test-secret"
	Region    = "us-east-1"
)

// Gateway is a running one. It speaks http.
type Gateway struct {
	Address string // host:port
	Root    string // the directory whose directories are its buckets
}

// Start starts a gateway that ends with the test.
func Start(t testing.TB) *Gateway {
	t.Helper()
	bin := os.Getenv("VERSITYGW")
	if _, err := os.Stat(bin); bin == "" || err != nil {
		t.Skip("SKIPPED: what uses buckets is not tested, for there is no versitygw; make test-s3 builds it, and names it in VERSITYGW")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{Address: l.Addr().String(), Root: t.TempDir()}
	l.Close()
	var log strings.Builder
	cmd := exec.Command(bin, "--access", AccessKey, "--secret", SecretKey, "--region", Region, "--port", g.Address, "--quiet", "posix", g.Root)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = <-ended // it was killed
	})
	for begin := time.Now(); ; {
		if c, err := net.Dial("tcp", g.Address); err == nil {
			c.Close()
			return g
		}
		select {
		case err := <-ended:
			ended <- err
			if strings.Contains(log.String(), "xattr") || strings.Contains(log.String(), "not supported") {
				t.Skipf("SKIPPED: versitygw does not run on this file system: %s", &log)
			}
			t.Fatalf("versitygw ended: %v: %s", err, &log)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatal("versitygw does not listen")
		}
	}
}

// Make makes a bucket unless it is there.
func (g *Gateway) Make(t testing.TB, bucket string) {
	t.Helper()
	tr, err := minio.DefaultTransport(false)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.CloseIdleConnections()
	c, err := minio.New(g.Address, &minio.Options{Creds: credentials.NewStaticV4(AccessKey, SecretKey, ""), Region: Region, Transport: tr, BucketLookup: minio.BucketLookupPath})
	if err != nil {
		t.Fatal(err)
	}
	if there, err := c.BucketExists(context.Background(), bucket); err != nil {
		t.Fatal(err)
	} else if !there {
		if err := c.MakeBucket(context.Background(), bucket, minio.MakeBucketOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// Objects returns the paths of the files below a folder of a bucket.
func (g *Gateway) Objects(t testing.TB, bucket, folder string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(g.Root, bucket, folder), func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			names = append(names, path)
		}
		if os.IsNotExist(err) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
