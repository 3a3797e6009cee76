// Package cache keeps chunks on a node: what its sessions were restored from, and what they will be captured into.
//
// A Cache is a bounded directory that lets go of what was used least lately. It is a store as others are, but for durability: it syncs
// nothing, so the loss of power may tear what was put last, which is noticed when it is read. Nobody may rely on a chunk's being in a
// cache; a checkpoint is committed when the store has it.
//
// A Tee joins a cache with the store of the cluster, and with sources that are nearer than that, such as the node that a
// session comes from:
//
//	Get      cache → sources, in their order → store; what comes from afar stays in the cache
//	Put      cache, then store: the store's answer counts
//	Missing  the store alone knows
package cache
