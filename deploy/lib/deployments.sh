#!/usr/bin/env bash
# Checks each file that deploys prewarm by its own tool; nothing of it is run. The tools are pinned in tests/deploy, and kept in target/.
# Needs python3 with venv, npm and systemd.
set -euo pipefail

# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/pinned.sh"

PINNED=$ROOT/tests/deploy
TOOLS=$TARGET_DIR/deployments
# Tenths; what systemd calls OK ends at 20.
EXPOSURE=15

FAULTS=0
# checked WHAT COMMAND…: says what the command says if it fails. A function runs to its end, so its own steps are put together by &&.
checked() {
    local what=$1 said
    shift
    said=$("$@" 2>&1) && return 0
    FAULTS=$((FAULTS + 1))
    printf '  %s:\n%s\n' "$what" "$said" >&2
}

yaml_files() { find deploy -name '*.yaml' -o -name '*.yml'; }
resources() { find deploy/kubernetes -name '*.yaml' ! -name kustomization.yaml; }
own_resources() { resources | xargs grep -LE '^apiVersion: (keda.sh|monitoring.coreos.com)/'; }

# The program and its manual page are where the package puts them; then the unit is all that may be wrong.
verify_unit() {
    local root=$TOOLS/root said
    rm -rf "$root" &&
        mkdir -p "$root"/{usr/bin,bin,etc/systemd/system} &&
        install -m 755 /bin/true "$root/usr/bin/prewarm" &&
        install -m 755 /bin/true "$root/bin/kill" &&
        cp -r /lib/systemd/system/. deploy/systemd/prewarm.service "$root/etc/systemd/system/" || return 1
    said=$(systemd-analyze verify --man=no --recursive-errors=no --root="$root" prewarm.service 2>&1) && [[ -z $said ]] && return 0
    printf '%s\n' "$said"
    return 1
}

# Both are applied to a root of their own, as systemd would at boot.
apply_users_and_files() {
    local root=$TOOLS/root
    rm -rf "$root" &&
        mkdir -p "$root/etc" &&
        systemd-sysusers --root="$root" - <deploy/systemd/sysusers.d/prewarm.conf &&
        grep -q '^prewarm:' "$root/etc/passwd" &&
        grep -q '^docker:' "$root/etc/group" &&
        systemd-tmpfiles --root="$root" --create - <deploy/systemd/tmpfiles.d/prewarm.conf &&
        [[ $(stat -c %a "$root/run/prewarm") == 3775 ]]
}

# What the permissions' script prints is what the users of compose.yaml have.
compose_permissions() {
    local role
    for role in worker publisher operator; do
        diff <(deploy/rabbitmq/permissions.sh --print "$role") \
            <("$TOOLS/venv/bin/python" -c 'import json, sys
for p in json.load(open("deploy/compose/definitions.json"))["permissions"]:
    if p["user"] == sys.argv[1]: print(p["configure"], p["write"], p["read"], sep="\n")' "$role") || return 1
    done
}

custom_resources() {
    local types=$TOOLS/resources.ts
    "$TOOLS/venv/bin/python" "$PINNED/resources.py" "$types" &&
        "$TOOLS/node_modules/.bin/tsc" --noEmit --strict --skipLibCheck --module nodenext --moduleResolution nodenext "$types"
}

main() {
    cd "$ROOT"
    install_pinned "what checks the deployments" "$PINNED" "$TOOLS"
    local bin=$TOOLS/venv/bin files
    checked "shellcheck" "$bin/shellcheck" -x deploy/*.sh deploy/*/*.sh .ci/run deploy/debian/scripts/*
    mapfile -t files < <(yaml_files)
    checked "yamllint" "$bin/yamllint" --strict -c "$PINNED/yamllint.yaml" "${files[@]}"
    checked "hadolint" "$bin/hadolint" --config "$PINNED/hadolint.yaml" deploy/Dockerfile deploy/demo/Dockerfile
    checked "compose" env DOCKER_GID=1 "$bin/docker-compose" -f deploy/compose.yaml config --quiet
    mapfile -t files < <(own_resources)
    checked "kubernetes-validate" "$bin/kubernetes-validate" --strict --quiet "${files[@]}"
    checked "custom resources" custom_resources
    checked "systemd-analyze verify" verify_unit
    checked "systemd-analyze security" systemd-analyze security --offline=true --threshold="$EXPOSURE" --no-pager deploy/systemd/prewarm.service
    checked "sysusers, tmpfiles" apply_users_and_files
    checked "permissions" compose_permissions
    ((FAULTS == 0)) || exit 1
}

main "$@"
