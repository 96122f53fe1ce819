# shellcheck shell=bash
# What deploy/test.sh and deploy/demo.sh share: talking, timing, running as root, and ending well.
#
# Sourced, not run. The scripts use `set -euo pipefail`.

# Numbers and sort orders must not depend on who runs this.
export LC_ALL=C.UTF-8
# Debian keeps dockerd, ip and debootstrap where a user's PATH doesn't look.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck disable=SC2034 # for those who source this
TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}
STARTED_AT=$EPOCHREALTIME

# seconds_since EPOCHREALTIME: with one decimal.
seconds_since() {
    local us=$(((${EPOCHREALTIME/./} - ${1/./}) / 100000))
    printf '%d.%d' $((us / 10)) $((us % 10))
}

say() { printf '[%6ss] %s\n' "$(seconds_since "$STARTED_AT")" "$*"; }
warn() { say "warning: $*" >&2; }
die() {
    say "error: $*" >&2
    exit 1
}

# step WHAT COMMAND…: says what it does while doing it, and how long it took. The times are kept for the summary.
# No `|| status=$?` here: it would switch `set -e` off inside the command.
STEP_TIMES=()
step() {
    local what=$1 began=$EPOCHREALTIME status
    shift
    say "$what …"
    "$@"
    status=$?
    STEP_TIMES+=("$(printf '%8s s  %s' "$(seconds_since "$began")" "$what")")
    ((status == 0)) || return "$status"
    say "  done in $(seconds_since "$began") s"
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        die "this needs root for: $* (run as root, or install sudo)"
    fi
}

# within SECONDS COMMAND…: repeats the command until it succeeds; false when the time is over.
within() {
    local until=$((${EPOCHREALTIME/./} + $1 * 1000000))
    shift
    until "$@"; do
        ((${EPOCHREALTIME/./} < until)) || return 1
        sleep 0.1
    done
}

# work COMMAND…: a long command in a process group of its own. bash handles a signal only after the command in
# its foreground has ended; waiting for one in the background, it handles it at once, and `end_work` ends the group.
# What the command leaves running is found by the variable in its environment.
WORK_GROUP=
work() {
    local status=0
    set -m
    PREWARM_TEST_WORK_OF=${RUN_DIR:-$$} "$@" </dev/null &
    WORK_GROUP=$!
    set +m
    wait "$WORK_GROUP" || status=$?
    WORK_GROUP=
    return "$status"
}

# work_into FILE COMMAND…: its output goes to FILE. work_shown: to FILE too.
# Redirected inside the command's own process: a redirection of `work` itself would also catch what cleaning up says.
work_into() { work into "$@"; }
work_shown() { work shown "$@"; }
into() { "${@:2}" >"$1" 2>&1; }
shown() {
    local file=$1 status=0 out tee
    shift
    exec {out}> >(exec env -u PREWARM_TEST_WORK_OF tee "$file")
    tee=$!
    "$@" >&"$out" 2>&1 {out}>&- || status=$?
    exec {out}>&-
    # tee may be a moment behind; or never end, if the command left a process that holds its output.
    within 5 process_is_gone "$tee" || true
    return "$status"
}

process_is_gone() { [[ ! -e /proc/$1 || $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) == Z* ]]; }

end_work() {
    [[ $WORK_GROUP ]] || return 0
    kill -TERM -- "-$WORK_GROUP" 2>/dev/null
    within 5 group_is_gone "$WORK_GROUP" || kill -KILL -- "-$WORK_GROUP" 2>/dev/null
    WORK_GROUP=
}
group_is_gone() { ! kill -0 -- "-$1" 2>/dev/null; }

# processes_with NAME=VALUE: ids of all processes that were started with it in their environment.
processes_with() {
    as_root grep -lsxzF -- "$1" /proc/[0-9]*/environ | sed -n 's|^/proc/\([0-9]*\)/environ$|\1|p' | grep -vx "$$" || true
}

# http_get ADDRESS PATH: the body; false unless the answer is 200. Spares a bare machine a package.
http_get() {
    local address=$1 path=$2 response
    response=$(exec 2>/dev/null 3<>"/dev/tcp/${address%:*}/${address##*:}" &&
        printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$path" "$address" >&3 && cat <&3) 2>/dev/null || return 1
    [[ $response == "HTTP/1."?" 200"* ]] || return 1
    printf '%s\n' "${response#*$'\r\n\r\n'}"
}
