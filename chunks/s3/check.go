// Whether a bucket may be used: what is wrong with the settings is said when a server starts, and by whom it is used before
// anything is deleted from it.

package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/neolith/orchestrator/internal/fault"
)

// ownerMaxBytes bounds the object that says whose bucket it is.
const ownerMaxBytes = 256

// trust has a transport believe the authorities of a file, and no others.
func trust(t *http.Transport, file string) error {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fault.New(fault.Invalid, "chunks: the object store's authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return fault.New(fault.Invalid, "chunks: the object store's authorities: %s holds no certificate", file)
	}
	t.TLSClientConfig.RootCAs = pool
	return nil
}

// Check puts an object, reads it and deletes it again. Its error says what to do: it is of kind FailedPrecondition where the settings, the
// rights or the clock are wrong, and Unavailable where the object store cannot be reached now.
func (s *Store) Check(ctx context.Context) error {
	key, content := s.folder("check")+rand.Text(), []byte("checked")
	if err := s.write(ctx, key, content); err != nil {
		return s.advise(ctx, "put", err)
	}
	got, err := s.readKey(ctx, key)
	if err != nil {
		return s.advise(ctx, "read", err)
	}
	if !bytes.Equal(got, content) {
		return fault.New(fault.FailedPrecondition, "chunks: %s at %s gives something else than what was put; it is no store for checkpoints", s.where, s.opts.Endpoint)
	}
	if err := s.client.RemoveObject(ctx, s.opts.Bucket, key, minio.RemoveObjectOptions{}); err != nil {
		return s.advise(ctx, "delete", err)
	}
	return nil
}

// Own notes in the bucket which cluster's chunks it keeps, or fails with kind FailedPrecondition when it keeps another's: what
// one cluster does not need another one may. Whoever sweeps asks first.
func (s *Store) Own(ctx context.Context, cluster string) error {
	key := strings.TrimSuffix(s.folder("cluster"), "/")
	owner, err := s.readKey(ctx, key)
	if isAbsent(err) {
		if err := s.write(ctx, key, []byte(cluster)); err != nil {
			return s.advise(ctx, "put", err)
		}
		owner, err = s.readKey(ctx, key) // another cluster may have been at it just now
	}
	switch {
	case err != nil:
		return s.advise(ctx, "read", err)
	case string(owner) != cluster:
		return fault.New(fault.FailedPrecondition, "chunks: %s, prefix %q, keeps the chunks of cluster %.64q, and this is %s; give each cluster a prefix of its own "+
			"(or delete the object %s, if that cluster is gone)", s.where, s.opts.Prefix, owner, cluster, key)
	}
	return nil
}

func (s *Store) write(ctx context.Context, key string, content []byte) error {
	_, err := s.client.PutObject(ctx, s.opts.Bucket, key, bytes.NewReader(content), int64(len(content)), minio.PutObjectOptions{
		ContentType: binaryType, DisableMultipart: true, SendContentMd5: true,
	})
	return err
}

func (s *Store) readKey(ctx context.Context, key string) ([]byte, error) {
	body, _, _, err := minio.Core{Client: s.client}.GetObject(ctx, s.opts.Bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, ownerMaxBytes))
}

// advise is failed, with what to do.
func (s *Store) advise(ctx context.Context, verb string, err error) error {
	answer := minio.ToErrorResponse(err)
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	remedy := ""
	switch {
	case errors.As(err, &authority), errors.As(err, &host):
		remedy = "its certificate is not trusted; give the file with its authority (ca_file), or the name that the certificate has (endpoint)"
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		remedy = "it speaks no TLS; set insecure: true if nobody else can listen on the way to it"
	case answer.Code == minio.NoSuchBucket:
		remedy = "make the bucket first, or mend its name"
	case answer.Code == "RequestTimeTooSkewed", answer.Code == "RequestExpired":
		remedy = "the clock of this server, or of the object store, is wrong; set both by NTP"
	case answer.Code == "InvalidAccessKeyId", answer.Code == "SignatureDoesNotMatch", answer.Code == "InvalidTokenId", answer.Code == "ExpiredToken",
		strings.Contains(answer.Code, "UserNotFound"): // of versitygw
		remedy = "the credentials are wrong; give those of an account that may use the bucket (access_key_file and secret_key_file, or the environment)"
	case answer.StatusCode == http.StatusForbidden, answer.StatusCode == http.StatusUnauthorized:
		remedy = "the credentials give no right to " + verb + " there; allow them to get, put, delete and list objects"
	case answer.Code == "AuthorizationHeaderMalformed", answer.Code == "IllegalLocationConstraintException", answer.StatusCode == http.StatusMovedPermanently:
		remedy = "the bucket is in another region; set region"
	case answer.Code == minio.InvalidBucketName:
		remedy = "that is no name of a bucket"
	default:
		return s.failed(ctx, verb, "an object", err)
	}
	return fault.New(fault.FailedPrecondition, "chunks: %s an object in %s at %s: %w; %s", verb, s.where, s.opts.Endpoint, err, remedy)
}
