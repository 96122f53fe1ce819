# shellcheck shell=bash
# A Docker engine and a RabbitMQ node of our own, for one run. Sourced after common.sh.
#
# Everything that a run makes has its name from one slot number: the folder, the ports, the node's name, the cgroup. Runs side
# by side have different slots; a run that was killed with -9 leaves its folder, from which the next run knows what to clean.
# The engine lives in a network namespace of its own: its bridge, its firewall rules and its forwarding are nowhere else,
# disturb no Docker that the machine has already, and are gone with it. Containers reach each other, not the host.

SLOTS=16
RUN_DIR=        # folder of this run, once claimed
OWN_SERVERS=    # words 'engine', 'broker': those that we run, where we may be strict about what is in them
CLEANED=

# --- The slot ---

use_slot() {
    SLOT=$1
    RUN_DIR=${TMPDIR:-/tmp}/prewarm-servers-$SLOT
    CGROUP=prewarm-servers-$SLOT
    local base=$((26000 + SLOT * 20))
    EPMD_PORT=$base AMQP_PORT=$((base + 1)) DIST_PORT=$((base + 2)) HTTP_PORT=$((base + 3))
    CTL_PORT_MIN=$((base + 5)) CTL_PORT_MAX=$((base + 19))
}

# start_time_of PID: with the pid, this tells a process from a later one with the same number.
start_time_of() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    awk '{ print $20 }' <<<"${stat##*) }"
}

owner_is_alive() {
    local pid began
    read -r pid began <"$1/owner" 2>/dev/null || return 1
    [[ $(start_time_of "$pid") == "$began" ]]
}

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

slot_is_free() {
    [[ ! -e $RUN_DIR ]] &&
        port_is_free "$EPMD_PORT" && port_is_free "$AMQP_PORT" && port_is_free "$DIST_PORT" && port_is_free "$HTTP_PORT"
}

clean_after_killed_runs() {
    local slot
    for ((slot = 0; slot < SLOTS; slot++)); do
        use_slot "$slot"
        # Root may clean for everybody, others for themselves.
        if [[ ! -d $RUN_DIR ]] || [[ ! -O $RUN_DIR && $EUID != 0 ]] || owner_is_alive "$RUN_DIR"; then continue; fi
        say "Cleaning up after a run that was killed: $RUN_DIR"
        # After `||`, so that `set -e` is off: in a half-removed state any command may fail.
        remove_everything || warn "using another slot"
    done
}

