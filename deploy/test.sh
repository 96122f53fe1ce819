#!/usr/bin/env bash
# The project's tests: formatting, lints, documentation, dependencies, then `cargo test` against a real engine and a real
# broker, then a look at whether anything was left behind. Installs what is missing (Debian), runs servers of its own,
# and removes all of it at the end.
#
#   deploy/test.sh                     everything; what CI runs
#   deploy/test.sh --only NAME [ARG…]  only the tests whose name contains NAME (ARG…: more for cargo test)
#   deploy/test.sh --shell             a shell with the servers up and the test images built
#   deploy/test.sh --servers           keeps them up until Ctrl-C; `source target/servers.env` elsewhere uses them
#
# DOCKER_HOST and PREWARM_BROKER_URL, if set, name an existing engine or broker to use instead
# (then PREWARM_TEST_RABBITMQCTL may name a command that reaches that broker's rabbitmqctl).
# shellcheck disable=SC2317,SC2329 # functions are also called through `check`, `within` and the choice of mode
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source-path=SCRIPTDIR
source "$ROOT/deploy/lib/packages.sh"
# shellcheck source-path=SCRIPTDIR
source "$ROOT/deploy/lib/servers.sh"
# shellcheck source-path=SCRIPTDIR
source "$ROOT/deploy/lib/images.sh"

