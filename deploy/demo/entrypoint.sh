#!/bin/bash
# Clones REPO into a workspace, checks out BRANCH, runs COMMAND there, prints the outcome. Knows nothing of prewarm.
set -euo pipefail
: "${REPO:?names no git repository}" "${BRANCH:=main}" "${COMMAND:?names no command to run}"

workspace=$HOME/workspace
git clone --quiet --depth 1 --branch "$BRANCH" "$REPO" "$workspace"
cd "$workspace"
git log -1 --format="%h on $BRANCH: %s"

code=0
bash -c "$COMMAND" || code=$?
echo "outcome: '$COMMAND' ended with $code"
exit "$code"
