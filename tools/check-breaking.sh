#!/usr/bin/env bash
# Do the protocols keep their promises to what was released? Compares them with a commit.
# usage: check-breaking.sh TOOLS [COMMIT]
set -euo pipefail
tools=$1 ref=${2:-}
cd "$(dirname "$0")/.."
if [ -z "$ref" ] || [ "$(git rev-parse "$ref^{commit}")" = "$(git rev-parse HEAD)" ]; then
	echo "NOTE: no earlier release or merged commit to compare the protocols with" >&2
	exit 0
fi
if ! git cat-file -e "$ref:buf.yaml" 2>/dev/null; then
	echo "NOTE: $ref had no protocols yet" >&2
	exit 0
fi
old=$(mktemp -d)
trap 'rm -rf "$old"' EXIT
# An index of its own: the checkout is not touched.
GIT_INDEX_FILE=$old/index git --work-tree="$old" checkout -q "$ref" -- buf.yaml api/proto
"$tools/buf" breaking --against "$old"
