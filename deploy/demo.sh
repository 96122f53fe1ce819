#!/usr/bin/env bash
# prewarm, the real thing in small. Builds the worker and an image whose entrypoint clones a git repository, checks out a
# branch and runs a command in it; sends such jobs through RabbitMQ to containers that are already warm; then runs the same
# job by `docker run`, and shows both. Installs what is missing (Debian), runs servers of its own, removes all of it at the end.
#
#   deploy/demo.sh [--jobs N] [--keep]
#
#   --jobs N  how many jobs (20)
#   --keep    leaves the worker up at the end, and says what to try, until Ctrl-C
#
# DOCKER_HOST and PREWARM_BROKER_URL, if set, name an existing engine or broker to use instead.

# shellcheck disable=SC2317,SC2329 # functions are also called through `step`, `within` and `at_clean_up`
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

JOBS=20
KEEP=
RATE=2       # jobs a second: what the pool can refill at on two cores, so that hits are likely, not certain
COMPARED=8   # runs of the same job by `docker run`, and as many by `prewarm submit --follow`
IMAGE=prewarm-demo/build
COMMAND='sh check.sh'

parse() {
    while (($#)); do
        case $1 in
            -h | --help) usage && exit 0 ;;
            --keep) KEEP=yes ;;
            --jobs)
                shift
                [[ ${1:-} =~ ^[1-9][0-9]*$ ]] || die "--jobs needs a number"
                JOBS=$1
                ;;
            *) die "unknown argument $1 (--help shows what there is)" ;;
        esac
        shift
    done
}

# --- What the demo runs on ---

build_worker() {
    work cargo build --quiet --release --locked
    PREWARM=$TARGET_DIR/release/prewarm
}

build_image() {
    build_images debian
    docker build --quiet --tag "$IMAGE" deploy/demo >"$RUN_DIR/build.log" 2>&1 || { cat "$RUN_DIR/build.log" >&2; return 1; }
    IMAGES_BUILT+=("$IMAGE")
}

# In a container beside the jobs': reached in the same way wherever the engine is.
serve_repository() {
    GIT_SERVER=prewarm-demo-git-$$
    at_clean_up remove_git_server
    docker run --detach --name "$GIT_SERVER" --entrypoint bash "$IMAGE" -c "$(cat deploy/demo/serve-repo.sh)" >/dev/null
    REPO=git://$(docker inspect --format '{{.NetworkSettings.IPAddress}}' "$GIT_SERVER")/demo
    within 20 docker exec "$GIT_SERVER" git ls-remote --quiet git://127.0.0.1/demo >/dev/null 2>&1 ||
        die "the demo's git server does not answer: $(docker logs "$GIT_SERVER" 2>&1 | tail -n 5)"
    say "  $REPO with branches main, feature and broken"
}
remove_git_server() { docker rm --force "$GIT_SERVER" >/dev/null 2>&1; }

start_worker() {
    HTTP=127.0.0.1:$HTTP_PORT
    export PREWARM_CONFIG=$RUN_DIR/prewarm.toml
    sed "s|@BROKER_URL@|$PREWARM_BROKER_URL|; s|@HTTP_LISTEN@|$HTTP|" deploy/demo/prewarm.toml >"$PREWARM_CONFIG"
    at_clean_up stop_worker
    daemon worker "$PREWARM" serve --config "$PREWARM_CONFIG"
    await worker 60 pool_is_full
}
pool_is_full() { http_get "$HTTP" /readyz && http_get "$HTTP" /metrics | grep -q '^prewarm_pool_containers{pool="build",state="idle"} 4'; }

# It drains: its containers are gone when it is.
stop_worker() {
    stop_daemon worker
    owns engine || remove_init_volume
    owns broker || say "  queues and exchanges named prewarm-demo.* stay in the broker; the next demo uses them again"
}
remove_init_volume() {
    # Another worker may be using it: then it stays.
    docker volume ls --quiet --filter name=prewarm-init- | xargs -r docker volume rm >/dev/null 2>&1
}

# --- The demo ---

job=() # what makes it this job, to `prewarm submit` and `docker run` alike
limits=(--memory 256m --pids-limit 512 --cap-drop ALL --security-opt no-new-privileges)

# One line a job as it ends (hit or miss, start-up, exit code, first line of output), then prewarm's own summary.
publish_jobs() {
    work_shown "$RUN_DIR/jobs" "$PREWARM" submit build --count "$JOBS" --rate "$RATE" "${job[@]}"
}

# timed FILE COMMAND…: appends the milliseconds that it took.
timed() {
    local file=$1 began=${EPOCHREALTIME/./}
    shift
    work_into "$RUN_DIR/output" "$@" || { cat "$RUN_DIR/output" >&2; die "failed: $*"; }
    echo "$began $(((${EPOCHREALTIME/./} - began) / 100))" | awk '{ printf "%s %.1f\n", $1, $2 / 10 }' >>"$file"
}