claim_slot() {
    local slot tmp=${TMPDIR:-/tmp}
    ((${#tmp} <= 60)) || die "TMPDIR is too long for a socket's path (60 characters at most): $tmp"
    # The lock is on the folder itself: nothing to clean up, and released by the kernel if we die.
    exec 9<"$tmp"
    flock -w 120 9 || die "another run has held the lock on $tmp for two minutes"
    clean_after_killed_runs 9<&-
    for ((slot = 0; slot < SLOTS; slot++)); do
        use_slot "$slot"
        slot_is_free && break
        RUN_DIR=
    done
    [[ $RUN_DIR ]] || die "all $SLOTS slots are taken: see $tmp/prewarm-servers-*, and whether ports from 26000 are in use"
    mkdir -m 755 "$RUN_DIR"
    echo "$$ $(start_time_of $$)" >"$RUN_DIR/owner"
    exec 9<&-
}

# --- Starting ---

# daemon NAME COMMAND…: started apart from our terminal's Ctrl-C, since cleaning up needs it alive; found again by its environment.
daemon() { start_apart "$1" "" "${@:2}"; }
root_daemon() { start_apart "$1" "$( ((EUID == 0)) || echo sudo)" "${@:2}"; }
start_apart() {
    local name=$1 sudo=$2
    shift 2
    # shellcheck disable=SC2016 # expanded by that shell
    setsid ${sudo:+"$sudo"} env PREWARM_TEST_SERVER_OF="$RUN_DIR" sh -c 'echo $$ >"$0"; exec "$@"' "$RUN_DIR/$name.pid" "$@" \
        >"$RUN_DIR/$name.log" 2>&1 </dev/null &
    disown
}

daemon_is_alive() { as_root kill -0 "$(cat "$RUN_DIR/$1.pid" 2>/dev/null || echo none)" 2>/dev/null; }

# await NAME SECONDS COMMAND…: until the command succeeds; tells why when the server ended or the time is over.
await() {
    local name=$1 seconds=$2
    shift 2
    within 5 test -s "$RUN_DIR/$name.pid" || die "$name did not start"
    within "$seconds" answers_or_died "$name" "$@" && daemon_is_alive "$name" && return 0
    tail -n 15 "$RUN_DIR/$name.log" >&2
    daemon_is_alive "$name" || die "$name ended at once (its last lines are above)"
    die "$name is not up after $seconds s (its last lines are above)"
}
answers_or_died() {
    local name=$1
    shift
    "$@" >/dev/null 2>&1 || ! daemon_is_alive "$name"
}

start_engine() {
    local docker_dir=$RUN_DIR/docker settings='{}'
    mkdir "$docker_dir" "$docker_dir/client"
    # 20.10 writes a key into /etc/docker unless told where else; newer versions refuse the setting.
    [[ $(dockerd --version) != *"version 20.10."* ]] || settings="{\"deprecated-key-path\": \"$docker_dir/key.json\"}"
    echo "$settings" >"$docker_dir/daemon.json"

    # Our own containerd: dockerd would take the machine's, if there is one, and mix its containers with the machine's.
    printf 'disabled_plugins = ["io.containerd.grpc.v1.cri"]\noom_score = 0\n' >"$docker_dir/containerd.toml"
    # shellcheck disable=SC2016 # expanded by that shell
    root_daemon containerd unshare --net sh -c 'ip link set lo up && exec "$@"' sh \
        containerd --config "$docker_dir/containerd.toml" --address "$docker_dir/containerd.sock" \
        --root "$docker_dir/containerd" --state "$docker_dir/containerd-state"
    await containerd 20 test -S "$docker_dir/containerd.sock"

    root_daemon dockerd nsenter --net="/proc/$(cat "$RUN_DIR/containerd.pid")/ns/net" \
        dockerd --config-file "$docker_dir/daemon.json" --host "unix://$RUN_DIR/docker.sock" --group "$(id -g)" \
        --data-root "$docker_dir/data" --exec-root "$docker_dir/exec" --pidfile "$docker_dir/dockerd.pid" \
        --containerd "$docker_dir/containerd.sock" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$CGROUP"
    export DOCKER_HOST=unix://$RUN_DIR/docker.sock
    # The user's client settings (contexts, credentials) have no business here; the classic builder needs no plugin.
    export DOCKER_CONFIG=$docker_dir/client DOCKER_BUILDKIT=0
    await dockerd 60 docker version
    say "  $(docker version --format 'Docker {{.Server.Version}}'), $(docker info --format '{{.Driver}}, cgroup v{{.CgroupVersion}}'), $DOCKER_HOST"
}

# The environment of our node, for the server and for its tools; nothing is read from /etc/rabbitmq.
write_broker_environment() {
    cat >"$RUN_DIR/rabbitmq/environment" <<END
export HOME=$RUN_DIR/rabbitmq
export RABBITMQ_CONF_ENV_FILE=$RUN_DIR/rabbitmq/none
export RABBITMQ_NODENAME=prewarm$SLOT@localhost
export RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
export RABBITMQ_NODE_PORT=$AMQP_PORT
export RABBITMQ_DIST_PORT=$DIST_PORT
export RABBITMQ_CTL_DIST_PORT_MIN=$CTL_PORT_MIN
export RABBITMQ_CTL_DIST_PORT_MAX=$CTL_PORT_MAX
export RABBITMQ_CONFIG_FILE=$RUN_DIR/rabbitmq/rabbitmq.conf
export RABBITMQ_CONFIG_FILES=$RUN_DIR/rabbitmq/none
export RABBITMQ_ADVANCED_CONFIG_FILE=$RUN_DIR/rabbitmq/advanced.config
export RABBITMQ_ENABLED_PLUGINS_FILE=$RUN_DIR/rabbitmq/enabled_plugins
export RABBITMQ_MNESIA_BASE=$RUN_DIR/rabbitmq/mnesia
export RABBITMQ_LOG_BASE=$RUN_DIR/rabbitmq/log
export RABBITMQ_PID_FILE=$RUN_DIR/rabbitmq/server.pid
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}'
export ERL_EPMD_PORT=$EPMD_PORT ERL_EPMD_ADDRESS=127.0.0.1
END
}

start_broker() {
    local dir=$RUN_DIR/rabbitmq program
    mkdir "$dir" "$dir/mnesia" "$dir/log"
    echo '[].' >"$dir/enabled_plugins"
    printf '%s\n' "listeners.tcp.local = 127.0.0.1:$AMQP_PORT" 'disk_free_limit.absolute = 50MB' \
        'vm_memory_high_watermark.absolute = 1GB' >"$dir/rabbitmq.conf"
    write_broker_environment
    # Debian's wrappers insist on root or the user rabbitmq; what they wrap runs as anybody.
    for program in rabbitmq-server rabbitmqctl; do
        printf '#!/bin/sh\n. %q\nexec /usr/lib/rabbitmq/bin/%s "$@"\n' "$dir/environment" "$program" >"$RUN_DIR/$program"
        chmod 755 "$RUN_DIR/$program"
    done
    daemon rabbitmq "$RUN_DIR/rabbitmq-server"
    export PREWARM_BROKER_URL="amqp://guest:guest@127.0.0.1:$AMQP_PORT/%2f"
    export PREWARM_TEST_RABBITMQCTL=$RUN_DIR/rabbitmqctl
    await rabbitmq 90 grep -qs 'Server startup complete' "$dir/log/prewarm$SLOT@localhost.log"
    say "  RabbitMQ $(sed -n 's/.*Starting RabbitMQ \([0-9.]*\).*/\1/p' "$dir/log/prewarm$SLOT@localhost.log" | head -n 1), $PREWARM_BROKER_URL"
}

# start_servers: engine and broker, unless the environment names existing ones.
start_servers() {
    if [[ ${DOCKER_HOST:-} ]]; then
        export DOCKER_BUILDKIT=0
        docker version >/dev/null || die "no engine answers at DOCKER_HOST=$DOCKER_HOST: correct it, or unset it to have one started"
        say "Using the engine at DOCKER_HOST=$DOCKER_HOST"
    else
        OWN_SERVERS+=" engine"
        step "Starting a Docker engine of our own" start_engine
    fi
    if [[ ${PREWARM_BROKER_URL:-} ]]; then
        # Without its credentials: this ends up in a CI's log.
        say "Using the broker at PREWARM_BROKER_URL=${PREWARM_BROKER_URL/:\/\/*@/://…@}"
    else
        OWN_SERVERS+=" broker"
        step "Starting a RabbitMQ node of our own" start_broker
    fi
}

# --- Stopping ---

clean_up_on_exit() {
    trap 'on_exit $?' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# The exit code is the work's own, unless that was good and cleaning was not.
on_exit() {
    local status=$1
    set +e
    # A second Ctrl-C must not stop the cleaning; every wait in it is bounded.
    trap '' HUP INT TERM
    end_work
    clean_up || ((status != 0)) || status=1
    exit "$status"
}

# at_clean_up COMMAND: to be run first, while the servers are still up; the last one named comes first.
AT_CLEAN_UP=()
at_clean_up() { AT_CLEAN_UP=("$1" "${AT_CLEAN_UP[@]}"); }

# clean_up: idempotent.
clean_up() {
    [[ $RUN_DIR && ! $CLEANED ]] || return 0
    CLEANED=yes
    local command began=$EPOCHREALTIME
    for command in "${AT_CLEAN_UP[@]}"; do "$command"; done
    say "Stopping servers, removing $RUN_DIR …"
    remove_everything || return 1
    say "  nothing left, in $(seconds_since "$began") s"
}

# Everything that carries this slot's name, whatever state it is in. Says what it could not remove.
remove_everything() {
    [[ ! -S $RUN_DIR/docker.sock ]] || empty_engine
    stop_daemon dockerd
    stop_daemon containerd
    # The broker's data goes with it, so it need not close its books. This ends epmd and the containers' shims too.
    kill_all "$(processes_with "PREWARM_TEST_SERVER_OF=$RUN_DIR")"
    kill_all "$(processes_with "PREWARM_TEST_WORK_OF=$RUN_DIR")"
    kill_all "$(processes_in_cgroup)"
    unmount_below "$RUN_DIR"
    within 5 remove_cgroups
    remove_fixed_folders
    as_root rm -rf --one-file-system "$RUN_DIR"
    nothing_is_left
}

# Made by engine and shims whatever their options say. Not empty: somebody else's.
remove_fixed_folders() {
    [[ -S /run/containerd/containerd.sock ]] || as_root rmdir /run/containerd/s /run/containerd 2>/dev/null
    [[ -S /run/docker.sock ]] || as_root rmdir /run/docker/plugins /run/docker 2>/dev/null
    return 0
}

owns() { [[ " $OWN_SERVERS " == *" $1 "* ]]; }

nothing_is_left() {
    local left=()
    [[ ! -e $RUN_DIR ]] || left+=("folder $RUN_DIR")
    ! grep -qF " $RUN_DIR/" /proc/self/mounts || left+=("mounts below $RUN_DIR")
    [[ -z $(cgroup_folders) ]] || left+=("cgroup $CGROUP")
    [[ -z $(processes_with "PREWARM_TEST_SERVER_OF=$RUN_DIR") ]] || left+=("processes $(processes_with "PREWARM_TEST_SERVER_OF=$RUN_DIR" | xargs)")
    ((${#left[@]} == 0)) && return 0
    say "error: left behind: $(printf '%s; ' "${left[@]}")remove by hand" >&2
    return 1
}

# Containers first: dockerd would ask each to stop, and wait.
empty_engine() {
    local containers
    local -x DOCKER_CONFIG=$RUN_DIR/docker/client
    containers=$(timeout 20 docker --host "unix://$RUN_DIR/docker.sock" ps -aq 2>/dev/null) || return 0
    # shellcheck disable=SC2086 # one word an id
    [[ -z $containers ]] || timeout 60 docker --host "unix://$RUN_DIR/docker.sock" rm -f $containers >/dev/null 2>&1
    return 0
}

# A pid file may outlive its process, and the number have a new owner: ask the environment too.
stop_daemon() {
    local pid
    pid=$(cat "$RUN_DIR/$1.pid" 2>/dev/null) || return 0
    processes_with "PREWARM_TEST_SERVER_OF=$RUN_DIR" | grep -qx "$pid" || return 0
    as_root kill -TERM "$pid" 2>/dev/null
    within 15 process_is_gone "$pid" || as_root kill -KILL "$pid" 2>/dev/null
    return 0
}

kill_all() {
    local pid
    for pid in $1; do as_root kill -KILL "$pid" 2>/dev/null; done
    for pid in $1; do within 5 process_is_gone "$pid" || warn "process $pid does not end"; done
    return 0
}

cgroup_folders() { find /sys/fs/cgroup -maxdepth 2 -type d -name "$CGROUP" 2>/dev/null; }
processes_in_cgroup() { cgroup_folders | xargs -r -I{} find {} -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u; }
remove_cgroups() {
    local folder
    for folder in $(cgroup_folders); do as_root find "$folder" -depth -type d -exec rmdir {} \; 2>/dev/null; done
    [[ -z $(cgroup_folders) ]]
}

unmount_below() {
    local target
    awk -v below="$1/" 'index($2, below) == 1 { print $2 }' /proc/self/mounts | tac | while read -r target; do
        # The kernel writes a blank as \040.
        as_root umount -l "$(printf '%b' "$target")" 2>/dev/null
    done
    return 0
}
