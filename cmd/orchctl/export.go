// sessions export: a checkpoint as one signed file.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer/archive"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/telemetry"
)

// archiveSuffix is how exported sessions are called.
const archiveSuffix = ".orchsession"

// exportFlags are the flags of export.
type exportFlags struct {
	file, checkpoint, key string
	force                 bool
}

func (a *app) exportCommand() *cobra.Command {
	var f exportFlags
	c := a.command("export SESSION", "Write a checkpoint of a session to one signed file, which any cluster can import", exactly(1), streams, func(ctx context.Context, args []string) error {
		return a.export(ctx, args[0], &f)
	})
	c.Long = `Write a checkpoint of a session, with everything that it needs to go on, to one file: its files, its output, its spec. Any cluster can
import it. The session itself goes on undisturbed; what it did since that checkpoint is not in the file, so make one first where that matters.

The file is signed with your key, which is made at the first export and lies beside your contexts. Values of secrets are not in it, but all
files of the workspace and the environment in the spec are: look after it as you look after these.`
	c.Example = `  orchctl sessions checkpoint ledger --wait && orchctl sessions export ledger
  orchctl sessions export ledger --checkpoint 12 -f - | ssh there orchctl sessions import - --signer SHA256:…`
	fl := c.Flags()
	fl.StringVarP(&f.file, "file", "f", "", "where to write it, - for standard output (default NAME-SEQUENCE"+archiveSuffix+" in this directory)")
	fl.StringVar(&f.checkpoint, "checkpoint", "", "which one: its sequence, or a time at which it was the newest (default: the newest)")
	fl.StringVar(&f.key, "key", "", "a file with the key to sign with, instead of your own")
	fl.BoolVar(&f.force, "force", false, "replace a file that is there")
	c.ValidArgsFunction = a.completeSessions
	_ = c.RegisterFlagCompletionFunc("checkpoint", a.completeCheckpoints) // it only refuses unknown flags
	_ = c.MarkFlagFilename("file")
	_ = c.MarkFlagFilename("key")
	return c
}

// exportSummary is what export prints as JSON.
type exportSummary struct {
	File       string          `json:"file"`
	Session    archive.Session `json:"session"`
	Checkpoint uint64          `json:"checkpoint"`
	Chunks     int             `json:"chunks"`
	Bytes      int64           `json:"bytes"`     // of the content
	FileBytes  int64           `json:"fileBytes"` // of the archive
	Signer     string          `json:"signer"`    // its fingerprint
	ClusterID  string          `json:"clusterId"`
	Manifest   string          `json:"manifest"` // the chunk that names the manifest
}

func (a *app) export(ctx context.Context, ref string, f *exportFlags) error {
	if f.file == "-" && isTerminal(a.stdout) {
		return fault.New(fault.Invalid, "-f -: the archive is not for a terminal; send it to a file or a pipe")
	}
	s, sequence, err := a.findCheckpoint(ctx, ref, "--checkpoint", f.checkpoint)
	if err != nil {
		return err
	}
	e, err := a.client.Export(ctx, &apiv1.ExportSessionRequest{Namespace: s.GetNamespace(), Id: s.GetId(), Sequence: sequence})
	if err != nil {
		return err
	}
	defer e.Close()
	open := e.Open()
	if f.file == "" {
		f.file = fmt.Sprintf("%s-%d%s", first(open.GetSession().GetName(), open.GetSession().GetId()), open.GetCheckpoint().GetSequence(), archiveSuffix)
	}
	key, err := a.signingKey(f.key)
	if err != nil {
		return err
	}
	h, err := headerOf(open)
	if err != nil {
		return err
	}
	h.CreateTime, h.Creator = a.now(), "orchctl/"+telemetry.ThisBuild().Version
	sum := &exportSummary{File: f.file, Session: h.Session, Checkpoint: h.Checkpoint.Sequence, Chunks: h.Chunks, Bytes: h.Checkpoint.Bytes,
		Signer: archive.Fingerprint(publicOf(key)), ClusterID: h.Cluster, Manifest: h.Manifest.String()}
	write := func(w io.Writer) error {
		progress := a.transfer("exporting", h.Checkpoint.Bytes)
		defer progress.done()
		counted := &countingWriter{w: w}
		out, err := archive.NewWriter(counted, h)
		if err != nil {
			return err
		}
		if err := copyChunks(out, e, progress); err != nil {
			return err
		}
		err = out.Close(key)
		sum.FileBytes = counted.n
		return err
	}
	if f.file == "-" {
		if err := write(a.stdout); err != nil {
			return err
		}
		a.note(sum.sentence())
		return nil
	}
	if err := writeWhole(f.file, f.force, write); err != nil {
		return err
	}
	return a.printExport(sum)
}

