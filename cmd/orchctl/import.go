// sessions import: a session made of a file that export wrote, on this cluster or another one.
//
//	file ──► archive reader (every chunk, checksums, signature) ──► what the cluster lacks ──► commit
//
// Chunks are stored as they are read; the session is made only when the archive turned out to be whole and signed by somebody who is
// trusted. Chunks that nothing came of are collected by the cluster.

package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	apiv1 "github.com/neolith/orchestrator/api/proto/orchestrator/v1"
	"github.com/neolith/orchestrator/client"
	"github.com/neolith/orchestrator/internal/exitcode"
	"github.com/neolith/orchestrator/internal/fault"
	"github.com/neolith/orchestrator/serializer"
	"github.com/neolith/orchestrator/serializer/archive"
	"github.com/neolith/orchestrator/serializer/chunk"
	"github.com/neolith/orchestrator/session"
)

// The bounds of what an import has in memory.
const (
	importBatchChunks = 64
	importBatchBytes  = 8 << 20
	importBatches     = 3  // on their way at a time
	importPuts        = 16 // of each
)

// importFlags are the flags of import.
type importFlags struct {
	name, key string
	signers   []string
	dryRun    bool
	wait      bool
}

func (a *app) importCommand() *cobra.Command {
	var f importFlags
	c := a.command("import FILE|-", "Make a session that goes on from a file that export wrote", exactly(1), streams, func(ctx context.Context, args []string) error {
		return a.importFile(ctx, args[0], &f)
	})
	c.Long = `Make a session that goes on from a checkpoint in a file, which 'orchctl sessions export' wrote here or elsewhere: with its files, its output and
its turns. It is a session of its own, with an id and an epoch of its own, in your namespace, and without the name unless --name gives one.

Every chunk is checked, then the checksums, then the signature. Trusted are your own key, the signers that --signer names by fingerprint
or by a file with their public key, and those in trusted_signers of your contexts file. With --dry-run nothing is made: everything is
checked, the cluster's answer included, and what the file holds is shown.`
	c.Example = `  orchctl sessions import ledger-12.orchsession --dry-run
  orchctl sessions import ledger-12.orchsession --name ledger --signer SHA256:uNiVztksCsDhcc0u9e8BrFoHiUqsQrKDcB1YLF6GmyY --wait`
	fl := c.Flags()
	fl.StringVar(&f.name, "name", "", "the new session's name")
	fl.StringSliceVar(&f.signers, "signer", nil, "trust this signer: a fingerprint (SHA256:…), or a file with a public key")
	fl.BoolVar(&f.dryRun, "dry-run", false, "check everything, show what it holds, and make nothing")
	fl.BoolVar(&f.wait, "wait", false, "wait until it runs or has ended; exit code 1 when it failed")
	keyFlag(c, &f.key, "is the same session")
	c.ValidArgsFunction = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
	return c
}

func (a *app) importFile(ctx context.Context, name string, f *importFlags) error {
	if f.name != "" {
		check := session.Spec{Name: f.name, Command: []string{"-"}}
		check.Normalize()
		if err := check.Validate(); err != nil {
			return fault.New(fault.Invalid, "--name: %w", err)
		}
	}
	trusted, err := a.newTrust(f.signers)
	if err != nil {
		return err
	}
	in, size, err := a.openFile(name, "archive")
	if err != nil {
		return err
	}
	defer in.Close()
	cl, err := a.connect(ctx)
	if err != nil {
		return err
	}
	progress := a.transfer("importing", size)
	defer progress.done()
	r, err := archive.NewReader(bufio.NewReaderSize(io.TeeReader(in, progress), 1<<20), archive.ReaderOptions{Trust: func(key ed25519.PublicKey) error {
		if f.dryRun {
			return nil // what it holds may be seen
		}
		return trusted.check(key)
	}})
	if err != nil {
		return damaged(err)
	}
	im, err := cl.Import(ctx)
	if err != nil {
		return err
	}
	defer im.Close() //nolint:errcheck // it has no error
	m, err := bring(ctx, r, im)
	if err != nil {
		return err
	}
	progress.done()
	id := r.Header().Manifest
	s, err := im.Commit(ctx, &apiv1.ImportSessionRequest_Commit{
		Namespace: a.namespace(), Manifest: id[:], Name: f.name, IdempotencyKey: f.key, DryRun: f.dryRun,
	})
	if err != nil {
		return err
	}
	if f.dryRun {
		return a.printImport(r, m, s, trusted, progress.bytes.Load())
	}
	return a.imported(ctx, s, fmt.Sprintf("imported from checkpoint %d of session/%s", m.Sequence, m.SessionID), f.wait)
}

