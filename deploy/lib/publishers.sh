#!/usr/bin/env bash
# Prints a folder with the Python and Node clients that tests/publishers pins, after making it if there is none, or if what is
# pinned has changed. Kept in target/; needs python3 with venv, and npm.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PINNED=$ROOT/tests/publishers
CLIENTS=$TARGET_DIR/publishers

make_clients() {
    local stamp=$1 log=$CLIENTS.log
    rm -rf "$CLIENTS"
    mkdir -p "$CLIENTS"
    cp "$PINNED/package.json" "$PINNED/package-lock.json" "$CLIENTS"
    {
        python3 -m venv "$CLIENTS/venv"
        "$CLIENTS/venv/bin/pip" install --no-deps --only-binary :all: --disable-pip-version-check -r "$PINNED/requirements.txt"
        npm ci --prefix "$CLIENTS" --no-audit --no-fund
    } >"$log" 2>&1 || {
        tail -n 15 "$log" >&2
        die "the publishers' clients can't be installed (the last lines are above; all: $log)"
    }
    printf '%s\n' "$stamp" >"$CLIENTS/stamp"
}

mkdir -p "$TARGET_DIR"
# Tests that run side by side ask for it at the same time.
exec 9>"$CLIENTS.lock"
flock 9
stamp=$(cat "$PINNED/requirements.txt" "$PINNED/package-lock.json" "${BASH_SOURCE[0]}" | sha256sum)
[[ -e $CLIENTS/stamp && $(<"$CLIENTS/stamp") == "$stamp" ]] || make_clients "$stamp" 9>&-
(cd "$CLIENTS" && pwd)
