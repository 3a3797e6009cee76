// Package s3 keeps chunks in a bucket of an S3-compatible object store: the choice when there are several servers and a bucket is at hand.
//
//	PREFIX/chunks/abcdef…       a chunk's frame under its id in hexadecimal
//	PREFIX/quarantine/abcdef…   a frame that was found damaged
//	PREFIX/cluster              the cluster whose chunks these are; see Own
//
// How old a chunk is, is its object's Last-Modified. A put writes it anew. A question copies an object onto itself when it is older
// than Options.RefreshAfter, and calls it missing where that does not help (versitygw leaves the time as it was), so that it is put
// again. Collection needs a grace that is longer than that by far.
//
// S3 cannot delete an object on the condition that it is old. Delete looks and then deletes; a chunk that nobody has needed for the whole
// grace and that somebody puts in just these milliseconds is lost to him. A restore notices, and so does the next question for what is
// missing. Sweep a bucket seldom, from one place, and with a grace of a day.
package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sync/errgroup"

	"github.com/neolith/orchestrator/chunks"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/chunk"
)

const (
	asksMax    = 32 // requests of one question what is missing at a time
	attempts   = 4  // of each request, by the library
	retryAfter = 5 * time.Second
	binaryType = "application/octet-stream"
)

// Options are which bucket, and how to get in.
type Options struct {
	Endpoint             string // host and port, without a scheme
	Bucket               string // it must exist
	Prefix               string // before every key, without a slash at its end; may be empty
	Region               string // empty asks the server
	AccessKey, SecretKey string // both empty: from the environment, the credentials file, or the machine's role
	Insecure             bool   // http rather than https
	CAFile               string // authorities that the server's certificate may come from, PEM; the system's when empty
	PathStyle            bool   // the bucket stands in the path, not in the host's name
	// RefreshAfter is how old an object may be without being made young by a question (1 h).
	RefreshAfter time.Duration
	// Transport sends the requests; nil is one of the store's own, which Close ends.
	Transport http.RoundTripper
	// Logger hears of damaged chunks; nil is silence.
	Logger *slog.Logger
}

// Store is a bucket. It implements chunks.Store and chunks.Collectable.
type Store struct {
	opts   Options
	log    *slog.Logger
	client *minio.Client
	own    *http.Transport
	where  string
	counts chunks.Counters
}

// New returns the store in a bucket. It asks nothing of the server; Check does.
func New(o Options) (*Store, error) {
	if o.Endpoint == "" || o.Bucket == "" {
		return nil, fault.New(fault.Invalid, "chunks: a bucket needs an endpoint and a name")
	}
	if o.RefreshAfter <= 0 {
		o.RefreshAfter = time.Hour
	}
	s := &Store{opts: o, log: o.Logger, where: "the bucket " + o.Bucket}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if o.Transport == nil {
		t, err := minio.DefaultTransport(!o.Insecure)
		if err != nil {
			return nil, fmt.Errorf("chunks: %w", err)
		}
		t.MaxIdleConnsPerHost = asksMax
		if err := trust(t, o.CAFile); err != nil {
			return nil, err
		}
		s.own, o.Transport = t, t
	}
	creds := credentials.NewStaticV4(o.AccessKey, o.SecretKey, "")
	if o.AccessKey == "" && o.SecretKey == "" {
		creds = credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{Client: &http.Client{Transport: o.Transport}},
		})
	}
	lookup := minio.BucketLookupAuto
	if o.PathStyle {
		lookup = minio.BucketLookupPath
	}
	var err error
	s.client, err = minio.New(o.Endpoint, &minio.Options{
		Creds: creds, Secure: !o.Insecure, Region: o.Region, Transport: o.Transport, BucketLookup: lookup, MaxRetries: attempts,
	})
	if err != nil {
		return nil, fault.New(fault.Invalid, "chunks: the object store %q: %w", o.Endpoint, err)
	}
	return s, nil
}

// Close ends the connections that rest.
func (s *Store) Close() error {
	if s.own != nil {
		s.own.CloseIdleConnections()
	}
	return nil
}

// Counters are what the store did since it was opened.
func (s *Store) Counters() *chunks.Counters { return &s.counts }

