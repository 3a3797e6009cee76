#!/usr/bin/env bash
# One node of the cluster.
# usage: node.sh start I      starts it
#        node.sh crash I      kills its first process, and with it everything on it, as a power cut would
#        node.sh init I       what runs inside, as its first process
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"
i=$2
n=n$i
dir=$state/$n
hierarchies="cpu cpuacct cpuset memory devices freezer blkio pids"

start() {
	mkdir -p "$dir"
	# A power cut leaves no cgroups; the kubelet stumbles over old ones.
	local c
	for c in /sys/fs/cgroup/*/"$cgroup/$n"; do
		if [ -d "$c" ]; then find "$c" -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null || true; fi
	done
	setsid ip netns exec "$netns-$n" unshare --mount --pid --fork --uts --ipc --kill-child=KILL --propagation private \
		"$here/node.sh" init "$i" > "$state/log/$n-init.log" 2>&1 < /dev/null &
	remember "$n" $!
}

# setting NAME VALUE: the kubelet reads these settings of the kernel, and writes on a difference. It gets files of its own to look at.
setting() {
	mkdir -p /run/sys
	echo "$2" > "/run/sys/${1//\//_}"
	mount --bind "/run/sys/${1//\//_}" "/proc/sys/$1"
}

mounts() {
	mount -t proc proc /proc
	mount -t tmpfs -o mode=755 tmpfs /run
	mkdir -p /run/netns /run/lock
	setting vm/overcommit_memory 1
	setting vm/panic_on_oom 0
	setting kernel/panic 10
	setting kernel/panic_on_oops 1
	setting kernel/keys/root_maxkeys 1000000
	setting kernel/keys/root_maxbytes 25000000
	# `ip netns exec` mounts a /sys of the network namespace, without cgroups below it.
	local c
	if ! mountpoint -q /sys/fs/cgroup/memory; then
		mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
		for c in $hierarchies; do
			mkdir -p "/sys/fs/cgroup/$c"
			mount -t cgroup -o "$c" cgroup "/sys/fs/cgroup/$c"
		done
		mkdir -p /sys/fs/cgroup/systemd
		mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
	fi
	mount --make-rshared /
	local d
	for c in $hierarchies systemd; do
		for d in "$cgroup" "$cgroup/$n"; do
			mkdir -p "/sys/fs/cgroup/$c/$d"
			if [ "$c" = cpuset ]; then
				cat /sys/fs/cgroup/cpuset/cpuset.cpus > "/sys/fs/cgroup/cpuset/$d/cpuset.cpus"
				cat /sys/fs/cgroup/cpuset/cpuset.mems > "/sys/fs/cgroup/cpuset/$d/cpuset.mems"
			fi
		done
	done
}

settings() {
	mkdir -p "$dir"/{cni,containerd,kubelet}
	cat > "$dir/cni/10-test.conflist" <<-C
		{"cniVersion":"1.0.0","name":"test","plugins":[
		 {"type":"ptp","mtu":1500,"ipam":{"type":"host-local","ranges":[[{"subnet":"$pod_net.$i.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"/run/cni-ipam"}},
		 {"type":"portmap","capabilities":{"portMappings":true}}]}
	C
	cat > "$dir/containerd.toml" <<-C
		version = 2
		root = "$dir/containerd"
		state = "/run/containerd"
		[grpc]
		  address = "/run/containerd/containerd.sock"
		[plugins."io.containerd.grpc.v1.cri"]
		  sandbox_image = "$pause_image"
		  restrict_oom_score_adj = true
		  [plugins."io.containerd.grpc.v1.cri".cni]
		    bin_dir = "$deb/usr/lib/cni"
		    conf_dir = "$dir/cni"
		  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
		    runtime_type = "io.containerd.runc.v2"
		    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
		      BinaryName = "$deb/usr/sbin/runc"
		      SystemdCgroup = false
	C
	cat > "$dir/kubelet.yaml" <<-C
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		failCgroupV1: false
		cgroupDriver: cgroupfs
		cgroupRoot: /$cgroup/$n
		containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
		clusterDomain: cluster.local
		clusterDNS: ["$dns_ip"]
		resolvConf: $state/resolv.conf
		authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $state/pki/ca.crt}}
		authorization: {mode: Webhook}
		evictionHard: {memory.available: "1Mi", nodefs.available: "0%", imagefs.available: "0%"}
		imageGCHighThresholdPercent: 100
		nodeStatusUpdateFrequency: 4s
		localStorageCapacityIsolation: true
		podLogsDir: $dir/pod-logs
	C
	cat > "$dir/proxy.yaml" <<-C
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		mode: nftables
		clusterCIDR: $pod_net.0.0/16
		hostnameOverride: $n
		clientConnection: {kubeconfig: $state/proxy.kubeconfig}
		conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
	C
}

init() {
	hostname "$n"
	mounts
	export PATH=$bin:$deb/usr/bin:$deb/usr/sbin:/usr/sbin:/usr/bin:/sbin:/bin
	export LD_LIBRARY_PATH=$deb/usr/lib/$(uname -m)-linux-gnu
	settings
	containerd -c "$dir/containerd.toml" > "$state/log/$n-containerd.log" 2>&1 &
	await 30 "containerd answers" ctr -a /run/containerd/containerd.sock version
	local tar
	for tar in "$state"/images/*.tar; do ctr -a /run/containerd/containerd.sock -n k8s.io images import "$tar"; done
	# Nodes say which address is theirs; the API server reaches them on it.
	kubelet --config "$dir/kubelet.yaml" --kubeconfig "$state/$n.kubeconfig" --root-dir "$dir/kubelet" \
		--hostname-override "$n" --node-ip "$node_net.$((10 + i))" > "$state/log/$n-kubelet.log" 2>&1 &
	kube-proxy --config "$dir/proxy.yaml" > "$state/log/$n-proxy.log" 2>&1 &
	wait
}

case $1 in
start) start ;;
crash) slay "$n" ;;
init) init ;;
*) echo "usage: node.sh start|crash I" >&2; exit 2 ;;
esac
