// The bucket, where the settings choose one: whether it may be used, and whose it is.

package main

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/neolith/orchestrator/chunks/s3"
	"github.com/neolith/orchestrator/internal/config"
	"github.com/neolith/orchestrator/internal/fault"
)

const (
	storeDir = "dir"
	storeS3  = "s3"

	// bucketCheckTime bounds the check of the bucket when a server starts.
	bucketCheckTime = 15 * time.Second
)

// bucketConfig is chunks.s3 of the settings.
type bucketConfig struct {
	Endpoint      string `yaml:"endpoint" help:"the object store as host:port, without https://"`
	Bucket        string `yaml:"bucket" help:"its name; it must exist"`
	Prefix        string `yaml:"prefix" help:"before every key; each cluster needs one of its own"`
	Region        string `yaml:"region" help:"where the bucket is; asked of the object store when empty"`
	AccessKeyFile string `yaml:"access_key_file" help:"file with the access key; with neither file AWS_* of the environment, the credentials file or the machine's role"`
	SecretKeyFile string `yaml:"secret_key_file" help:"file with its secret, which only this user may read"`
	CAFile        string `yaml:"ca_file" help:"authority of the object store's certificate; the system's when empty"`
	Insecure      bool   `yaml:"insecure" help:"http rather than https"`
}

// validateChunks refuses halves of a bucket, and a bucket beside a directory.
func (c *Config) validateChunks() error {
	k, b := c.Chunks, c.Chunks.S3
	switch {
	case k.MaxBytes < 0:
		return config.Bad("chunks.max_bytes", "%s is negative; 0 leaves the bound to the disk", k.MaxBytes)
	case k.RepairBytesPerSecond < minRepairBytes:
		return config.Bad("chunks.repair_bytes_per_second", "%s is below %s; a server that was away would never catch up", k.RepairBytesPerSecond, config.Bytes(minRepairBytes))
	case k.Store != storeDir && k.Store != storeS3:
		return config.Bad("chunks.store", "%q is not a store; use %s for the servers' directories or %s for a bucket", k.Store, storeDir, storeS3)
	case k.Store == storeDir && b != (bucketConfig{}):
		return config.Bad("chunks.store", "is %s, and chunks.s3 names a bucket; set store: %s, or leave the bucket out", storeDir, storeS3)
	case k.Store == storeDir:
		return nil
	case k.MaxBytes != 0:
		return config.Bad("chunks.max_bytes", "bounds a directory, and chunks.store is %s; bound the bucket where it is", storeS3)
	case b.Endpoint == "":
		return config.Bad("chunks.s3.endpoint", "is empty; give the object store's host:port, such as s3.eu-central-1.amazonaws.com")
	case strings.Contains(b.Endpoint, "/"):
		return config.Bad("chunks.s3.endpoint", "%q is not host:port; leave out https:// and paths", b.Endpoint)
	case b.Bucket == "":
		return config.Bad("chunks.s3.bucket", "is empty; give the name of a bucket that exists")
	case strings.HasPrefix(b.Prefix, "/") || strings.HasSuffix(b.Prefix, "/"):
		return config.Bad("chunks.s3.prefix", "%q begins or ends with a slash; leave it out", b.Prefix)
	case (b.AccessKeyFile == "") != (b.SecretKeyFile == ""):
		return config.Bad("chunks.s3.access_key_file", "access_key_file and secret_key_file belong together; give both, or neither for the environment or the machine's role")
	case b.Insecure && b.CAFile != "":
		return config.Bad("chunks.s3.ca_file", "says whom to trust over TLS, and insecure: true says that there is none; leave out one of them")
	}
	return nil
}

// openBucket opens and checks the bucket. What is wrong with the settings ends the server; an object store that cannot be reached now
// does not, for all but checkpoints works without it.
func openBucket(b bucketConfig, log *slog.Logger) (*s3.Store, error) {
	o := s3.Options{Endpoint: b.Endpoint, Bucket: b.Bucket, Prefix: b.Prefix, Region: b.Region, CAFile: b.CAFile, Insecure: b.Insecure, Logger: log}
	var err error
	if b.AccessKeyFile != "" {
		if o.AccessKey, err = readSecret("chunks.s3.access_key_file", b.AccessKeyFile); err != nil {
			return nil, err
		}
		if o.SecretKey, err = readSecret("chunks.s3.secret_key_file", b.SecretKeyFile); err != nil {
			return nil, err
		}
	}
	s, err := s3.New(o)
	if err != nil {
		return nil, fault.New(fault.Invalid, "chunks.s3: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), bucketCheckTime)
	defer cancel()
	switch err := s.Check(ctx); {
	case fault.Is(err, fault.FailedPrecondition):
		_ = s.Close()
		return nil, fault.New(fault.Invalid, "chunks.s3: %w", err)
	case err != nil:
		log.Error("the bucket cannot be used now; no session is checkpointed or restored until it can", "endpoint", b.Endpoint, "bucket", b.Bucket, "error", err)
	default:
		log.Info("chunks are kept in a bucket", "endpoint", b.Endpoint, "bucket", b.Bucket, "prefix", b.Prefix)
	}
	return s, nil
}

// readSecret reads a file that others may not.
func readSecret(setting, file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", fault.New(fault.Invalid, "%s: %w; make it readable for this user", setting, err)
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		return "", fault.New(fault.Invalid, "%s: every user of this machine may read %s (mode %04o); chmod 600 it, and consider the key known", setting, file, mode)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fault.New(fault.Invalid, "%s: %w; make it readable for this user", setting, err)
	}
	key := strings.TrimSpace(string(b))
	if key == "" || strings.ContainsAny(key, "\r\n") {
		return "", fault.New(fault.Invalid, "%s: %s holds no single line; put the key there and nothing else", setting, file)
	}
	return key, nil
}
