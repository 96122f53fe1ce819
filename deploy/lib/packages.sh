# shellcheck shell=bash
# Brings a bare Debian to what the scripts need. Sourced after common.sh.

MISSING_PACKAGES=()
MISSING_REASONS=()

# need FILE-OR-COMMAND PACKAGE WHY: notes the package unless the file or command is there.
need() {
    if [[ $1 == /* ]]; then [[ -e $1 ]] && return 0; else command -v "$1" >/dev/null && return 0; fi
    MISSING_PACKAGES+=("$2")
    MISSING_REASONS+=("$2 ($3)")
}

need_rust() {
    command -v cargo >/dev/null || PATH="$PATH:$HOME/.cargo/bin"
    command -v cargo >/dev/null || die "cargo is not in PATH: install Rust (rustup) first, then run this again"
    need cc gcc "links Rust programs, builds the test images' static program"
}

need_servers() {
    if [[ ${DOCKER_HOST:-} ]]; then
        need docker docker.io "client for the engine at DOCKER_HOST"
    else
        need dockerd docker.io "the container engine"
        need iptables iptables "the container engine's networks"
        need ip iproute2 "the container engine's network namespace"
        need containerd containerd "the container engine's runtime"
        need docker docker-cli "the container engine's client"
    fi
    [[ ${PREWARM_BROKER_URL:-} ]] ||
        need /usr/lib/rabbitmq/bin/rabbitmq-server rabbitmq-server "the message broker"
}

need_images() {
    need busybox busybox-static "contents of a test image"
    need debootstrap debootstrap "contents of the Debian image"
    need /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring "checks what debootstrap loads"
}

# What the publishers' programs in tests/publishers run on; their clients are pinned there.
need_publishers() {
    need python3 python3 "runs publishers' programs"
    # Debian's python3 has the module without what it needs.
    python3 -c 'import ensurepip' 2>/dev/null || need /nonexistent python3-venv "holds their Python clients"
    need node nodejs "runs publishers' programs"
    need npm npm "gets their Node client"
    need amqp-publish amqp-tools "publishes from a shell"
    need jq jq "reads replies in a shell"
}

need_prometheus() { need promtool prometheus "scrapes workers and broker in tests, checks and tests the rules"; }
# What checks, builds and installs what is in deploy/; more is pinned in tests/deploy.
need_deployments() {
    need systemd-analyze systemd "checks the unit"
    need deluser adduser "removes the package's user"
    need dpkg-shlibdeps dpkg-dev "finds what the package depends on"
    need strip binutils "makes programs smaller"
    need nsenter util-linux "reaches containers' networks"
}

# What shows the worker's page in the tests.
need_browser() {
    need chromium chromium "shows the worker's page"
    need chromedriver chromium-driver "tells the browser what to do"
}

install_missing() {
    ((${#MISSING_PACKAGES[@]})) || return 0
    command -v apt-get >/dev/null ||
        die "this is no Debian: install what does the work of these packages yourself: ${MISSING_PACKAGES[*]}"
    # Debian 13 has the client apart from docker.io; Debian 12 has it inside.
    if [[ " ${MISSING_PACKAGES[*]} " == *" docker-cli "* ]] && ! apt-cache show docker-cli >/dev/null 2>&1; then
        MISSING_PACKAGES=("${MISSING_PACKAGES[@]/#docker-cli/docker.io}")
    fi
    local reason
    for reason in "${MISSING_REASONS[@]}"; do say "  missing: $reason"; done
    step "Installing ${#MISSING_PACKAGES[@]} Debian packages (they stay installed; their services are not started)" \
        as_root bash "$ROOT/deploy/lib/apt-install.sh" "${MISSING_PACKAGES[@]}"
    MISSING_PACKAGES=()
}
