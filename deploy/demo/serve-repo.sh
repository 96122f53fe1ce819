#!/bin/bash
# Runs in a container of its own: makes a small git repository and serves it on git's own port, to the jobs.
# shellcheck disable=SC2016 # the repository's script expands these
set -euo pipefail

export HOME=/tmp
git config --global user.name demo
git config --global user.email demo@localhost
git config --global init.defaultBranch main

commit() { git add -A && git commit --quiet -m "$1"; }

mkdir -p /tmp/serve/demo && cd /tmp/serve/demo
git init --quiet
printf '#!/bin/sh\necho "2 + 2 = $((2 + 2))"\n' >check.sh
printf 'A repository to try prewarm with.\n' >README
commit 'First words'
git checkout --quiet -b feature
printf 'echo "6 * 7 = $((6 * 7))"\n' >>check.sh
commit 'One more check'
git checkout --quiet -b broken main
printf 'echo "this branch fails" >&2\nexit 3\n' >>check.sh
commit 'A check that fails'
git checkout --quiet main

exec git daemon --export-all --base-path=/tmp/serve --reuseaddr
