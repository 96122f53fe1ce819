#!/usr/bin/env bash
# Prints a folder with the Python and Node clients that tests/publishers pins, after making it if there is none, or if what is
# pinned has changed. Kept in target/; needs python3 with venv, and npm.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/pinned.sh"

PINNED=$ROOT/tests/publishers
CLIENTS=$TARGET_DIR/publishers

mkdir -p "$TARGET_DIR"
# Tests that run side by side ask for it at the same time.
exec 9>"$CLIENTS.lock"
flock 9
install_pinned "the publishers' clients" "$PINNED" "$CLIENTS" 9>&-
(cd "$CLIENTS" && pwd)
