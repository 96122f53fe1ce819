#!/usr/bin/env bash
# Runs what deploys prewarm: the image's last stage as a container against the engine's socket and the broker, with users that may do
# no more than deploy/rabbitmq/permissions.sh gives them; and the Debian package, installed and removed. Development builds.
#
#   deploy/lib/deployed.sh [broker | image | package]    all unless one is named
#
# Needs DOCKER_HOST, a local socket, and PREWARM_BROKER_URL, PREWARM_TEST_RABBITMQCTL and the test images: `deploy/test.sh --shell`
# has them. Needs root, for the namespaces of networks and for dpkg.
# shellcheck disable=SC2317,SC2329 # functions are also called through `within` and `trap`
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

ID=prewarm-deployed-$$
IMAGE=prewarm-test/deployed
WORK=
INSTALLED=
BROKER=${PREWARM_BROKER_URL#*@} # host:port/vhost

fail() {
    [[ ! -s $WORK/said ]] || cat "$WORK/said" >&2
    docker logs --tail 20 "$ID-worker" >&2 2>/dev/null || true
    die "$*"
}

rabbitmqctl() {
    # A command line, so it may be several words.
    # shellcheck disable=SC2086
    $PREWARM_TEST_RABBITMQCTL -q "$@" </dev/null
}

clean_up() {
    local process
    set +e
    [[ ! $INSTALLED ]] || as_root dpkg --purge --force-all prewarm >/dev/null 2>&1
    docker rm -f -v "$ID-worker" "$ID-other" >/dev/null 2>&1
    docker volume rm "$ID-run" >/dev/null 2>&1
    docker rmi "$IMAGE" >/dev/null 2>&1
    for process in $(processes_with "PREWARM_TEST_DEPLOYED=$ID"); do as_root kill "$process" 2>/dev/null; done
    rabbitmqctl delete_vhost "$ID" >/dev/null 2>&1
    for process in worker runner publisher operator nobody; do rabbitmqctl delete_user "$ID-$process" >/dev/null 2>&1; done
    rm -rf "$WORK"
}

# --- The broker's configuration ---

# Read by the broker's own reader, and not applied.
test_broker_configuration() {
    local read
    cp deploy/rabbitmq/rabbitmq.conf "$WORK/"
    chmod 644 "$WORK/rabbitmq.conf"
    read=$(rabbitmqctl eval "cuttlefish_generator:map(
        cuttlefish_schema:files([filename:join(code:priv_dir(rabbit), \"schema/rabbit.schema\")]),
        cuttlefish_conf:file(\"$WORK/rabbitmq.conf\")).")
    # src/broker/ack_timeout.rs has the same.
    [[ $read == *"{consumer_timeout,2073600000}"* && $read == *"{cluster_partition_handling,pause_minority}"* ]] ||
        die "the broker can't read rabbitmq.conf: $read"
}

# --- The image ---

# The last stage of deploy/Dockerfile over a program that is built here, static in the same way. The one in target/ is what the tests
# link again after it, from the same library.
build_image() {
    local context=$WORK/context
    cargo rustc --quiet --locked --bin prewarm -- -C target-feature=+crt-static
    mkdir -p "$context"/out/{usr/bin,etc/ssl/certs} "$context/run-prewarm"
    mkdir -m 1777 "$context/out/tmp"
    cp "$TARGET_DIR/debug/prewarm" "$context/out/usr/bin/"
    strip --strip-debug "$context/out/usr/bin/prewarm"
    [[ $(readelf --program-headers "$context/out/usr/bin/prewarm") != *INTERP* ]] || fail "the image's program isn't static"
    sed -n '/^FROM scratch/,$p' deploy/Dockerfile |
        sed 's|^COPY --from=build /out/ |COPY out/ |; s|^COPY --from=build --chown=65532:65532 /run-prewarm |COPY --chown=65532:65532 run-prewarm |' \
            >"$context/Dockerfile"
    ! grep -q -- --from= "$context/Dockerfile" || fail "deploy/Dockerfile has a line in its last stage that this test doesn't know"
    docker build --quiet --tag "$IMAGE" "$context" >"$WORK/said" 2>&1 || fail "docker build"
}

make_users() {
    local role
    rabbitmqctl add_vhost "$ID" >/dev/null
    for role in worker runner publisher operator nobody; do
        rabbitmqctl add_user "$ID-$role" secret >/dev/null
        [[ $role == nobody ]] || RABBITMQCTL="$PREWARM_TEST_RABBITMQCTL -q" deploy/rabbitmq/permissions.sh "$role" "$ID-$role" "$ID"
    done
    rabbitmqctl set_permissions --vhost "$ID" "$ID-nobody" '' '' ''
}

# url ROLE [ADDRESS]
url() { printf 'amqp://%s:secret@%s/%s' "$ID-$1" "${2:-${BROKER%%/*}}" "$ID"; }

# as ROLE VERB…: a command of prewarm's, by that user.
as() {
    local role=$1
    shift
    env PREWARM_BROKER_URL="$(url "$role")" "$TARGET_DIR/debug/prewarm" "$@" >"$WORK/said" 2>&1
}

# refused ROLE VERB…: exit code 4, and the broker's own word.
refused() {
    local code=0
    as "$@" || code=$?
    ((code == 4)) || fail "$* is not refused: exit code $code"
    grep -qiE 'ACCESS.REFUSED|permission' "$WORK/said" || fail "$*: refused, but not for want of a permission"
}

# start_worker NAME ROLE OPTION…: as in the Dockerfile's first lines, but for the broker's address.
start_worker() {
    local name=$1 role=$2 socket=${DOCKER_HOST#unix://}
    shift 2
    docker run --detach --name "$ID-$name" --hostname "$name" --read-only --cap-drop ALL --security-opt no-new-privileges \
        --group-add "$(stat -c %g "$socket")" --volume "$socket:/var/run/docker.sock" --volume "$ID-run:/run/prewarm" \
        --volume "$WORK/prewarm.toml:/etc/prewarm/prewarm.toml:ro" --env "PREWARM_BROKER_URL=$(url "$role" 127.0.0.1:5672)" \
        --health-interval 1s --stop-timeout 60 "$@" "$IMAGE" >/dev/null
    as_root nsenter --net="/proc/$(docker inspect --format '{{.State.Pid}}' "$ID-$name")/ns/net" \
        env "PREWARM_TEST_DEPLOYED=$ID" python3 tests/deploy/relay.py 127.0.0.1:5672 "$WORK/broker.sock" &
    # Ended by clean_up, of which the shell need not tell.
    disown
    within 60 worker_is_ready "$name" || fail "the worker in the container isn't ready"
}
status_of() { docker exec "$ID-$1" prewarm status --from http://127.0.0.1:9464 --json 2>/dev/null | tr -d ' \n'; }
worker_is_ready() { [[ $(status_of "$1") == *'"ready":true'* ]]; }
is_healthy() { [[ $(docker inspect --format '{{.State.Health.Status}}' "$ID-worker") == healthy ]]; }

test_image() {
    build_image
    make_users
    cat >"$WORK/prewarm.toml" <<'END'
[broker]
retry_delays = ["100ms"]
expired = "answer"
[worker]
drain_timeout = "50s"
[pool.box]
image = "prewarm-test/busybox"
pull = "never"
idle = 1
security = "hardened"
END
    chmod 644 "$WORK/prewarm.toml"
    env "PREWARM_TEST_DEPLOYED=$ID" python3 tests/deploy/relay.py "$WORK/broker.sock" "${BROKER%%/*}" &
    disown
    within 10 test -S "$WORK/broker.sock" || fail "the relay doesn't start"
    start_worker worker worker
    within 20 is_healthy || fail "the image's HEALTHCHECK doesn't find the worker healthy"
    not_root
    users_may_do_their_part
    users_may_do_no_more
    checked_by_others
    drains
    say "  image: $(docker image inspect --format '{{.Size}}' "$IMAGE" | awk '{ printf "%.0f", $1 / 1e6 }') MB of a development build"
}

not_root() {
    local pid ids
    pid=$(docker inspect --format '{{.State.Pid}}' "$ID-worker")
    ids=$(awk '/^(Uid|Gid):/ { print $3 } /^CapEff:/ { print $2 }' "/proc/$pid/status" | xargs)
    [[ $ids == "65532 65532 0000000000000000" ]] || fail "the worker's user, group and capabilities are $ids"
}

users_may_do_their_part() {
    local id=$ID-long
    as publisher submit box --follow -- echo "from the container" || fail "submit --follow"
    grep -qx "from the container" "$WORK/said" || fail "submit --follow shows no output"
    # A retry, and a dead letter: what other clients publish, with the permission for that alone.
    amqp-publish --url "$(url publisher)" -e prewarm.jobs -r box -C application/json -b '{"args": ["false"], "retries": 1}'
    amqp-publish --url "$(url publisher)" -e prewarm.jobs -r box -C application/json -b '{"nonsense": 1}'
    within 20 job_was_retried || fail "no second attempt of a job that asks for one"
    within 20 one_dead_letter || fail "dead ls doesn't show the letter"
    as operator dead replay --all || fail "dead replay"
    within 20 one_dead_letter || fail "a replayed job doesn't come back as a dead letter"
    as operator dead purge --all --yes || fail "dead purge"
    # One that is cancelled by another than who submitted it.
    as publisher submit box --id "$id" --detach -- sleep 60 || fail "submit --detach"
    within 20 runs "$id" || fail "status doesn't show the job"
    as operator cancel "$id" || fail "cancel"
    within 20 doesnt_run "$id" || fail "a cancelled job goes on"
}
job_was_retried() { [[ $(status_of worker) == *'"attempt":2'* ]]; }
one_dead_letter() { as operator dead ls --json && grep -q nonsense "$WORK/said"; }
runs() { as operator status --json && grep -q "$1" "$WORK/said"; }
doesnt_run() { as operator status --json && [[ $(python3 -c 'import json, sys; print(*[j["job_id"] for w in json.load(open(sys.argv[1])) for j in w["jobs"]])' "$WORK/said") != *$1* ]]; }

users_may_do_no_more() {
    refused nobody submit box -d -- true
    refused publisher cancel some-job
    refused publisher status
    refused publisher logs some-job
    refused publisher dead ls
    refused worker dead ls
    PREWARM_CONFIG=$WORK/prewarm.toml refused nobody check
    PREWARM_CONFIG=$WORK/prewarm.toml refused publisher check
}

# Where somebody else declares: less.
checked_by_others() {
    start_worker other runner --env PREWARM_BROKER_TOPOLOGY=check
    docker exec --env PREWARM_BROKER_TOPOLOGY=check "$ID-other" prewarm check >"$WORK/said" 2>&1 || fail "check by the runner"
    docker exec "$ID-worker" prewarm check >"$WORK/said" 2>&1 || fail "check by the worker"
    # Both live on one engine, and know of each other.
    as operator status --json || fail "status"
    [[ $(grep -oE '"worker": ?"(worker|other)"' "$WORK/said" | sort -u | wc -l) == 2 ]] || fail "status shows not both workers"
    docker stop --time 60 "$ID-other" >/dev/null
    [[ $(docker inspect --format '{{.State.ExitCode}}' "$ID-other") == 0 ]] || fail "the second worker's end is not in order"
}

drains() {
    local following
    env PREWARM_BROKER_URL="$(url publisher)" "$TARGET_DIR/debug/prewarm" submit box --follow -- sh -c 'echo begun; sleep 2; echo ended' \
        >"$WORK/followed" 2>&1 &
    following=$!
    within 20 grep -qsx begun "$WORK/followed" || fail "the job doesn't begin"
    docker stop --time 60 "$ID-worker" >/dev/null
    wait "$following" || fail "a job that ran when its worker was stopped did not end well: $(cat "$WORK/followed")"
    grep -qx ended "$WORK/followed" || fail "a job that ran when its worker was stopped has lost its output"
    [[ $(docker inspect --format '{{.State.ExitCode}}' "$ID-worker") == 0 ]] || fail "the worker's end is not in order"
    within 20 no_containers_left || fail "containers are left: $(left_containers)"
}
left_containers() { docker ps -aq --filter label=prewarm.worker=worker --filter label=prewarm.pool=box; }
no_containers_left() { [[ -z $(left_containers) ]]; }

# --- The package ---

test_package() {
    local deb before=$WORK/before
    ! dpkg-query -W prewarm >/dev/null 2>&1 || die "the package prewarm is installed here: remove it first"
    deb=$(deploy/debian/build.sh --dev)
    traces >"$before"
    INSTALLED=yes
    as_root dpkg --install "$deb" >"$WORK/said" 2>&1 || fail "dpkg --install"
    installed_files
    as_root sed -i 's/^image = .*/image = "prewarm-test\/busybox"/' /etc/prewarm/prewarm.toml
    as_root env PREWARM_BROKER_URL="$PREWARM_BROKER_URL" DOCKER_HOST="$DOCKER_HOST" prewarm check >"$WORK/said" 2>&1 || fail "check"
    grep -q '^ok .*/etc/prewarm/prewarm.toml' "$WORK/said" || fail "check doesn't read the package's file"
    # Changed by the operator: an upgrade leaves it as it is.
    as_root dpkg --install "$deb" >"$WORK/said" 2>&1 || fail "dpkg --install, again"
    as_root grep -q prewarm-test/busybox /etc/prewarm/prewarm.toml || fail "an upgrade changed the configuration"
    as_root dpkg --remove prewarm >"$WORK/said" 2>&1 || fail "dpkg --remove"
    [[ -e /etc/prewarm/prewarm.toml && ! -e /usr/bin/prewarm ]] || fail "removed is not purged"
    as_root dpkg --purge prewarm >"$WORK/said" 2>&1 || fail "dpkg --purge"
    INSTALLED=
    traces | diff "$before" - || fail "the package leaves something (above)"
    say "  package: $(stat -c %s "$deb" | awk '{ printf "%.0f", $1 / 1e6 }') MB of a development build, installed, upgraded, removed, purged"
}

installed_files() {
    local file
    getent passwd prewarm | grep -q '/nonexistent:/usr/sbin/nologin$' || fail "no user prewarm"
    [[ $(as_root stat -c '%U:%G %a' /etc/prewarm/prewarm.toml) == "root:prewarm 640" ]] || fail "others can read the configuration"
    [[ $(as_root stat -c '%U %a' /etc/default/prewarm) == "root 600" ]] || fail "others can read /etc/default/prewarm"
    for file in /usr/share/man/man1/prewarm-serve.1.gz /usr/share/bash-completion/completions/prewarm /usr/share/doc/prewarm/operators.md; do
        [[ -s $file ]] || fail "no $file"
    done
    systemd-analyze verify --man=no --recursive-errors=no prewarm.service >"$WORK/said" 2>&1 && [[ ! -s $WORK/said ]] || fail "the unit"
    bash -c '. /usr/share/bash-completion/completions/prewarm && complete -p prewarm' >/dev/null || fail "the shell's completion doesn't load"
    # A worker's files may be there already; they stay.
    [[ $(stat -c %G /run/prewarm) == prewarm ]] || fail "tmpfiles.d made no /run/prewarm"
}

# Everything of the package's name, and the users. /run/prewarm comes and goes with workers.
traces() {
    { find /etc /usr /var/lib/dpkg /var/lib/systemd /lib/systemd -path /usr/src -prune -o -iname '*prewarm*' -print 2>/dev/null || true; } | grep -v '^/usr/share/doc/prewarm$' | sort
    getent passwd prewarm || true
    getent group prewarm || true
}

main() {
    cd "$ROOT"
    [[ ${DOCKER_HOST:-} == unix://* && ${PREWARM_BROKER_URL:-} && ${PREWARM_TEST_RABBITMQCTL:-} ]] ||
        die "DOCKER_HOST (a local socket), PREWARM_BROKER_URL and PREWARM_TEST_RABBITMQCTL say where: see deploy/test.sh --shell"
    # The container's user has to get to what is in it.
    WORK=$(mktemp -d)
    chmod 755 "$WORK"
    trap clean_up EXIT
    trap 'exit 143' TERM INT HUP
    [[ ${1:-broker} != broker ]] || test_broker_configuration
    [[ ${1:-image} != image ]] || test_image
    [[ ${1:-package} != package ]] || test_package
}

main "$@"
