#!/usr/bin/env bash
# A RabbitMQ of another Debian release, without an image and beside the machine's own: its files in a folder (a "root"), its
# programs run in that folder as this machine's processes.
#
#   rabbitmq4.sh root [SUITE]        prints the root, after making it if there is none (a minute): trixie (4.0.5; default), sid (4.3)
#   rabbitmq4.sh run ROOT COMMAND…   runs a command of that root
#
# Roots are kept in $PREWARM_TEST_CACHE, or else in target/. A command sees the host's processes, devices, network and
# $TMPDIR (/tmp), under the same names, and nothing else of the host; the root itself is read-only to it, so that any number of
# nodes share it. What a node writes (HOME, RABBITMQ_MNESIA_BASE, RABBITMQ_LOG_BASE, …) must be below $TMPDIR.
# `run` keeps the environment and becomes the command: its process id, signals and exit code are the command's own.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CACHE=${PREWARM_TEST_CACHE:-$TARGET_DIR}

# The mirror that this machine's apt uses; it serves all suites.
debian_mirror() {
    # shellcheck disable=SC2016 # apt expands these
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -v security | head -n 1
}

make_root() {
    local suite=$1 root=$2 new=$2.new mirror
    command -v debootstrap >/dev/null || die "no debootstrap: apt-get install debootstrap"
    mirror=$(debian_mirror)
    as_root rm -rf --one-file-system "$new"
    as_root debootstrap --variant=minbase --include=rabbitmq-server "$suite" "$new" "${mirror:-http://deb.debian.org/debian}" \
        >"$root.log" 2>&1 ||
        { tail -n 15 "$root.log" >&2; die "debootstrap failed (its last lines are above; all: $new/debootstrap/debootstrap.log)"; }
    # Without it Erlang doesn't know `localhost`, which is what our nodes are at.
    echo '127.0.0.1 localhost' | as_root tee "$new/etc/hosts" >/dev/null
    # shellcheck disable=SC2016 # for that shell to expand
    as_root sh -c 'cd "$1" && rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/doc/* usr/share/man/* usr/share/locale/*' sh "$new"
    as_root mv "$new" "$root"
}

case ${1:-} in
root)
    suite=${2:-trixie}
    root=$CACHE/rabbitmq-$suite
    mkdir -p "$CACHE"
    # Tests that run side by side ask for it at the same time.
    exec 9>"$CACHE/rabbitmq-$suite.lock"
    flock 9
    [[ -d $root ]] || make_root "$suite" "$root" 9>&-
    (cd "$root" && pwd)
    ;;
run)
    root=$2 tmp=${TMPDIR:-/tmp}
    shift 2
    # sudo would drop the environment.
    ((EUID == 0)) || exec sudo -E -- "$0" run "$root" "$@"
    # A mount namespace of its own: what is mounted here is nowhere else, and gone with the command.
    # shellcheck disable=SC2016 # expanded by that shell
    exec unshare --mount --propagation private sh -euc '
        root=$1 tmp=$2; shift 2
        mkdir -p "$root$tmp"
        mount --bind "$root" "$root"
        mount -o remount,bind,ro "$root"
        mount --rbind /proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount --rbind "$tmp" "$root$tmp"
        export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
        exec chroot "$root" "$@"' sh "$root" "$tmp" "$@"
    ;;
*)
    die "usage: rabbitmq4.sh root [SUITE] | run ROOT COMMAND…"
    ;;
esac
