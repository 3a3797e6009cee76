// The URIs of resources: session://ID/log and session://ID/workspace/PATH.

package mcp

import (
	"net/url"
	"strconv"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/neolith/orchestrator/internal/fault"
)

const scheme = "session"

// URIs that the templates match.
const (
	plainLog  = "session://id/log"
	plainFile = "session://id/workspace/path"
)

// maxURIBytes bounds a URI: a path, each byte of which may be written as three, and what is around it.
const maxURIBytes = 16 << 10

// templates are the resources that there may be.
func templates() []*sdk.ResourceTemplate {
	return []*sdk.ResourceTemplate{
		{
			URITemplate: "session://{id}/log{?since,tail,namespace}", Name: "log", Title: "What a session has written", MIMEType: "text/plain",
			Description: "The output of a session, standard output and error in order. Without since the last lines, 1000 or so many as tail says; with since the lines from that number on, and _meta.next is where to go on. Can be subscribed to.",
		},
		{
			URITemplate: "session://{id}/workspace/{+path}{?checkpoint,offset,bytes,page,namespace}", Name: "workspace", Title: "The files of a session",
			Description: "A file of a session's workspace as its last checkpoint has it, or that with the number; a directory is a list of its entries as JSON, a page at a time. offset and bytes read a part of a file.",
		},
	}
}

// resource is what a URI names.
type resource struct {
	id, namespace string
	log           bool
	path          string // of the workspace, without slashes at its ends; empty for the workspace itself
	since, tail   uint64 // of a log; 0 when not given
	checkpoint    uint64 // 0 for the last
	offset, bytes int64  // of a file; bytes is 0 when not given
	page          string // of a directory
}

// parseURI reads a URI; its errors say how they are written.
func parseURI(uri string) (*resource, error) {
	wrong := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "uri: "+format+"; write session://ID/log or session://ID/workspace/PATH", args...).WithField("uri")
	}
	if len(uri) > maxURIBytes {
		return nil, wrong("is %d bytes, more than %d", len(uri), maxURIBytes)
	}
	u, err := url.Parse(uri)
	if err != nil {
		return nil, wrong("%.200q cannot be read", uri)
	}
	r := &resource{id: u.Host}
	path, inWorkspace := strings.CutPrefix(u.Path, "/workspace")
	switch {
	case u.Scheme != scheme || u.Host == "" || u.Opaque != "" || u.User != nil || u.Fragment != "":
		return nil, wrong("%.200q is none of a session", uri)
	case u.Path == "/log":
		r.log = true
	case inWorkspace && (path == "" || path[0] == '/'):
		r.path = strings.TrimSuffix(strings.TrimPrefix(path, "/"), "/")
	default:
		return nil, wrong("%.200q is neither a log nor in a workspace", uri)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, wrong("what follows the question mark in %.200q cannot be read", uri)
	}
	for key, values := range query {
		if err := r.option(key, values[len(values)-1]); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// option reads one of the values behind the question mark.
func (r *resource) option(key, value string) error {
	number := func(most uint64) (uint64, error) {
		n, err := strconv.ParseUint(value, 10, 63)
		if err != nil || n > most {
			return 0, fault.New(fault.Invalid, "uri: %s=%.40q is not a whole number of 0–%d", key, value, most).WithField("uri")
		}
		return n, nil
	}
	const any63 = 1<<63 - 1
	var n uint64
	var err error
	switch {
	case key == "namespace":
		r.namespace = value
	case r.log && key == "since":
		r.since, err = number(any63)
	case r.log && key == "tail":
		r.tail, err = number(maxLogLines)
	case !r.log && key == "checkpoint":
		r.checkpoint, err = number(any63)
	case !r.log && key == "offset":
		n, err = number(any63)
		r.offset = int64(n)
	case !r.log && key == "bytes":
		n, err = number(maxFileBytes)
		r.bytes = int64(n)
	case !r.log && key == "page":
		r.page = value
	default:
		return fault.New(fault.Invalid, "uri: nothing is known of %.40q here; resources/templates/list says what there is", key).WithField("uri")
	}
	return err
}

// logURI names a log.
func logURI(id string) string { return (&url.URL{Scheme: scheme, Host: id, Path: "/log"}).String() }

// fileURI names a file, or a directory when path is empty or ends with a slash.
func fileURI(id, path string) string {
	return (&url.URL{Scheme: scheme, Host: id, Path: "/workspace/" + path}).String()
}

// with is the same resource, of the same namespace, read further.
func (r *resource) with(uri string, options ...string) string {
	query := url.Values{}
	if r.namespace != "" {
		query.Set("namespace", r.namespace)
	}
	for i := 0; i < len(options); i += 2 {
		query.Set(options[i], options[i+1])
	}
	return uri + "?" + query.Encode()
}
