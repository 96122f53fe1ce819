# shellcheck shell=bash
# Tools that pip and npm install, as a folder's requirements.txt and package-lock.json pin them.
#
# Sourced, not run, after common.sh. Needs python3 with venv, and npm.

# install_pinned WHAT PINNED INTO: installs what PINNED says into INTO, unless just that is there. WHAT is for the message.
install_pinned() {
    local what=$1 pinned=$2 into=$3 log=$3.log stamp
    stamp=$(cat "$pinned/requirements.txt" "$pinned/package-lock.json" "${BASH_SOURCE[0]}" | sha256sum)
    [[ ! -e $into/stamp || $(<"$into/stamp") != "$stamp" ]] || return 0
    rm -rf "$into"
    mkdir -p "$into"
    cp "$pinned/package.json" "$pinned/package-lock.json" "$into"
    {
        python3 -m venv "$into/venv"
        "$into/venv/bin/pip" install --no-deps --only-binary :all: --disable-pip-version-check -r "$pinned/requirements.txt"
        npm ci --prefix "$into" --no-audit --no-fund
    } >"$log" 2>&1 || {
        tail -n 15 "$log" >&2
        die "$what can't be installed (the last lines are above; all: $log)"
    }
    printf '%s\n' "$stamp" >"$into/stamp"
}