func (s *Store) folder(name string) string {
	if s.opts.Prefix == "" {
		return name + "/"
	}
	return s.opts.Prefix + "/" + name + "/"
}

func (s *Store) key(id chunk.ID) string { return s.folder("chunks") + id.String() }

// Missing implements chunks.Store.
func (s *Store) Missing(ctx context.Context, ids []chunk.ID) ([]chunk.ID, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var (
		mu    sync.Mutex
		lacks = make(map[chunk.ID]bool)
	)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(asksMax)
	for _, id := range ids {
		mu.Lock()
		_, asked := lacks[id]
		lacks[id] = false
		mu.Unlock()
		if asked {
			continue
		}
		g.Go(func() error {
			there, err := s.refresh(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			lacks[id] = !there
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var missing []chunk.ID
	for _, id := range ids {
		if lacks[id] {
			missing = append(missing, id)
		}
	}
	return missing, nil
}

// refresh reports whether an object is there, and makes it young when it is old.
func (s *Store) refresh(ctx context.Context, id chunk.ID) (bool, error) {
	info, err := s.client.StatObject(ctx, s.opts.Bucket, s.key(id), minio.StatObjectOptions{})
	switch {
	case isAbsent(err):
		return false, nil
	case err != nil:
		return false, s.failed(ctx, "look for", id.String(), err)
	case time.Since(info.LastModified) < s.opts.RefreshAfter:
		return true, nil
	}
	// An object may be copied onto itself only when something about it changes: its metadata is replaced.
	_, err = s.client.CopyObject(ctx, minio.CopyDestOptions{
		Bucket: s.opts.Bucket, Object: s.key(id), ReplaceMetadata: true, UserMetadata: map[string]string{"Refreshed": time.Now().UTC().Format(time.RFC3339Nano)},
	}, minio.CopySrcOptions{Bucket: s.opts.Bucket, Object: s.key(id)})
	switch {
	case isAbsent(err): // it was collected just now
		return false, nil
	case err != nil:
		return false, s.failed(ctx, "refresh", id.String(), err)
	}
	// Some servers change the metadata and leave the time as it was. There the chunk must be put again.
	info, err = s.client.StatObject(ctx, s.opts.Bucket, s.key(id), minio.StatObjectOptions{})
	switch {
	case isAbsent(err):
		return false, nil
	case err != nil:
		return false, s.failed(ctx, "look for", id.String(), err)
	}
	return time.Since(info.LastModified) < s.opts.RefreshAfter, nil
}

// Put implements chunks.Store. An object is durable when the server has answered.
func (s *Store) Put(ctx context.Context, id chunk.ID, frame []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := chunks.VerifyPut(id, frame); err != nil {
		return err
	}
	_, err := s.client.PutObject(ctx, s.opts.Bucket, s.key(id), bytes.NewReader(frame), int64(len(frame)), minio.PutObjectOptions{
		ContentType: binaryType, DisableMultipart: true, SendContentMd5: true,
	})
	if err != nil {
		err = s.failed(ctx, "put", id.String(), err)
		if fault.Is(err, fault.Exhausted) {
			s.counts.Refused.Add(1)
		}
		return err
	}
	s.counts.Puts.Add(1)
	s.counts.PutBytes.Add(int64(len(frame)))
	return nil
}

// Get implements chunks.Store.
func (s *Store) Get(ctx context.Context, id chunk.ID) ([]byte, error) {
	frame, err := s.read(ctx, id)
	if errors.Is(err, chunk.ErrCorrupt) {
		frame, err = s.read(ctx, id) // the network may have done it, or somebody mends it: look twice
	}
	switch {
	case err == nil:
		s.counts.Gets.Add(1)
		s.counts.GetBytes.Add(int64(len(frame)))
		return frame, nil
	case fault.Is(err, fault.NotFound):
		s.counts.NotFound.Add(1)
		return nil, err
	case !errors.Is(err, chunk.ErrCorrupt):
		return nil, err
	}
	s.counts.Damaged.Add(1)
	_, aside := s.client.CopyObject(ctx, minio.CopyDestOptions{Bucket: s.opts.Bucket, Object: s.folder("quarantine") + id.String()},
		minio.CopySrcOptions{Bucket: s.opts.Bucket, Object: s.key(id)})
	if aside == nil {
		aside = s.client.RemoveObject(ctx, s.opts.Bucket, s.key(id), minio.RemoveObjectOptions{})
	}
	if aside != nil && !isAbsent(aside) {
		return nil, s.failed(ctx, "put aside the damaged", id.String(), aside)
	}
	s.log.Warn("chunks: a damaged chunk was put aside", "chunk", id.String(), "bucket", s.opts.Bucket)
	return nil, chunks.Damaged(id, s.where, err)
}

// read returns a chunk's frame, verified.
func (s *Store) read(ctx context.Context, id chunk.ID) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// The plain request: the library's reader would start a goroutine for each.
	body, info, _, err := minio.Core{Client: s.client}.GetObject(ctx, s.opts.Bucket, s.key(id), minio.GetObjectOptions{})
	switch {
	case isAbsent(err):
		return nil, chunks.NotFound(id, s.where)
	case err != nil:
		return nil, s.failed(ctx, "get", id.String(), err)
	}
	defer body.Close()
	if info.Size < 0 || info.Size > chunk.MaxFrameBytes {
		return nil, fmt.Errorf("%w: an object of %d bytes", chunk.ErrCorrupt, info.Size)
	}
	frame := make([]byte, info.Size)
	if _, err := io.ReadFull(body, frame); err != nil {
		return nil, s.failed(ctx, "read", id.String(), err)
	}
	return frame, chunks.Verify(id, frame)
}

// Walk implements chunks.Collectable: object stores list in the order of keys.
func (s *Store) Walk(ctx context.Context, after chunk.ID, fn func(id chunk.ID, bytes int64, modified time.Time) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opts := minio.ListObjectsOptions{Prefix: s.folder("chunks"), Recursive: true}
	if after != (chunk.ID{}) {
		opts.StartAfter = s.key(after)
	}
	for object := range s.client.ListObjectsIter(ctx, s.opts.Bucket, opts) {
		if object.Err != nil {
			return s.failed(ctx, "list", s.opts.Bucket, object.Err)
		}
		id, err := chunk.Parse(strings.TrimPrefix(object.Key, opts.Prefix))
		if err != nil || chunks.Compare(id, after) <= 0 {
			continue // nothing of ours
		}
		if err := fn(id, object.Size, object.LastModified); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Delete implements chunks.Collectable; see the package's comment for what it cannot promise.
func (s *Store) Delete(ctx context.Context, id chunk.ID, unmodifiedSince time.Time) error {
	info, err := s.client.StatObject(ctx, s.opts.Bucket, s.key(id), minio.StatObjectOptions{})
	switch {
	case isAbsent(err):
		return nil
	case err != nil:
		return s.failed(ctx, "look for", id.String(), err)
	case info.LastModified.After(unmodifiedSince):
		return fault.New(fault.FailedPrecondition, "chunks: chunk %s was used lately and stays", id)
	}
	if err := s.client.RemoveObject(ctx, s.opts.Bucket, s.key(id), minio.RemoveObjectOptions{}); err != nil && !isAbsent(err) {
		return s.failed(ctx, "delete", id.String(), err)
	}
	s.counts.Deleted.Add(1)
	s.counts.DeletedBytes.Add(info.Size)
	return nil
}

func isAbsent(err error) bool {
	return err != nil && minio.ToErrorResponse(err).Code == minio.NoSuchKey
}

// failed gives an error of the object store its kind.
func (s *Store) failed(ctx context.Context, verb, what string, err error) error {
	if e := ctx.Err(); e != nil {
		return fmt.Errorf("chunks: %s %s: %w", verb, what, e)
	}
	answer := minio.ToErrorResponse(err)
	kind, retry := fault.Unavailable, time.Duration(0)
	switch status := answer.StatusCode; {
	case status == http.StatusForbidden:
		kind = fault.PermissionDenied
	case status == http.StatusInsufficientStorage, status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable,
		strings.Contains(answer.Code, "StorageFull"), strings.Contains(answer.Code, "Quota"):
		kind, retry = fault.Exhausted, retryAfter
	case answer.Code == minio.NoSuchBucket:
		kind = fault.FailedPrecondition
	}
	return fault.New(kind, "chunks: %s %s in %s at %s: %w", verb, what, s.where, s.opts.Endpoint, err).WithRetry(retry)
}
