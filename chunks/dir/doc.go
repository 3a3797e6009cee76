// Package dir keeps chunks in a directory.
//
//	format            "orchestrator chunks 1": what this layout is
//	lock              locked by the process that has the store open
//	a/b/abcdef…       a chunk's frame under its id in hexadecimal, in 16 × 16 directories
//	tmp/…             frames that are being written; emptied when the store is opened
//	quarantine/…      frames that were found damaged, for a person to look at; the last QuarantineMax of them
//
// # What is durable
//
// A put writes the frame to tmp/ and syncs the file, so that a name is never given to a torn frame. One goroutine, the
// committer, renames all the files that wait for it, syncs each directory that it touched once, and answers all of them:
// concurrent puts share syncs, by the directory here and by the journal below. Until then nobody is told that the chunk is there:
// calls for one id wait for each other.
//
// There are few directories, so that a batch touches each often enough: 5 million chunks are 20,000 files in each, which the file systems
// of today index well.
//
// # How old a chunk is
//
// A file's modification time says when its chunk was put or asked for last. It is set without a sync: after a loss of power it may be an
// older one, so nothing counts as older than the opening of the store.
package dir
