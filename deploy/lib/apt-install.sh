#!/usr/bin/env bash
# apt-install.sh PACKAGE…: installs Debian packages quietly, as root, and starts none of their services, now or at
# the next boot: prewarm's scripts run servers of their own, and must not leave others behind.
set -euo pipefail

LOG=$(mktemp)
POLICY=/usr/sbin/policy-rc.d
POLICY_IS_OURS=

# One at a time, so that nobody removes the policy file while another install relies on it.
exec 9</var/lib/dpkg
flock 9

cleanup() {
    [[ -z $POLICY_IS_OURS ]] || rm -f "$POLICY"
    rm -f "$LOG"
}
trap cleanup EXIT

# Debian's maintainer scripts ask this file before they start a service; 101 means 'don't'.
if [[ ! -e $POLICY ]]; then
    POLICY_IS_OURS=yes
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
fi

# Services that the machine has already are its owner's business.
services_here() {
    local unit
    for unit in docker.service docker.socket containerd.service rabbitmq-server.service epmd.service epmd.socket prometheus.service; do
        [[ -e /lib/systemd/system/$unit || -e /etc/systemd/system/$unit ]] && echo "$unit"
    done
    return 0
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" >"$LOG" 2>&1 9<&-
}

before=$(services_here)
# A new machine has no package lists, an old one stale lists: fetch them only when the first try fails.
if ! apt_install "$@"; then
    echo "           fetching package lists (apt-get update)"
    apt-get update -qq >>"$LOG" 2>&1 || true
    if ! apt_install "$@"; then
        tail -n 30 "$LOG" >&2
        echo "error: apt-get install $* failed (its last lines are above)" >&2
        exit 1
    fi
fi

# The policy file has kept them from starting now; this is for the next boot.
for unit in $(services_here); do
    [[ $'\n'$before$'\n' != *$'\n'$unit$'\n'* ]] || continue
    if command -v systemctl >/dev/null; then systemctl disable "$unit" >/dev/null 2>&1 || true; fi
    [[ ! -e /etc/init.d/${unit%.service} ]] || update-rc.d "${unit%.service}" disable >/dev/null 2>&1 || true
done
