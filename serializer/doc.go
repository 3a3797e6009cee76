// Package serializer turns a session into bytes that another machine can go on from, and back.
//
// A checkpoint is a [Manifest] and the chunks that it names. The manifest says what the session is (its spec, its epoch, how
// many turns it has seen, where its output stands, its memory) and lists its trees of files: the workspace, and what its
// driver keeps beside it. A file's content is a list of extents, each a stretch of a chunk (package chunk), so that content
// is stored once, however many files and checkpoints hold it. Everything is written down byte by byte in
// docs/protocol/checkpoint.md.
//
//	directories ── Capture ──► trees + chunks ── StoreManifest ──► one id
//	directories ◄── Restore ── trees + chunks ◄── LoadManifest ─── one id
//
// Capture is incremental: an [Index], which it returns and which may be kept in a file, remembers by the numbers of stat(2)
// which files were not changed since; those are not read again, but for a few in turn that are read to see whether that
// is true here. Restore returns an index, too, so that the next capture on the new machine is as small as it would have
// been on the old one, and it can begin with an older restored tree and change only what differs.
//
// Large files are cut where their content says (FastCDC), so that an insertion moves few borders; small ones are packed
// together, so that tens of thousands of files are few chunks.
//
// Who sends a manifest or a tree is not trusted: what is decoded is bounded before it is decoded, paths and links stay
// inside the tree, and a restore counts only when all of it is there.
//
// The package knows no network and nothing of a session's life: bytes go to a [Sink] and come from a [Source]. It needs
// Linux.
package serializer
