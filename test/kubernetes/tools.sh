#!/usr/bin/env bash
# Makes, once, what the cluster is made of: Kubernetes, etcd, CoreDNS and Helm, built from the module in tools/; containerd, runc, the CNI
# plugins and nft from Debian's packages, which are unpacked and not installed: installing would change the machine.
# What is there already is left alone. From nothing it takes some six minutes and 3 GB of memory on two cores.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"
export GOFLAGS=-buildvcs=false CGO_ENABLED=0 GOWORK=off
mkdir -p "$bin" "$deb"

# build NAME PACKAGE [LDFLAGS]: without debug information, which nobody reads here.
build() {
	[ -x "$bin/$1" ] && return
	(cd "$here/tools" && go build -trimpath -gcflags=all=-dwarf=false -ldflags "-s -w ${3:-}" -o "$bin/$1.new" "$2")
	mv "$bin/$1.new" "$bin/$1"
	say "built $1"
}
v=k8s.io/component-base/version
minor=$(echo "$KUBERNETES_VERSION" | cut -d. -f2)
# Seven programs in one: it links once. Charts look at the version.
build kubeall ./cmd/kubeall "-X $v.gitVersion=$KUBERNETES_VERSION -X $v.gitMajor=1 -X $v.gitMinor=$minor -X $v.gitCommit=unknown -X $v.gitTreeState=clean -X $v.buildDate=2026-01-01T00:00:00Z"
build coredns ./cmd/coredns
build pause ./cmd/pause
build helm helm.sh/helm/v4/cmd/helm "-X helm.sh/helm/v4/internal/version.version=$(cd "$here/tools" && go list -m -f '{{.Version}}' helm.sh/helm/v4)"
for p in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl etcd; do
	ln -sf kubeall "$bin/$p"
done

if [ ! -x "$deb/usr/bin/containerd" ]; then
	packages="containerd runc containernetworking-plugins nftables libnftables1 libnftnl11 libmnl0 libjansson4 libseccomp2"
	folder=$(mktemp -d)
	trap 'rm -rf "$folder"' EXIT
	cd "$folder"
	# shellcheck disable=SC2086 # they are words
	apt-get -qq download $packages 2>/dev/null || { apt-get -qq update && apt-get -qq download $packages; }
	for p in *.deb; do dpkg -x "$p" "$deb"; done
	say "Debian's packages unpacked"
fi
