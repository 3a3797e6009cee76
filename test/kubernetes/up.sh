#!/usr/bin/env bash
# Brings up a Kubernetes cluster on this machine, as root, without Docker, systemd or a registry: a control plane in a network namespace, and
# nodes each in a net, mount, pid, uts and ipc namespace of its own, so that the kill of one process is the crash of a node.
# usage: up.sh IMAGE.tar…        images that every node has
# Neither the network nor the kernel's settings of the machine itself are touched. down.sh takes it away again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"
[ "$(id -u)" = 0 ] || { echo "up.sh: only root can make namespaces of networks" >&2; exit 1; }
if [ -e "$state" ] || ip netns list | grep -q "^$netns-"; then
	echo "up.sh: a cluster is there already; take it away with $here/down.sh" >&2
	exit 1
fi
mkdir -p "$state"/{pki,log,pids,disks,images}
for tar in "$@"; do cp "$tar" "$state/images/"; done
"$bin/pause" image "$state/images/pause.tar" "$pause_image"

network() {
	local i j ns
	ip netns add "$control"
	ip -n "$control" link set lo up
	ip -n "$control" link add br0 type bridge
	ip -n "$control" addr add "$control_ip/24" dev br0
	ip -n "$control" link set br0 up
	for i in $(seq "$KUBERNETES_NODES"); do
		ns=$netns-n$i
		ip netns add "$ns"
		ip -n "$control" link add "v$i" type veth peer name eth0 netns "$ns"
		ip -n "$control" link set "v$i" master br0 up
		ip -n "$ns" link set lo up
		ip -n "$ns" addr add "$node_net.$((10 + i))/24" dev eth0
		ip -n "$ns" link set eth0 up
		ip -n "$ns" route add default via "$control_ip"
		ip netns exec "$ns" sysctl -qw net.ipv4.ip_forward=1
		ip -n "$control" route add "$pod_net.$i.0/24" via "$node_net.$((10 + i))"
		for j in $(seq "$KUBERNETES_NODES"); do
			[ "$i" = "$j" ] || ip -n "$ns" route add "$pod_net.$j.0/24" via "$node_net.$((10 + j))"
		done
	done
}

key() { openssl ecparam -genkey -name prime256v1 -noout -out "$1.key" 2>/dev/null; }
sign() { # NAME SUBJECT ALTERNATIVE-NAMES
	key "$1"
	openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
	openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out "$1.crt" \
		-extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$3") 2>/dev/null
}
user() { # FILE USER GROUP
	local token
	token=$(openssl rand -hex 16)
	echo "$token,$2,$2,\"$3\"" >> "$state/tokens.csv"
	cat > "$state/$1.kubeconfig" <<-KC
		apiVersion: v1
		kind: Config
		clusters: [{name: test, cluster: {server: "https://$control_ip:6443", certificate-authority: $state/pki/ca.crt}}]
		users: [{name: me, user: {token: "$token"}}]
		contexts: [{name: test, context: {cluster: test, user: me}}]
		current-context: test
	KC
	chmod 600 "$state/$1.kubeconfig"
}
identities() {
	cd "$state/pki"
	key ca
	openssl req -x509 -new -key ca.key -subj /CN=test-ca -days 30 -out ca.crt
	sign apiserver /CN=kube-apiserver "IP:$control_ip,IP:127.0.0.1,IP:$service_ip,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
	sign kubelet-client /O=system:masters/CN=apiserver-kubelet-client DNS:apiserver
	openssl genrsa -out sa.key 2048 2>/dev/null
	: > "$state/tokens.csv"
	chmod 600 "$state/tokens.csv"
	user admin admin system:masters
	user kcm system:kube-controller-manager ''
	user scheduler system:kube-scheduler ''
	user proxy system:kube-proxy ''
	user coredns coredns ''
	local i
	for i in $(seq "$KUBERNETES_NODES"); do user "n$i" "system:node:n$i" system:nodes; done
}

