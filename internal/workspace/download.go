// Downloading an archive: bounded in bytes, and in how long nothing may come.

package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/neolith/orchestrator/internal/fault"
)

var errStalled = errors.New("nothing came any more")

// urlPath returns the path of an address, without what is behind it; "" when it is none.
func urlPath(ref string) string {
	u, err := url.Parse(ref)
	if err != nil || u.Host == "" {
		return ""
	}
	return u.Path
}

// redacted returns a reference as it may be shown: without its password, and without a query, which often is one.
func redacted(ref string) string {
	u, err := url.Parse(ref)
	switch {
	case err == nil && (u.User != nil || u.RawQuery != ""):
		if u.RawQuery != "" {
			u.RawQuery = "…"
		}
		ref = u.Redacted()
	case err != nil && strings.Contains(ref, "@"):
		ref = "…" + ref[strings.LastIndexByte(ref, '@'):]
	}
	return fmt.Sprintf("%.300q", ref)
}

// client is for one download.
func client() (*http.Client, func()) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = stallMax
	c := &http.Client{Transport: t, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) >= 10 {
			return errors.New("it leads on and on")
		}
		if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
			return errors.New("it leads from https to " + r.URL.Scheme)
		}
		return nil
	}}
	return c, t.CloseIdleConnections
}

// download writes what is at an address to a file that is not there yet.
func download(ctx context.Context, ref, file string, o *Options) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(o.stall, func() { cancel(errStalled) })
	defer stalled.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ref, nil)
	if err != nil {
		return fault.New(fault.Invalid, "%w", scrub(err))
	}
	req.Header.Set("Accept-Encoding", "identity") // or a .gz may be unpacked on the way
	c := o.Client
	if c == nil {
		own, done := client()
		defer done()
		c = own
	}
	res, err := c.Do(req)
	if err != nil {
		return unreachable(ctx, err)
	}
	defer res.Body.Close()
	if err := refusal(res); err != nil {
		return err
	}
	if res.ContentLength > o.MaxDownloadBytes {
		return fault.New(fault.Exhausted, "it has %d bytes, at most %d here", res.ContentLength, o.MaxDownloadBytes)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	total, n, told, buf := max(res.ContentLength, 0), int64(0), int64(0), make([]byte, copyBytes)
	for {
		k, err := res.Body.Read(buf)
		stalled.Reset(o.stall)
		if n += int64(k); n > o.MaxDownloadBytes {
			return fault.New(fault.Exhausted, "it has more than the %d bytes that are allowed here", o.MaxDownloadBytes)
		}
		if _, err := f.Write(buf[:k]); err != nil {
			return err
		}
		if n-told >= progressBytes || errors.Is(err, io.EOF) {
			told = n
			o.progress(Progress{Step: "downloading", Bytes: n, Total: total})
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return unreachable(ctx, fmt.Errorf("after %d bytes: %w", n, err))
		}
	}
}

// refusal is the error that a status is.
func refusal(res *http.Response) error {
	kind := fault.Unavailable
	switch res.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusNotFound, http.StatusGone:
		kind = fault.NotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		kind = fault.PermissionDenied
	}
	return fault.New(kind, "%s answers %s", res.Request.URL.Host, res.Status)
}

// unreachable is the error of a download that broke off.
func unreachable(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return fault.New(fault.Unavailable, "download: %w", scrub(err))
}

// scrub takes the address out of an error: it stands in front of it already, and there without its password.
func scrub(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