// damaged is the error of an archive that cannot be read: no fault of the command line.
func damaged(err error) error {
	if errors.Is(err, archive.ErrCorrupt) && !fault.Is(err, fault.PermissionDenied) {
		return &exitError{exitcode.Failed, fmt.Errorf("%w; nothing was made", err)}
	}
	return err
}

// bring stores what the cluster lacks of an archive, and returns its manifest. The archive is whole, and its signer trusted, when it returns without
// an error.
func bring(ctx context.Context, r *archive.Reader, im *client.Importer) (*serializer.Manifest, error) {
	var parts manifestParts
	g, sending := errgroup.WithContext(ctx)
	g.SetLimit(importBatches)
	var batch []archived
	bytes := 0
	send := func() {
		some := batch
		batch, bytes = nil, 0
		g.Go(func() error { return bringBatch(sending, im, some) })
	}
	var broken error
	for sending.Err() == nil {
		id, frame, err := r.Next()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				broken = damaged(err)
			}
			break
		}
		parts.take(id, frame)
		batch, bytes = append(batch, archived{id, frame}), bytes+len(frame)
		if len(batch) >= importBatchChunks || bytes >= importBatchBytes {
			send()
		}
	}
	if len(batch) > 0 && broken == nil {
		send()
	}
	if err := g.Wait(); err != nil && broken == nil {
		broken = err
	}
	if broken != nil {
		return nil, broken
	}
	m, _, err := serializer.LoadManifest(ctx, parts.frames, r.Header().Manifest)
	if err != nil {
		return nil, &exitError{exitcode.Failed, fmt.Errorf("the archive's manifest: %w; nothing was made", err)}
	}
	return m, nil
}

// archived is a chunk of an archive.
type archived struct {
	id    chunk.ID
	frame []byte
}

// bringBatch stores those of some chunks that are missing.
func bringBatch(ctx context.Context, im *client.Importer, some []archived) error {
	frames := make(map[chunk.ID][]byte, len(some))
	ids := make([]chunk.ID, len(some))
	for i, c := range some {
		frames[c.id], ids[i] = c.frame, c.id
	}
	lacks, err := im.Missing(ctx, ids)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(importPuts)
	for _, id := range lacks {
		g.Go(func() error { return im.Put(ctx, id, frames[id]) })
	}
	return g.Wait()
}

// manifestParts keeps the chunks that the manifest is in, which come first.
type manifestParts struct {
	frames frames
	want   int // how many there are; known from the first one on
}

// take keeps a chunk when it is one of the manifest's.
func (p *manifestParts) take(id chunk.ID, frame []byte) {
	if p.frames == nil {
		p.frames, p.want = frames{}, 1
		if content, err := chunk.Open(nil, id, frame); err == nil {
			p.want += serializer.FurtherParts(content)
		}
	}
	if len(p.frames) < p.want {
		p.frames[id] = frame
	}
}

// frames are chunks in memory. It is a serializer.Source.
type frames map[chunk.ID][]byte

// Get implements serializer.Source.
func (f frames) Get(_ context.Context, id chunk.ID) ([]byte, error) {
	if frame, ok := f[id]; ok {
		return frame, nil
	}
	return nil, fault.New(fault.NotFound, "chunk %s is not among the first of the archive", id)
}

// imported tells what was made, once it runs where that is waited for.
func (a *app) imported(ctx context.Context, s *apiv1.Session, how string, wait bool) error {
	var err error
	if wait {
		if s, err = a.await(ctx, s, func(p session.Phase) bool { return p == session.Running || p.Ended() }); err != nil {
			return err
		}
	}
	return a.printSpawned(s, how, wait)
}