# In turns and with the same pauses, so that neither has the quieter machine.
compare() {
    local i since
    since=$(date +%s)
    for ((i = 0; i < COMPARED; i++)); do
        timed "$RUN_DIR/by-docker-run" docker run --rm --name "prewarm-demo-run-$$-$i" "${limits[@]}" "${job[@]}" "$IMAGE"
        sleep 0.5
        timed "$RUN_DIR/by-submit" "$PREWARM" submit build --follow "${job[@]}"
        sleep 0.5
    done
    # When the engine had started each container, in its own words.
    timeout 10 docker events --since "$since" --until "$(($(date +%s) + 1))" --filter type=container --filter event=start \
        --format '{{.Actor.Attributes.name}} {{.TimeNano}}' | grep "^prewarm-demo-run-$$-" |
        sort -t- -k5n | awk '{ printf "%.3f\n", $2 / 1e6 }' >"$RUN_DIR/docker-started"
    paste "$RUN_DIR/by-docker-run" "$RUN_DIR/docker-started" | awk 'NF == 3 { printf "%.1f\n", $3 - $1 / 1000 }' >"$RUN_DIR/docker-startup"
}

# percentile P < numbers, one a line
percentile() { sort -n | awk -v p="$1" '{ v[NR] = $1 } END { i = int(NR * p / 100 + 0.9999); print NR ? v[i < 1 ? 1 : i] : "?" }'; }

report() {
    local jobs=$RUN_DIR/jobs hits finished startup
    finished=$(grep -cE '^#[0-9]+ +(hit|miss) ' "$jobs" || true)
    hits=$(grep -cE '^#[0-9]+ +hit ' "$jobs" || true)
    startup=$(sed -nE 's/^#[0-9]+ +(hit|miss) +([0-9.]+) ms.*/\2/p' "$jobs")
    printf '\n%-34s %14s %18s\n' '' 'prewarm' 'docker run --rm'
    row 'start-up, p50' "$(percentile 50 <<<"$startup") ms" "$(percentile 50 <"$RUN_DIR/docker-startup") ms"
    row 'start-up, p99' "$(percentile 99 <<<"$startup") ms" "$(percentile 99 <"$RUN_DIR/docker-startup") ms"
    row 'publish to result, p50' "$(sed -nE 's/.*publish to result p50 ([0-9.]+ ms).*/\1/p' "$jobs")" ''
    row 'whole command, p50' "$(awk '{ print $2 }' "$RUN_DIR/by-submit" | percentile 50) ms" "$(awk '{ print $2 }' "$RUN_DIR/by-docker-run" | percentile 50) ms"
    row 'jobs that found a warm container' "$hits of $finished" 'none'
    cat <<END

Start-up: job received → entrypoint executing ($finished jobs); for docker run: command → the engine says 'started' ($COMPARED runs).
Whole command: 'prewarm submit --follow' (through RabbitMQ and back) and 'docker run --rm', $COMPARED runs of each in turn, same image,
same limits, same job (clone, checkout, run).
END
    ((finished == JOBS)) || die "only $finished of $JOBS jobs finished"
}
row() { printf '%-34s %14s %18s\n' "$@"; }

what_to_try() {
    cat <<END

The worker is up. In another terminal:

  cd $PWD
  export PREWARM_CONFIG=$PREWARM_CONFIG DOCKER_HOST=$DOCKER_HOST
  $PREWARM submit build --follow -e REPO=$REPO -e BRANCH=broken -e 'COMMAND=sh check.sh'; echo "exit code \$?"
  $PREWARM run build -e REPO=$REPO -e BRANCH=feature -e 'COMMAND=ls -l'     # through a pool, without the broker
  curl -s http://$HTTP/metrics | grep -E '^prewarm_(pool|startup_seconds_count)'
  docker ps                                        # the warm containers
  tail -f $RUN_DIR/worker.log

Ctrl-C here ends it and removes everything.
END
    work sleep infinity
}

main() {
    parse "$@"
    cd "$ROOT"
    need_rust
    need_servers
    need_images
    install_missing
    clean_up_on_exit
    claim_slot
    start_servers
    step "Building the worker: cargo build --release (some minutes the first time)" build_worker
    step "Building the demo's image" build_image
    step "Serving a git repository for the jobs to clone" serve_repository
    step "Starting the worker, until its pool of 4 containers is warm" start_worker
    job=(-e "REPO=$REPO" -e BRANCH=feature -e "COMMAND=$COMMAND")
    step "Publishing $JOBS jobs through RabbitMQ, $RATE a second" publish_jobs
    step "The same job by 'docker run --rm' and by 'prewarm submit --follow', $COMPARED times each" compare
    report
    [[ ! $KEEP ]] || what_to_try
}

main "$@"; exit # on one line: bash reads a script as it goes, and this one may be edited while it runs
