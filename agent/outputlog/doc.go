// Package outputlog keeps what a session's process wrote, and what it was told, as numbered records on disk.
//
// One process appends: the shim beside the session. Any number of readers, in any process, read the same files while it
// does. Lines are numbered from 1 for the life of the session: a later epoch in the same directory goes on with the next
// number, and one that begins on another node goes on from the number the cluster knows. A message to the process is an
// input marker between the lines, so the log alone tells which output belongs to which message.
//
// The log is bounded. It is a row of segments, and when all of them together are too long the oldest goes. A reader is
// told of every number it will not see, as one Hole record.
//
// Nothing is fsynced: the log has to survive its agent and its shim, which the page cache does. After a power failure the
// tail may be torn; readers stop before it and the next writer cuts it off.
//
// # The files, version 1
//
// A segment's name is its ordinal, as 16 decimal digits, and ".seg"; ordinals rise by one. Numbers are little-endian; the CRC-32 is
// IEEE's, because a shim that starts has no time to build another's tables.
//
//	segment header             record
//	offset bytes what          offset bytes what
//	0      4     "OLOG"        0      4     CRC-32 of all that follows
//	4      1     version, 1    4      4     bytes of data
//	5      3     zero          8      1     kind
//	8      8     number of     9      1     flags: 1 partial
//	             its first     10     2     zero
//	             line          12     4     epoch
//	16     8     made at,      16     8     number
//	             Unix ns       24     8     Unix nanoseconds
//	24     4     zero          32     n     data
//	28     4     CRC-32 of
//	             bytes 0–27
//
//	kind       number                      data
//	1 stdout   the line's own              the line without its newline
//	2 stderr   the line's own              the line without its newline
//	3 input    of the last line before it  the message's sequence, 8 bytes
//	4 notice   of the last line before it  text about the log itself
//
// A line longer than MaxLineBytes is several records with numbers of their own; all but the last are partial. Readers
// skip kinds they do not know.
package outputlog
