#!/usr/bin/env bash
# Is the generated code that of the protocols? Generates it anew beside the tree and compares.
# usage: check-generated.sh TOOLS
set -euo pipefail
tools=$1
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
PATH="$tools:$PATH" "$tools/buf" generate -o "$fresh"

bad=0
while read -r file; do
	if [ ! -e "$fresh/$file" ]; then
		echo "$file: no protocol gives it any more" >&2
		bad=1
	fi
done < <(git ls-files 'api/proto/*.pb.go')
while read -r file; do
	if ! cmp -s "$fresh/$file" "$file"; then
		echo "$file: is not what its protocol gives" >&2
		bad=1
	fi
done < <(cd "$fresh" && find api/proto -name '*.pb.go')
[ $bad = 0 ] || { echo "generated code is out of date; run make generate" >&2; exit 1; }
