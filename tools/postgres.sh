#!/bin/bash
# Finds PostgreSQL's programs, or gets Debian's packages and unpacks them into a directory: nothing is installed, and no root is needed.
# Prints variables for the tests of recorder/postgres:   env $(tools/postgres.sh DIR) go test …
# POSTGRES_UNPACK=1 unpacks them also where the machine has a PostgreSQL.
set -euo pipefail

into=${1:?where to}

if [ "${POSTGRES_UNPACK:-}" != 1 ]; then
	for bin in ${POSTGRES_BIN:-} $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV); do
		if [ -x "$bin/postgres" ] && [ -x "$bin/initdb" ]; then
			echo "POSTGRES_BIN=$bin"
			exit 0
		fi
	done
fi

found() { ls -d "$into"/usr/lib/postgresql/*/bin 2>/dev/null | sort -rV | head -1; }

if [ ! -e "$into/complete" ]; then
	command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
		echo "postgres.sh: no PostgreSQL is here, and no apt-get to get one; name the directory of its programs in POSTGRES_BIN" >&2
		exit 1
	}
	server=$(apt-cache depends postgresql | sed -nE 's/^ *Depends: (postgresql-[0-9]+)$/\1/p' | head -1)
	[ -n "$server" ] || { echo "postgres.sh: apt knows no PostgreSQL; run apt-get update" >&2; exit 1; }
	rm -rf "$into" && mkdir -p "$into/packages"
	# The server, and of the libraries that it needs those that the machine lacks.
	wanted="$server"
	for p in $(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$server" | grep -E '^lib[a-z0-9.+-]+$' | sort -u); do
		dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || wanted="$wanted $p"
	done
	echo "postgres.sh: getting $wanted" >&2
	(cd "$into/packages" && apt-get download -q $wanted >&2)
	for deb in "$into"/packages/*.deb; do
		dpkg-deb -x "$deb" "$into"
	done
	rm -rf "$into/packages"
	[ -x "$(found)/postgres" ] || { echo "postgres.sh: $server holds no programs" >&2; exit 1; }
	touch "$into/complete"
fi

echo "POSTGRES_BIN=$(found)"
echo "POSTGRES_LIBRARIES=$(ls -d "$into"/usr/lib/*-linux-gnu* | paste -sd:)"