run() { # NAME COMMAND…
	local name=$1
	shift
	setsid ip netns exec "$control" "$@" > "$state/log/$name.log" 2>&1 < /dev/null &
	remember "$name" $!
}
controlplane() {
	cd "$state"
	run etcd "$bin/etcd" --data-dir "$state/etcd" --unsafe-no-fsync \
		--listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
		--listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster default=http://127.0.0.1:2380
	run apiserver "$bin/kube-apiserver" --etcd-servers http://127.0.0.1:2379 --advertise-address "$control_ip" \
		--secure-port 6443 --service-cluster-ip-range "$service_cidr" --authorization-mode Node,RBAC \
		--enable-admission-plugins NodeRestriction --token-auth-file tokens.csv --anonymous-auth=false \
		--tls-cert-file pki/apiserver.crt --tls-private-key-file pki/apiserver.key --client-ca-file pki/ca.crt \
		--kubelet-preferred-address-types InternalIP --kubelet-client-certificate pki/kubelet-client.crt --kubelet-client-key pki/kubelet-client.key \
		--service-account-key-file pki/sa.key --service-account-signing-key-file pki/sa.key \
		--service-account-issuer https://kubernetes.default.svc
	await 120 "the API server is ready" kubectl get --raw /readyz
	# Nodes that are silent for 20 s are NotReady, and their pods leave 20 s later rather than 5 minutes: the test has not the time.
	run kcm "$bin/kube-controller-manager" --kubeconfig kcm.kubeconfig --use-service-account-credentials \
		--service-account-private-key-file pki/sa.key --root-ca-file pki/ca.crt --leader-elect=false \
		--node-monitor-grace-period 20s --pvclaimbinder-sync-period 1s --bind-address 127.0.0.1
	run scheduler "$bin/kube-scheduler" --kubeconfig scheduler.kubeconfig --leader-elect=false --bind-address 127.0.0.1
}

dns() {
	cat > "$state/Corefile" <<-CF
		.:53 {
		  bind $control_ip
		  errors
		  ready $control_ip:8181
		  kubernetes cluster.local in-addr.arpa {
		    kubeconfig $state/coredns.kubeconfig test
		    pods insecure
		    ttl 2
		  }
		}
	CF
	kubectl apply -f - >/dev/null <<-Y
		apiVersion: rbac.authorization.k8s.io/v1
		kind: ClusterRole
		metadata: {name: coredns}
		rules:
		- {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
		- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
		---
		apiVersion: rbac.authorization.k8s.io/v1
		kind: ClusterRoleBinding
		metadata: {name: coredns}
		roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}
		subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: coredns}]
	Y
	run coredns "$bin/coredns" -conf "$state/Corefile"
	echo "nameserver $dns_ip" > "$state/resolv.conf"
	# Its plugins are ready before it has read anything.
	await 60 "CoreDNS is ready" ip netns exec "$control" curl -sf -m 2 -o /dev/null "http://$control_ip:8181/ready"
}

# Every node sees the machine's disk, so a hostPath follows its pod, as a network disk does.
volumes() {
	local i
	{
		cat <<-Y
			apiVersion: storage.k8s.io/v1
			kind: StorageClass
			metadata: {name: standard, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
			provisioner: kubernetes.io/no-provisioner
		Y
		for i in $(seq "$KUBERNETES_VOLUMES"); do
			mkdir -p "$state/disks/$i"
			chmod 777 "$state/disks/$i"
			cat <<-Y
				---
				apiVersion: v1
				kind: PersistentVolume
				metadata: {name: disk-$i}
				spec: {capacity: {storage: 100Gi}, accessModes: [ReadWriteOnce], storageClassName: standard, persistentVolumeReclaimPolicy: Retain, hostPath: {path: "$state/disks/$i", type: Directory}}
			Y
		done
	} | kubectl apply -f - >/dev/null
}

all_ready() { [ "$(kubectl get nodes --no-headers | grep -c ' Ready')" = "$KUBERNETES_NODES" ]; }
# Ready is not enough: what is placed before the taint goes skips that node.
no_taints() { [ -z "$(kubectl get nodes -o 'jsonpath={.items[*].spec.taints}')" ]; }

network
identities
controlplane
say "the control plane runs"
dns
volumes
for i in $(seq "$KUBERNETES_NODES"); do "$here/node.sh" start "$i"; done
await 120 "all nodes are ready" all_ready || { tail -5 "$state"/log/n*-kubelet.log >&2; exit 1; }
await 30 "all nodes take pods" no_taints
say "$KUBERNETES_NODES nodes are ready"
