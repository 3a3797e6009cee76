# What the scripts here agree on. Everything that is capitalized and has a default can be set from outside.
# Read with: here=FOLDER; . "$here/env.sh"

# Programs that are built or unpacked once, and kept.
KUBERNETES_TOOLS=${KUBERNETES_TOOLS:-$(cd "$here/../.." && pwd)/.tools/kubernetes}
# The running cluster: its keys, logs, process ids, disks. Removed with it.
KUBERNETES_STATE=${KUBERNETES_STATE:-${TMPDIR:-/tmp}/orchestrator-kubernetes}
KUBERNETES_VERSION=${KUBERNETES_VERSION:-v1.37.2}
KUBERNETES_NODES=${KUBERNETES_NODES:-3}
KUBERNETES_VOLUMES=${KUBERNETES_VOLUMES:-24}

bin=$KUBERNETES_TOOLS/bin
deb=$KUBERNETES_TOOLS/deb
state=$KUBERNETES_STATE

# Names of what is made on this machine: network namespaces, and a cgroup of each hierarchy.
netns=okube
control=$netns-cp          # the control plane's network namespace; node I has $netns-nI
cgroup=okube

control_ip=10.60.0.1
node_net=10.60.0           # node I is $node_net.(10+I)
pod_net=10.61              # node I has $pod_net.I.0/24
service_cidr=10.62.0.0/16
service_ip=10.62.0.1
dns_ip=$control_ip         # CoreDNS is a process beside the API server
pause_image=localhost/pause:1

kubectl() { ip netns exec "$control" "$bin/kubectl" --kubeconfig "$state/admin.kubeconfig" "$@"; }

# remember NAME PID: writes a process down, with the moment of its start, so that never another one is killed in its place.
remember() { echo "$2 $(born "$2")" > "$state/pids/$1"; }
born() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# slay NAME: kills what was written down, if it is still that.
slay() {
	local pid start
	read -r pid start < "$state/pids/$1" || return 0
	if [ -n "$start" ] && [ "$(born "$pid")" = "$start" ]; then kill -9 "$pid" 2>/dev/null || true; fi
}

# await SECONDS WHAT COMMAND…: asks twice a second until the command succeeds.
await() {
	local seconds=$1 what=$2 i
	shift 2
	for i in $(seq $((seconds * 2))); do
		if "$@" >/dev/null 2>&1; then return 0; fi
		sleep 0.5
	done
	echo "gave up on it after ${seconds}s: $what" >&2
	return 1
}

begun=$(date +%s)
say() { echo "    [$(($(date +%s) - begun))s] $*"; }
