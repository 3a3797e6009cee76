// Resources: the list of them, and reading them, through the API as whoever asks.

package mcp

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/internal/fault"
)

// The bounds of resources.
const (
	maxFileBytes    = 2 << 20 // of a file, or a part of one, in one answer
	listSessions    = 100     // whose resources make a page
	listEntries     = 1000    // of a directory on a page
	readTime        = time.Minute
	maxReads        = 32 // at a time; more wait
	directoryType   = "application/json"
	privateAnswers  = "private" // nobody but who asked may keep an answer
	maxCursorLength = 4 << 10
)

// listResources lists the logs of the sessions that the caller sees, and the workspaces of those that have a checkpoint.
func (h *Handler) listResources(ctx context.Context, req *sdk.ListResourcesRequest) (*sdk.ListResourcesResult, error) {
	ctx, end, err := h.asCaller(ctx)
	if err != nil {
		return nil, rpcError(err, nil)
	}
	defer end()
	ask := &apiv1.ListSessionsRequest{PageSize: listSessions}
	if req.Params != nil {
		if len(req.Params.Cursor) > maxCursorLength {
			return nil, rpcError(fault.New(fault.Invalid, "cursor: is %d bytes; give nextCursor of the page before", len(req.Params.Cursor)).WithField("cursor"), nil)
		}
		ask.PageToken = req.Params.Cursor
	}
	page, err := h.sessions.ListSessions(ctx, ask)
	if err != nil {
		return nil, rpcError(client.Fault(err), nil)
	}
	out := &sdk.ListResourcesResult{Resources: []*sdk.Resource{}, NextCursor: page.GetNextPageToken()}
	out.CacheScope = privateAnswers
	for _, s := range page.GetSessions() {
		name := cmp.Or(s.GetName(), s.GetId())
		out.Resources = append(out.Resources, &sdk.Resource{
			URI: logURI(s.GetId()), Name: name + "/log", MIMEType: "text/plain",
			Description: fmt.Sprintf("What session %s has written; it is %s", name, s.GetPhase()),
		})
		if c := s.GetCheckpoint(); c.GetSequence() > 0 {
			out.Resources = append(out.Resources, &sdk.Resource{
				URI: fileURI(s.GetId(), ""), Name: name + "/workspace", MIMEType: directoryType,
				Description: fmt.Sprintf("The files of session %s as checkpoint %d has them, of %s", name, c.GetSequence(), c.GetCreateTime().AsTime().Format(time.RFC3339)),
			})
		}
	}
	return out, nil
}

// asCaller returns a context for calls of the API as whoever made the request.
func (h *Handler) asCaller(ctx context.Context) (context.Context, context.CancelFunc, error) {
	c, ok := ctx.Value(callerKey{}).(caller)
	if !ok {
		return nil, nil, fault.New(fault.Unauthenticated, "nobody is known to ask for it")
	}
	ctx, end := context.WithTimeout(h.o.Access.As(ctx, c.cred), readTime)
	return ctx, end, nil
}

// askedKey carries what is to be read past the SDK.
type askedKey struct{}

// asking is a resource that is to be read, and its URI as the client gave it.
type asking struct {
	uri string
	*resource
}

// asked reads a request's URI. The SDK, which finds the handler of a resource by its template, is given a plain one: it knows
// neither what is wrong with a URI nor that its options may come in any order.
func asked(ctx context.Context, req *sdk.ReadResourceRequest) (context.Context, error) {
	r, err := parseURI(req.Params.URI)
	if err != nil {
		return nil, err
	}
	ctx = context.WithValue(ctx, askedKey{}, asking{req.Params.URI, r})
	if req.Params.URI = plainLog; !r.log {
		req.Params.URI = plainFile
	}
	return ctx, nil
}

// readResource reads a log, a file or a directory.
func (h *Handler) readResource(ctx context.Context, _ *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
	r, ok := ctx.Value(askedKey{}).(asking)
	if !ok {
		return nil, fault.New(fault.Internal, "a resource was asked for that nobody named")
	}
	about := map[string]any{"uri": r.uri}
	ctx, end, err := h.asCaller(ctx)
	if err != nil {
		return nil, rpcError(err, about)
	}
	defer end()
	select {
	case h.reading <- struct{}{}:
		defer func() { <-h.reading }()
	case <-ctx.Done():
		return nil, rpcError(client.Fault(ctx.Err()), about)
	}
	var content *sdk.ResourceContents
	if r.log {
		content, err = h.readLog(ctx, r.resource)
	} else {
		content, err = h.readFile(ctx, r.resource)
	}
	if err != nil {
		return nil, rpcError(client.Fault(err), about)
	}
	content.URI = r.uri
	if content.Text == "" && content.Blob == nil {
		content.Blob = []byte{} // the SDK leaves an empty text out, and one of the two must be there
	}
	out := &sdk.ReadResourceResult{Contents: []*sdk.ResourceContents{content}}
	out.CacheScope = privateAnswers
	return out, nil
}

