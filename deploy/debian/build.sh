#!/usr/bin/env bash
# Builds the Debian package and prints its path.
#
#   deploy/debian/build.sh            target/debian/prewarm_…_amd64.deb
#   deploy/debian/build.sh --dev      of a development build, larger and slower: for tests
#
# cargo-deb is installed into target/, pinned, if it isn't there; that takes a minute.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

CARGO_DEB=3.8.0
PACKAGE=$ROOT/target/package

install_cargo_deb() {
    [[ $("$TARGET_DIR/cargo-deb/bin/cargo-deb" --version 2>/dev/null) == "$CARGO_DEB" ]] && return 0
    local log=$TARGET_DIR/cargo-deb.log
    # Optimized, compressing is fast, but building it takes far longer.
    cargo install --quiet --debug --locked --version "$CARGO_DEB" --no-default-features --features gzip \
        --root "$TARGET_DIR/cargo-deb" --target-dir "$TARGET_DIR/cargo-deb/build" cargo-deb >"$log" 2>&1 || {
        tail -n 15 "$log" >&2
        die "cargo-deb can't be installed (the last lines are above; all: $log)"
    }
    rm -rf "$TARGET_DIR/cargo-deb/build"
}

main() {
    local profile=release program=$TARGET_DIR/release/prewarm options=()
    [[ ${1:-} != --dev ]] || profile=dev program=$TARGET_DIR/debug/prewarm options=(--strip --fast)
    cd "$ROOT"
    mkdir -p "$TARGET_DIR"
    install_cargo_deb
    cargo build --quiet --locked --profile "$profile" --bin prewarm
    rm -rf "$PACKAGE"
    mkdir -p "$PACKAGE/man"
    "$program" completions --man "$PACKAGE/man"
    "$program" completions bash >"$PACKAGE/prewarm.bash"
    "$program" completions zsh >"$PACKAGE/_prewarm"
    "$program" completions fish >"$PACKAGE/prewarm.fish"
    "$TARGET_DIR/cargo-deb/bin/cargo-deb" --quiet --no-build --profile "$profile" "${options[@]}" --compress-type gz --compress-system --output "$TARGET_DIR/debian/"
}

main "$@"
