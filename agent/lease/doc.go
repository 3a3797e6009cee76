// Package lease keeps a node's right to run its sessions in one small file, and tells when it has lapsed.
//
// The agent writes the file each time the leader has answered a heartbeat: one write renews every session of the node.
// Each shim sleeps until the deadline it knows, reads the file again, and ends its session when the deadline was not
// moved. So an agent that is stopped, wedged or dead renews nothing, and its sessions end in time without it.
//
// Deadlines are absolute, in nanoseconds of CLOCK_BOOTTIME: the clock goes on while the machine is suspended and nobody
// can set it. It starts anew with each boot, so the file names the boot that its deadline belongs to; a file of another
// boot is lapsed, as is one that is missing or damaged.
//
// # The file, version 1
//
// Two slots of 64 bytes, written in turn, so that a reader that meets a write still finds the other slot whole. The
// valid slot with the higher generation counts. Numbers are little-endian.
//
//	offset  bytes  what
//	0       4      "ORLS"
//	4       1      version, 1
//	5       3      zero
//	8       16     boot id, as 16 bytes
//	24      8      generation, from 1; odd ones lie in slot 0
//	32      8      deadline, nanoseconds of CLOCK_BOOTTIME
//	40      20     zero
//	60      4      CRC-32 (IEEE) of bytes 0–59
package lease