// importSummary is what a dry run prints as JSON.
type importSummary struct {
	archive.Header
	Release      string    `json:"release"`
	NodeID       string    `json:"nodeId"`
	SerializedAt time.Time `json:"serializedAt"`
	Files        int       `json:"files"`
	Directories  int       `json:"directories"`
	Links        int       `json:"links"`
	FileBytes    int64     `json:"fileBytes"`    // of all files
	ArchiveBytes int64     `json:"archiveBytes"` // of the archive
	ManifestID   string    `json:"manifest"`
	Signer       string    `json:"signer"`
	Trusted      bool      `json:"trusted"`
	TrustedBy    string    `json:"trustedBy,omitempty"`
	Node         string    `json:"node,omitempty"`  // where it would go
	Waits        string    `json:"waits,omitempty"` // why it would wait
}

func (a *app) printImport(r *archive.Reader, m *serializer.Manifest, s *apiv1.Session, t *trust, size int64) error {
	h := r.Header()
	sum := importSummary{Header: h, Release: m.Release, NodeID: m.NodeID, SerializedAt: m.SerializedAt, ArchiveBytes: size, ManifestID: h.Manifest.String(),
		Signer: archive.Fingerprint(r.Signer()), Node: s.GetNode(), Waits: s.GetReason()}
	sum.TrustedBy = t.why(sum.Signer)
	sum.Trusted = sum.TrustedBy != ""
	for i := range m.Roots {
		for _, e := range m.Roots[i].Entries {
			switch e.Type {
			case serializer.File:
				sum.Files++
				sum.FileBytes += e.Size
			case serializer.Symlink:
				sum.Links++
			default:
				sum.Directories++
			}
		}
	}
	// The manifest is the truth; what the header says may be anything.
	sum.Session = archive.Session{ID: m.SessionID, Namespace: m.Namespace, Name: m.Name, Type: s.GetType()}
	sum.Checkpoint = archive.Checkpoint{Sequence: m.Sequence, Epoch: m.Epoch, Turn: m.Turn, OutputLine: m.OutputLine, Bytes: m.ContentBytes(), Time: m.SerializedAt, Keeps: m.Keeps.List()}
	if done, err := a.printWhole(sum, sum.Session.ID); done {
		return err
	}
	return a.printFields(a.importFields(&sum, s))
}

func (a *app) importFields(sum *importSummary, s *apiv1.Session) []field {
	signer := sum.Signer + " (not trusted: give --signer, or write it into trusted_signers)"
	if sum.Trusted {
		signer = sum.Signer + " (trusted: " + sum.TrustedBy + ")"
	}
	of := sum.Session.ID
	if sum.Session.Name != "" {
		of += " (" + sum.Session.Name + ")"
	}
	goes := "waiting: " + first(sum.Waits, "no node fits")
	if sum.Node != "" {
		goes = "on " + sum.Node
	}
	k := sum.Checkpoint
	return []field{
		{label: "Session", value: of}, {label: "Cluster", value: sum.Cluster}, {label: "Namespace", value: sum.Session.Namespace}, {label: "Type", value: sum.Session.Type},
		{label: "Command", value: strings.Join(s.GetSpec().GetCommand(), " ")},
		{label: "Checkpoint", value: fmt.Sprintf("%d, epoch %d, turn %d, output line %d", k.Sequence, k.Epoch, k.Turn, k.OutputLine)},
		{label: "Taken", value: sum.SerializedAt.UTC().Format(time.RFC3339)}, {label: "Keeps", value: strings.Join(k.Keeps, " · ")},
		{label: "Files", value: fmt.Sprintf("%d files, %d directories, %d links, %s", sum.Files, sum.Directories, sum.Links, bytesText(sum.FileBytes))},
		{label: "Content", value: fmt.Sprintf("%s in %s", bytesText(k.Bytes), several(uint32(sum.Chunks), "chunk"))},
		{label: "Archive", value: fmt.Sprintf("%s, made %s by %s", bytesText(sum.ArchiveBytes), sum.CreateTime.Format(time.RFC3339), first(sum.Creator, "an unknown program"))},
		{label: "Signer", value: signer}, {label: "Would be", value: goes + "; all of it was checked, and nothing was made"},
		{label: "Manifest", value: sum.ManifestID, wide: true}, {label: "Node", value: sum.NodeID, wide: true}, {label: "Release", value: sum.Release, wide: true},
	}
}
