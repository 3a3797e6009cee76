#!/usr/bin/env bash
# Takes the cluster of up.sh away: its processes, by what was written down of them, its namespaces, cgroups, mounts and files. It may be called
# at any time, and again.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"
for f in "$state"/pids/*; do
	[ -e "$f" ] && slay "$(basename "$f")"
done
# A node's processes end with its first one, the kernel takes a moment.
cgroups_gone() {
	local c d left=0
	for c in /sys/fs/cgroup/*/"$cgroup"; do
		[ -d "$c" ] || continue
		find "$c" -depth -type d | while read -r d; do rmdir "$d" 2>/dev/null; done
		[ -d "$c" ] && left=1
	done
	return $left
}
await 20 "the cgroups are empty" cgroups_gone
for ns in $(ip netns list 2>/dev/null | grep -o "^$netns-[a-z0-9]*"); do ip netns del "$ns"; done
grep -o " $state[^ ]*" /proc/self/mounts | sort -r | while read -r m; do umount -l "$m"; done
rm -rf "${state:?}"