usage() { sed -n '2,/^# shellcheck/{/^# shellcheck/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

FAILED=()

# check WHAT COMMAND…: a step whose failure is remembered, so that one run shows all that is wrong.
check() {
    step "$@" && return 0
    FAILED+=("$1")
    say "  FAILED: $1"
}

# --- Checks that need no server ---

static_checks() {
    check "Format: cargo fmt --check" work cargo fmt --check
    check "Lints: cargo clippy" work cargo clippy --quiet --all-targets --locked -- -D warnings
    check "Lints: cargo clippy --features otel" work cargo clippy --quiet --lib --bins --test otel --locked --features otel -- -D warnings
    check "Documentation: cargo doc" work env RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --locked
    check "Dependencies: licences, sources, advisories, yanked, duplicates" work python3 deploy/lib/dependencies.py
    check "Rules: promtool check, promtool test" work promtool_checks
    check "Deployments: each file by its own tool, scripts too" work deploy/lib/deployments.sh
}

# The configuration names the rules, so it is checked with them.
promtool_checks() {
    promtool check config deploy/prometheus/prometheus.yml && promtool test rules deploy/prometheus/tests/*.yml
}

# --- Tests, and what they leave ---

cargo_test() {
    local log=$RUN_DIR/cargo-test.log status=0
    work_shown "$log" cargo test --locked --no-fail-fast "$@" || status=$?
    grep -E '^test result: ' "$log" >"$RUN_DIR/results" || true
    # The names of the failed tests, for the summary.
    grep -E '^test .* \.\.\. FAILED$' "$log" >"$RUN_DIR/failures" || true
    return "$status"
}

# What is built with the feature alone; its line is counted with the others.
otel_test() {
    local log=$RUN_DIR/otel-test.log status=0
    work_shown "$log" cargo test --locked --features otel --test otel || status=$?
    grep -E '^test result: ' "$log" >>"$RUN_DIR/results" || true
    grep -E '^test .* \.\.\. FAILED$' "$log" >>"$RUN_DIR/failures" || true
    return "$status"
}

# present: one line for each thing in engine and broker that a test could have left there.
present() {
    docker ps -a --format 'container {{.Names}} ({{.Image}}, {{.Status}})'
    # Init's volume is kept by design, once per engine.
    docker volume ls -q | grep -v '^prewarm-init-' | sed 's/^/volume /' || true
    docker network ls --format 'network {{.Name}}'
    [[ ${PREWARM_TEST_RABBITMQCTL:-} ]] || return 0
    rabbitmq_names list_queues queue
    rabbitmq_names list_exchanges exchange
    rabbitmq_names list_connections connection
}

rabbitmq_names() {
    local column=name
    [[ $1 != list_connections ]] || column=pid
    # A command line, so it may be several words. Its stdin must not be ours.
    # shellcheck disable=SC2086
    $PREWARM_TEST_RABBITMQCTL -q "$1" "$column" --no-table-headers </dev/null | sed "s/^/$2 /"
}

# Whoever shares an existing engine or broker comes and goes too: there, only what has our name counts.
new_since() {
    present | sort | comm -13 "$1" - | if owns engine && owns broker; then cat; else grep prewarm || true; fi
}

nothing_left_behind() {
    local left pids
    # Containers are removed by the engine a moment after their worker ended.
    within 60 nothing_new_since "$RUN_DIR/present-before" || true
    left=$(new_since "$RUN_DIR/present-before")
    pids=$(processes_with "PREWARM_TEST_WORK_OF=$RUN_DIR")
    [[ -z $pids ]] || left+=$'\n'$(ps_lines "$pids")
    remove_init_volumes || left+=$'\n'"an init volume that is still in use"
    [[ -z $left ]] && return 0
    sed '/^$/d;s/^/           left behind: /' <<<"$left"
    return 1
}
nothing_new_since() { [[ -z $(new_since "$1") ]]; }

ps_lines() {
    local pid
    for pid in $1; do
        printf 'process %s %s\n' "$pid" "$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)"
    done
}

remove_init_volumes() {
    local volumes
    volumes=$(docker volume ls -q --filter name=prewarm-init- | grep '^prewarm-init-') || return 0
    # On an engine that is shared, another worker may be using it.
    # shellcheck disable=SC2086 # one word a name
    docker volume rm $volumes >/dev/null 2>&1 || ! owns engine
}

# --- The modes ---

prepare() {
    claim_slot
    start_servers
    step "Images: busybox, scratch, debian, isolation" build_images scratch busybox debian isolation
}

run_tests() {
    prepare
    (($#)) || check "RabbitMQ 4 beside it, with debootstrap (a minute or two; kept in target/)" rabbitmq_4
    present | sort >"$RUN_DIR/present-before"
    # Before the tests: it links the program in another way, and they link it again.
    (($#)) || check "Deployments: image and package, run" work deploy/lib/deployed.sh
    check "Tests: cargo test --locked $*" cargo_test "$@"
    (($#)) || check "Tests: cargo test --locked --features otel --test otel" otel_test
    check "Nothing is left behind by the tests" nothing_left_behind
}

rabbitmq_4() { deploy/lib/rabbitmq4.sh root >/dev/null; }

# Ends with cargo test's own lines, and a total, which is what people and CI look for.
summary() {
    local results failures
    results=$(cat "$RUN_DIR/results") failures=$(cat "$RUN_DIR/failures")
    clean_up || FAILED+=("Cleaning up")
    printf '\nTimes\n'
    printf '%s\n' "${STEP_TIMES[@]}"
    [[ -z $failures ]] || printf '\n%s\n' "$failures"
    ((${#FAILED[@]} == 0)) || printf '\nFailed: %s\n' "${FAILED[@]}"
    printf '\n%s\n' "$results"
    awk '/^test result/ { passed += $4; failed += $6; ignored += $8 }
        END { printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored }' <<<"$results"
    ((${#FAILED[@]} == 0))
}

everything() {
    local tests_only=$1
    shift
    [[ $tests_only ]] || static_checks
    run_tests "$@"
    summary
}

write_env_file() {
    local name
    mkdir -p "$TARGET_DIR"
    for name in DOCKER_HOST DOCKER_CONFIG DOCKER_BUILDKIT PREWARM_BROKER_URL PREWARM_TEST_RABBITMQCTL; do
        [[ -z ${!name:-} ]] || printf 'export %s=%q\n' "$name" "${!name}"
    done >"$TARGET_DIR/servers.env"
}

# Unless another instance has put its own there.
remove_env_file() { ! grep -qsF "$RUN_DIR/" "$TARGET_DIR/servers.env" || rm -f "$TARGET_DIR/servers.env"; }

servers_until_stopped() {
    prepare
    write_env_file
    at_clean_up remove_env_file
    say "Ready: source ${TARGET_DIR#"$PWD"/}/servers.env (stop: Ctrl-C, or kill $$)"
    # Waiting for a child, unlike running one, is ended by a signal at once.
    work sleep infinity
}

shell_with_servers() {
    prepare
    say "A shell with DOCKER_HOST and PREWARM_BROKER_URL set; leaving it stops the servers."
    bash -i || true
}

main() {
    local mode=everything tests_only=
    case ${1:-} in
        -h | --help) usage && exit 0 ;;
        --servers) mode=servers_until_stopped && shift ;;
        --shell) mode=shell_with_servers && shift ;;
        --only)
            tests_only=yes && shift
            (($#)) || die "--only needs a test's name or a part of it"
            ;;
        --*) die "unknown option $1 (--help shows what there is)" ;;
    esac
    cd "$ROOT"
    need_rust
    need python3 python3 "checks the dependencies"
    need_servers
    need_images
    need_publishers
    need_prometheus
    need_deployments
    need_browser
    install_missing
    clean_up_on_exit
    if [[ $mode == everything ]]; then everything "$tests_only" "$@"; else "$mode"; fi
}

main "$@"; exit # on one line: bash reads a script as it goes, and this one may be edited while it runs
