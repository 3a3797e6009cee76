// ListFiles and ReadFile: the workspace of a session as one of its checkpoints has it, wherever the session is.

package gateway

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/session"
)

// The bounds of looking into checkpoints.
const (
	// maxReadFileBytes is how much of a file one answer holds.
	maxReadFileBytes = 4 << 20
	// maxLooks is how many calls look into checkpoints at a time; each holds at most maxReadFileBytes and a chunk.
	maxLooks = 16
)

// looked is what was found in a checkpoint, whose manifest is gone from memory.
type looked struct {
	session    string
	checkpoint *apiv1.Session_Checkpoint
}

// look finds a path in the workspace of a checkpoint and has use see it.
func (o *Operations) look(ctx context.Context, namespace, id string, sequence uint64, name string, use func(*serializer.Manifest, *serializer.Tree, *serializer.Entry) error) (*looked, error) {
	if o.Chunks == nil {
		return nil, errNoStore
	}
	if err := checkPath(name); err != nil {
		return nil, err
	}
	of, err := o.lookUp(ctx, namespace, id)
	if err != nil {
		return nil, err
	}
	c, err := of.at(sequence)
	if err != nil {
		return nil, err
	}
	root, err := manifestID(c)
	if err != nil {
		return nil, err
	}
	var inner error // what use says, as opposed to what makes the checkpoint unreadable
	err = o.withManifest(ctx, root, func(m *serializer.Manifest, _ serializer.Stored) error {
		inner = func() error {
			t := m.Root(session.RootWorkspace)
			if t == nil {
				return fault.New(fault.FailedPrecondition, "session %s: checkpoint %d keeps no workspace", of.session.GetId(), c.GetSequence())
			}
			e := t.Entry(path.Clean(name))
			if e == nil {
				return fault.New(fault.NotFound, "%q: is not in the workspace of session %s as checkpoint %d has it; newer files come with the next checkpoint", clip(name), of.session.GetId(), c.GetSequence()).WithField("path")
			}
			return use(m, t, e)
		}()
		return nil
	})
	if err != nil {
		return nil, unreadable("look into it", c, err)
	}
	return &looked{of.session.GetId(), c}, inner
}

// checkPath refuses what names nothing in a tree. An empty path is the tree itself.
func checkPath(name string) error {
	wrong := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "path: %q "+format, append([]any{clip(name)}, args...)...).WithField("path")
	}
	switch {
	case name == "":
		return nil
	case len(name) > serializer.MaxPathBytes:
		return wrong("is %d bytes, more than %d", len(name), serializer.MaxPathBytes)
	case strings.ContainsRune(name, 0):
		return wrong("has a NUL in it")
	}
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "":
			return wrong("has an empty component; write it relative to the workspace, without a slash at its ends")
		case ".", "..":
			return wrong("has a component %s; write it as it is in the workspace", part)
		}
	}
	return nil
}

// fileEntry describes an entry as clients see it.
func fileEntry(e *serializer.Entry) *apiv1.FileEntry {
	name := path.Base(e.Path)
	if e.Path == "." {
		name = ""
	}
	return &apiv1.FileEntry{
		// Names of files are any bytes, and strings of the API are text.
		Name: strings.ToValidUTF8(name, "\uFFFD"), Type: entryType(e.Type), Bytes: e.Size, Mode: e.Mode,
		ModTime: timestamppb.New(time.Unix(0, e.ModTime)), Target: strings.ToValidUTF8(e.Target, "\uFFFD"),
	}
}

// ListFiles lists a directory.
func (s *sessionService) ListFiles(ctx context.Context, req *apiv1.ListFilesRequest) (*apiv1.ListFilesResponse, error) {
	leave, err := s.ops.exchange.looks.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	sequence, skip := req.GetSequence(), 0
	if t := req.GetPageToken(); t != "" {
		// The pages of one list are of one checkpoint, also when the head is another one by now.
		at, from, ok := strings.Cut(t, ".")
		n, err := strconv.ParseUint(at, 10, 64)
		skip, _ = strconv.Atoi(from)
		if !ok || err != nil || skip < 1 || sequence != 0 && sequence != n {
			return nil, fault.New(fault.Invalid, "page_token: %q is none of this list", clip(t)).WithField("page_token")
		}
		sequence = n
	}
	out, size, more := &apiv1.ListFilesResponse{}, pageSize(req.GetPageSize()), false
	found, err := s.ops.look(ctx, req.GetNamespace(), req.GetId(), sequence, req.GetPath(), func(_ *serializer.Manifest, t *serializer.Tree, dir *serializer.Entry) error {
		if dir.Type != serializer.Dir {
			return fault.New(fault.FailedPrecondition, "%q: is no directory", clip(req.GetPath())).WithField("path")
		}
		n := 0
		for e := range t.Children(dir.Path) {
			if n++; n <= skip {
				continue
			}
			if more = len(out.Entries) == size; more {
				break
			}
			out.Entries = append(out.Entries, fileEntry(e))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out.SessionId, out.Checkpoint = found.session, found.checkpoint
	if more {
		out.NextPageToken = fmt.Sprintf("%d.%d", found.checkpoint.GetSequence(), skip+size)
	}
	return out, nil
}

// ReadFile reads a file, or a stretch of it. What is no file is described, and has no content.
func (s *sessionService) ReadFile(ctx context.Context, req *apiv1.ReadFileRequest) (*apiv1.ReadFileResponse, error) {
	limit := req.GetLimit()
	switch {
	case req.GetOffset() < 0:
		return nil, fault.New(fault.Invalid, "offset: %d is negative", req.GetOffset()).WithField("offset")
	case limit < 0 || limit > maxReadFileBytes:
		return nil, fault.New(fault.Invalid, "limit: %d is not within 0–%d", limit, maxReadFileBytes).WithField("limit")
	case limit == 0:
		limit = maxReadFileBytes
	}
	leave, err := s.ops.exchange.looks.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	out := &apiv1.ReadFileResponse{}
	var stretches []serializer.Stretch
	found, err := s.ops.look(ctx, req.GetNamespace(), req.GetId(), req.GetSequence(), req.GetPath(), func(m *serializer.Manifest, _ *serializer.Tree, e *serializer.Entry) error {
		out.File = fileEntry(e)
		stretches = m.Stretches(e, req.GetOffset(), limit)
		return nil
	})
	if err != nil {
		return nil, err
	}
	out.SessionId, out.Checkpoint = found.session, found.checkpoint
	if out.Content, err = serializer.ReadStretches(ctx, s.ops.Chunks, stretches); err != nil {
		return nil, unreadable("read a file", found.checkpoint, err)
	}
	return out, nil
}
