// Package clientload is what clients of the gateway do, for measuring: ten thousand that say hello and are quiet, and some that call
// tools as fast as they are answered. Beside it stands the limit: a bare echo over the same library, in a process of its own.
package clientload
