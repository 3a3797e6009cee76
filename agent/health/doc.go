// Package health measures a node's machine and judges it: healthy, degraded or unhealthy.
//
// Judge is the whole rule, as a pure function over the table Rules. A status is entered when a measure is beyond its
// Enter bound, and left only when the measure is back within its Leave bound, so that a value that trembles about a bound
// does not make a node flap. The worst rule that holds decides, and the reason names its measure.
//
//	measure          unit                status      entered beyond  left within
//	cpu, over 30 s   percent of cores    DEGRADED    90              85
//	memory           percent             DEGRADED    90              87
//	memory           percent             UNHEALTHY   97              95
//	response time    s, of heartbeats    DEGRADED    10              5
//	response time    s, of heartbeats    UNHEALTHY   15              10
//	disk free        percent, data dir   DEGRADED    5               6
//	disk free        percent, data dir   UNHEALTHY   1               1.5
//	disk free        MiB, data dir       UNHEALTHY   256             320
//
// Free space is judged downwards: a rule holds when there is less. A full core of CPU is never unhealthy by itself: a busy
// machine does its work. OFFLINE is not the node's to say; the leader says it of a node that is silent.
package health