// copyChunks writes what comes out of the cluster.
func copyChunks(out *archive.Writer, e *client.Export, progress *transfer) error {
	for {
		id, frame, err := e.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := out.Put(id, frame); err != nil {
			return err
		}
		if n, err := chunk.ContentBytes(frame); err == nil {
			progress.add(int64(n))
		}
	}
}

// headerOf describes an export.
func headerOf(open *apiv1.ExportSessionResponse_Open) (archive.Header, error) {
	s, k := open.GetSession(), open.GetCheckpoint()
	id, err := chunk.Parse(k.GetManifest())
	if err != nil {
		return archive.Header{}, fault.New(fault.Internal, "the server's manifest: %w", err)
	}
	spec, err := protojson.Marshal(s.GetSpec())
	if err != nil {
		return archive.Header{}, fault.New(fault.Internal, "describe the session: %w", err)
	}
	h := archive.Header{
		Cluster: open.GetClusterId(), Session: archive.Session{ID: s.GetId(), Namespace: s.GetNamespace(), Name: s.GetName(), Type: s.GetType()},
		Checkpoint: archive.Checkpoint{
			Sequence: k.GetSequence(), Epoch: uint64(k.GetEpoch()), Turn: k.GetTurn(), OutputLine: k.GetOutputLine(), Bytes: k.GetBytes(), Keeps: k.GetKeeps(),
		},
		Spec: json.RawMessage(spec), Chunks: int(open.GetChunks()), Manifest: id,
	}
	if k.GetCreateTime() != nil {
		h.Checkpoint.Time = k.GetCreateTime().AsTime()
	}
	return h, nil
}

// writeWhole writes a file that appears, for its owner only, when it is whole.
func writeWhole(name string, force bool, write func(io.Writer) error) error {
	taken := func() error {
		if force {
			return nil
		}
		switch _, err := os.Lstat(name); {
		case err == nil:
			return fault.New(fault.AlreadyExists, "%s is there already; give --force to replace it, or choose another name", name)
		case !errors.Is(err, fs.ErrNotExist):
			return fault.New(fault.Invalid, "write the file: %w; choose another name", err)
		}
		return nil
	}
	if err := taken(); err != nil {
		return err
	}
	f, err := renameio.NewPendingFile(name, renameio.WithPermissions(0o600))
	if err != nil {
		return fault.New(fault.Invalid, "write the file: %w; choose another name", err)
	}
	defer f.Cleanup() //nolint:errcheck // it is gone when it was renamed
	if err := write(f); err != nil {
		return err
	}
	if err := taken(); err != nil {
		return err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("write the file: %w", err)
	}
	return nil
}

func (s *exportSummary) sentence() string {
	return fmt.Sprintf("exported checkpoint %d of session/%s to %s: %s in %s, a file of %s, signed by %s", s.Checkpoint, s.Session.ID, s.File, bytesText(s.Bytes), several(uint32(s.Chunks), "chunk"), bytesText(s.FileBytes), s.Signer)
}

func (a *app) printExport(s *exportSummary) error {
	switch a.flags.output {
	case "json", "yaml":
		raw, err := json.Marshal(s)
		if err != nil {
			return fault.New(fault.Internal, "print the summary: %w", err)
		}
		return a.printJSON(raw)
	case "name":
		_, err := fmt.Fprintln(a.out(), s.File)
		return err
	}
	_, err := fmt.Fprintln(a.out(), clean(strings.TrimSpace(s.sentence())))
	return err
}

// countingWriter counts what goes through it.
type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