// readFile reads a file of a checkpoint, or what a directory holds.
func (h *Handler) readFile(ctx context.Context, r *resource) (*sdk.ResourceContents, error) {
	if r.path == "" || r.page != "" {
		return h.readDirectory(ctx, r)
	}
	f, err := h.sessions.ReadFile(ctx, &apiv1.ReadFileRequest{
		Namespace: r.namespace, Id: r.id, Sequence: r.checkpoint, Path: r.path, Offset: r.offset, Limit: cmp.Or(r.bytes, maxFileBytes),
	})
	if err != nil {
		return nil, err
	}
	switch info := f.GetFile(); {
	case info.GetType() == "d":
		r.checkpoint = f.GetCheckpoint().GetSequence()
		return h.readDirectory(ctx, r)
	case info.GetType() == "l":
		return nil, fault.New(fault.FailedPrecondition, "%q: is a symbolic link to %q; read that", r.path, info.GetTarget()).WithField("uri")
	case r.bytes == 0 && info.GetBytes()-r.offset > maxFileBytes:
		return nil, fault.New(fault.FailedPrecondition, "%q: is %d bytes, more than %d at a time; read a part of it, as in %s", r.path, info.GetBytes(), maxFileBytes,
			r.with(fileURI(r.id, r.path), "offset", strconv.FormatInt(r.offset, 10), "bytes", strconv.Itoa(maxFileBytes))).WithField("uri")
	}
	out := &sdk.ResourceContents{Meta: sdk.Meta{"checkpoint": f.GetCheckpoint().GetSequence(), "bytes": f.GetFile().GetBytes()}}
	if c := f.GetContent(); isText(c) {
		out.Text, out.MIMEType = string(c), textType(r.path)
	} else {
		out.Blob, out.MIMEType = c, http.DetectContentType(c)
	}
	return out, nil
}

// isText reports whether content can be shown as text.
func isText(b []byte) bool { return utf8.Valid(b) && !strings.ContainsRune(string(b), 0) }

// textTypes are the types of texts that clients treat in a way of their own.
var textTypes = map[string]string{
	".json": "application/json", ".md": "text/markdown", ".html": "text/html", ".css": "text/css", ".csv": "text/csv", ".xml": "application/xml",
	".svg": "image/svg+xml", ".yaml": "application/yaml", ".yml": "application/yaml", ".js": "text/javascript", ".mjs": "text/javascript",
}

func textType(name string) string {
	return cmp.Or(textTypes[strings.ToLower(path.Ext(name))], "text/plain")
}

// directory is a page of what a directory holds.
type directory struct {
	Session    string  `json:"session"`
	Checkpoint uint64  `json:"checkpoint"`
	CreateTime string  `json:"createTime"`
	Path       string  `json:"path"`
	Entries    []entry `json:"entries"`
	Next       string  `json:"next,omitempty"` // where the next page is
}

type entry struct {
	Name    string `json:"name"`
	Type    string `json:"type"` // file, directory or link
	Bytes   int64  `json:"bytes,omitempty"`
	Mode    string `json:"mode"`
	ModTime string `json:"modTime"`
	Target  string `json:"target,omitempty"` // of a link
	URI     string `json:"uri,omitempty"`    // of what can be read
}

var entryTypes = map[string]string{"f": "file", "d": "directory", "l": "link"}

// readDirectory lists a directory.
func (h *Handler) readDirectory(ctx context.Context, r *resource) (*sdk.ResourceContents, error) {
	page, err := h.sessions.ListFiles(ctx, &apiv1.ListFilesRequest{
		Namespace: r.namespace, Id: r.id, Sequence: r.checkpoint, Path: r.path, PageSize: listEntries, PageToken: r.page,
	})
	if err != nil {
		return nil, err
	}
	id, sequence := page.GetSessionId(), page.GetCheckpoint().GetSequence()
	out := directory{Session: id, Checkpoint: sequence, CreateTime: page.GetCheckpoint().GetCreateTime().AsTime().Format(time.RFC3339Nano), Path: r.path, Entries: []entry{}}
	for _, e := range page.GetEntries() {
		one := entry{Name: e.GetName(), Type: entryTypes[e.GetType()], Bytes: e.GetBytes(), Mode: fmt.Sprintf("%04o", e.GetMode()),
			ModTime: e.GetModTime().AsTime().Format(time.RFC3339Nano), Target: e.GetTarget()}
		if name := path.Join(r.path, e.GetName()); !strings.ContainsRune(name, utf8.RuneError) {
			switch e.GetType() {
			case "f":
				one.URI = fileURI(id, name)
			case "d":
				one.URI = fileURI(id, name+"/")
			}
		}
		out.Entries = append(out.Entries, one)
	}
	if t := page.GetNextPageToken(); t != "" {
		at := r.path
		if at != "" {
			at += "/"
		}
		out.Next = r.with(fileURI(id, at), "page", t)
	}
	text, err := json.Marshal(out)
	if err != nil {
		return nil, fault.New(fault.Internal, "write the list: %w", err)
	}
	return &sdk.ResourceContents{Text: string(text), MIMEType: directoryType, Meta: sdk.Meta{"checkpoint": sequence}}, nil
}
