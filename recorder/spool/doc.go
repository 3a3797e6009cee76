// Package spool keeps records on disk, in order, until somebody has confirmed them: the place between those who make records and
// a sink that may be slow, or away for an hour.
//
// One goroutine appends and syncs, one reads and confirms. A record is given to the reader only once it is durable, so that
// what was confirmed never lies behind what a loss of power takes away. After a crash reading goes on from the last confirmed position;
// what was read and not confirmed is read again, so whoever takes the records must know them by an id.
//
// The spool is bounded in bytes, and answers fault.Exhausted when it is full. It starts no goroutines and reads no clock but for
// the time in a segment's header.
//
// # The files, version 1
//
// A directory belongs to one process, which holds a lock on "lock". A segment's name is its ordinal, as 16 decimal digits, and ".seg"; ordinals
// rise by one. Numbers are little-endian; the CRC-32 is Castagnoli's. That of a record's header begins with the lower half of its segment's
// ordinal, so that a record that strayed from another segment is none.
//
//	segment header             record
//	offset bytes what          offset bytes what
//	0      4     "RSPL"        0      4     bytes of data, 1 to 8 MiB
//	4      1     version, 1    4      4     CRC-32 of the data
//	5      3     zero          8      4     CRC-32 of bytes 0–7
//	8      8     ordinal       12     n     data
//	16     8     made at,
//	             Unix ns
//	24     4     zero
//	28     4     CRC-32 of
//	             bytes 0–27
//
// "position" holds two slots at 0 and 4096, written in turn; the whole one with the higher number counts.
//
//	offset bytes what
//	0      4     "RPOS"
//	4      4     CRC-32 of bytes 8–31
//	8      8     number of the slot's writing
//	16     8     ordinal of the segment
//	24     8     offset in it; all before it is confirmed
//
// # What a crash leaves
//
// A process that is killed leaves what it wrote; a machine that lost power leaves what was synced, and parts of what was not. The tail
// of the last segment is cut off behind its last whole record when the spool is opened, and a new segment is begun. A sync that
// failed is never believed later: what it was to make durable is written again, into a new segment; the sink may so see a record
// twice. A record that is damaged in the middle of a segment is skipped and counted.
package spool
